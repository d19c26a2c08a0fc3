//! The sink.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};
use pelton_files::{json_lines, parquet};

use crate::names::{Names, Record, STAGING};
use crate::settings::{Format, Settings};
use crate::store::{Store, Threads, failed};
use crate::upload::Upload;

/// A part that would be larger is ended, and another begun: S3 copies 5 GiB at once.
const LARGEST: u64 = 4 << 30;

/// Parts below a folder of an object store, exactly once: one or more for each subtask and checkpoint,
/// `PREFIX-GENERATION-SUBTASK-CHECKPOINT-TOKEN.EXTENSION`, visible once the checkpoint is complete. Readers leave out what is below
/// `_staging/`.
///
/// The store has to show what was written at once, as S3 does. A job that is killed while it sends a part of more than 8 MiB
/// leaves an upload that was never completed; such uploads can't be found by this sink. Set a lifecycle rule that aborts incomplete uploads
/// after a day (`AbortIncompleteMultipartUpload`). In a `file://` folder nothing is forced to disk: for one of this machine, the file
/// sinks are better.
pub struct Objects {
    settings: Settings,
    place: Place,
}

/// What sink and writers share.
#[derive(Clone)]
struct Place {
    store: Store,
    names: Names,
    threads: Arc<Threads>,
}

impl Objects {
    /// Sends nothing yet.
    pub fn new(settings: Settings) -> Result<Objects> {
        let names = settings.names()?;
        let place = Place { store: settings.store.clone(), names, threads: Arc::default() };
        Ok(Objects { settings, place })
    }

    fn context(&self) -> impl Fn(Error) -> Error + '_ {
        |e| e.context(self.describe())
    }
}

impl Sink for Objects {
    fn describe(&self) -> String {
        self.settings.describe()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn check(&self, input: &Schema) -> Result<()> {
        if input.fields().is_empty() {
            return Err(Error::invalid(format!("{}: there are no columns to write", self.describe())));
        }
        let checked = match self.settings.format {
            Format::Parquet => parquet::check(input),
            Format::JsonLines => json_lines::check(input),
        };
        checked.map_err(self.context())
    }

    fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        let kept =
            recorded.iter().map(|s| Record::read(s).map(|r| r.staged)).collect::<Result<BTreeSet<_>>>()?;
        let place = self.place.clone();
        let started = self.place.threads.wait(async move {
            place.probe().await?;
            place.refuse_other_run(generation).await?;
            place.discard(generation, &kept).await
        });
        started.map_err(self.context())
    }

    fn rewind(&self, checkpoint: u64) -> Result<()> {
        let place = self.place.clone();
        self.place.threads.wait(async move { place.withdraw(checkpoint).await }).map_err(self.context())
    }

    fn writer(&self, subtask: u32, generation: u64, schema: SchemaRef) -> Result<Box<dyn Writer>> {
        self.check(&schema)?;
        Ok(Box::new(PartWriter {
            place: self.place.clone(),
            format: self.settings.format,
            shown: self.describe(),
            schema,
            subtask,
            generation,
            current: None,
            sealed: Vec::new(),
        }))
    }

    fn commit(&self, staged: &[Staged]) -> Result<()> {
        let records = staged.iter().map(Record::read).collect::<Result<Vec<_>>>()?;
        let place = self.place.clone();
        let committed = self.place.threads.wait(async move {
            for record in &records {
                place.publish(record).await?;
            }
            Ok(())
        });
        committed.map_err(self.context())
    }
}

impl Place {
    fn part(&self, name: &str) -> Path {
        self.store.folder.clone().join(name)
    }

    fn staged(&self, name: &str) -> Path {
        self.store.folder.clone().join(STAGING).join(name)
    }

    /// Finds out that there is no bucket, or no leave to write.
    async fn probe(&self) -> Result<()> {
        let path = self.staged(&format!("probe-{}-{}", self.names.prefix, self.names.extension));
        let store = &self.store.store;
        store.put(&path, PutPayload::from_static(b"?")).await.map_err(|e| failed("writing", &path, &e))?;
        store.delete(&path).await.map_err(|e| failed("removing", &path, &e))
    }

