//! Rows as they cross between Java and Rust: each value with a byte before it that says what it is, numbers with their lowest byte first.

use std::fmt;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, FixedSizeListBuilder, LargeBinaryBuilder,
    LargeStringBuilder, ListBuilder, PrimitiveBuilder, StringBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use pelton_core::{Error, Result};

/// What stands before a value. The same in `Values.java`.
mod tag {
    pub(super) const NULL: u8 = 0;
    pub(super) const FALSE: u8 = 1;
    pub(super) const TRUE: u8 = 2;
    pub(super) const INT: u8 = 3;
    pub(super) const LONG: u8 = 4;
    pub(super) const FLOAT: u8 = 5;
    pub(super) const DOUBLE: u8 = 6;
    pub(super) const TEXT: u8 = 7;
    pub(super) const BYTES: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const FLOATS: u8 = 10;
    pub(super) const DOUBLES: u8 = 11;
    pub(super) const INTS: u8 = 12;
    pub(super) const LONGS: u8 = 13;
}

/// A value as Java gave it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(b) => write!(f, "the boolean {b}"),
            Value::Int(n) => write!(f, "the whole number {n}"),
            Value::Float(n) => write!(f, "the number {n}"),
            Value::Text(_) => f.write_str("a text"),
            Value::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Value::List(values) => write!(f, "a list of {}", values.len()),
        }
    }
}

/// Reads what Java wrote.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| Error::internal(format!("a row ends {length} bytes too soon")))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("as long as was asked for"))
    }

    pub(crate) fn int(&mut self) -> Result<i32> {
        self.fixed().map(i32::from_le_bytes)
    }

    pub(crate) fn long(&mut self) -> Result<i64> {
        self.fixed().map(i64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize> {
        self.int().map(|n| n as u32 as usize)
    }

    fn many<const N: usize>(&mut self, one: impl Fn([u8; N]) -> Value<'a>) -> Result<Value<'a>> {
        let length = self.length()?;
        let bytes = self.bytes(length.saturating_mul(N))?;
        let value = |chunk: &[u8]| one(chunk.try_into().expect("chunks have this length"));
        Ok(Value::List(bytes.chunks_exact(N).map(value).collect()))
    }

    pub(crate) fn value(&mut self) -> Result<Value<'a>> {
        let [kind] = self.fixed()?;
        Ok(match kind {
            tag::NULL => Value::Null,
            tag::FALSE => Value::Bool(false),
            tag::TRUE => Value::Bool(true),
            tag::INT => Value::Int(self.int()?.into()),
            tag::LONG => Value::Int(self.long()?),
            tag::FLOAT => Value::Float(f32::from_le_bytes(self.fixed()?).into()),
            tag::DOUBLE => Value::Float(f64::from_le_bytes(self.fixed()?)),
            tag::TEXT => {
                let length = self.length()?;
                let text = std::str::from_utf8(self.bytes(length)?);
                Value::Text(text.map_err(|e| Error::internal(format!("a text from Java: {e}")))?)
            }
            tag::BYTES => {
                let length = self.length()?;
                Value::Bytes(self.bytes(length)?)
            }
            tag::LIST => {
                let length = self.length()?;
                // Each takes a byte at least.
                let mut values = Vec::with_capacity(length.min(self.0.len()));
                for _ in 0..length {
                    values.push(self.value()?);
                }
                Value::List(values)
            }
            tag::FLOATS => self.many(|b| Value::Float(f32::from_le_bytes(b).into()))?,
            tag::DOUBLES => self.many(|b| Value::Float(f64::from_le_bytes(b)))?,
            tag::INTS => self.many(|b| Value::Int(i32::from_le_bytes(b).into()))?,
            tag::LONGS => self.many(|b| Value::Int(i64::from_le_bytes(b)))?,
            other => return Err(Error::internal(format!("a value of the unknown kind {other} from Java"))),
        })
    }
}

/// Whether a value fits a column, or why not.
pub(crate) fn check(data_type: &DataType, nullable: bool, value: &Value<'_>) -> Result<(), String> {
    use DataType as T;
    let whole = |low: i64, high: i64, n: i64| {
        if (low..=high).contains(&n) { Ok(()) } else { Err(format!("{n} is no {data_type}")) }
    };
    match (data_type, value) {
        (_, Value::Null) if nullable => Ok(()),
        (T::Boolean, Value::Bool(_)) | (T::Float32 | T::Float64, Value::Float(_) | Value::Int(_)) => Ok(()),
        (T::Int8, Value::Int(n)) => whole(i8::MIN.into(), i8::MAX.into(), *n),
        (T::Int16, Value::Int(n)) => whole(i16::MIN.into(), i16::MAX.into(), *n),
        (T::Int32, Value::Int(n)) => whole(i32::MIN.into(), i32::MAX.into(), *n),
        (T::Int64, Value::Int(_)) => Ok(()),
        (T::UInt8, Value::Int(n)) => whole(0, u8::MAX.into(), *n),
        (T::UInt16, Value::Int(n)) => whole(0, u16::MAX.into(), *n),
        (T::UInt32, Value::Int(n)) => whole(0, u32::MAX.into(), *n),
        (T::UInt64, Value::Int(n)) => whole(0, i64::MAX, *n),
        (T::Utf8 | T::LargeUtf8, Value::Text(_)) | (T::Binary | T::LargeBinary, Value::Bytes(_)) => Ok(()),
        (T::FixedSizeList(_, size), Value::List(values)) if values.len() != *size as usize => {
            Err(format!("{value}, and the column takes lists of {size}"))
        }
        (T::List(item) | T::FixedSizeList(item, _), Value::List(values)) => {
            values.iter().try_for_each(|v| check(item.data_type(), item.is_nullable(), v))
        }
        _ if !can_cross(data_type) => Err(format!(
            "columns of type {data_type} do not cross from Java; booleans, numbers, text, bytes and lists of them do"
        )),
        (_, Value::Null) => Err("null, and the column takes none".to_owned()),
        _ => Err(format!("{value}, and the column takes {data_type}")),
    }
}

fn can_cross(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::List(item) | T::FixedSizeList(item, _) => can_cross(item.data_type()),
        T::Boolean | T::Utf8 | T::LargeUtf8 | T::Binary | T::LargeBinary => true,
        T::Float32 | T::Float64 => true,
        other => other.is_integer(),
    }
}

