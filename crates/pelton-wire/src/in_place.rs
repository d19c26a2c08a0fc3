//! A body in memory that its sender can still write to.
//!
//! Arrow checks what it decodes once, and believes it from then on. That is sound for memory that nobody changes. In a segment that a
//! peer maps, whatever Arrow's code relies on must therefore be copied first and checked in the copy:
//!
//! - the message's metadata, with all lengths;
//! - offsets of texts, bytes and lists; validity bitmaps and booleans (what counts their bits does not count again);
//! - texts, which Rust requires to be UTF-8;
//! - everything of columns of other kinds (views, unions, run-end encoded ones): the whole body is copied if there is one.
//!
//! What stays where it is are bytes (binary columns, of fixed size or not) and numbers. Every pattern of bits is a valid one of them, and no
//! check of Arrow's is about their values. A peer that breaks the protocol by writing where it has sent can so make its reader see
//! other numbers and bytes than it saw before, and nothing else; it could have sent those at once. (By the letter of Rust's memory
//! model a byte that somebody else writes while it is read is undefined behaviour, as for every mapped file. It is the same that every user of a mapping relies on.)

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::Buffer;
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_ipc::{FieldNode, MessageHeader, root_as_message};
use arrow_schema::{DataType, Schema, SchemaRef};
use bytes::Bytes;
use pelton_core::{Error, Result};

use crate::body::{CONTINUATION, bad, decode, layout};
use crate::frame::MAX_META;

/// Buffers shorter than this are copied though they could stay.
const SMALL: usize = 4 << 10;

/// Decodes a body whose bytes its sender may change at any time. `copy` makes the copies of what must not change; what stays in
/// place keeps `body` alive.
pub fn decode_in_place(
    body: &Bytes,
    schema: &SchemaRef,
    copy: &mut dyn FnMut(&[u8]) -> Bytes,
) -> Result<RecordBatch> {
    if !can_stay(schema) {
        return decode(copy(body), schema);
    }
    let (head, rest) = body.split_at_checked(8).ok_or_else(|| bad("too short"))?;
    let head: [u8; 8] = head.try_into().expect("eight bytes");
    let length = i32::from_le_bytes(head[4..].try_into().expect("four bytes"));
    let length = usize::try_from(length).map_err(|_| bad("negative length"))?;
    if head[..4] != CONTINUATION || length > rest.len() || length > MAX_META as usize {
        return Err(bad("bad prefix"));
    }
    let metadata = rest[..length].to_vec();
    let message = root_as_message(&metadata).map_err(|e| bad(&e.to_string()))?;
    if message.header_type() != MessageHeader::RecordBatch {
        return Err(bad("it is another kind of message"));
    }
    let batch = message.header_as_record_batch().ok_or_else(|| bad("no header"))?;
    if batch.compression().is_some() {
        return Err(bad("it is compressed"));
    }
    let data = body.slice(8 + length..);
    layout::check(&batch, message.version(), schema, data.len()).map_err(bad)?;
    let mut columns = Columns {
        data,
        nodes: batch.nodes().into_iter().flatten().copied().collect::<Vec<_>>().into_iter(),
        buffers: batch.buffers().into_iter().flatten().copied().collect::<Vec<_>>().into_iter(),
        copy,
    };
    let rows = usize::try_from(batch.length()).map_err(|_| bad("it has an impossible number of rows"))?;
    let fields = schema.fields().iter();
    let arrays = fields.map(|field| columns.column(field.data_type())).collect::<Result<Vec<ArrayRef>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options).map_err(|e| bad(&e.to_string()))
}

/// Whether [`Columns`] knows all these columns.
fn can_stay(schema: &Schema) -> bool {
    schema.fields().iter().all(|field| is_known(field.data_type()))
}

fn is_known(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null
        | DataType::Boolean
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::FixedSizeBinary(_) => true,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => is_known(f.data_type()),
        DataType::Struct(fields) => fields.iter().all(|f| is_known(f.data_type())),
        other => other.is_primitive(),
    }
}

