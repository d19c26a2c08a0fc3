//! One of a stage's parallel tasks: a state machine that never waits, and the loop that sleeps for it.

pub(crate) mod calling;
pub(crate) mod chain;
pub(crate) mod reading;
pub(crate) mod state;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use futures::FutureExt;
use pelton_core::{Error, Result};
use tokio::sync::{Notify, mpsc};

use crate::batch::Batch;
use crate::inputs::{Event, Inputs};
use crate::outbox::Outbox;
use crate::progress::add;
use crate::sink::Writer;
use calling::Calling;
use chain::Chain;
use reading::Reading;
use state::State;

/// What the coordinator tells a subtask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Begin this checkpoint. Told to sources, and to those whose inputs had all ended before.
    Checkpoint(u64),
    /// It is durable, and its outputs are visible.
    Completed(u64),
    Aborted(u64),
    /// Read no more; say when no instance works for you.
    Stop,
}

/// What a subtask tells the coordinator. One a checkpoint, one at the end.
pub(crate) enum Report {
    Acked {
        subtask: usize,
        number: u64,
        state: State,
    },
    Finished {
        subtask: usize,
        state: State,
    },
    Quiet {
        subtask: usize,
    },
    /// A call has told its client what a complete checkpoint covers.
    Acknowledged {
        subtask: usize,
        number: u64,
    },
    Failed(Error),
}

/// The way of commands to one subtask.
pub(crate) struct Control {
    commands: Mutex<VecDeque<Command>>,
    wake: Arc<Notify>,
}

impl Control {
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Control { commands: Mutex::new(VecDeque::new()), wake }
    }

    pub(crate) fn tell(&self, command: Command) {
        self.commands.lock().expect("nothing panics under this lock").push_back(command);
        self.wake.notify_one();
    }

    fn next(&self) -> Option<Command> {
        self.commands.lock().expect("nothing panics under this lock").pop_front()
    }
}

pub(crate) enum Head {
    Source(Reading),
    Call(Box<Calling>),
    Map,
    Sink(Box<dyn Writer>),
}

pub(crate) struct Subtask {
    pub(crate) index: usize,
    pub(crate) head: Head,
    pub(crate) chain: Chain,
    /// The columns that its inputs have in common.
    pub(crate) columns: Option<SchemaRef>,
    pub(crate) inputs: Inputs,
    pub(crate) outbox: Outbox,
    pub(crate) control: Arc<Control>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    /// The last checkpoint that it took part in.
    pub(crate) last: u64,
    pub(crate) phase: Phase,
    pub(crate) stopping: bool,
    pub(crate) said_quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// All inputs have ended; what it holds goes out.
    Draining,
    /// All is sent. It stays to hear of checkpoints.
    Finished,
}

enum Step {
    Worked,
    Idle,
}

/// Runs a subtask until its task is ended from outside.
pub(crate) async fn run(mut subtask: Subtask) {
    let name = subtask.chain.members[0].name.clone();
    let reports = subtask.reports.clone();
    let work = AssertUnwindSafe(async {
        if let Head::Call(call) = &mut subtask.head {
            call.resubmit()?;
        }
        loop {
            match subtask.step()? {
                // Others on this thread have their turn.
                Step::Worked => tokio::task::yield_now().await,
                Step::Idle => subtask.control.wake.notified().await,
            }
        }
    });
    let ended: Result<Result<(), Error>, _> = work.catch_unwind().await;
    let error = match ended {
        Ok(Ok(())) => return,
        Ok(Err(e)) => e,
        Err(panic) => Error::internal(format!("`{name}` panicked: {}", words(panic.as_ref()))),
    };
    // Nobody listens only if the job has ended.
    let _ = reports.send(Report::Failed(error));
    // Its edges stay until the job ends, or those behind it would take its failure for theirs.
    std::future::pending::<()>().await;
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref().copied())
        .unwrap_or("without a message")
}

impl Subtask {
    fn step(&mut self) -> Result<Step> {
        while let Some(command) = self.control.next() {
            self.obey(command)?;
        }
        if self.phase == Phase::Finished {
            return Ok(Step::Idle);
        }
        if let Head::Call(call) = &mut self.head {
            call.collect()?;
            if self.stopping && !self.said_quiet && call.is_quiet() {
                self.said_quiet = true;
                self.report(Report::Quiet { subtask: self.index });
            }
        }
        let sent = self.outbox.flush();
        let full = matches!(&self.head, Head::Call(call) if call.is_full());
        if (full || !sent || self.inputs.is_triggered())
            && let Some((number, queued)) = self.inputs.overtake()
        {
            self.checkpoint(number, queued)?;
            return Ok(Step::Worked);
        }
        if !sent {
            return Ok(Step::Idle);
        }
        match &mut self.head {
            Head::Source(_) if self.stopping => return Ok(Step::Idle),
            Head::Source(reading) => {
                if !reading.step(&mut self.chain, &mut self.outbox)? {
                    self.phase = Phase::Draining;
                }
            }
            Head::Call(call) => {
                if call.emit(&mut self.chain, &mut self.outbox)? {
                    return Ok(Step::Worked);
                }
                if (full || !self.receive()?) && !self.is_drained() {
                    return Ok(Step::Idle);
                }
            }
            Head::Map | Head::Sink(_) => {
                if !self.receive()? && !self.is_drained() {
                    return Ok(Step::Idle);
                }
            }
        }
        if self.is_drained() && self.outbox.flush() {
            self.finish()?;
        }
        Ok(Step::Worked)
    }