    /// The names right below a folder.
    async fn list(&self, folder: &Path) -> Result<Vec<String>> {
        let at = |e: &object_store::Error| failed("listing", folder, e);
        let listed = self.store.store.list_with_delimiter(Some(folder)).await.map_err(|e| at(&e))?;
        Ok(listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
    }

    async fn refuse_other_run(&self, generation: u64) -> Result<()> {
        for name in self.list(&self.store.folder).await? {
            if self.names.part_of(&name).is_some_and(|(of, _)| of >= generation) {
                return Err(Error::invalid(format!(
                    "there already is {name}, which another run wrote; choose another folder or prefix, remove its parts, or go on \
                     with the checkpoints of that run"
                )));
            }
        }
        Ok(())
    }

    async fn discard(&self, generation: u64, kept: &BTreeSet<String>) -> Result<()> {
        let staging = self.store.folder.clone().join(STAGING);
        let names = self.list(&staging).await?;
        let old = |name: &String| self.names.generation_of_staged(name).is_some_and(|of| of < generation);
        let discarded = names.iter().filter(|name| old(name) && !kept.contains(*name));
        self.remove(discarded.map(|name| self.staged(name)).collect()).await
    }

    async fn withdraw(&self, checkpoint: u64) -> Result<()> {
        let names = self.list(&self.store.folder).await?;
        let later =
            |name: &&String| self.names.part_of(name).is_some_and(|(_, covered_by)| covered_by > checkpoint);
        self.remove(names.iter().filter(later).map(|name| self.part(name)).collect()).await
    }

    async fn remove(&self, paths: Vec<Path>) -> Result<()> {
        let removals = futures::stream::iter(paths).map(|path| async move { self.remove_one(&path).await });
        removals.buffer_unordered(8).try_collect().await
    }

    async fn remove_one(&self, path: &Path) -> Result<()> {
        match self.store.store.delete(path).await {
            Err(e) if !matches!(e, object_store::Error::NotFound { .. }) => Err(failed("removing", path, &e)),
            _ => Ok(()),
        }
    }

    async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.store.store.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("looking at", path, &e)),
        }
    }

    /// Copies a staged object to its final name, unless somebody has.
    async fn publish(&self, record: &Record) -> Result<()> {
        let (staged, part) = (self.staged(&record.staged), self.part(&record.part));
        if self.size(&part).await?.is_none() {
            match self.store.store.copy(&staged, &part).await {
                // Somebody else commits the same at this moment, or did so.
                Err(object_store::Error::NotFound { .. }) => {}
                done => done.map_err(|e| failed("copying to", &part, &e))?,
            }
        }
        match self.size(&part).await? {
            Some(bytes) if bytes == record.bytes => self.remove_one(&staged).await,
            Some(bytes) => Err(Error::storage(format!(
                "{part} has {bytes} bytes and was written with {}: somebody changed it; remove this job's output and start \
                 again without checkpoints",
                record.bytes
            ))),
            None => Err(Error::storage(format!(
                "{part} is not there, and neither is {staged} that was to become it: somebody removed objects of a run that \
                 goes on, or the bucket; its rows are lost, so remove this job's output and start again without checkpoints"
            ))),
        }
    }
}

struct PartWriter {
    place: Place,
    format: Format,
    shown: String,
    schema: SchemaRef,
    subtask: u32,
    generation: u64,
    current: Option<(u64, Upload)>,
    /// Parts of this checkpoint that were ended because of their size: token, bytes, rows.
    sealed: Vec<(u64, u64, u64)>,
}

impl PartWriter {
    fn seal(&mut self) -> Result<()> {
        if let Some((token, mut upload)) = self.current.take() {
            upload.seal().map_err(|e| e.context(&self.shown))?;
            self.sealed.push((token, upload.bytes, upload.rows));
        }
        Ok(())
    }
}

impl Writer for PartWriter {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())
            .map_err(|e| Error::internal(format!("rows for {}: {e}", self.shown)))?;
        let (_, upload) = match &mut self.current {
            Some(current) => current,
            none => {
                let token = self.place.threads.env()?.entropy.seed();
                let path = self.place.staged(&self.place.names.staged(self.generation, self.subtask, token));
                let (store, threads) = (&self.place.store, &self.place.threads);
                none.insert((token, Upload::new(store, threads, path, self.format, self.schema.clone())?))
            }
        };
        upload.write(&rows).map_err(|e| e.context(&self.shown))?;
        if upload.bytes >= LARGEST { self.seal() } else { Ok(()) }
    }

    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>> {
        self.seal()?;
        let (names, generation, subtask) = (&self.place.names, self.generation, self.subtask);
        let record = |(token, bytes, rows)| {
            let staged = names.staged(generation, subtask, token);
            Record { staged, part: names.part(generation, subtask, checkpoint, token), bytes, rows }.staged()
        };
        std::mem::take(&mut self.sealed).into_iter().map(record).collect()
    }
}
