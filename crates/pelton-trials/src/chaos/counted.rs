//! A scripted service that notes each row that it begins to execute, so that executions can be counted afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_schema::{DataType, Field};
use pelton::service::{Context, Definition, Emitter, Invocation, Methods, Opened, Started};
use pelton::{Error, Result, scripted};
use pelton_core::BoxFuture;

use super::job::id_field;

/// The option that names the folder for the notes. All others are the scripted service's.
pub(crate) const FOLDER: &str = "executions";

struct Counted {
    inner: Box<dyn Opened>,
    notes: File,
    /// Once there is such a file, no batch ends any more.
    hangs: PathBuf,
    /// Made when it ends in good order.
    closed: PathBuf,
}

/// The file that makes an instance hang, by its process.
pub(crate) fn hangs(folder: &Path, pid: u32) -> PathBuf {
    folder.join(format!("{HANGS}{pid}"))
}

const HANGS: &str = "hang-";
const IDS: &str = "ids";
const CLOSED: &str = "closed";

fn columns() -> (Vec<Field>, Vec<Field>) {
    (
        vec![id_field(), Field::new("text", DataType::Utf8, false)],
        vec![Field::new("score", DataType::UInt64, false)],
    )
}

/// The scripted service alone: `score(id, text) -> (score)`, a score being made of the row.
pub(crate) fn plain() -> Definition {
    let (input, output) = columns();
    let specs = Methods::<()>::new().serial("score", input, output, |(), batch, _| Ok(batch));
    scripted::in_place_of(specs.specs()).expect("numbers can be scripted")
}

/// The same, with notes of what it executes.
pub(crate) fn scorer() -> Definition {
    let inner = plain();
    let (input, output) = columns();
    let methods = Methods::<Counted>::new().concurrent("score", 1, input, output, Counted::score);
    Definition::with(
        move |ctx| {
            let inner = inner.clone();
            Box::pin(open(inner, ctx))
        },
        methods,
        |counted| {
            File::create(counted.closed)?;
            counted.inner.close()
        },
    )
}

async fn open(inner: Definition, mut ctx: Context) -> Result<Counted> {
    let folder = ctx.options.remove(FOLDER);
    let folder =
        folder.as_ref().and_then(|f| f.as_str()).ok_or_else(|| Error::invalid("no folder for executions"))?;
    let (folder, pid) = (Path::new(folder), std::process::id());
    let notes = OpenOptions::new().create(true).append(true).open(folder.join(format!("{pid}.{IDS}")))?;
    let closed = folder.join(format!("{pid}.{CLOSED}"));
    Ok(Counted { inner: inner.open(ctx).await?, notes, hangs: hangs(folder, pid), closed })
}

impl Counted {
    fn score(&mut self, batch: RecordBatch, invocation: Invocation) -> BoxFuture<Result<RecordBatch>> {
        let ids = batch.column(0).as_primitive::<UInt64Type>().values();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        // One write, so that a kill finds all of a batch noted, or none of it.
        if let Err(e) = self.notes.write_all(&bytes) {
            return Box::pin(async move { Err(e.into()) });
        }
        if self.hangs.exists() {
            return Box::pin(std::future::pending());
        }
        match self.inner.run(0, batch, &invocation, &Emitter::none()) {
            Started::Done(result) => Box::pin(async move { result }),
            Started::Pending(future) => future,
        }
    }
}

/// What one instance began to execute.
pub(crate) struct Executed {
    pub(crate) rows: Vec<u64>,
    /// It did not end in good order.
    pub(crate) died: bool,
}

/// What each instance executed.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Vec<Executed>> {
    let mut executed = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path: PathBuf = entry?.path();
        if path.extension().is_none_or(|e| e != IDS) {
            continue;
        }
        let bytes = fs::read(&path)?;
        let rows = bytes.as_chunks::<8>().0.iter().map(|id| u64::from_le_bytes(*id)).collect();
        executed.push(Executed { rows, died: !path.with_extension(CLOSED).exists() });
    }
    Ok(executed)
}
