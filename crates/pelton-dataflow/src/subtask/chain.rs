//! The nodes that run fused in one subtask, and where their outputs go.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use pelton_core::{Error, RequestId, Result};

use crate::batch::{Batch, RowError, error_schema};
use crate::operator::{Output, Transform};
use crate::outbox::Outbox;
use crate::progress::{Counters, add};

pub(crate) struct Member {
    pub(crate) name: String,
    /// None for the head.
    pub(crate) transform: Option<Box<dyn Transform>>,
    /// The columns it must give.
    pub(crate) schema: SchemaRef,
    /// The stage's outputs that take its rows, and its errors.
    pub(crate) rows: Vec<usize>,
    pub(crate) errors: Vec<usize>,
    pub(crate) counters: Arc<Counters>,
}

/// A head and the maps behind it.
pub(crate) struct Chain {
    pub(crate) members: Vec<Member>,
}

impl Chain {
    /// Sends rows that `member` gave on: through the maps behind it, into the outbox.
    pub(crate) fn pass(&mut self, member: usize, batch: Batch, outbox: &mut Outbox) -> Result<()> {
        let count = batch.rows.num_rows() as u64;
        if count == 0 {
            return Ok(());
        }
        let from = &self.members[member];
        add(&from.counters.rows_out, count);
        for output in &from.rows {
            outbox.push(*output, batch.clone());
        }
        match self.members.get(member + 1) {
            // A fused map is the only one that takes the rows.
            Some(_) if from.rows.is_empty() => self.transform(member + 1, batch, outbox),
            _ => Ok(()),
        }
    }

    /// Runs a map of the chain.
    pub(crate) fn transform(&mut self, member: usize, batch: Batch, outbox: &mut Outbox) -> Result<()> {
        let map = &mut self.members[member];
        add(&map.counters.rows_in, batch.rows.num_rows() as u64);
        add(&map.counters.bytes, batch.bytes());
        let mut output = Output::default();
        let transform = map.transform.as_mut().expect("maps have a transform");
        transform.process(batch.rows, &mut output).map_err(|e| e.context(format!("map `{}`", map.name)))?;
        for rows in &output.rows {
            check(&map.name, rows, &map.schema)?;
        }
        self.errors(member, batch.split, output.errors.into_iter().map(|e| (None, e)).collect(), outbox)?;
        for rows in output.rows {
            self.pass(member, Batch { split: batch.split, rows }, outbox)?;
        }
        Ok(())
    }

    /// Sends bad rows to the member's error output; without one the first fails the job.
    pub(crate) fn errors(
        &mut self,
        member: usize,
        split: u64,
        errors: Vec<(Option<RequestId>, RowError)>,
        outbox: &mut Outbox,
    ) -> Result<()> {
        let member = &self.members[member];
        let Some((_, first)) = errors.first() else {
            return Ok(());
        };
        if member.errors.is_empty() {
            return Err(first.error.clone().context(format!("`{}` failed on {}", member.name, first.row)));
        }
        member.counters.errors.fetch_add(errors.len() as u64, Relaxed);
        let rows = error_rows(&member.name, &errors)?;
        for output in &member.errors {
            outbox.push(*output, Batch { split, rows: rows.clone() });
        }
        Ok(())
    }
}

/// Says no to rows other than the operator promised: what is behind it relies on them.
pub(crate) fn check(name: &str, rows: &RecordBatch, expected: &SchemaRef) -> Result<()> {
    if Arc::ptr_eq(rows.schema_ref(), expected) {
        return Ok(());
    }
    pelton_core::service::check_columns(format_args!("what `{name}` gave"), rows, expected)
}

/// Errors as rows of an error output.
pub(crate) fn error_rows(operator: &str, errors: &[(Option<RequestId>, RowError)]) -> Result<RecordBatch> {
    let text = |of: &dyn Fn(&RowError) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(errors.iter().map(|(_, e)| of(e))))
    };
    let requests: StringArray = errors.iter().map(|(id, _)| id.map(|id| id.to_string())).collect();
    let columns = vec![
        text(&|_| operator.to_owned()),
        text(&|e| e.error.kind().name().to_owned()),
        text(&|e| e.error.message().to_owned()),
        Arc::new(requests),
        text(&|e| e.row.clone()),
    ];
    RecordBatch::try_new(error_schema(), columns).map_err(|e| Error::internal(format!("error rows: {e}")))
}
