//! Record batches as frame bodies.
//!
//! A body is one encapsulated Arrow IPC message without its schema (that is known from the [`Welcome`](crate::Welcome)): `0xFFFFFFFF`, metadata
//! length `i32`, metadata padded so that the data begins at a multiple of 64, data.
//! <https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>

pub(crate) mod layout;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{RecordBatch, UInt32Array};
use arrow_buffer::Buffer;
use arrow_ipc::writer::StreamEncoder;
use arrow_ipc::{MessageHeader, root_as_message};
use arrow_schema::{DataType, Schema, SchemaRef};
use bytes::Bytes;
use pelton_core::{Error, Result};

pub(crate) const CONTINUATION: [u8; 4] = [0xff; 4];

/// Encodes record batches.
pub struct Encoder {
    /// Its schema goes into its first message, which is thrown away; after that it takes batches of any columns.
    stream: StreamEncoder,
}

impl Default for Encoder {
    fn default() -> Self {
        let none = Arc::new(Schema::empty());
        let mut stream = StreamEncoder::try_new(&none).expect("no columns can be encoded");
        stream.encode(&RecordBatch::new_empty(none)).expect("no rows can be encoded");
        Encoder { stream }
    }
}

impl Encoder {
    /// The body of a batch. Its columns are not copied.
    pub fn encode(&mut self, rows: &RecordBatch) -> Result<Encoded> {
        let pieces = self.stream.encode(rows)?;
        Ok(Encoded { length: pieces.iter().map(Buffer::len).sum(), pieces })
    }
}

/// A body as the pieces that follow one another in it: what Arrow puts around the columns, and the columns' own memory.
pub struct Encoded {
    pieces: Vec<Buffer>,
    length: usize,
}

/// A column's memory as an owner of bytes.
struct Memory(Buffer);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Pieces shorter than this are copied together.
const SMALL: usize = 4 << 10;

impl Encoded {
    /// Bytes of the body.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Copies it to where it shall be, which has room for [`length`](Self::length) bytes.
    pub fn write_to(&self, mut place: &mut [u8]) {
        for piece in &self.pieces {
            let (here, rest) = place.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            place = rest;
        }
    }

    /// Its bytes, in few parts; large ones are not copied.
    pub fn into_parts(self) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut small = Vec::with_capacity(self.length.min(SMALL));
        for piece in self.pieces {
            if piece.len() < SMALL {
                small.extend_from_slice(&piece);
            } else {
                if !small.is_empty() {
                    parts.push(std::mem::take(&mut small).into());
                }
                parts.push(Bytes::from_owner(Memory(piece)));
            }
        }
        if !small.is_empty() {
            parts.push(small.into());
        }
        parts
    }
}

/// Decodes a body without copying it. The bytes are not trusted: lengths, offsets and UTF-8 are validated.
pub fn decode(body: Bytes, schema: &SchemaRef) -> Result<RecordBatch> {
    let (head, rest) = body.split_at_checked(8).ok_or_else(|| bad("too short"))?;
    let length: [u8; 4] = head[4..].try_into().expect("four bytes");
    let length = usize::try_from(i32::from_le_bytes(length)).map_err(|_| bad("negative length"))?;
    if head[..4] != CONTINUATION || length > rest.len() {
        return Err(bad("bad prefix"));
    }
    let message = root_as_message(&rest[..length]).map_err(|e| bad(&e.to_string()))?;
    if message.header_type() != MessageHeader::RecordBatch {
        return Err(bad("it is another kind of message"));
    }
    let batch = message.header_as_record_batch().ok_or_else(|| bad("no header"))?;
    if batch.compression().is_some() {
        return Err(bad("it is compressed"));
    }
    let version = message.version();
    let data = aligned(body.slice(8 + length..));
    layout::check(&batch, version, schema, data.len()).map_err(bad)?;
    arrow_ipc::reader::read_record_batch(&data, batch, schema.clone(), &HashMap::new(), None, &version)
        .map_err(|e| bad(&e.to_string()))
}

pub(crate) fn bad(what: &str) -> Error {
    Error::protocol(format!("the body of a frame is not a record batch: {what}"))
}

/// The same bytes, where any type may begin: copied if they are not.
fn aligned(data: Bytes) -> Buffer {
    if data.as_ptr().align_offset(align_of::<i128>()) == 0 {
        Buffer::from(data)
    } else {
        Buffer::from_slice_ref(&data)
    }
}

