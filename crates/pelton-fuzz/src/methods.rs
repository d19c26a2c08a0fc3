//! The methods of the service under attack: two that give a row for each row, and one that streams.

use std::sync::Arc;

use arrow_array::{RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::service::{Cardinality, MethodSpec};

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("key", DataType::UInt64, false)]))
}

pub(crate) fn all() -> Arc<[MethodSpec]> {
    let schema = schema();
    let spec = |name: &str, cardinality, concurrency| MethodSpec {
        name: name.into(),
        input: schema.clone(),
        output: schema.clone(),
        cardinality,
        concurrency,
    };
    [
        spec("call", Cardinality::One, None),
        spec("stream", Cardinality::Many, None),
        spec("side", Cardinality::One, Some(2)),
    ]
    .into()
}

pub(crate) fn rows(keys: impl IntoIterator<Item = u64>) -> RecordBatch {
    let keys = Arc::new(UInt64Array::from_iter_values(keys));
    RecordBatch::try_new(schema(), vec![keys]).expect("one column of keys")
}
