//! Objects read by their references, where they are needed: in the methods of services.

mod attempt;
mod cache;
mod connector;
mod local;
mod roots;
mod settings;
mod stream;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pelton_core::service::Counters;
use pelton_core::{Error, ObjectRef, Result, Retry, Time};
use pelton_env::{Env, Place};
use pelton_policy::{backoff, retry};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::{Semaphore, oneshot};

use crate::store::Threads;
use attempt::{Failure, Span};
use cache::{Asked, Cache};
use roots::{Roots, Spot};
pub use settings::ReaderSettings;
pub use stream::ObjectStream;

/// Between two tries at one read.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Pieces of a stream that are kept ahead.
const AHEAD: usize = 8;

/// What an instance counts, beside bytes.
const READS: &str = "object-reads";
const BYTES: &str = "object-bytes";
const HITS: &str = "object-cache-hits";
const RETRIES: &str = "object-retries";

/// Reads objects. Cheap to clone; all clones share one cache, one number of reads at a time, and one budget for tries beyond the first.
///
/// What a server cannot give now is tried again with backoff, for as long as `patience` says; a read that fails after that may pass
/// another time ([`Retry::Elsewhere`]). What will not pass is an error of the row: an object that was changed since its reference was
/// made, is gone, is too large, or lies in none of the roots.
#[derive(Clone)]
pub struct ObjectReader {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ReaderSettings,
    /// For messages.
    service: String,
    roots: Roots,
    /// Ended with it.
    _threads: Threads,
    env: Env,
    slots: Semaphore,
    cache: Mutex<Cache<Key, Waiting>>,
    budget: Mutex<retry::Budget>,
    rng: Mutex<StdRng>,
    counters: Counters,
}

/// What is read once: a part of an object.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    object: ObjectRef,
    span: Span,
}

type Waiting = Box<dyn FnOnce(Result<Bytes>) + Send>;

impl ObjectReader {
    /// For the instance of a service, which counts what it reads in `counters`. `keys` are options of S3 that go before those of the
    /// settings, from the environment say; nothing is read from it here. Starts two threads, and connects to nothing yet.
    pub fn open(
        service: &str,
        settings: &ReaderSettings,
        keys: &[(String, String)],
        counters: &Counters,
    ) -> Result<ObjectReader> {
        settings.check().map_err(|e| e.context(format_args!("service `{service}`")))?;
        let roots =
            Roots::open(settings, keys).map_err(|e| e.context(format_args!("service `{service}`")))?;
        let threads = Threads::default();
        let env = threads.env()?;
        let shared = Shared {
            service: service.to_owned(),
            roots,
            slots: Semaphore::new(settings.concurrency),
            cache: Mutex::new(Cache::new(settings.cache.get())),
            budget: Mutex::new(retry::Budget::new(retry::Settings::default(), env.now())),
            rng: Mutex::new(env.rng()),
            counters: counters.clone(),
            settings: settings.clone(),
            _threads: threads,
            env,
        };
        Ok(ObjectReader { shared: Arc::new(shared) })
    }

    /// What a reference means, in memory. Blocks.
    pub fn read(&self, object: &ObjectRef) -> Result<Bytes> {
        self.ask_blocking(whole(object))()
    }

    /// So many bytes of what a reference means, from an offset within it on. Blocks.
    pub fn read_range(&self, object: &ObjectRef, from: u64, length: u64) -> Result<Bytes> {
        match self.shared.part(object, from, length)? {
            Part::Here(bytes) => Ok(bytes),
            Part::Asked(key) => self.ask_blocking(key)(),
        }
    }

    /// All of a batch, side by side, in their order. If some fail, the error is of one that will not pass, if there is one: the
    /// instance then runs the batch again in halves, until only that row fails, and what was read comes from the cache. The bytes of the
    /// whole batch are in memory at once: bound its rows. Blocks.
    pub fn read_all(&self, objects: &[ObjectRef]) -> Result<Vec<Bytes>> {
        let asked: Vec<_> = objects.iter().map(|object| self.ask_blocking(whole(object))).collect();
        let mut read = Vec::with_capacity(asked.len());
        let mut failed: Option<Error> = None;
        for wait in asked {
            match wait() {
                Ok(bytes) => read.push(bytes),
                Err(e) if failed.as_ref().is_none_or(|f| f.retry() != Retry::Never) => failed = Some(e),
                Err(_) => {}
            }
        }
        failed.map_or(Ok(read), Err)
    }

    /// As [`read`](ObjectReader::read), for methods that run side by side.
    pub async fn fetch(&self, object: &ObjectRef) -> Result<Bytes> {
        self.ask(whole(object)).await
    }

    /// As [`read_range`](ObjectReader::read_range), for methods that run side by side.
    pub async fn fetch_range(&self, object: &ObjectRef, from: u64, length: u64) -> Result<Bytes> {
        match self.shared.part(object, from, length)? {
            Part::Here(bytes) => Ok(bytes),
            Part::Asked(key) => self.ask(key).await,
        }
    }

