//! Rows as the server's binary `COPY` format (PostgreSQL's documentation, "COPY", "Binary Format").

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use pelton_core::{Error, Result};

use crate::columns::{Column, Element, Shape};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const END: [u8; 2] = (-1i16).to_be_bytes();
const NOTHING: [u8; 4] = (-1i32).to_be_bytes();
/// From 1970, which Arrow counts from, to 2000, which the server does.
const DAYS: i32 = 10_957;
const MICROSECONDS: i64 = DAYS as i64 * 86_400_000_000;

/// Why a value has no place in its column.
type Wrong = String;
/// Appends a value's bytes, without their length.
type Put = Box<dyn Fn(usize, &mut Vec<u8>) -> Result<(), Wrong> + Send>;

pub(crate) fn begin(to: &mut Vec<u8>) {
    to.extend_from_slice(SIGNATURE);
}

pub(crate) fn end(to: &mut Vec<u8>) {
    to.extend_from_slice(&END);
}

/// One batch, row by row.
pub(crate) struct Rows<'a> {
    columns: Vec<(&'a str, ArrayRef, Put)>,
    /// What each row begins with: how many fields, and those that all have in common.
    head: Vec<u8>,
}

impl<'a> Rows<'a> {
    /// `part` and `generation` come before the columns.
    pub(crate) fn new(
        columns: &'a [Column],
        rows: &RecordBatch,
        part: &str,
        generation: u64,
    ) -> Result<Rows<'a>> {
        let mut head = Vec::new();
        let count =
            i16::try_from(columns.len() + 2).map_err(|_| Error::invalid("there are too many columns"))?;
        head.extend_from_slice(&count.to_be_bytes());
        field(&mut head, |to| append(to, part.as_bytes())).map_err(Error::internal)?;
        field(&mut head, |to| append(to, &(generation as i64).to_be_bytes())).map_err(Error::internal)?;
        let columns = columns.iter().zip(rows.columns()).map(|(column, array)| {
            let put = put(column, array).ok_or_else(|| {
                Error::internal(format!("column `{}` came as {}", column.name, array.data_type()))
            })?;
            Ok((column.name.as_str(), array.clone(), put))
        });
        Ok(Rows { columns: columns.collect::<Result<_>>()?, head })
    }

    pub(crate) fn put(&self, row: usize, to: &mut Vec<u8>) -> Result<()> {
        to.extend_from_slice(&self.head);
        for (name, array, put) in &self.columns {
            if array.is_null(row) {
                to.extend_from_slice(&NOTHING);
            } else {
                field(to, |to| put(row, to)).map_err(|why| Error::user(format!("column `{name}`: {why}")))?;
            }
        }
        Ok(())
    }
}

