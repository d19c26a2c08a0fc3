//! Keys of rows: what tells whose order is kept.

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use pelton_core::id::stable_hash;

/// Whether a column of this type can hold keys.
pub(crate) fn can_be(data_type: &DataType) -> bool {
    use DataType::{Int32, Int64, UInt32, UInt64, Utf8};
    matches!(data_type, Utf8 | Int32 | Int64 | UInt32 | UInt64)
}

/// The key of each row; rows without one share theirs. Of two texts that hash alike, one waits for the other, which does no harm.
pub(crate) fn of(column: &ArrayRef) -> Vec<u64> {
    let key = |row: usize| match column.data_type() {
        _ if column.is_null(row) => 0,
        DataType::Utf8 => stable_hash(column.as_string::<i32>().value(row)),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row) as u64,
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as u64,
        DataType::UInt32 => u64::from(column.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row),
        _ => 0,
    };
    (0..column.len()).map(key).collect()
}

/// One value as JSON, which no other value of the column is written as. None where there is none.
pub(crate) fn show(column: &ArrayRef, row: usize) -> Option<String> {
    match column.data_type() {
        _ if column.is_null(row) => None,
        DataType::Utf8 => Some(serde_json::Value::from(column.as_string::<i32>().value(row)).to_string()),
        DataType::Int32 => Some(column.as_primitive::<Int32Type>().value(row).to_string()),
        DataType::Int64 => Some(column.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::UInt32 => Some(column.as_primitive::<UInt32Type>().value(row).to_string()),
        DataType::UInt64 => Some(column.as_primitive::<UInt64Type>().value(row).to_string()),
        _ => None,
    }
}
