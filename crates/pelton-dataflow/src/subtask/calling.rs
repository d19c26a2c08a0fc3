//! A call operator's subtask: rows to requests, outcomes to rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{Array, RecordBatch, RecordBatchOptions};
use pelton_core::call::{
    Acknowledge, Affinity, Caller, ErrorPolicy, Holder, Outcome, Priority, Receiver, Submission,
};
use pelton_core::id::InstanceId;
use pelton_core::service::Cardinality;
use pelton_core::{Error, RequestId, RequestRun, Result};
use tokio::sync::Notify;

use super::chain::Chain;
use crate::batch::Batch;
use crate::keys;
use crate::outbox::Outbox;
use crate::pending::{Emission, Pending, SavedLane, pick};
use crate::progress::add;
use crate::topology::{CallShape, mix};

/// Where the client puts outcomes. They are bounded by what is pending: one a request, or its parts.
struct Mailbox {
    delivered: Mutex<Vec<Delivered>>,
    wake: Arc<Notify>,
}

enum Delivered {
    One(Outcome),
    /// Of requests that follow one another, a row each.
    Rows(RequestId, RecordBatch),
}

impl Mailbox {
    fn put(&self, delivered: impl IntoIterator<Item = Delivered>) {
        self.delivered.lock().expect("nothing panics under this lock").extend(delivered);
        self.wake.notify_one();
    }
}

impl Receiver for Mailbox {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        self.put(outcomes.into_iter().map(Delivered::One));
    }

    fn deliver_rows(&self, first: RequestId, rows: RecordBatch) {
        self.put([Delivered::Rows(first, rows)]);
    }
}

/// What the counters have of this subtask: several share them.
#[derive(Default)]
struct Reported {
    pending: u64,
    stored_keys: u64,
    stored_bytes: u64,
}

/// What does not change while it runs.
pub(crate) struct Terms {
    pub(crate) name: String,
    pub(crate) shape: CallShape,
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) on_error: ErrorPolicy,
    pub(crate) generation: u64,
}

pub(crate) struct Calling {
    terms: Terms,
    caller: Arc<dyn Caller>,
    mailbox: Arc<Mailbox>,
    pending: Pending,
    reported: Reported,
    /// Parts of streams that are here, and that the client does not know to be taken.
    untaken: BTreeMap<RequestId, usize>,
    /// Requests of which there are parts and not all.
    partial: BTreeSet<RequestId>,
    /// Requests that ended since the last barrier.
    ended: Vec<RequestId>,
    /// Requests that ended before a barrier, to acknowledge when a checkpoint of this or a later number is complete.
    covered: Vec<(u64, Vec<RequestRun>)>,
}

impl Calling {
    /// Puts back what a checkpoint held. Requests that had not ended are submitted again under their old ids.
    pub(crate) fn new(
        terms: Terms,
        caller: Arc<dyn Caller>,
        wake: Arc<Notify>,
        mut pending: Pending,
        lanes: Vec<SavedLane>,
    ) -> Result<Self> {
        for lane in lanes {
            pending.restore(lane)?;
        }
        let mailbox = Arc::new(Mailbox { delivered: Mutex::new(Vec::new()), wake });
        let (ended, covered) = (Vec::new(), Vec::new());
        let (untaken, partial) = (BTreeMap::new(), BTreeSet::new());
        let reported = Reported::default();
        Ok(Calling { terms, caller, mailbox, pending, reported, untaken, partial, ended, covered })
    }

