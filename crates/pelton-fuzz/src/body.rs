//! An Arrow body from somebody who is not trusted.

use arrow_array::{Array, RecordBatch};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use pelton_wire::body::{self, Encoder, Piece};

use crate::arrays;
use crate::frame::says_what_is_wrong;

/// The first byte names the schema, and whether the body lies where it pleases; the rest is the body.
pub(crate) fn run(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    let schemas = arrays::schemas();
    let schema = &schemas[usize::from(which & 0x7f) % schemas.len()];
    let at = usize::from(which >> 7);
    let bytes = Bytes::from([&[0; 1][..at], body].concat()).slice(at..);
    match body::decode(bytes, schema) {
        Ok(rows) => sound(&rows, schema, body.len()),
        Err(e) => says_what_is_wrong(e.message()),
    }
}

fn sound(rows: &RecordBatch, schema: &SchemaRef, given: usize) {
    assert_eq!(rows.schema(), *schema);
    for (column, field) in rows.columns().iter().zip(schema.fields()) {
        column.to_data().validate_full().unwrap_or_else(|e| panic!("{} is not valid: {e}", field.name()));
        assert_eq!(column.len(), rows.num_rows());
        assert!(field.is_nullable() || column.null_count() == 0, "{} has nulls", field.name());
    }
    let _ = body::bytes(rows);
    let encoded = encoded(rows);
    // Less is possible, much more is not.
    assert!(encoded.len() <= 4096 + 16 * given, "{given} bytes became {}", encoded.len());
    let again = body::decode(encoded.into(), schema).expect("what is written is read again");
    assert_eq!(again, *rows, "what is written is read again");
    // What an instance does with it.
    let (half, all) = (rows.num_rows() / 2, rows.num_rows());
    if half > 0 && all <= 4096 {
        let batch = std::sync::Arc::new(rows.clone());
        let piece = |offset, rows| Piece { batch: batch.clone(), offset, rows };
        let turned = body::gather(&[piece(half, all - half), piece(0, half)]).expect("of one schema");
        assert_eq!(turned.num_rows(), all);
    }
}

pub(crate) fn encoded(rows: &RecordBatch) -> Vec<u8> {
    Encoder::default().encode(rows).expect("a sound batch can be written").concat()
}
