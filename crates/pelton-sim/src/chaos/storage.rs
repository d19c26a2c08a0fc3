//! What survives a host: what is read, and what is written. Both fail when they are told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::id::stable_hash;
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};
use pelton_dataflow::source::{Read, Reader, Source, Split};

use crate::faults::world::World;

/// What errors that were asked for say.
pub(crate) const ASKED_FOR: &str = "it was told to fail";
/// What errors of the disk say that was made to be full, or to fail.
pub(crate) const FULL: &str = "os error 28";
pub(crate) const FAILED: &str = "os error 5";

/// Rows of one split are numbered from a multiple of this.
pub(crate) const SPLIT: u64 = 1_000_000;

/// What shall fail, and has not yet. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Mischief {
    armed: Arc<Mutex<Armed>>,
}

#[derive(Default)]
pub(crate) struct Armed {
    /// Batches during which their instance crashes.
    pub(crate) crashes: u32,
    /// Batches that never end.
    pub(crate) sticks: u32,
    pub(crate) reads: u32,
    pub(crate) prepares: u32,
    pub(crate) starts: u32,
    pub(crate) commits: VecDeque<BadCommit>,
}

/// How a commit fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadCommit {
    /// How much of it becomes visible all the same, of two.
    pub(crate) done: usize,
    /// The host dies in that moment.
    pub(crate) kills: bool,
}

impl Mischief {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn clear(&self) {
        *self.lock() = Armed::default();
    }

    pub(crate) fn crashes(&self) -> bool {
        take(&mut self.lock().crashes)
    }

    pub(crate) fn sticks(&self) -> bool {
        take(&mut self.lock().sticks)
    }

    fn fails(&self, which: impl FnOnce(&mut Armed) -> &mut u32) -> Result<()> {
        if take(which(&mut self.lock())) { Err(Error::storage(ASKED_FOR)) } else { Ok(()) }
    }
}

fn take(left: &mut u32) -> bool {
    let some = *left > 0;
    *left -= u32::from(some);
    some
}

pub(crate) fn numbers_schema() -> SchemaRef {
    let column = |name: &str| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![column("n"), column("k")]))
}

/// Splits of consecutive numbers.
#[derive(Clone)]
pub(crate) struct Numbers {
    /// How many each split has.
    pub(crate) rows: Vec<u64>,
    pub(crate) batch: u64,
    pub(crate) mischief: Mischief,
}

impl Numbers {
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> {
        (0..).zip(&self.rows).flat_map(|(split, rows)| split * SPLIT..split * SPLIT + rows)
    }
}

impl Source for Numbers {
    fn describe(&self) -> String {
        "numbers".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        numbers_schema()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        let split = |(number, rows): (usize, &u64)| {
            let uri = format!("numbers/{number}");
            Split { id: stable_hash(&uri), uri, bytes: rows * 8, version: "1".to_owned() }
        };
        Ok(self.rows.iter().enumerate().map(split).collect())
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let number = split.uri.strip_prefix("numbers/").and_then(|n| n.parse::<usize>().ok());
        let number = number.ok_or_else(|| Error::invalid(format!("{} is none of ours", split.uri)))?;
        let first = number as u64 * SPLIT;
        Ok(Box::new(NumberReader { source: self.clone(), first, rows: self.rows[number], position }))
    }
}

struct NumberReader {
    source: Numbers,
    first: u64,
    rows: u64,
    position: u64,
}

impl Reader for NumberReader {
    fn next(&mut self) -> Result<Option<Read>> {
        if self.position >= self.rows {
            return Ok(None);
        }
        self.source.mischief.fails(|armed| &mut armed.reads)?;
        let end = (self.position + self.source.batch).min(self.rows);
        let numbers = UInt64Array::from_iter_values(self.first + self.position..self.first + end);
        let keys = UInt64Array::from_iter_values(numbers.values().iter().map(|n| n % 7));
        self.position = end;
        let rows = RecordBatch::try_new(numbers_schema(), vec![Arc::new(numbers), Arc::new(keys)])?;
        Ok(Some(Read { rows, bad: Vec::new(), position: end }))
    }
}

/// A row as it is kept: its number, and what came of it.
type Row = (u64, u64);