    pub(crate) fn resubmit(&mut self) -> Result<()> {
        for unfinished in self.pending.unfinished()? {
            self.submit(unfinished.ids, &unfinished.rows)?;
        }
        Ok(())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pending.is_full()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Notes what the client delivered.
    pub(crate) fn collect(&mut self) -> Result<()> {
        let all =
            std::mem::take(&mut *self.mailbox.delivered.lock().expect("nothing panics under this lock"));
        let streams = self.terms.shape.method.cardinality == Cardinality::Many;
        for delivered in all {
            let Outcome { id, rows, last } = match delivered {
                Delivered::One(outcome) => outcome,
                Delivered::Rows(first, rows) => match self.pending.check_rows(&rows) {
                    Ok(()) => {
                        self.ended.extend(self.pending.finish_rows(first, rows));
                        continue;
                    }
                    Err(error) => {
                        // An error of each of them, which is dealt with as any.
                        let ids = (first.sequence..).take(rows.num_rows());
                        let ids = ids.map(|sequence| RequestId { sequence, ..first });
                        let outcome = |id| Outcome { id, rows: Err(error.clone()), last: true };
                        self.mailbox.deliver(ids.map(outcome).collect());
                        continue;
                    }
                },
            };
            let part = rows.is_ok() && !last;
            let rows = rows.and_then(|rows| self.pending.check(rows, last));
            let rows = match (streams, rows) {
                (true, Ok(rows)) => self.pending.check_size(id, &rows).map(|()| rows),
                (_, rows) => rows,
            };
            if rows.is_err() && part {
                // Its service goes on for nothing.
                self.caller.cancel(&[id]);
            }
            if part {
                *self.untaken.entry(id).or_default() += 1;
            }
            let rows = match (rows, &self.terms.on_error) {
                (Err(e), ErrorPolicy::Fail) => {
                    // At once, not when its turn has come. What nothing waits for is not ours to fail with.
                    let Some(row) = self.pending.show(id) else {
                        continue;
                    };
                    return Err(e.context(format!("call `{}`, request {id}, row {row}", self.terms.name)));
                }
                (Err(e), ErrorPolicy::Default(_)) => {
                    tracing::debug!(call = self.terms.name, %id, error = %e, "default values");
                    Ok(self.terms.shape.default.clone().expect("checked with the plan"))
                }
                (rows, _) => rows,
            };
            let last = last || rows.is_err();
            if self.pending.finish(id, rows, last) {
                self.ended.push(id);
            }
            if !streams {
                continue;
            }
            if self.pending.partial(id) > 0 {
                self.partial.insert(id);
            } else {
                // Nothing of it is held back any more.
                self.partial.remove(&id);
                self.take(id);
            }
        }
        if streams {
            self.take_parts();
        }
        Ok(())
    }

    /// Says that the parts which are here are taken, so that more come: of all streams as long as there is room for their answers, and
    /// else of one alone, so that it ends.
    fn take_parts(&mut self) {
        if self.untaken.is_empty() {
            return;
        }
        if !self.pending.is_overfull() {
            let ids: Vec<RequestId> =
                (self.untaken.iter()).flat_map(|(id, parts)| std::iter::repeat_n(*id, *parts)).collect();
            self.untaken.clear();
            if !ids.is_empty() {
                self.caller.took(&ids);
            }
        } else if let Some(first) = self.partial.first().copied() {
            self.take(first);
        }
    }

    fn take(&mut self, id: RequestId) {
        if let Some(parts) = self.untaken.remove(&id) {
            self.caller.took(&vec![id; parts]);
        }
    }

    /// Takes rows in: first into what is pending, then to the client.
    pub(crate) fn accept(&mut self, batch: Batch, chain: &Chain) -> Result<()> {
        if batch.rows.num_rows() == 0 {
            return Ok(());
        }
        add(&chain.members[0].counters.rows_in, batch.rows.num_rows() as u64);
        add(&chain.members[0].counters.bytes, batch.bytes());
        let group = match self.terms.shape.replayable {
            true => batch.split,
            false => mix(batch.split ^ mix(self.terms.generation)),
        };
        let taken = self.pending.add(group, batch)?;
        self.submit(taken.ids, &taken.rows)
    }

    fn submit(&mut self, ids: Vec<RequestId>, rows: &RecordBatch) -> Result<()> {
        let (ids, rows) = self.refuse(ids, rows)?;
        if ids.is_empty() {
            return Ok(());
        }
        let shape = &self.terms.shape;
        let columns = shape.arguments.iter().map(|c| rows.column(*c).clone()).collect();
        let count = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let arguments = RecordBatch::try_new_with_options(shape.method.input.clone(), columns, &count)?;
        let submission = Submission {
            timeout: self.terms.timeout,
            attempt_timeout: self.terms.attempt_timeout,
            keys: shape.key.map(|column| keys::of(rows.column(column))),
            affinity: match shape.affinity {
                Some(column) => Affinity::Keys(keys::of(rows.column(column))),
                None => Affinity::Any,
            },
            priority: self.terms.priority,
            acknowledge: Acknowledge::Explicit,
            paced: true,
            ..Submission::new(shape.index, ids, arguments)
        };
        self.caller.submit(submission, self.mailbox.clone());
        Ok(())
    }

    /// A row without a value for an argument that must have one, or that says nothing to its changelog, is an error of that row.
    fn refuse(&mut self, ids: Vec<RequestId>, rows: &RecordBatch) -> Result<(Vec<RequestId>, RecordBatch)> {
        let arguments = self.terms.shape.arguments.iter().zip(self.terms.shape.method.input.fields());
        let strict = arguments.filter(|(c, field)| !field.is_nullable() && rows.column(**c).null_count() > 0);
        let strict: Vec<(usize, &str)> = strict.map(|(c, field)| (*c, field.name().as_str())).collect();
        if strict.is_empty() && self.terms.shape.changelog.is_none() {
            return Ok((ids, rows.clone()));
        }
        let null = |row| {
            let (_, name) = strict.iter().find(|(c, _)| rows.column(*c).is_null(row))?;
            Some(Error::invalid(format!("argument `{name}` is null, and the method takes no nulls")))
        };
        let mut kept = Vec::new();
        let mut refused = Vec::new();
        for (row, id) in ids.into_iter().enumerate() {
            match self.pending.refusal(rows, row).or_else(|| null(row)) {
                None => kept.push((row as u32, id)),
                Some(error) => refused.push(Outcome { id, rows: Err(error), last: true }),
            }
        }
        if !refused.is_empty() {
            self.mailbox.deliver(refused);
        }
        let (which, ids): (Vec<u32>, Vec<RequestId>) = kept.into_iter().unzip();
        Ok((ids, pick(rows, &which)?))
    }

    pub(crate) fn watermark(&mut self, watermark: i64) {
        self.pending.watermark(watermark);
    }

    /// Sends on what is ready, as one batch; says whether there was something.
    pub(crate) fn emit(&mut self, chain: &mut Chain, outbox: &mut Outbox) -> Result<bool> {
        let emission = self.pending.emit()?;
        self.take_parts();
        self.report(chain);
        match emission {
            None => Ok(false),
            Some(Emission::Watermark(watermark)) => {
                outbox.watermark(watermark);
                Ok(true)
            }
            Some(Emission::Rows { rows, split, failed }) => {
                chain.errors(0, split, failed.into_iter().map(|f| (Some(f.id), f.row)).collect(), outbox)?;
                if let Some(batch) = rows {
                    chain.pass(0, batch, outbox)?;
                }
                Ok(true)
            }
        }
    }

    fn report(&mut self, chain: &Chain) {
        let counters = &chain.members[0].counters;
        let (stored_keys, stored_bytes) = self.pending.stored();
        let now = Reported { pending: self.pending.rows(), stored_keys, stored_bytes };
        let before = std::mem::replace(&mut self.reported, now);
        add(&counters.pending, self.reported.pending.wrapping_sub(before.pending));
        add(&counters.stored_keys, stored_keys.wrapping_sub(before.stored_keys));
        add(&counters.stored_bytes, stored_bytes.wrapping_sub(before.stored_bytes));
    }

    /// A failed request fails the job at once, not when its turn has come.
    pub(crate) fn save(&mut self, covered_by: u64) -> Result<Vec<SavedLane>> {
        self.cover(covered_by);
        self.pending.save()
    }

    /// What ended so far is covered by this checkpoint.
    pub(crate) fn cover(&mut self, checkpoint: u64) {
        let mut ended = std::mem::take(&mut self.ended);
        ended.sort_unstable();
        self.covered.push((checkpoint, RequestRun::pack(ended)));
    }

    /// The checkpoint is complete: the ledgers may forget what it covers.
    pub(crate) fn completed(&mut self, checkpoint: u64) {
        let (covered, rest) =
            std::mem::take(&mut self.covered).into_iter().partition(|(n, _)| *n <= checkpoint);
        self.covered = rest;
        let covered: Vec<(u64, Vec<RequestRun>)> = covered;
        let ids: Vec<RequestId> =
            covered.into_iter().flat_map(|(_, runs)| runs).flat_map(RequestRun::ids).collect();
        if !ids.is_empty() {
            self.caller.acknowledge(&ids);
        }
    }

    /// Where the unended requests are, for the record: those that an instance holds.
    pub(crate) fn holders(&self) -> Vec<(RequestRun, InstanceId)> {
        let ids = self.pending.unfinished_ids();
        let mut held: BTreeMap<InstanceId, Vec<RequestId>> = BTreeMap::new();
        for (id, holder) in ids.iter().zip(self.caller.holders(&ids)) {
            if let Holder::Instance(instance) = holder {
                held.entry(instance).or_default().push(*id);
            }
        }
        let runs = |(instance, ids): (InstanceId, Vec<RequestId>)| {
            RequestRun::pack(ids).into_iter().map(move |run| (run, instance.clone()))
        };
        held.into_iter().flat_map(runs).collect()
    }

    /// Whether no instance works on anything of ours.
    pub(crate) fn is_quiet(&self) -> bool {
        self.holders().is_empty()
    }
}
