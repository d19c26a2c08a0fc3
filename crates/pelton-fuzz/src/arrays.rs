//! Schemas of all kinds, and an honest batch of each.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, ListBuilder, MapBuilder, StringBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Int32Array,
    LargeBinaryArray, NullArray, RecordBatch, RunArray, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, UInt64Array, UnionArray,
};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef, UnionFields};

/// One column after another, then some together. The order is part of the corpus: add at the end.
pub(crate) fn batches() -> Vec<RecordBatch> {
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "text",
            Arc::new(StringArray::from(vec![Some("a"), None, Some("longer than the others"), Some("")])),
        ),
        ("key", Arc::new(UInt64Array::from(vec![1, 2, 3, u64::MAX]))),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]))),
        ("embedding", Arc::new(embeddings())),
        ("words", Arc::new(words())),
        ("pair", Arc::new(pairs())),
        (
            "view",
            Arc::new(StringViewArray::from(vec![
                Some("short"),
                Some("so long that it is stored apart"),
                None,
                Some(""),
            ])),
        ),
        (
            "blob",
            Arc::new(BinaryViewArray::from(vec![Some(&b"x"[..]), Some(&[7; 40]), None, Some(&[8; 13])])),
        ),
        ("large", Arc::new(LargeBinaryArray::from(vec![Some(&b"x"[..]), None, Some(&[0; 9]), Some(&[])]))),
        (
            "fixed",
            Arc::new(FixedSizeBinaryArray::try_from_iter((0..4u8).map(|n| [n; 3])).expect("of one size")),
        ),
        ("price", Arc::new(Decimal128Array::from(vec![Some(1), None, Some(-1), Some(i128::from(i64::MAX))]))),
        (
            "at",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1), None, Some(i64::MIN), Some(0)])
                    .with_timezone("UTC"),
            ),
        ),
        ("map", Arc::new(map())),
        ("runs", Arc::new(RunArray::<Int32Type>::from_iter([Some("a"), Some("a"), None, Some("b")]))),
        ("either", Arc::new(union(true))),
        ("sparse", Arc::new(union(false))),
        ("nothing", Arc::new(NullArray::new(4))),
    ];
    let mut batches: Vec<RecordBatch> =
        columns.iter().map(|column| batch(std::slice::from_ref(column))).collect();
    batches.push(batch(&columns[..6]));
    batches.push(batch(&columns[6..]));
    batches
}

fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let nullable = |a: &ArrayRef| {
        a.is_nullable() || matches!(a.data_type(), DataType::Null | DataType::RunEndEncoded(..))
    };
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), nullable(array)))
        .collect();
    let arrays = columns.iter().map(|(_, array)| array.clone()).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("columns of equal length")
}

pub(crate) fn schemas() -> &'static [SchemaRef] {
    static SCHEMAS: std::sync::OnceLock<Vec<SchemaRef>> = std::sync::OnceLock::new();
    SCHEMAS.get_or_init(|| batches().iter().map(RecordBatch::schema).collect())
}

fn embeddings() -> impl Array + 'static {
    let mut list = FixedSizeListBuilder::new(Float32Builder::new(), 3);
    for row in 0..4 {
        list.values().append_slice(&[row as f32, 0.5, f32::NAN]);
        list.append(row != 2);
    }
    list.finish()
}

fn words() -> impl Array + 'static {
    let mut list = ListBuilder::new(StringBuilder::new());
    for (row, words) in [&["a", "b"][..], &[], &["c"], &["d", "e", "f"]].into_iter().enumerate() {
        words.iter().for_each(|word| list.values().append_value(word));
        list.append(row != 1);
    }
    list.finish()
}

fn pairs() -> impl Array + 'static {
    let left: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None, Some(3), Some(4)]));
    let right: ArrayRef = Arc::new(StringArray::from(vec!["w", "x", "y", "z"]));
    StructArray::from(vec![
        (Arc::new(Field::new("left", DataType::Int32, true)), left),
        (Arc::new(Field::new("right", DataType::Utf8, false)), right),
    ])
}

fn map() -> impl Array + 'static {
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in 0..4 {
        for key in 0..row {
            map.keys().append_value(format!("k{key}"));
            map.values().append_value("v");
        }
        map.append(row != 3).expect("as many keys as values");
    }
    map.finish()
}

fn union(dense: bool) -> impl Array + 'static {
    let fields = [(0, Field::new("n", DataType::Int32, true)), (1, Field::new("s", DataType::Utf8, true))];
    let fields: UnionFields = fields.into_iter().map(|(id, field)| (id, Arc::new(field))).collect();
    let types = ScalarBuffer::from(vec![0i8, 1, 0, 1]);
    let (numbers, texts, offsets) = if dense {
        (vec![Some(1), None], vec![Some("x"), Some("y")], Some(ScalarBuffer::from(vec![0, 0, 1, 1])))
    } else {
        (vec![Some(1), None, None, Some(9)], vec![None, Some("x"), None, Some("y")], None)
    };
    let children: Vec<ArrayRef> =
        vec![Arc::new(Int32Array::from(numbers)), Arc::new(StringArray::from(texts))];
    UnionArray::try_new(fields, types, offsets, children).expect("children that fit")
}