    fn is_drained(&self) -> bool {
        self.phase == Phase::Draining && !matches!(&self.head, Head::Call(call) if !call.is_empty())
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match (command, &mut self.head) {
            (Command::Checkpoint(_), _) if self.phase == Phase::Finished => {}
            (Command::Checkpoint(number), Head::Source(_)) => self.checkpoint(number, Vec::new())?,
            (Command::Checkpoint(number), _) => self.inputs.trigger(number),
            (Command::Completed(number), Head::Call(call)) => {
                call.completed(number);
                self.report(Report::Acknowledged { subtask: self.index, number });
            }
            (Command::Completed(_), _) => {}
            (Command::Aborted(number), _) => self.inputs.forget(number),
            (Command::Stop, _) => self.stopping = true,
        }
        Ok(())
    }

    /// Takes one thing in; says whether there was one.
    fn receive(&mut self) -> Result<bool> {
        let Some(event) = self.inputs.next() else {
            return Ok(false);
        };
        match event {
            Event::Batch(batch) => self.process(batch)?,
            Event::Watermark(watermark) => match &mut self.head {
                Head::Call(call) => call.watermark(watermark),
                _ => self.outbox.watermark(watermark),
            },
            Event::Barrier(number) => self.checkpoint(number, Vec::new())?,
            Event::End => self.phase = Phase::Draining,
            Event::Lost => return Err(Error::internal("a task before this one went away")),
        }
        Ok(true)
    }

    fn process(&mut self, batch: Batch) -> Result<()> {
        let batch = match &self.columns {
            Some(columns) => Batch { rows: with_schema(batch.rows, columns)?, ..batch },
            None => batch,
        };
        let name = &self.chain.members[0].name;
        let counters = &self.chain.members[0].counters;
        match &mut self.head {
            Head::Source(_) => Err(Error::internal(format!("rows came to source `{name}`"))),
            Head::Call(call) => call.accept(batch, &self.chain),
            Head::Map => self.chain.transform(0, batch, &mut self.outbox),
            Head::Sink(writer) => {
                add(&counters.rows_in, batch.rows.num_rows() as u64);
                add(&counters.bytes, batch.bytes());
                writer.write(batch.rows).map_err(|e| e.context(format!("sink `{name}`")))
            }
        }
    }

    /// Takes part in a checkpoint: what it holds now is its state, and the barrier goes on. It never waits for anything.
    fn checkpoint(&mut self, number: u64, queued: Vec<Batch>) -> Result<()> {
        let unsent = self.outbox.barrier(number);
        let state = self.save(number, queued, unsent)?;
        self.last = number;
        self.report(Report::Acked { subtask: self.index, number, state });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let state = self.save(self.last + 1, Vec::new(), Vec::new())?;
        self.outbox.end();
        self.phase = Phase::Finished;
        self.report(Report::Finished { subtask: self.index, state });
        Ok(())
    }

    fn save(&mut self, number: u64, queued: Vec<Batch>, unsent: Vec<(usize, Batch)>) -> Result<State> {
        let name = &self.chain.members[0].name;
        Ok(match &mut self.head {
            Head::Source(reading) => reading.save(unsent),
            Head::Map => State { queued, unsent, ..State::default() },
            Head::Call(call) => {
                let held = call.holders();
                State { lanes: call.save(number)?, held, queued, unsent, ..State::default() }
            }
            Head::Sink(writer) => {
                let staged = writer.prepare(number).map_err(|e| e.context(format!("sink `{name}`")))?;
                State { staged, queued, ..State::default() }
            }
        })
    }

    fn report(&self, report: Report) {
        // Nobody listens only if the job has ended.
        let _ = self.reports.send(report);
    }
}

/// The same columns under other field flags (whether nulls are allowed).
fn with_schema(rows: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if Arc::ptr_eq(rows.schema_ref(), schema) {
        return Ok(rows);
    }
    let count = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), rows.columns().to_vec(), &count)?)
}