/// What is left of a body, column by column, in the order of Arrow's format.
/// <https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message>
struct Columns<'a> {
    data: Bytes,
    nodes: std::vec::IntoIter<FieldNode>,
    buffers: std::vec::IntoIter<arrow_ipc::Buffer>,
    copy: &'a mut dyn FnMut(&[u8]) -> Bytes,
}

impl Columns<'_> {
    fn column(&mut self, data_type: &DataType) -> Result<ArrayRef> {
        Ok(make_array(self.array(data_type)?))
    }

    fn array(&mut self, data_type: &DataType) -> Result<ArrayData> {
        let node = self.nodes.next().ok_or_else(|| bad("a column is missing"))?;
        let rows = usize::try_from(node.length()).map_err(|_| bad("a column has an impossible length"))?;
        let array = ArrayDataBuilder::new(data_type.clone()).len(rows).align_buffers(true);
        if matches!(data_type, DataType::Null) {
            return build(array);
        }
        let bitmap = self.copied()?;
        let nulls =
            usize::try_from(node.null_count()).map_err(|_| bad("a column has an impossible length"))?;
        let array = array.null_count(nulls).null_bit_buffer((nulls > 0).then_some(bitmap));
        let array = match data_type {
            DataType::Utf8 | DataType::LargeUtf8 => {
                array.add_buffer(self.copied()?).add_buffer(self.copied()?)
            }
            DataType::Binary | DataType::LargeBinary => {
                array.add_buffer(self.copied()?).add_buffer(self.in_place()?)
            }
            DataType::Boolean => array.add_buffer(self.copied()?),
            DataType::List(field) | DataType::LargeList(field) => {
                array.add_buffer(self.copied()?).add_child_data(self.array(field.data_type())?)
            }
            DataType::FixedSizeList(field, _) => array.add_child_data(self.array(field.data_type())?),
            DataType::Struct(fields) => {
                let children = fields.iter().map(|field| self.array(field.data_type()));
                array.child_data(children.collect::<Result<_>>()?)
            }
            _ => array.add_buffer(self.in_place()?),
        };
        build(array)
    }

    fn next(&mut self) -> Result<Bytes> {
        let buffer = self.buffers.next().ok_or_else(|| bad("a buffer is missing"))?;
        // Within the data: `layout::check`.
        let (offset, length) = (buffer.offset() as usize, buffer.length() as usize);
        Ok(self.data.slice(offset..offset + length))
    }

    fn copied(&mut self) -> Result<Buffer> {
        let bytes = self.next()?;
        Ok(if bytes.len() < SMALL { Buffer::from_slice_ref(&bytes) } else { (self.copy)(&bytes).into() })
    }

    fn in_place(&mut self) -> Result<Buffer> {
        let bytes = self.next()?;
        Ok(if bytes.len() < SMALL { Buffer::from_slice_ref(&bytes) } else { bytes.into() })
    }
}

