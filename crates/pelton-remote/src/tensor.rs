//! Columns as tensors and back: the Open Inference Protocol's shapes and data types.
//!
//! The first dimension is the rows. A scalar column is `[rows, 1]`; a list column has its length behind the rows, which must be the same
//! for all rows of a call; fixed-size lists in one another have a dimension each.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::OffsetBuffer;
use arrow_schema::DataType;
use pelton_core::{Error, Result};

/// A column as a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<i64>,
    pub(crate) values: Values,
}

/// A tensor's elements, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Uint(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Values::Bool(v) => v.len(),
            Values::Int(v) => v.len(),
            Values::Uint(v) => v.len(),
            Values::F32(v) => v.len(),
            Values::F64(v) => v.len(),
            Values::Bytes(v) => v.len(),
        }
    }
}

/// The protocol's name for a column's elements; None: it has none.
pub(crate) fn datatype(column: &DataType) -> Option<&'static str> {
    Some(match column {
        DataType::Boolean => "BOOL",
        DataType::Int8 => "INT8",
        DataType::Int16 => "INT16",
        DataType::Int32 => "INT32",
        DataType::Int64 => "INT64",
        DataType::UInt8 => "UINT8",
        DataType::UInt16 => "UINT16",
        DataType::UInt32 => "UINT32",
        DataType::UInt64 => "UINT64",
        DataType::Float32 => "FP32",
        DataType::Float64 => "FP64",
        DataType::Utf8 | DataType::Binary => "BYTES",
        DataType::List(inner) => return leaf(inner.data_type()),
        DataType::FixedSizeList(..) => return leaf(column),
        _ => return None,
    })
}

/// The same below a list: fixed-size lists and scalars.
fn leaf(column: &DataType) -> Option<&'static str> {
    match column {
        DataType::FixedSizeList(inner, _) => leaf(inner.data_type()),
        DataType::List(_) => None,
        scalar => datatype(scalar),
    }
}

/// A column as a tensor.
pub(crate) fn of_column(name: &str, column: &dyn Array) -> Result<Tensor> {
    let rows = column.len();
    let mut shape = vec![rows as i64];
    let mut values: ArrayRef = column.slice(0, rows);
    let nulls = |array: &dyn Array| match array.null_count() {
        0 => Ok(()),
        n => Err(Error::invalid(format!("column `{name}` holds {n} nulls, and a tensor cannot"))),
    };
    loop {
        nulls(values.as_ref())?;
        values = match values.data_type() {
            DataType::List(_) => {
                let list = values.as_list::<i32>();
                let mut lengths = list.offsets().lengths();
                let first = lengths.next().unwrap_or(0);
                if let Some(other) = lengths.find(|n| *n != first) {
                    return Err(Error::invalid(format!(
                        "column `{name}` holds lists of {first} and of {other} elements, which make no tensor together; set `batch.rows` to 1"
                    )));
                }
                shape.push(first as i64);
                let (from, to) = (list.offsets()[0] as usize, list.offsets()[list.len()] as usize);
                list.values().slice(from, to - from)
            }
            DataType::FixedSizeList(_, n) => {
                let (list, n) = (values.as_fixed_size_list(), *n as usize);
                shape.push(n as i64);
                list.values().slice(list.offset() * n, list.len() * n)
            }
            _ => break,
        };
    }
    if shape.len() == 1 {
        shape.push(1);
    }
    macro_rules! numbers {
        ($arrow:ty, $values:ident) => {
            Values::$values(values.as_primitive::<$arrow>().values().iter().map(|v| (*v).into()).collect())
        };
    }
    let values = match values.data_type() {
        DataType::Boolean => Values::Bool(values.as_boolean().values().iter().collect()),
        DataType::Int8 => numbers!(Int8Type, Int),
        DataType::Int16 => numbers!(Int16Type, Int),
        DataType::Int32 => numbers!(Int32Type, Int),
        DataType::Int64 => numbers!(Int64Type, Int),
        DataType::UInt8 => numbers!(UInt8Type, Uint),
        DataType::UInt16 => numbers!(UInt16Type, Uint),
        DataType::UInt32 => numbers!(UInt32Type, Uint),
        DataType::UInt64 => numbers!(UInt64Type, Uint),
        DataType::Float32 => numbers!(Float32Type, F32),
        DataType::Float64 => numbers!(Float64Type, F64),
        DataType::Utf8 => {
            Values::Bytes(values.as_string::<i32>().iter().flatten().map(|s| s.as_bytes().to_vec()).collect())
        }
        DataType::Binary => {
            Values::Bytes(values.as_binary::<i32>().iter().flatten().map(<[u8]>::to_vec).collect())
        }
        other => return Err(Error::invalid(format!("column `{name}` holds {other}, which is no tensor's"))),
    };
    Ok(Tensor { shape, values })
}