    /// What a reference means, piece by piece: of any size, and not kept. Connects when the first piece is asked for, or before.
    pub fn stream(&self, object: &ObjectRef) -> ObjectStream {
        let (tell, pieces) = mpsc::sync_channel(AHEAD);
        let (shared, object) = (self.shared.clone(), object.clone());
        // On a thread of its own, which waits when whoever reads is slow.
        let task = self.shared.env.spawn(Place::Dedicated, async move {
            let end = shared.pump(&object, &tell).await;
            let _ = tell.send(end.map(|()| None));
        });
        ObjectStream { pieces, rest: Bytes::new(), ended: false, _task: task }
    }

    fn ask_blocking(&self, key: Key) -> impl FnOnce() -> Result<Bytes> {
        let (tell, told) = mpsc::sync_channel(1);
        // Whoever gave up waiting is not there to be told.
        self.shared.ask(key, Box::new(move |read| _ = tell.send(read)));
        move || told.recv().unwrap_or_else(|_| Err(lost()))
    }

    async fn ask(&self, key: Key) -> Result<Bytes> {
        let (tell, told) = oneshot::channel();
        self.shared.ask(key, Box::new(move |read| _ = tell.send(read)));
        told.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectReader({})", self.shared.settings.roots.join(", "))
    }
}

fn lost() -> Error {
    Error::internal("a read of an object ended without a result")
}

fn whole(object: &ObjectRef) -> Key {
    let span = Span { from: object.offset().unwrap_or(0), length: object.length() };
    Key { object: object.clone(), span }
}

enum Part {
    Here(Bytes),
    Asked(Key),
}

/// Who waits for a read is told, also if it panics.
struct Reading {
    shared: Arc<Shared>,
    key: Key,
    read: Option<Result<Bytes>>,
}