/// Rows within a batch: `rows` of them from `offset`.
#[derive(Clone, Debug)]
pub struct Piece {
    pub batch: Arc<RecordBatch>,
    pub offset: usize,
    pub rows: usize,
}

/// The rows of some pieces (at least one, all with the same columns) behind one another, as one batch. Neighbours in one batch are
/// taken together; where all are neighbours nothing is copied.
pub fn gather<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Result<RecordBatch> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last)
                if Arc::ptr_eq(&last.batch, &piece.batch) && last.offset + last.rows == piece.offset =>
            {
                last.rows += piece.rows;
            }
            _ => joined.push(piece.clone()),
        }
    }
    let slices: Vec<RecordBatch> = joined.iter().map(|p| p.batch.slice(p.offset, p.rows)).collect();
    match slices.as_slice() {
        [] => Err(Error::internal("no rows to gather")),
        [only] => Ok(only.clone()),
        [first, ..] => Ok(arrow_select::concat::concat_batches(&first.schema(), &slices)?),
    }
}

/// The same rows in buffers of their own: those of a slice are those of all of its batch.
pub fn copy(rows: &RecordBatch) -> Result<RecordBatch> {
    let all = UInt32Array::from_iter_values(0..rows.num_rows() as u32);
    Ok(arrow_select::take::take_record_batch(rows, &all)?)
}

/// How many bytes some rows take: theirs, not those of the batch that they are a slice of, nor of the buffers' spare room.
pub fn bytes(rows: &RecordBatch) -> u64 {
    let columns = rows.columns().iter();
    columns.map(|c| c.to_data().get_slice_memory_size().unwrap_or(c.get_array_memory_size()) as u64).sum()
}

/// Refuses columns that cannot travel.
pub fn check_schema(what: &str, schema: &Schema) -> Result<()> {
    match schema.fields().iter().find(|f| has_dictionary(f.data_type())) {
        Some(field) => Err(Error::invalid(format!(
            "{what}: column `{}` is dictionary-encoded, which does not travel between processes; cast it to its value type",
            field.name()
        ))),
        None => Ok(()),
    }
}

fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(..) => true,
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _)
        | DataType::Map(f, _) => has_dictionary(f.data_type()),
        DataType::RunEndEncoded(_, values) => has_dictionary(values.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| has_dictionary(f.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, f)| has_dictionary(f.data_type())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Float32Array, StringArray};
    use arrow_schema::Field;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("text", DataType::Utf8, true),
            Field::new("score", DataType::Float32, false),
        ]);
        let text = StringArray::from(vec![Some("a"), None, Some("longer than the others"), Some("")]);
        let score = Float32Array::from(vec![0.0, 1.0, 2.0, f32::MAX]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(text), Arc::new(score)]).unwrap()
    }

    fn encoded(rows: &RecordBatch) -> Vec<u8> {
        let encoded = Encoder::default().encode(rows).unwrap();
        let mut copied = vec![0; encoded.length()];
        encoded.write_to(&mut copied);
        assert_eq!(encoded.into_parts().concat(), copied);
        copied
    }

    #[test]
    fn a_batch_and_its_slices_come_back() {
        for (offset, length) in [(0, 4), (1, 2), (3, 1), (2, 0)] {
            let rows = batch().slice(offset, length);
            assert_eq!(decode(encoded(&rows).into(), &rows.schema()).unwrap(), rows);
        }
    }

    #[test]
    fn a_slice_costs_only_its_own_rows() {
        let text = StringArray::from_iter_values((0..1000).map(|i| format!("row {i} {}", "x".repeat(1000))));
        let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]));
        let rows = RecordBatch::try_new(schema, vec![Arc::new(text)]).unwrap();
        assert!(encoded(&rows.slice(500, 1)).len() < 2048);
    }

    #[test]
    fn damaged_bodies_are_errors_not_panics() {
        let good = encoded(&batch());
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..rng.next_u32() % 4 + 1 {
                let at = rng.next_u32() as usize % bad.len();
                bad[at] = rng.next_u32() as u8;
            }
            bad.truncate(bad.len() - rng.next_u32() as usize % 8);
            let _ = decode(bad.into(), &batch().schema());
        }
    }

    #[test]
    fn dictionaries_are_refused_by_name() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let schema = Schema::new(vec![Field::new("kind", dictionary, false)]);
        assert!(check_schema("method `m`", &schema).unwrap_err().message().contains("column `kind`"));
    }
}
