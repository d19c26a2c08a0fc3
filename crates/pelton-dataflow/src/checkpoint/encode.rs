//! A subtask's state as pieces: what is small as JSON, rows as Arrow IPC streams, by kind.
//!
//! A large batch is a piece of its own, and the same batch always gives the same bytes: what has not changed since the checkpoint before is
//! found to be the same.

use std::collections::BTreeMap;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use pelton_core::id::InstanceId;
use pelton_core::{Error, RequestRun, Result};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::pending::{SavedLane, nullable};
use crate::sink::Staged;
use crate::subtask::state::{OpenSplit, State};

/// What stands in the JSON; batches are in the tables, in this order.
#[derive(Serialize, Deserialize)]
struct Record {
    done: Vec<(u64, String)>,
    open: Vec<OpenSplit>,
    lanes: Vec<SavedLane>,
    held: Vec<(RequestRun, InstanceId)>,
    /// Splits of the queued batches.
    queued: Vec<u64>,
    /// Outputs and splits of the unsent ones.
    unsent: Vec<(usize, u64)>,
    /// As `unsent`, with the open split that they were read from.
    read: Vec<(usize, usize, u64)>,
    staged: Vec<Staged>,
}

const RECORD: &str = "state.json";
/// Small batches share a piece, of about this many bytes.
const PIECE: usize = 256 << 10;

/// Gives out the pieces of one subtask one after another, with their names. There may be several of one name; their order matters.
pub(crate) fn encode(state: &State, mut put: impl FnMut(String, Vec<u8>) -> Result<()>) -> Result<()> {
    let mut tables = Tables::default();
    state.queued.iter().for_each(|b| tables.add("queued", &b.rows));
    state.unsent.iter().for_each(|(output, b)| tables.add(&format!("unsent-{output}"), &b.rows));
    let mut read = Vec::new();
    for (at, open) in state.open.iter().enumerate() {
        for (output, batch) in &open.unsent {
            tables.add(&format!("read-{output}"), &batch.rows);
            read.push((at, *output, batch.split));
        }
    }
    for lane in &state.lanes {
        lane.rows.iter().for_each(|rows| tables.add("pending", rows));
        lane.results.iter().for_each(|rows| tables.add("results", rows));
        lane.stored.keys.iter().for_each(|rows| tables.add("stored-keys", rows));
        lane.stored.results.iter().for_each(|rows| tables.add("stored-results", rows));
    }
    let record = Record {
        done: state.done.clone(),
        open: state.open.clone(),
        lanes: state.lanes.clone(),
        held: state.held.clone(),
        queued: state.queued.iter().map(|b| b.split).collect(),
        unsent: state.unsent.iter().map(|(output, b)| (*output, b.split)).collect(),
        read,
        staged: state.staged.clone(),
    };
    let json = serde_json::to_vec(&record).map_err(|e| Error::internal(format!("state as JSON: {e}")))?;
    put(RECORD.to_owned(), json)?;
    tables.write(put)
}

/// The state that [`encode`] made these pieces of.
pub(crate) fn decode(pieces: Vec<(String, Vec<u8>)>) -> Result<State> {
    let (records, tables): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(name, _)| name == RECORD);
    let [(_, json)] = &records[..] else {
        return Err(Error::storage(format!("it has {} pieces `{RECORD}` instead of one", records.len())));
    };
    let record: Record =
        serde_json::from_slice(json).map_err(|e| Error::storage(format!("`{RECORD}`: {e}")))?;
    let mut tables = Tables::read(tables)?;
    let mut state = State {
        done: record.done,
        open: record.open,
        held: record.held,
        staged: record.staged,
        ..State::default()
    };
    for split in record.queued {
        state.queued.push(Batch { split, rows: tables.next("queued")? });
    }
    for (output, split) in record.unsent {
        state.unsent.push((output, Batch { split, rows: tables.next(&format!("unsent-{output}"))? }));
    }
    for (at, output, split) in record.read {
        let rows = tables.next(&format!("read-{output}"))?;
        let open = state
            .open
            .get_mut(at)
            .ok_or_else(|| Error::storage("it has rows of a split that it does not name"))?;
        open.unsent.push((output, Batch { split, rows }));
    }
    for mut lane in record.lanes {
        let mut missing = lane.entries();
        while missing > 0 {
            let rows = tables.next("pending")?;
            let fewer = missing.checked_sub(rows.num_rows() as u64).filter(|left| *left < missing);
            missing = fewer.ok_or_else(|| Error::storage("its pending rows are not as many as it says"))?;
            lane.rows.push(rows);
        }
        if lane.result_rows() > 0 {
            lane.results = Some(tables.next("results")?);
        }
        if lane.stored.entries() > 0 {
            let keys = Some(tables.next("stored-keys")?);
            lane.stored.keys = keys.filter(|k| k.num_rows() as u64 == lane.stored.entries());
            lane.stored
                .keys
                .as_ref()
                .ok_or_else(|| Error::storage("its stored keys are not as many as it says"))?;
        }
        if lane.stored.result_rows() > 0 {
            lane.stored.results = Some(tables.next("stored-results")?);
        }
        state.lanes.push(lane);
    }
    Ok(state)
}