fn append(to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Wrong> {
    to.extend_from_slice(bytes);
    Ok(())
}

/// A value behind its length.
fn field(to: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Wrong>) -> Result<(), Wrong> {
    let at = to.len();
    to.extend_from_slice(&[0; 4]);
    put(to)?;
    let length = i32::try_from(to.len() - at - 4).map_err(|_| "a value is larger than 1 GiB".to_owned())?;
    to[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn put(column: &Column, array: &ArrayRef) -> Option<Put> {
    let of = match array.data_type() {
        DataType::List(_) => {
            let lists = array.as_list::<i32>().clone();
            let values = lists.values().clone();
            Some((
                values,
                Box::new(move |i| (lists.value_offsets()[i] as usize, lists.value_length(i) as usize))
                    as Span,
            ))
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>().clone();
            let values = lists.values().clone();
            Some((
                values,
                Box::new(move |i| (lists.value_offsets()[i] as usize, lists.value_length(i) as usize))
                    as Span,
            ))
        }
        DataType::FixedSizeList(..) => {
            let lists = array.as_fixed_size_list().clone();
            let (values, length) = (lists.values().clone(), lists.value_length() as usize);
            Some((values, Box::new(move |i| (lists.value_offset(i) as usize, length)) as Span))
        }
        _ => None,
    };
    match (column.shape, of) {
        (Shape::One, None) => element(column.element, array),
        (Shape::Array(oid), Some((values, span))) => {
            let put = element(column.element, &values)?;
            Some(Box::new(move |row, to| put_array(&values, &put, oid, span(row), to)))
        }
        (Shape::Vector, Some((values, span))) => {
            let put = element(column.element, &values)?;
            Some(Box::new(move |row, to| put_vector(&values, &put, span(row), to)))
        }
        _ => None,
    }
}

/// Where a list's elements begin, and how many they are.
type Span = Box<dyn Fn(usize) -> (usize, usize) + Send>;

fn put_array(
    values: &ArrayRef,
    put: &Put,
    oid: u32,
    (first, count): (usize, usize),
    to: &mut Vec<u8>,
) -> Result<(), Wrong> {
    let holes = (first..first + count).any(|i| values.is_null(i));
    to.extend_from_slice(&i32::from(count > 0).to_be_bytes());
    to.extend_from_slice(&i32::from(holes).to_be_bytes());
    to.extend_from_slice(&oid.to_be_bytes());
    if count > 0 {
        let count = i32::try_from(count).map_err(|_| "a list is too long".to_owned())?;
        to.extend_from_slice(&count.to_be_bytes());
        to.extend_from_slice(&1i32.to_be_bytes());
    }
    for i in first..first + count {
        if values.is_null(i) {
            to.extend_from_slice(&NOTHING);
        } else {
            field(to, |to| put(i, to))?;
        }
    }
    Ok(())
}

fn put_vector(
    values: &ArrayRef,
    put: &Put,
    (first, count): (usize, usize),
    to: &mut Vec<u8>,
) -> Result<(), Wrong> {
    let dimensions =
        i16::try_from(count).map_err(|_| format!("{count} dimensions are too many for a vector"))?;
    to.extend_from_slice(&dimensions.to_be_bytes());
    to.extend_from_slice(&[0; 2]);
    for i in first..first + count {
        if values.is_null(i) {
            return Err("a vector has no place for a null".to_owned());
        }
        put(i, to)?;
    }
    Ok(())
}

fn element(element: Element, array: &ArrayRef) -> Option<Put> {
    match element {
        Element::Bool => {
            let bits = array.as_boolean_opt()?.clone();
            Some(Box::new(move |i, to| append(to, &[u8::from(bits.value(i))])))
        }
        Element::Int2 => integer(array, |n| i16::try_from(n).ok().map(i16::to_be_bytes)),
        Element::Int4 => integer(array, |n| i32::try_from(n).ok().map(i32::to_be_bytes)),
        Element::Int8 => integer(array, |n| i64::try_from(n).ok().map(i64::to_be_bytes)),
        Element::Float4 => {
            let floats = array.as_primitive_opt::<Float32Type>()?.clone();
            Some(Box::new(move |i, to| append(to, &floats.value(i).to_be_bytes())))
        }
        Element::Float8 => match array.data_type() {
            DataType::Float32 => {
                let floats = array.as_primitive::<Float32Type>().clone();
                Some(Box::new(move |i, to| append(to, &f64::from(floats.value(i)).to_be_bytes())))
            }
            _ => {
                let floats = array.as_primitive_opt::<Float64Type>()?.clone();
                Some(Box::new(move |i, to| append(to, &floats.value(i).to_be_bytes())))
            }
        },
        Element::Text => text(array, false),
        Element::Jsonb => text(array, true),
        Element::Bytea => bytes(array),
        Element::Date => {
            let days = array.as_primitive_opt::<Date32Type>()?.clone();
            Some(Box::new(move |i, to| {
                let day = days.value(i).checked_sub(DAYS).ok_or("a date is out of range")?;
                append(to, &day.to_be_bytes())
            }))
        }
        Element::Timestamp | Element::Timestamptz => {
            let microseconds = microseconds(array)?;
            Some(Box::new(move |i, to| {
                let since = microseconds(i).and_then(|t| t.checked_sub(MICROSECONDS));
                // The two ends stand for infinity.
                let since =
                    since.filter(|t| ![i64::MIN, i64::MAX].contains(t)).ok_or("a time is out of range")?;
                append(to, &since.to_be_bytes())
            }))
        }
    }
}

fn integer<const N: usize>(
    array: &ArrayRef,
    bytes: impl Fn(i128) -> Option<[u8; N]> + Send + 'static,
) -> Option<Put> {
    macro_rules! of {
        ($($kind:ident => $native:ty),*) => {
            match array.data_type() {
                $(DataType::$kind => {
                    let numbers = array.as_primitive::<$native>().clone();
                    Some(Box::new(move |i, to: &mut Vec<u8>| {
                        let n = numbers.value(i);
                        let bytes = bytes(i128::from(n)).ok_or_else(|| format!("{n} is too large for its type"))?;
                        to.extend_from_slice(&bytes);
                        Ok(())
                    }))
                })*
                _ => None,
            }
        };
    }
    of!(
        Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type,
        UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type, UInt64 => UInt64Type
    )
}

fn text(array: &ArrayRef, jsonb: bool) -> Option<Put> {
    let put = move |text: &str, to: &mut Vec<u8>| {
        if text.contains('\0') {
            return Err("a text holds a NUL character, which PostgreSQL cannot store".to_owned());
        }
        if jsonb {
            // The version of the format.
            to.push(1);
        }
        to.extend_from_slice(text.as_bytes());
        Ok(())
    };
    Some(match array.data_type() {
        DataType::Utf8 => {
            let texts = array.as_string::<i32>().clone();
            Box::new(move |i, to| put(texts.value(i), to))
        }
        DataType::LargeUtf8 => {
            let texts = array.as_string::<i64>().clone();
            Box::new(move |i, to| put(texts.value(i), to))
        }
        DataType::Utf8View => {
            let texts = array.as_string_view().clone();
            Box::new(move |i, to| put(texts.value(i), to))
        }
        _ => return None,
    })
}

fn bytes(array: &ArrayRef) -> Option<Put> {
    Some(match array.data_type() {
        DataType::Binary => {
            let values = array.as_binary::<i32>().clone();
            Box::new(move |i, to| append(to, values.value(i)))
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>().clone();
            Box::new(move |i, to| append(to, values.value(i)))
        }
        DataType::BinaryView => {
            let values = array.as_binary_view().clone();
            Box::new(move |i, to| append(to, values.value(i)))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary().clone();
            Box::new(move |i, to| append(to, values.value(i)))
        }
        _ => return None,
    })
}

/// Since 1970; finer ones are cut off. None if there are too many.
fn microseconds(array: &ArrayRef) -> Option<Box<dyn Fn(usize) -> Option<i64> + Send>> {
    Some(match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            let times = array.as_primitive::<TimestampSecondType>().clone();
            Box::new(move |i| times.value(i).checked_mul(1_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            let times = array.as_primitive::<TimestampMillisecondType>().clone();
            Box::new(move |i| times.value(i).checked_mul(1000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = array.as_primitive::<TimestampMicrosecondType>().clone();
            Box::new(move |i| Some(times.value(i)))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let times = array.as_primitive::<TimestampNanosecondType>().clone();
            Box::new(move |i| Some(times.value(i).div_euclid(1000)))
        }
        _ => return None,
    })
}