/// A sink in two phases. What it has is the same for all hosts.
#[derive(Clone)]
pub(crate) struct Shelf {
    world: World,
    mischief: Mischief,
    content: Arc<Mutex<Content>>,
    /// Reads rows.
    read: fn(&RecordBatch) -> Vec<Row>,
    kill: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Content {
    staged: BTreeMap<String, Vec<Row>>,
    /// What of it was made visible by which name.
    committed: BTreeMap<String, Vec<u64>>,
    visible: BTreeMap<u64, u64>,
}

impl Shelf {
    pub(crate) fn new(
        world: &World,
        mischief: &Mischief,
        read: fn(&RecordBatch) -> Vec<Row>,
        kill: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Shelf { world: world.clone(), mischief: mischief.clone(), content: Arc::default(), read, kill }
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All that is visible.
    pub(crate) fn visible(&self) -> BTreeMap<u64, u64> {
        self.lock().visible.clone()
    }

    fn show(&self, staged: &[Staged]) {
        let mut content = self.lock();
        for Staged(key) in staged {
            let key = key.as_str().expect("it is a name of ours");
            let Some(rows) = content.staged.remove(key) else {
                if !content.committed.contains_key(key) {
                    self.world.fail(format!("{key} is to be made visible, and was never staged"));
                }
                continue;
            };
            content.committed.insert(key.to_owned(), rows.iter().map(|(n, _)| *n).collect());
            for (n, answer) in rows {
                if content.visible.insert(n, answer).is_some() {
                    self.world.fail(format!("row {n} is visible twice"));
                }
            }
        }
    }
}

/// The rows of an output in parts: number and part in one, and the answer.
pub(crate) fn in_parts(rows: &RecordBatch) -> Vec<Row> {
    let column =
        |name: &str| rows.column_by_name(name).expect("every row has it").as_primitive::<UInt64Type>();
    let (n, answer, part) = (column("n").values(), column("y").values(), column("part").values());
    n.iter().zip(part).map(|(n, part)| n * 4 + part).zip(answer.iter().copied()).collect()
}

/// The rows of the main output: their number and their last column.
pub(crate) fn numbers(rows: &RecordBatch) -> Vec<Row> {
    let n = rows.column_by_name("n").expect("every row has one").as_primitive::<UInt64Type>();
    let answer = rows.column(rows.num_columns() - 1).as_primitive::<UInt64Type>();
    n.values().iter().copied().zip(answer.values().iter().copied()).collect()
}

/// The rows of an error output: the number that failed, and 1 if it failed by itself.
pub(crate) fn failures(rows: &RecordBatch) -> Vec<Row> {
    let text = |name: &str| rows.column_by_name(name).expect("every error has it").as_string::<i32>().clone();
    let (shown, kinds) = (text("row"), text("kind"));
    let number = |row: &str| {
        let digits = row.split("\"n\":").nth(1).unwrap_or_default();
        let digits: String = digits.trim().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(u64::MAX)
    };
    (0..shown.len()).map(|i| (number(shown.value(i)), u64::from(kinds.value(i) == "user"))).collect()
}

impl Sink for Shelf {
    fn describe(&self) -> String {
        "a shelf".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn check(&self, _: &Schema) -> Result<()> {
        Ok(())
    }

    fn rewind(&self, checkpoint: u64) -> Result<()> {
        self.mischief.fails(|armed| &mut armed.starts)?;
        let mut content = self.lock();
        let later = |key: &str| {
            key.rsplit('-').next().and_then(|n| n.parse().ok()).is_some_and(|n: u64| n > checkpoint)
        };
        let Content { committed, visible, .. } = &mut *content;
        committed.retain(|key, rows| {
            if later(key) {
                rows.iter().for_each(|n| _ = visible.remove(n));
            }
            !later(key)
        });
        Ok(())
    }

    fn start(&self, _: u64, recorded: &[Staged]) -> Result<()> {
        self.mischief.fails(|armed| &mut armed.starts)?;
        let recorded: BTreeSet<&str> = recorded.iter().filter_map(|s| s.0.as_str()).collect();
        self.lock().staged.retain(|key, _| recorded.contains(key.as_str()));
        Ok(())
    }

    fn writer(&self, subtask: u32, generation: u64, _: SchemaRef) -> Result<Box<dyn Writer>> {
        Ok(Box::new(ShelfWriter {
            shelf: self.clone(),
            prefix: format!("{generation:04}-{subtask}"),
            rows: Vec::new(),
        }))
    }

    fn commit(&self, staged: &[Staged]) -> Result<()> {
        let Some(bad) = self.mischief.lock().commits.pop_front() else {
            self.show(staged);
            return Ok(());
        };
        self.show(&staged[..(staged.len() * bad.done) / 2]);
        if bad.kills {
            (self.kill)();
        }
        Err(Error::storage(ASKED_FOR))
    }
}

struct ShelfWriter {
    shelf: Shelf,
    prefix: String,
    rows: Vec<Row>,
}

impl Writer for ShelfWriter {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows.extend((self.shelf.read)(&rows));
        Ok(())
    }

    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        self.shelf.mischief.fails(|armed| &mut armed.prepares)?;
        let key = format!("{}-{checkpoint:06}", self.prefix);
        let rows = std::mem::take(&mut self.rows);
        if self.shelf.lock().staged.insert(key.clone(), rows).is_some() {
            self.shelf.world.fail(format!("{key} is staged twice"));
        }
        Ok(vec![Staged(key.into())])
    }
}