/// A tensor as a column of this type with so many rows. An error says in which way it does not fit.
pub(crate) fn to_column(tensor: Tensor, column: &DataType, rows: usize) -> Result<ArrayRef> {
    let Tensor { shape, values } = tensor;
    let misfit = |what: String| Err(Error::protocol(format!("shape {shape:?} {what}")));
    if shape.iter().any(|n| *n < 0) || shape.first().copied() != Some(rows as i64) {
        return misfit(format!("for {rows} rows"));
    }
    let size = shape.iter().try_fold(1i64, |product, n| product.checked_mul(*n));
    if size != Some(values.len() as i64) {
        return misfit(format!("for {} elements", values.len()));
    }
    let each = values.len().checked_div(rows).unwrap_or(0);
    match column {
        DataType::List(field) => {
            let inner = per_element(field.data_type());
            if inner == 0 || !each.is_multiple_of(inner) {
                return misfit(format!("does not fit a column of {column}"));
            }
            let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(each / inner, rows));
            let elements = build(values, field.data_type())?;
            Ok(Arc::new(ListArray::try_new(field.clone(), offsets, elements, None)?))
        }
        other => {
            if rows > 0 && per_element(other) != each {
                return misfit(format!("does not fit a column of {column}"));
            }
            build(values, other)
        }
    }
}

/// Scalars in one value of this type.
fn per_element(column: &DataType) -> usize {
    match column {
        DataType::FixedSizeList(inner, n) => *n as usize * per_element(inner.data_type()),
        _ => 1,
    }
}

