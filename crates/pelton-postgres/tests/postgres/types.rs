//! Values of every type, and back.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, Int64Builder, ListBuilder, StringBuilder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt32Array, UInt64Array,
};
use arrow_schema::{Field, Schema};
use pelton_core::Result;
use pelton_dataflow::sink::Sink;
use pelton_postgres::Postgres;

use crate::server::Server;
use crate::{says, settings};

/// Writes one column to a table, which is made if there is none, and says what the server has then.
fn written(server: &Server, table: &str, column: ArrayRef) -> Result<Vec<String>> {
    let schema = Arc::new(Schema::new(vec![Field::new("c", column.data_type().clone(), true)]));
    let sink = Postgres::new(settings(server, table))?;
    sink.check(&schema)?;
    sink.start(1, &[])?;
    let mut writer = sink.writer(0, 1, schema.clone())?;
    writer.write(RecordBatch::try_new(schema, vec![column])?)?;
    sink.commit(&writer.prepare(1)?)?;
    Ok(server.query(&format!("select c::text from {table} order by ctid")))
}

fn floats() -> ArrayRef {
    let mut list = FixedSizeListBuilder::new(Float32Builder::new(), 3);
    for row in [[1.0, -0.5, 3.25], [0.0, 1e9, -7.0]] {
        list.values().append_slice(&row);
        list.append(true);
    }
    // Not from the first row on.
    list.finish().slice(1, 1)
}

fn as_ref(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

trait Sliced {
    fn slice(self, from: usize, length: usize) -> ArrayRef;
}

impl<A: Array + 'static> Sliced for A {
    fn slice(self, from: usize, length: usize) -> ArrayRef {
        Array::slice(&self, from, length)
    }
}

#[test]
fn every_type_survives() {
    let Some(server) = Server::start() else { return };
    let mut texts = ListBuilder::new(StringBuilder::new());
    texts.append_value([Some("a\"b"), None, Some("")]);
    texts.append_value([] as [Option<&str>; 0]);
    texts.append_null();
    let mut numbers = ListBuilder::new(Int64Builder::new());
    numbers.append_value([Some(1), Some(i64::MIN)]);
    let (numbers, texts) = (as_ref(numbers.finish()), as_ref(texts.finish()));
    let cases: Vec<(ArrayRef, &str, &[&str])> = vec![
        (
            as_ref(BooleanArray::from(vec![Some(true), None, Some(false)])),
            "boolean",
            &["true", "null", "false"],
        ),
        (as_ref(Int8Array::from(vec![-128])), "smallint", &["-128"]),
        (as_ref(Int16Array::from(vec![i16::MAX])), "smallint", &["32767"]),
        (as_ref(Int32Array::from(vec![i32::MIN])), "integer", &["-2147483648"]),
        (as_ref(UInt32Array::from(vec![u32::MAX])), "bigint", &["4294967295"]),
        (as_ref(UInt64Array::from(vec![1 << 62])), "bigint", &["4611686018427387904"]),
        (as_ref(Float32Array::from(vec![0.5, f32::INFINITY])), "real", &["0.5", "Infinity"]),
        (as_ref(Float64Array::from(vec![-1e300, f64::NAN])), "double precision", &["-1e+300", "NaN"]),
        (as_ref(StringArray::from(vec!["", "ü \\ \t\n"])), "text", &["", "ü \\ \t\n"]),
        (as_ref(LargeStringArray::from(vec!["large"])), "text", &["large"]),
        (
            as_ref(StringViewArray::from(vec!["a view of more than twelve bytes"])),
            "text",
            &["a view of more than twelve bytes"],
        ),
        (as_ref(BinaryArray::from(vec![&b"\0\xff"[..], b""])), "bytea", &["\\x00ff", "\\x"]),
        (
            as_ref(Date32Array::from(vec![0, 20_000, -800_000])),
            "date",
            &["1970-01-01", "2024-10-04", "0222-09-04 BC"],
        ),
        (
            as_ref(TimestampSecondArray::from(vec![1])),
            "timestamp without time zone",
            &["1970-01-01 00:00:01"],
        ),
        (
            as_ref(TimestampMicrosecondArray::from(vec![1_700_000_000_123_456]).with_timezone("UTC")),
            "timestamp with time zone",
            &["2023-11-14 22:13:20.123456+00"],
        ),
        (
            as_ref(TimestampNanosecondArray::from(vec![-1])),
            "timestamp without time zone",
            &["1969-12-31 23:59:59.999999"],
        ),
        (floats(), "real[]", &["{0,1e+09,-7}"]),
        (numbers, "bigint[]", &["{1,-9223372036854775808}"]),
        (texts, "text[]", &["{\"a\\\"b\",NULL,\"\"}", "{}", "null"]),
    ];
    for (i, (column, kind, expected)) in cases.into_iter().enumerate() {
        let table = format!("t{i}");
        assert_eq!(written(&server, &table, column).unwrap(), expected, "{kind}");
        let made = format!(
            "select format_type(atttypid, atttypmod) from pg_attribute where attrelid = '{table}'::regclass and attname = 'c'"
        );
        assert_eq!(server.query(&made), [kind]);
    }
}

#[test]
fn wider_columns_and_those_of_extensions_take_them_too() {
    let Some(server) = Server::start() else { return };
    server.query("create extension vector");
    let strings = || as_ref(StringArray::from(vec!["{\"a\": 1}"]));
    for (table, kind, column, expected) in [
        ("a", "bigint", as_ref(Int16Array::from(vec![7])), "7"),
        ("b", "double precision", as_ref(Float32Array::from(vec![0.5])), "0.5"),
        ("c", "jsonb", strings(), "{\"a\": 1}"),
        ("d", "json", strings(), "{\"a\": 1}"),
        ("e", "varchar(20)", strings(), "{\"a\": 1}"),
        ("f", "vector(3)", floats(), "[0,1e+09,-7]"),
        ("g", "double precision[]", floats(), "{0,1000000000,-7}"),
    ] {
        server.query(&format!("create table {table} (c {kind})"));
        assert_eq!(written(&server, table, column).unwrap(), [expected], "{kind}");
    }
}

#[test]
fn values_without_a_place_are_named() {
    let Some(server) = Server::start() else { return };
    server.query("create table c (c varchar(3)); create table d (c jsonb)");
    for (table, column, parts) in [
        (
            "a",
            as_ref(UInt64Array::from(vec![u64::MAX])),
            &["column `c`", "18446744073709551615 is too large"][..],
        ),
        ("b", as_ref(StringArray::from(vec!["a\0b"])), &["column `c`", "NUL character"]),
        ("c", as_ref(StringArray::from(vec!["long"])), &["SQLSTATE 22001", "too long"]),
        ("d", as_ref(StringArray::from(vec!["{"])), &["SQLSTATE 22P02", "json"]),
        ("e", as_ref(TimestampSecondArray::from(vec![i64::MAX])), &["column `c`", "out of range"]),
    ] {
        says(written(&server, table, column), parts);
        assert_eq!(server.count(table), 0);
    }
}
