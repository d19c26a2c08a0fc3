//! Rows and their results, joined into batches.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow_schema::{Field, Schema, SchemaRef};
use pelton_core::service::{Cardinality, show_columns};
use pelton_core::{Error, RequestId, Result};

use super::block::bytes;
use crate::batch::{Batch, RowError};
use crate::row::show;

/// Rows in one emitted batch at most. Results that come one by one leave joined, but not as one huge batch.
const ROWS: usize = 8192;
/// Bytes in one emitted batch, about; one larger row leaves alone.
const BYTES: u64 = 2 << 20;

/// What results look like, and the rows that are made of them.
#[derive(Clone)]
pub(crate) struct Shape {
    /// The method's columns.
    pub(crate) result: SchemaRef,
    /// The input columns that leave with the method's.
    pub(crate) kept: Vec<usize>,
    /// Those, and the method's.
    pub(crate) output: SchemaRef,
    pub(crate) cardinality: Cardinality,
}

impl Shape {
    /// Refuses what is no answer of this method.
    pub(super) fn check(&self, rows: RecordBatch, last: bool) -> Result<RecordBatch> {
        if self.cardinality == Cardinality::One && (rows.num_rows() != 1 || !last) {
            return Err(Error::protocol(format!("the answer has {} rows, expected one", rows.num_rows())));
        }
        self.check_columns(&rows)?;
        Ok(rows)
    }

    /// Refuses what has other columns.
    pub(super) fn check_columns(&self, rows: &RecordBatch) -> Result<()> {
        let given = rows.schema_ref();
        // A streaming answer may end without rows, and then has no columns either.
        let fits = Arc::ptr_eq(given, &self.result)
            || rows.num_rows() == 0
            || (given.fields().len() == self.result.fields().len()
                && (given.fields().iter().zip(self.result.fields()))
                    .all(|(g, e)| g.data_type() == e.data_type())
                && (rows.columns().iter().zip(self.result.fields()))
                    .all(|(c, e)| e.is_nullable() || c.null_count() == 0));
        if fits {
            return Ok(());
        }
        let (given, expected) = (show_columns(given), show_columns(&self.result));
        Err(Error::protocol(format!("the answer's columns are ({given}), expected ({expected})")))
    }

    /// Results of whatever field names, as the method's.
    pub(super) fn plain(&self, rows: RecordBatch) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(self.result.clone(), rows.columns().to_vec())?)
    }
}

/// A row whose request ended in an error, for the error output.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) id: RequestId,
    pub(crate) row: RowError,
}

/// What a call operator sends on.
#[derive(Debug)]
pub(crate) enum Emission {
    Rows { rows: Option<Batch>, split: u64, failed: Vec<Failed> },
    Watermark(i64),
}

/// Collects what leaves in one batch.
pub(super) struct Gather {
    operator: u32,
    group: u64,
    /// Columns of the rows that leave.
    kept: Vec<usize>,
    /// Rows of the block at hand: which, and how often each.
    picked: Vec<u32>,
    /// Bytes of a row of the block at hand, once that is known.
    share: Option<u64>,
    inputs: Vec<RecordBatch>,
    /// Rows of answers: of which, from where, how many.
    results: Vec<(Arc<RecordBatch>, usize, usize)>,
    failed: Vec<Failed>,
    rows: usize,
    bytes: u64,
}