fn of<B: ArrayBuilder>(builder: &mut dyn ArrayBuilder) -> &mut B {
    builder.as_any_mut().downcast_mut().expect("the builder is of the column's type")
}

fn number<T: ArrowPrimitiveType>(builder: &mut dyn ArrayBuilder, value: Option<T::Native>) {
    of::<PrimitiveBuilder<T>>(builder).append_option(value);
}

/// Appends a value that [`check`] let pass.
pub(crate) fn append(builder: &mut dyn ArrayBuilder, data_type: &DataType, value: &Value<'_>) {
    use DataType as T;
    let int = || if let Value::Int(n) = value { Some(*n) } else { None };
    let float = || match value {
        Value::Float(n) => Some(*n),
        Value::Int(n) => Some(*n as f64),
        _ => None,
    };
    let text = || if let Value::Text(t) = value { Some(*t) } else { None };
    let bytes = || if let Value::Bytes(b) = value { Some(*b) } else { None };
    match data_type {
        T::Boolean => {
            let bit = if let Value::Bool(b) = value { Some(*b) } else { None };
            of::<BooleanBuilder>(builder).append_option(bit);
        }
        T::Int8 => number::<Int8Type>(builder, int().map(|n| n as i8)),
        T::Int16 => number::<Int16Type>(builder, int().map(|n| n as i16)),
        T::Int32 => number::<Int32Type>(builder, int().map(|n| n as i32)),
        T::Int64 => number::<Int64Type>(builder, int()),
        T::UInt8 => number::<UInt8Type>(builder, int().map(|n| n as u8)),
        T::UInt16 => number::<UInt16Type>(builder, int().map(|n| n as u16)),
        T::UInt32 => number::<UInt32Type>(builder, int().map(|n| n as u32)),
        T::UInt64 => number::<UInt64Type>(builder, int().map(|n| n as u64)),
        T::Float32 => number::<Float32Type>(builder, float().map(|n| n as f32)),
        T::Float64 => number::<Float64Type>(builder, float()),
        T::Utf8 => of::<StringBuilder>(builder).append_option(text()),
        T::LargeUtf8 => of::<LargeStringBuilder>(builder).append_option(text()),
        T::Binary => of::<BinaryBuilder>(builder).append_option(bytes()),
        T::LargeBinary => of::<LargeBinaryBuilder>(builder).append_option(bytes()),
        T::List(item) => {
            let list = of::<ListBuilder<Box<dyn ArrayBuilder>>>(builder);
            let values = if let Value::List(values) = value { Some(values) } else { None };
            values.into_iter().flatten().for_each(|v| append(list.values(), item.data_type(), v));
            list.append(values.is_some());
        }
        T::FixedSizeList(item, size) => {
            let list = of::<FixedSizeListBuilder<Box<dyn ArrayBuilder>>>(builder);
            match value {
                Value::List(values) => {
                    values.iter().for_each(|v| append(list.values(), item.data_type(), v));
                    list.append(true);
                }
                _ => {
                    (0..*size).for_each(|_| append(list.values(), item.data_type(), &Value::Null));
                    list.append(false);
                }
            }
        }
        other => unreachable!("no value of {other} is let pass"),
    }
}