/// With all of Arrow's checks.
fn build(array: ArrayDataBuilder) -> Result<ArrayData> {
    array.build().map_err(|e: arrow_schema::ArrowError| -> Error { bad(&e.to_string()) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{Int32Builder, ListBuilder};
    use arrow_array::{
        BinaryArray, BooleanArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Int64Array,
        LargeStringArray, NullArray, StringArray, StringViewArray, StructArray,
    };
    use arrow_schema::Field;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::body::Encoder;

    /// A batch with a column of every known kind, of 40 rows.
    fn every_kind() -> RecordBatch {
        let some = |i: usize| (!i.is_multiple_of(7)).then_some(i);
        let texts = || (0..40).map(|i| some(i).map(|i| format!("text {i}")));
        let mut lists = ListBuilder::new(Int32Builder::new());
        for i in 0..40 {
            lists.append_option(some(i).map(|i| (0..i as i32 % 5).map(Some)));
        }
        let vector = Arc::new(Field::new("item", DataType::Float32, false));
        let floats = Float32Array::from_iter_values((0..160).map(|i| i as f32));
        let vectors = FixedSizeListArray::new(vector, 4, Arc::new(floats), None);
        let pair: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(Int64Array::from_iter((0..40).map(|i| some(i).map(|i| i as i64))))),
            ("b", Arc::new(StringArray::from_iter(texts()))),
        ];
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("text", Arc::new(StringArray::from_iter(texts()))),
            ("large text", Arc::new(LargeStringArray::from_iter(texts()))),
            ("bytes", Arc::new(BinaryArray::from_iter((0..40).map(|i| some(i).map(|i| vec![7; 100 * i]))))),
            ("digest", Arc::new(FixedSizeBinaryArray::try_from_iter((0..40u8).map(|i| [i; 16])).unwrap())),
            ("flag", Arc::new(BooleanArray::from_iter((0..40).map(|i| some(i).map(|i| i % 2 == 0))))),
            ("nothing", Arc::new(NullArray::new(40))),
            ("list", Arc::new(lists.finish())),
            ("vector", Arc::new(vectors)),
            ("pair", Arc::new(StructArray::try_from(pair).unwrap())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    fn encoded(rows: &RecordBatch) -> Vec<u8> {
        Encoder::default().encode(rows).unwrap().into_parts().concat()
    }

    /// Decodes, and says how many bytes were copied by `copy`.
    fn decoded(body: Vec<u8>, schema: &SchemaRef) -> (Result<RecordBatch>, usize) {
        let mut copied = 0;
        let mut copy = |bytes: &[u8]| {
            copied += bytes.len();
            Bytes::copy_from_slice(bytes)
        };
        let rows = decode_in_place(&body.into(), schema, &mut copy);
        (rows, copied)
    }

    #[test]
    fn every_kind_of_column_and_its_slices_come_back() {
        for (offset, length) in [(0, 40), (3, 20), (39, 1), (7, 0)] {
            let rows = every_kind().slice(offset, length);
            assert_eq!(decoded(encoded(&rows), &rows.schema()).0, Ok(rows));
        }
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        assert_eq!(decoded(encoded(&nothing), &nothing.schema()).0, Ok(nothing));
    }

    #[test]
    fn numbers_and_bytes_stay_and_the_rest_is_copied() {
        let check = |column: ArrayRef, copied: usize| {
            let rows = RecordBatch::try_from_iter_with_nullable([("c", column, true)]).unwrap();
            let (back, really) = decoded(encoded(&rows), &rows.schema());
            assert_eq!((back, really), (Ok(rows), copied));
        };
        let texts = || vec!["x".repeat(100); 100];
        check(Arc::new(BinaryArray::from_iter_values(texts())), 0);
        check(Arc::new(Int64Array::from_iter_values(0..10_000)), 0);
        check(Arc::new(StringArray::from(texts())), 10_000);
        check(Arc::new(BooleanArray::from(vec![true; 80_000])), 10_000);
        let half_null = (0..80_000).map(|i| (i % 2 == 0).then_some(i));
        check(Arc::new(Int64Array::from_iter(half_null)), 10_000);
        let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts()));
        let whole = RecordBatch::try_from_iter([("c", views.clone())]).unwrap();
        check(views, encoded(&whole).len());
    }

    /// Whatever is done to a body, it is an error or a batch that can be walked through, and it is the batch that a copy would have given.
    #[test]
    fn damaged_bodies_are_errors_not_panics() {
        let good = every_kind();
        let (schema, good) = (good.schema(), encoded(&good));
        let mut rng = StdRng::seed_from_u64(11);
        let (mut refused, mut taken) = (0, 0);
        for _ in 0..1_500 {
            let mut bad = good.clone();
            for _ in 0..rng.next_u32() % 4 + 1 {
                let at = rng.next_u32() as usize % bad.len().min(6000);
                bad[at] = rng.next_u32() as u8;
            }
            bad.truncate(bad.len() - rng.next_u32() as usize % 8);
            match (decoded(bad.clone(), &schema).0, decode(bad.into(), &schema)) {
                (Ok(rows), other) => {
                    taken += 1;
                    assert_eq!(format!("{rows:?}").len(), format!("{:?}", other.unwrap()).len());
                }
                (Err(_), _) => refused += 1,
            }
        }
        assert!(refused > 150 && taken > 150, "{refused} {taken}");
    }
}