impl Gather {
    pub(super) fn new(operator: u32, group: u64, kept: &[usize]) -> Self {
        Gather {
            operator,
            group,
            kept: kept.to_vec(),
            picked: Vec::new(),
            share: None,
            inputs: Vec::new(),
            results: Vec::new(),
            failed: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= ROWS || self.bytes >= BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes parts of a row's answer, as many of their rows as there is room for, and at least one; or `whole`, all of them. Each comes with
    /// the row that it answers, so a large row goes with few. Returns the bytes of the parts that are gone.
    pub(super) fn parts(
        &mut self,
        row: u32,
        rows: &RecordBatch,
        parts: &mut VecDeque<RecordBatch>,
        whole: bool,
    ) -> u64 {
        let mut freed = 0;
        if parts.iter().all(|p| p.num_rows() == 0) {
            self.rows += 1;
            freed += parts.drain(..).map(|p| bytes(&p)).sum::<u64>();
        }
        while (whole || !self.is_full())
            && let Some(part) = parts.pop_front()
        {
            let count = part.num_rows();
            let size = bytes(&part);
            // What leaves once counts for its share of all rows. A row that leaves often counts by itself.
            let input = if count > 1 { bytes(&rows.slice(row as usize, 1)) } else { self.share(rows) };
            let each = (input + size / count.max(1) as u64).max(1);
            let room =
                (BYTES.saturating_sub(self.bytes) / each).max(1).min(ROWS.saturating_sub(self.rows) as u64);
            let taken = if whole { count } else { count.min(room as usize) };
            self.picked.extend(std::iter::repeat_n(row, taken));
            self.rows += taken;
            self.bytes += each * taken as u64;
            freed += size;
            if taken < count {
                let rest = part.slice(taken, count - taken);
                freed = freed.saturating_sub(bytes(&rest));
                parts.push_front(rest);
            }
            if taken > 0 {
                self.results.push((Arc::new(part), 0, taken));
            }
        }
        freed
    }

    /// Takes a row's whole answer, which is a row of an answer to several.
    pub(super) fn row(
        &mut self,
        row: u32,
        rows: &RecordBatch,
        answers: &Arc<RecordBatch>,
        at: usize,
        bytes: u64,
    ) {
        self.picked.push(row);
        self.rows += 1;
        self.bytes += (self.share(rows) + bytes).max(1);
        match self.results.last_mut() {
            Some((last, from, count)) if Arc::ptr_eq(last, answers) && *from + *count == at => *count += 1,
            _ => self.results.push((answers.clone(), at, 1)),
        }
    }

    /// Bytes of one of these rows: of a block, always the same.
    fn share(&mut self, rows: &RecordBatch) -> u64 {
        let kept = &self.kept;
        *self.share.get_or_insert_with(|| {
            let columns = kept.iter().map(|column| rows.column(*column).to_data());
            let bytes = columns.map(|c| c.get_slice_memory_size().unwrap_or(c.get_array_memory_size()));
            (bytes.sum::<usize>() / rows.num_rows().max(1)) as u64
        })
    }

    pub(super) fn failed(&mut self, row: u32, sequence: u64, rows: &RecordBatch, error: Error) {
        self.rows += 1;
        let id = RequestId { operator: self.operator, group: self.group, sequence };
        self.failed.push(Failed { id, row: RowError { row: show(rows, row as usize), error } });
    }

    pub(super) fn end_block(&mut self, rows: &RecordBatch) {
        if !self.picked.is_empty() {
            // Row numbers are within the block, and columns within its, so this cannot fail.
            let rows = rows.project(&self.kept).expect("columns of the block");
            self.inputs.push(pick(&rows, &self.picked).expect("rows of the block"));
            self.picked.clear();
        }
        self.share = None;
    }

    pub(super) fn build(self, split: u64, shape: &Shape) -> Result<Emission> {
        let results: Vec<RecordBatch> =
            self.results.into_iter().map(|(rows, from, count)| rows.slice(from, count)).collect();
        let rows = match (join(&self.inputs)?, join(&results)?) {
            (Some(input), Some(result)) => {
                let columns = input.columns().iter().chain(result.columns()).cloned().collect();
                let count = RecordBatchOptions::new().with_row_count(Some(input.num_rows()));
                let rows = RecordBatch::try_new_with_options(shape.output.clone(), columns, &count)?;
                Some(Batch { split, rows })
            }
            _ => None,
        };
        Ok(Emission::Rows { rows, split, failed: self.failed })
    }
}

/// These rows. Where they are consecutive, nothing is copied.
pub(crate) fn pick(rows: &RecordBatch, which: &[u32]) -> Result<RecordBatch> {
    let first = which.first().copied().unwrap_or(0);
    if which.iter().enumerate().all(|(i, w)| *w == first + i as u32) {
        return Ok(rows.slice(first as usize, which.len()));
    }
    let indices = UInt32Array::from(which.to_vec());
    let column = |column: &ArrayRef| arrow_select::take::take(column, &indices, None);
    let columns = rows.columns().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    // There may be none, where nobody looks at any.
    let count = RecordBatchOptions::new().with_row_count(Some(which.len()));
    Ok(RecordBatch::try_new_with_options(rows.schema(), columns, &count)?)
}

/// Batches of the same types as one, with the first one's field names. Nullable: they may differ in that.
pub(super) fn join(batches: &[RecordBatch]) -> Result<Option<RecordBatch>> {
    let (first, schema, count) = match batches {
        [] => return Ok(None),
        [one] => return Ok(Some(one.clone())),
        [first, ..] => (first, nullable(first.schema_ref()), batches.iter().map(RecordBatch::num_rows).sum()),
    };
    let column = |c: usize| {
        let parts: Vec<&dyn arrow_array::Array> = batches.iter().map(|b| b.column(c).as_ref()).collect();
        arrow_select::concat::concat(&parts)
    };
    let columns = (0..first.num_columns()).map(column).collect::<Result<Vec<ArrayRef>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(Some(RecordBatch::try_new_with_options(schema, columns, &options)?))
}

/// The same columns, nulls allowed.
pub(crate) fn nullable(schema: &Schema) -> SchemaRef {
    let field = |f: &Arc<Field>| f.as_ref().clone().with_nullable(true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}