fn put(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_text(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    put(out, kind, &(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    put_text(out, tag::TEXT, text.as_bytes());
}

/// Writes one cell for Java to read.
pub(crate) fn encode(array: &ArrayRef, row: usize, out: &mut Vec<u8>) -> Result<()> {
    use DataType as T;
    if array.is_null(row) {
        out.push(tag::NULL);
        return Ok(());
    }
    let int = |out: &mut Vec<u8>, n: i32| put(out, tag::INT, &n.to_le_bytes());
    let long = |out: &mut Vec<u8>, n: i64| put(out, tag::LONG, &n.to_le_bytes());
    match array.data_type() {
        T::Boolean => out.push(if array.as_boolean().value(row) { tag::TRUE } else { tag::FALSE }),
        T::Int8 => int(out, array.as_primitive::<Int8Type>().value(row).into()),
        T::Int16 => int(out, array.as_primitive::<Int16Type>().value(row).into()),
        T::Int32 => int(out, array.as_primitive::<Int32Type>().value(row)),
        T::Int64 => long(out, array.as_primitive::<Int64Type>().value(row)),
        T::UInt8 => int(out, array.as_primitive::<UInt8Type>().value(row).into()),
        T::UInt16 => int(out, array.as_primitive::<UInt16Type>().value(row).into()),
        T::UInt32 => long(out, array.as_primitive::<UInt32Type>().value(row).into()),
        T::UInt64 => {
            let n = array.as_primitive::<UInt64Type>().value(row);
            let n = i64::try_from(n)
                .map_err(|_| Error::limit(format!("{n} is too large for a long of Java's")))?;
            long(out, n);
        }
        T::Float32 => put(out, tag::FLOAT, &array.as_primitive::<Float32Type>().value(row).to_le_bytes()),
        T::Float64 => put(out, tag::DOUBLE, &array.as_primitive::<Float64Type>().value(row).to_le_bytes()),
        T::Utf8 => put_text(out, tag::TEXT, array.as_string::<i32>().value(row).as_bytes()),
        T::LargeUtf8 => put_text(out, tag::TEXT, array.as_string::<i64>().value(row).as_bytes()),
        T::Binary => put_text(out, tag::BYTES, array.as_binary::<i32>().value(row)),
        T::LargeBinary => put_text(out, tag::BYTES, array.as_binary::<i64>().value(row)),
        T::List(_) => list(&array.as_list::<i32>().value(row), out)?,
        T::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row), out)?,
        other => {
            return Err(Error::invalid(format!(
                "columns of type {other} do not cross to Java; booleans, numbers, text, bytes and lists of them do"
            )));
        }
    }
    Ok(())
}

fn list(values: &ArrayRef, out: &mut Vec<u8>) -> Result<()> {
    use DataType as T;
    let length = (values.len() as u32).to_le_bytes();
    match values.data_type() {
        T::Float32 if values.null_count() == 0 => {
            put(out, tag::FLOATS, &length);
            values.as_primitive::<Float32Type>().values().iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        T::Float64 if values.null_count() == 0 => {
            put(out, tag::DOUBLES, &length);
            values.as_primitive::<Float64Type>().values().iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        T::Int32 if values.null_count() == 0 => {
            put(out, tag::INTS, &length);
            values.as_primitive::<Int32Type>().values().iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        T::Int64 if values.null_count() == 0 => {
            put(out, tag::LONGS, &length);
            values.as_primitive::<Int64Type>().values().iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        _ => {
            put(out, tag::LIST, &length);
            for row in 0..values.len() {
                encode(values, row, out)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::make_builder;
    use arrow_schema::Field;

    use super::*;

    /// What comes out in Java's words of what went in, as a column of this type.
    fn crossed(data_type: &DataType, value: &Value<'_>) -> Result<String, String> {
        check(data_type, true, value)?;
        let mut builder = make_builder(data_type, 1);
        append(&mut builder, data_type, value);
        let array = builder.finish();
        assert_eq!(array.data_type(), data_type);
        let mut bytes = Vec::new();
        encode(&array, 0, &mut bytes).map_err(|e| e.message().to_owned())?;
        let back = Reader::new(&bytes).value().map_err(|e| e.message().to_owned())?;
        Ok(format!("{back:?}"))
    }

    #[test]
    fn values_cross_there_and_back() {
        use DataType as T;
        let item = |t: T| Arc::new(Field::new("item", t, true));
        for (data_type, value) in [
            (T::Boolean, Value::Bool(true)),
            (T::Int8, Value::Int(-3)),
            (T::UInt16, Value::Int(65535)),
            (T::Int64, Value::Int(1 << 40)),
            (T::Float32, Value::Float(0.5)),
            (T::Utf8, Value::Text("grüße")),
            (T::LargeBinary, Value::Bytes(b"\0\x01")),
            (T::Utf8, Value::Null),
            (T::List(item(T::Utf8)), Value::List(vec![Value::Text("a"), Value::Null])),
            (T::List(item(T::Float64)), Value::List(vec![Value::Float(1.5)])),
            (T::FixedSizeList(item(T::Float32), 2), Value::List(vec![Value::Float(1.0), Value::Float(2.0)])),
            (T::FixedSizeList(item(T::Int32), 1), Value::Null),
            (T::List(item(T::List(item(T::Int32)))), Value::List(vec![Value::List(vec![Value::Int(7)])])),
        ] {
            assert_eq!(crossed(&data_type, &value), Ok(format!("{value:?}")), "{data_type}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        use DataType as T;
        let pixels = T::FixedSizeList(Arc::new(Field::new("item", T::Float32, false)), 2);
        for (data_type, nullable, value, expected) in [
            (T::Int8, true, Value::Int(300), "300 is no Int8"),
            (T::Utf8, true, Value::Int(1), "the whole number 1, and the column takes Utf8"),
            (T::Utf8, false, Value::Null, "takes none"),
            (pixels.clone(), true, Value::List(vec![Value::Float(1.0)]), "takes lists of 2"),
            (pixels, true, Value::List(vec![Value::Float(1.0), Value::Null]), "takes none"),
            (T::Date32, true, Value::Int(1), "do not cross"),
        ] {
            let said = check(&data_type, nullable, &value).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