/// Batches by kind.
#[derive(Default)]
struct Tables(BTreeMap<String, std::collections::VecDeque<RecordBatch>>);

impl Tables {
    fn add(&mut self, table: &str, rows: &RecordBatch) {
        self.0.entry(table.to_owned()).or_default().push_back(rows.clone());
    }

    fn next(&mut self, table: &str) -> Result<RecordBatch> {
        let next = self.0.get_mut(table).and_then(std::collections::VecDeque::pop_front);
        next.ok_or_else(|| Error::storage(format!("its table `{table}` has too few rows")))
    }

    fn write(self, mut put: impl FnMut(String, Vec<u8>) -> Result<()>) -> Result<()> {
        for (table, batches) in self.0 {
            let mut together: Vec<RecordBatch> = Vec::new();
            let mut bytes = 0;
            for rows in batches {
                let more = bytes_of(&rows);
                if bytes + more > PIECE && !together.is_empty() {
                    put(format!("{table}.arrow"), stream(&std::mem::take(&mut together))?)?;
                    bytes = 0;
                }
                bytes += more;
                together.push(rows);
            }
            put(format!("{table}.arrow"), stream(&together)?)?;
        }
        Ok(())
    }

    fn read(pieces: Vec<(String, Vec<u8>)>) -> Result<Tables> {
        let mut tables = Tables::default();
        for (name, bytes) in pieces {
            let table = name.strip_suffix(".arrow").unwrap_or(&name).to_owned();
            let reader = StreamReader::try_new(bytes.as_slice(), None)?;
            let batches = tables.0.entry(table).or_default();
            for rows in reader {
                batches.push_back(rows?);
            }
        }
        Ok(tables)
    }
}

fn bytes_of(rows: &RecordBatch) -> usize {
    Batch { split: 0, rows: rows.clone() }.bytes() as usize
}

/// Batches (at least one) as one stream.
fn stream(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    // Batches of one table come over several ways, and may differ in whether nulls are allowed.
    let schema = nullable(batches[0].schema_ref());
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    for rows in batches {
        let count = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        writer.write(&RecordBatch::try_new_with_options(schema.clone(), rows.columns().to_vec(), &count)?)?;
    }
    Ok(writer.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::Schema;
    use pelton_core::ObjectRef;
    use pelton_core::object::{self, Objects};

    use super::*;

    #[test]
    fn references_to_objects_are_still_references() {
        let objects = [ObjectRef::new("s3://bucket/x").unwrap().with_version("\"e\"").unwrap()];
        let schema = Arc::new(Schema::new(vec![object::field("image", false)]));
        let rows = RecordBatch::try_new(schema, vec![object::column(objects.iter().map(Some))]).unwrap();
        let batch = Batch { split: 1, rows };
        let state = State { queued: vec![batch.clone()], unsent: vec![(0, batch)], ..State::default() };
        let mut pieces = Vec::new();
        encode(&state, |name, content| {
            pieces.push((name, content));
            Ok(())
        })
        .unwrap();
        let restored = decode(pieces).unwrap();
        for rows in [&restored.queued[0].rows, &restored.unsent[0].1.rows] {
            assert!(object::is_object(rows.schema().field(0)), "{:?}", rows.schema());
            assert_eq!(Objects::of(rows, "image").unwrap().all().unwrap(), objects);
        }
    }
}