impl Reading {
    fn end(mut self, read: Result<Bytes>) {
        self.read = Some(read);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let read = self.read.take().unwrap_or_else(|| Err(lost()));
        // Without a version nothing tells whether it is still the same.
        let versioned = self.key.object.version().is_some();
        let keep = read.as_ref().ok().filter(|_| versioned).cloned();
        let waiting = lock(&self.shared.cache).done(&self.key, keep);
        for tell in waiting {
            tell(read.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// A part of what a reference means, out of the whole if that is here.
    fn part(&self, object: &ObjectRef, from: u64, length: u64) -> Result<Part> {
        let end = from.checked_add(length);
        let whole = whole(object);
        if length == 0 || end.is_none() || end > Some(whole.span.length.unwrap_or(u64::MAX - whole.span.from))
        {
            return Err(Error::user(format!(
                "object {object}: {length} bytes from {from} on are not a part of what it refers to; mend the range"
            )));
        }
        if let Some(bytes) = lock(&self.cache).get(&whole)
            && let Some(end) = end.filter(|end| *end <= bytes.len() as u64)
        {
            self.counters.add(HITS, 1);
            return Ok(Part::Here(bytes.slice(from as usize..end as usize)));
        }
        let span = Span { from: whole.span.from + from, length: Some(length) };
        Ok(Part::Asked(Key { object: object.clone(), span }))
    }

    fn ask(self: &Arc<Self>, key: Key, who: Waiting) {
        // Not under the lock: `tell` is not ours.
        let asked = lock(&self.cache).ask(&key, who);
        match asked {
            Asked::Here(bytes, tell) => {
                self.counters.add(HITS, 1);
                tell(Ok(bytes));
            }
            Asked::Awaited => self.counters.add(HITS, 1),
            Asked::Missing => {
                let reading = Reading { shared: self.clone(), key, read: None };
                let work = async move {
                    let read = reading.shared.clone().load(&reading.key).await;
                    reading.end(read);
                };
                self.env.spawn(Place::Network, work).detach();
            }
        }
    }

    async fn load(self: Arc<Self>, key: &Key) -> Result<Bytes> {
        let spot = self.roots.find(&key.object)?;
        // From here on, so that all who wait for a server that is down hear of it soon.
        let until = self.env.now() + self.settings.patience;
        let _slot = self.slots.acquire().await.map_err(|_| lost())?;
        self.counters.add(READS, 1);
        let read = match spot {
            Spot::File { .. } => {
                let (tell, told) = oneshot::channel();
                let (shared, key) = (self.clone(), key.clone());
                let work = async move { _ = tell.send(shared.collect(&key, &spot, until).await) };
                let _task = self.env.spawn(Place::Dedicated, work);
                told.await.unwrap_or_else(|_| Err(lost()))
            }
            Spot::Stored { .. } => self.collect(key, &spot, until).await,
        }?;
        self.counters.add(BYTES, read.len() as u64);
        Ok(read)
    }

    /// Reads until it has all, or has no patience left.
    async fn collect(&self, key: &Key, spot: &Spot, until: Time) -> Result<Bytes> {
        let mut patience = Patience { shared: self, until, failures: 0 };
        loop {
            let limit = self.settings.attempt_timeout;
            let tried = self.env.within(limit, self.attempt(key, spot)).await;
            match tried.unwrap_or_else(|| Err(timed_out(limit))) {
                Ok(bytes) => {
                    lock(&self.budget).succeeded(self.env.now());
                    return Ok(bytes);
                }
                Err(failure) => patience.after(&key.object, failure).await?,
            }
        }
    }

    async fn attempt(&self, key: &Key, spot: &Spot) -> Result<Bytes, Failure> {
        let most = self.settings.max_bytes;
        let fits = |length: u64| match length <= most.get() {
            true => Ok(()),
            false => Err(Error::user(format!(
                "object {}: {} ({length} bytes) is over the limit of {most} for one read of service `{}`; raise `max_bytes` in its \
                 [options.objects], read a range, or stream it",
                key.object,
                pelton_core::Bytes(length),
                self.service
            ))),
        };
        let mut body = attempt::begin(&key.object, spot, key.span, fits).await?;
        let Some(first) = body.next().await? else { return Ok(Bytes::new()) };
        if first.len() as u64 == body.length {
            return Ok(first);
        }
        let mut all = BytesMut::with_capacity(body.length as usize);
        all.extend_from_slice(&first);
        while let Some(piece) = body.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Sends the pieces of an object, and goes on where it stopped.
    async fn pump(&self, object: &ObjectRef, to: &mpsc::SyncSender<Result<Option<Bytes>>>) -> Result<()> {
        let spot = self.roots.find(object)?;
        self.counters.add(READS, 1);
        let Key { mut span, mut object } = whole(object);
        let mut patience = Patience::new(self);
        let limit = self.settings.attempt_timeout;
        loop {
            let began = self.env.within(limit, attempt::begin(&object, &spot, span, |_| Ok(()))).await;
            let mut body = match began.unwrap_or_else(|| Err(timed_out(limit))) {
                Ok(body) => body,
                Err(failure) => {
                    patience.after(&object, failure).await?;
                    continue;
                }
            };
            // What follows has to be of the same version, also if the reference had none.
            if let (None, Some(version)) = (object.version(), &body.version) {
                object = object.with_version(version)?;
            }
            span.length = Some(body.length);
            let failure = loop {
                match self.env.within(limit, body.next()).await.unwrap_or_else(|| Err(timed_out(limit))) {
                    Ok(None) => {
                        lock(&self.budget).succeeded(self.env.now());
                        return Ok(());
                    }
                    Ok(Some(piece)) => {
                        let n = piece.len() as u64;
                        self.counters.add(BYTES, n);
                        span = Span { from: span.from + n, length: span.length.map(|l| l - n) };
                        if to.send(Ok(Some(piece))).is_err() {
                            // Nobody reads any more.
                            return Ok(());
                        }
                        patience = Patience::new(self);
                    }
                    Err(failure) => break failure,
                }
            };
            if span.length == Some(0) {
                return Ok(());
            }
            patience.after(&object, failure).await?;
        }
    }
}

fn timed_out(limit: Duration) -> Failure {
    Failure::Passes { why: format!("nothing came within {limit:?} (`attempt_timeout`)"), after: None }
}

/// How often and how long one read is tried.
struct Patience<'a> {
    shared: &'a Shared,
    until: Time,
    failures: u32,
}

impl<'a> Patience<'a> {
    fn new(shared: &'a Shared) -> Self {
        Patience { shared, until: shared.env.now() + shared.settings.patience, failures: 0 }
    }

    /// Waits until there may be another try, which is paid for, or says why there is none.
    async fn after(&mut self, object: &ObjectRef, failure: Failure) -> Result<()> {
        let (why, after) = match failure {
            Failure::Stays(e) => return Err(e),
            Failure::Passes { why, after } => (why, after),
        };
        let Shared { env, settings, budget, rng, counters, .. } = self.shared;
        self.failures += 1;
        let now = env.now();
        let random = lock(rng).random();
        let wait = backoff::delay(self.failures, FIRST_WAIT, LONGEST_WAIT, random);
        let at = now + wait.max(after.unwrap_or_default());
        if at > self.until {
            return Err(Error::transient(format!(
                "object {object}: it could not be read in {} tries within {:?}, last for: {why}; see that the server is up, or raise \
                 `patience` in [options.objects] of service `{}`",
                self.failures, settings.patience, self.shared.service
            )));
        }
        let paid = lock(budget).owe(now);
        if paid > self.until {
            return Err(Error::transient(format!(
                "object {object}: {why}; too many reads of service `{}` fail for each to be tried again",
                self.shared.service
            )));
        }
        counters.add(RETRIES, 1);
        tracing::debug!("object {object}: {why}; try {} follows", self.failures + 1);
        env.sleep_until(Some(at.max(paid))).await;
        Ok(())
    }
}