fn build(values: Values, column: &DataType) -> Result<ArrayRef> {
    if let DataType::FixedSizeList(field, n) = column {
        let elements = build(values, field.data_type())?;
        return Ok(Arc::new(FixedSizeListArray::try_new(field.clone(), *n, elements, None)?));
    }
    let misfit =
        |found: &str| Error::protocol(format!("holds {found}, which do not fit a column of {column}"));
    macro_rules! integers {
        ($array:ty, $native:ty) => {{
            let all: Option<Vec<$native>> = match values {
                Values::Int(v) => v.into_iter().map(|n| <$native>::try_from(n).ok()).collect(),
                Values::Uint(v) => v.into_iter().map(|n| <$native>::try_from(n).ok()).collect(),
                _ => None,
            };
            Arc::new(<$array>::from(all.ok_or_else(|| misfit("other numbers"))?)) as ArrayRef
        }};
    }
    macro_rules! floats {
        ($array:ty, $native:ty) => {{
            let all: Vec<$native> = match values {
                Values::F32(v) => v.into_iter().map(|n| n as $native).collect(),
                Values::F64(v) => v.into_iter().map(|n| n as $native).collect(),
                // JSON has no point in a whole number.
                Values::Int(v) => v.into_iter().map(|n| n as $native).collect(),
                Values::Uint(v) => v.into_iter().map(|n| n as $native).collect(),
                _ => return Err(misfit("no numbers")),
            };
            Arc::new(<$array>::from(all)) as ArrayRef
        }};
    }
    Ok(match column {
        DataType::Boolean => match values {
            Values::Bool(v) => Arc::new(BooleanArray::from(v)),
            _ => return Err(misfit("no truth values")),
        },
        DataType::Int8 => integers!(Int8Array, i8),
        DataType::Int16 => integers!(Int16Array, i16),
        DataType::Int32 => integers!(Int32Array, i32),
        DataType::Int64 => integers!(Int64Array, i64),
        DataType::UInt8 => integers!(UInt8Array, u8),
        DataType::UInt16 => integers!(UInt16Array, u16),
        DataType::UInt32 => integers!(UInt32Array, u32),
        DataType::UInt64 => integers!(UInt64Array, u64),
        DataType::Float32 => floats!(Float32Array, f32),
        DataType::Float64 => floats!(Float64Array, f64),
        DataType::Binary => match values {
            Values::Bytes(v) => Arc::new(BinaryArray::from_iter_values(v)),
            _ => return Err(misfit("no bytes")),
        },
        DataType::Utf8 => match values {
            Values::Bytes(v) => {
                let texts: Result<Vec<String>, _> = v.into_iter().map(String::from_utf8).collect();
                Arc::new(StringArray::from(texts.map_err(|_| misfit("bytes that are no UTF-8"))?))
            }
            _ => return Err(misfit("no bytes")),
        },
        _ => return Err(misfit("values")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_schema::Field;

    fn fixed(inner: DataType, n: i32) -> DataType {
        DataType::FixedSizeList(Arc::new(Field::new("item", inner, false)), n)
    }

    fn list(inner: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", inner, false)))
    }

    fn f32s(n: usize) -> Values {
        Values::F32((0..n).map(|i| i as f32).collect())
    }

    #[test]
    fn columns_become_tensors_and_come_back() {
        use DataType::*;
        for (column, shape, values) in [
            (Float32, vec![4, 1], f32s(4)),
            (Boolean, vec![2, 1], Values::Bool(vec![true, false])),
            (Int8, vec![2, 1], Values::Int(vec![-1, 7])),
            (UInt64, vec![1, 1], Values::Uint(vec![u64::MAX])),
            (Utf8, vec![2, 1], Values::Bytes(vec![b"a".to_vec(), b"".to_vec()])),
            (Binary, vec![1, 1], Values::Bytes(vec![vec![0xff]])),
            (fixed(Float32, 3), vec![2, 3], f32s(6)),
            (fixed(fixed(Float32, 3), 2), vec![2, 2, 3], f32s(12)),
            (list(Float32), vec![2, 3], f32s(6)),
            (list(fixed(Float32, 2)), vec![2, 3, 2], f32s(12)),
        ] {
            let tensor = Tensor { shape, values };
            let rows = tensor.shape[0] as usize;
            let array = to_column(tensor.clone(), &column, rows).unwrap();
            assert_eq!((array.len(), array.data_type()), (rows, &column));
            assert_eq!(of_column("c", array.as_ref()).unwrap(), tensor, "{column}");
            // A part of it, as requests are parts of batches.
            let part = of_column("c", array.slice(rows - 1, 1).as_ref()).unwrap();
            assert_eq!((part.shape[0], part.values.len()), (1, tensor.values.len() / rows), "{column}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        use DataType::*;
        for (column, shape, values, expected) in [
            (Float32, vec![3, 1], f32s(3), "for 2 rows"),
            (Float32, vec![2, 2], f32s(4), "does not fit"),
            (Float32, vec![2, 1], f32s(3), "for 3 elements"),
            (Float32, vec![2, i64::MAX, i64::MAX], f32s(2), "for 2 elements"),
            (fixed(Float32, 4), vec![2, 3], f32s(6), "does not fit"),
            (Int8, vec![2, 1], Values::Int(vec![1, 300]), "other numbers"),
            (Utf8, vec![2], f32s(2), "no bytes"),
            (Utf8, vec![2], Values::Bytes(vec![vec![0xff], vec![]]), "UTF-8"),
        ] {
            let error = to_column(Tensor { shape, values }, &column, 2).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let ragged = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), Some(vec![])]);
        assert!(of_column("c", &ragged).unwrap_err().to_string().contains("`batch.rows`"));
        let nulls = Int32Array::from(vec![Some(1), None]);
        assert!(of_column("c", &nulls).unwrap_err().to_string().contains("nulls"));
    }
}
