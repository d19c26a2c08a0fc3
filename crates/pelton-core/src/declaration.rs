//! A service's declaration: everything that is set about it, in one place, as code or as a small TOML file.
//!
//! ```toml
//! name = "embedder"
//! instances = 2                      # or { min = 1, max = 4, initial = 2 }
//!
//! [batch]
//! rows = 32
//! linger = "5ms"
//!
//! [options]                          # what the service's own `open` reads
//! model = "models/minilm"
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::call::ErrorPolicy;
use crate::error::{Error, Result};
use crate::quantity::Bytes;
use crate::remote::{self, Remote};

/// A service's declaration. Build one with [`Declaration::new`] and set fields, or read one with
/// [`Declaration::from_toml`]; [`Declaration::checked`] refuses values that cannot work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// Unique within the job: letters, digits, `-` and `_`, at most 32.
    pub name: String,
    /// What runs. None: the type that the program registers under this name. `scripted`: the scripted service with the
    /// same methods. `remote`: servers of other people (see [`Remote`]), with the same methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The command that an instance is started with, and its arguments: that of a host in another language, say. It is told who it is on
    /// its standard input, as any instance is, and serves the methods that the job knows. Empty: this program, once more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<String>,
    /// How many instances.
    #[serde(default)]
    pub instances: Instances,
    #[serde(default)]
    pub batch: BatchLimits,
    #[serde(default)]
    pub permits: PermitBudget,
    #[serde(default)]
    pub weight: Weight,
    #[serde(default)]
    pub ledger: LedgerLimits,
    #[serde(default)]
    pub stream: StreamLimits,
    #[serde(default)]
    pub retry: RetryLimits,
    #[serde(default)]
    pub resources: Resources,
    /// The overall deadline of a request at call sites that set none. None: as long as it takes.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How long one attempt at a request may take at call sites that set nothing. None: as long as the deadline.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub attempt_timeout: Option<Duration>,
    /// How long a batch may run without giving anything before the instance is taken for wedged: its state is written to its log, and
    /// it is started again. None: ten times the longest run it has seen, at least five minutes, and 15 minutes before it has seen twenty.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub stall: Option<Duration>,
    /// How long a method may go on after all of its requests were cancelled or are past their deadlines, before its instance is
    /// ended. None: as long as it likes.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub kill_after: Option<Duration>,
    /// What call sites that set none do with a row whose request failed.
    #[serde(default)]
    pub on_error: ErrorPolicy,
    /// How long an instance goes on without anybody who supervises it.
    #[serde(default = "defaults::lease", with = "humantime_serde")]
    pub lease: Duration,
    /// The largest message between a caller and an instance; a row that does not fit is an error that names this.
    #[serde(default = "defaults::max_message")]
    pub max_message: Bytes,
    /// What may wait with one caller's process for permits; a request beyond it is refused as overload. A job's call operators stop well
    /// below it and let their source wait.
    #[serde(default = "defaults::max_backlog")]
    pub max_backlog: Bytes,
    /// The memory that a caller on this machine and an instance share for messages, for each direction of their connection; used as far as
    /// messages are under way. What finds no room in it, and everything if this is 0, goes through their socket.
    #[serde(default = "defaults::shared_memory")]
    pub shared_memory: Bytes,
    /// Of kind `remote`: the servers that answer in place of instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// Where instances are that others started: the job starts none, and calls these (see [`Access`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// How the job gets in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// What the service's own `open` reads.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Stands for `options` where it is asked whether an instance of an earlier run is what is wanted now. For options whose text differs from
    /// run to run though they mean the same, as that of a pickled object. None: the options themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// How many instances a service may have. A fixed number is `min = max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Instances {
    pub min: u32,
    pub max: u32,
    pub initial: u32,
}

/// How requests become batches at the instance, across all callers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchLimits {
    /// Most rows in a batch.
    pub rows: u32,
    /// Most bytes in a batch; one larger row still runs, alone.
    pub bytes: Bytes,
    /// Most weight in a batch (see [`Weight`]); one heavier row still runs, alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// How long an answer may take at the instance, waiting included: batches stay small enough for it. None: what the call
    /// sites' timeouts leave.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub latency: Option<Duration>,
    /// How long an idle instance waits for a batch to fill, from its first row.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

/// How much an instance lets its callers send ahead of what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PermitBudget {
    /// Rows held or permitted at a time. None: as measured, so that the next batch is there when one ends, and no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// Bytes held or permitted at a time; one larger row is still let in, alone.
    pub bytes: Bytes,
}

/// What a row costs, in a unit of the service's own: tokens, pixels, seconds of audio. Run times and memory are measured against it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weight {
    /// The argument column, of numbers, that holds a row's weight. None: every row weighs 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The weight that an instance can hold in its memory, queued and running. None: what the service reports of itself
    /// ([`Gauge`](crate::service::Gauge)), or no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// The result column, of numbers, that holds what an answer added to its row's weight while it ran, as the tokens do that a language
    /// model writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// How much an instance remembers of requests that ended and that no checkpoint covers yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerLimits {
    /// Results in memory. What is beyond it goes to `spill`, or is forgotten, oldest first; what is forgotten has to run again
    /// if somebody asks for it.
    pub bytes: Bytes,
    /// A result that is older is forgotten, wherever it is.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
    /// The folder, on the instance's machine, whose disk takes the results that `bytes` has no room for; an absolute path. Nothing is
    /// left there when the instance ends, however it does. None: they are forgotten. A file system in memory, as `/tmp` often is,
    /// is of no use here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill: Option<PathBuf>,
    /// What one instance may take there; beyond it the oldest are forgotten.
    pub spill_bytes: Bytes,
    /// What becomes of requests that run for a caller who is gone and has not come back within the lease.
    pub orphans: Orphans,
}

/// What becomes of requests that run for a caller who is gone for good. Those that had not begun are dropped in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orphans {
    /// They run to their end, and their results are kept for whoever asks for them again.
    #[default]
    Finish,
    /// They are asked to stop.
    Cancel,
}

/// How far the parts of streamed answers run ahead of the caller that takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamLimits {
    /// Bytes of one stream that its caller has not taken; then its method waits. One larger row still passes, alone.
    pub window: Bytes,
    /// The same for all streams of one caller's process together, over all instances. A stream of which nothing is under way may still
    /// give one part, so that none is held up by the others for good.
    pub total: Bytes,
    /// Bytes of the streams that run that an instance keeps after they were taken, for a caller that is started again. Where there are
    /// more, the begin of one that has more than its share is forgotten, and a restarted caller has it run again.
    pub kept: Bytes,
}

/// What happens to requests and starts that failed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryLimits {
    /// Most attempts at one request, the first included.
    pub attempts: u32,
    /// Most starts of one instance in a row that do not get ready, before the job gives up on the service if no
    /// instance of it was ever ready.
    pub starts: u32,
    /// Wait before the second try; doubles from try to try, with jitter.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
    #[serde(with = "humantime_serde")]
    pub max_backoff: Duration,
    /// Retries that all callers of the job together may make, as a share of the requests that succeeded: 0.2 is one in five. A few a
    /// second are always there.
    pub budget: f64,
}

/// What one instance takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Cores. An instance's thread pools are sized by it.
    pub cpu: f64,
    /// What it is expected to take at its peak. Shown in plans; nothing is reserved or enforced by this host yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Accelerators.
    pub gpu: f64,
}

mod defaults {
    use super::{Bytes, Duration};

    pub(super) fn lease() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) fn max_message() -> Bytes {
        Bytes::mib(64)
    }
    pub(super) fn spill_bytes() -> Bytes {
        Bytes::mib(10 << 10)
    }
    pub(super) fn max_backlog() -> Bytes {
        Bytes::mib(1024)
    }
    pub(super) fn shared_memory() -> Bytes {
        Bytes::mib(256)
    }
}

impl Default for Instances {
    fn default() -> Self {
        Instances::fixed(1)
    }
}

impl Instances {
    pub fn fixed(n: u32) -> Self {
        Instances { min: n, max: n, initial: n }
    }
}

impl From<u32> for Instances {
    fn from(n: u32) -> Self {
        Instances::fixed(n)
    }
}

impl<'de> Deserialize<'de> for Instances {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> serde::de::Visitor<'de> for Written {
            type Value = Instances;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or { min = ..., max = ..., initial = ... }")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Instances, E> {
                u32::try_from(n)
                    .map(Instances::fixed)
                    .map_err(|_| E::custom(format!("{n} instances are too many")))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Instances, E> {
                u32::try_from(n)
                    .map(Instances::fixed)
                    .map_err(|_| E::custom(format!("{n} instances cannot be")))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Instances, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Range {
                    min: u32,
                    max: u32,
                    initial: Option<u32>,
                }
                let r = Range::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Instances { min: r.min, max: r.max, initial: r.initial.unwrap_or(r.min) })
            }
        }
        d.deserialize_any(Written)
    }
}

impl Default for BatchLimits {
    fn default() -> Self {
        BatchLimits {
            rows: 32,
            bytes: Bytes::mib(16),
            weight: None,
            latency: None,
            linger: Duration::from_millis(2),
        }
    }
}

impl Default for PermitBudget {
    fn default() -> Self {
        PermitBudget { rows: None, bytes: Bytes::mib(64) }
    }
}

impl Default for LedgerLimits {
    fn default() -> Self {
        LedgerLimits {
            bytes: Bytes::mib(256),
            age: Duration::from_secs(600),
            spill: None,
            spill_bytes: defaults::spill_bytes(),
            orphans: Orphans::default(),
        }
    }
}

impl Default for StreamLimits {
    fn default() -> Self {
        StreamLimits { window: Bytes::mib(4), total: Bytes::mib(32), kept: Bytes::mib(64) }
    }
}

impl Default for RetryLimits {
    fn default() -> Self {
        RetryLimits {
            attempts: 5,
            starts: 5,
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(30),
            budget: 0.2,
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Resources { cpu: 1.0, memory: None, gpu: 0.0 }
    }
}

impl Declaration {
    /// A declaration with every setting at its default: one instance, 32 rows a batch.
    pub fn new(name: impl Into<String>) -> Self {
        Declaration {
            name: name.into(),
            kind: None,
            program: Vec::new(),
            instances: Instances::default(),
            batch: BatchLimits::default(),
            permits: PermitBudget::default(),
            weight: Weight::default(),
            ledger: LedgerLimits::default(),
            stream: StreamLimits::default(),
            retry: RetryLimits::default(),
            resources: Resources::default(),
            timeout: None,
            attempt_timeout: None,
            stall: None,
            kill_after: None,
            on_error: ErrorPolicy::default(),
            lease: defaults::lease(),
            max_message: defaults::max_message(),
            max_backlog: defaults::max_backlog(),
            shared_memory: defaults::shared_memory(),
            remote: None,
            endpoints: Vec::new(),
            access: None,
            options: serde_json::Map::new(),
            identity: None,
        }
    }

    /// The same with another number of instances.
    pub fn instances(mut self, n: impl Into<Instances>) -> Self {
        self.instances = n.into();
        self
    }

    /// The same with another limit on the rows of a batch.
    pub fn max_rows(mut self, rows: u32) -> Self {
        self.batch.rows = rows;
        self
    }

    /// The same with one option of the service's own set.
    pub fn option(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.options.insert(key.to_owned(), value.into());
        self
    }

    /// The text of a TOML file that reads as this declaration.
    pub fn to_toml(&self) -> Result<String> {
        let name = &self.name;
        let what = |e: &dyn std::fmt::Display| {
            Error::invalid(format!("service `{name}` cannot be written as TOML: {e}"))
        };
        let mut plain = serde_json::to_value(self).map_err(|e| what(&e))?;
        drop_nulls(&mut plain);
        toml::to_string(&plain).map_err(|e| what(&e))
    }

    /// Reads a declaration from TOML. `origin` names it in messages.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let declaration: Declaration = toml::from_str(text)
            .map_err(|e| Error::invalid(format!("{origin}: {}", e.to_string().trim_end())))?;
        declaration.checked().map_err(|e| e.context(origin))
    }

    /// Reads a declaration from a TOML file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::invalid(format!("service declaration {origin} cannot be read: {e}")))?;
        Declaration::from_toml(&text, &origin)
    }

    /// Refuses values that cannot work, each with what would.
    pub fn checked(mut self) -> Result<Self> {
        self.check_endpoints()?;
        let bad = |what: String| Err(Error::invalid(format!("service `{}`: {what}", self.name)));
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(fits) {
            return bad("`name` must be 1 to 32 letters, digits, `-` or `_`".into());
        }
        if self.program.first().is_some_and(String::is_empty) {
            return bad(
                "`program` begins with an empty word; it must begin with the path of a command".into()
            );
        }
        let Instances { min, max, initial } = self.instances;
        if max == 0 || max > 1024 {
            return bad(format!("`instances` must be 1 to 1024, not {max}"));
        }
        if min != max {
            return bad(format!("`instances` {min}..={max}: autoscaling is not there yet; set min = max"));
        }
        if !(min..=max).contains(&initial) {
            return bad(format!("`instances.initial` is {initial}, outside {min}..={max}"));
        }
        if self.batch.rows == 0 || self.batch.rows > 1 << 20 {
            return bad(format!("`batch.rows` must be 1 to {}, not {}", 1 << 20, self.batch.rows));
        }
        if self.batch.bytes.get() == 0 {
            return bad("`batch.bytes` must not be 0".into());
        }
        if self.batch.linger > Duration::from_secs(60) {
            return bad(format!("`batch.linger` is {:?}; at most 60s", self.batch.linger));
        }
        if let Some(rows) = self.permits.rows
            && rows < self.batch.rows
        {
            return bad(format!(
                "`permits.rows` is {rows}, less than `batch.rows` ({}): no batch would ever be full",
                self.batch.rows
            ));
        }
        if self.permits.bytes.get() == 0 {
            return bad("`permits.bytes` must not be 0".into());
        }
        if self.ledger.bytes.get() == 0 || self.ledger.age.is_zero() {
            return bad("`ledger.bytes` and `ledger.age` must not be 0".into());
        }
        let StreamLimits { window, total, .. } = self.stream;
        if window.get() == 0 || total < window {
            return bad(format!(
                "`stream.window` is {window} and `stream.total` {total}: neither may be 0, and the total not be less than one window"
            ));
        }
        match &self.ledger.spill {
            Some(folder) if !folder.is_absolute() => {
                return bad(format!(
                    "`ledger.spill` is `{}`; it must be an absolute path, as in `/var/tmp`",
                    folder.display()
                ));
            }
            Some(_) if self.ledger.spill_bytes < Bytes::kib(64) => {
                return bad(format!(
                    "`ledger.spill_bytes` is {}; at least 64 KiB, or leave `ledger.spill` out",
                    self.ledger.spill_bytes
                ));
            }
            None if self.ledger.spill_bytes != defaults::spill_bytes() => {
                return bad("`ledger.spill_bytes` is of no use without a folder in `ledger.spill`".into());
            }
            _ => {}
        }
        if self.retry.attempts == 0 || self.retry.starts == 0 {
            return bad("`retry.attempts` and `retry.starts` must be at least 1".into());
        }
        if self.retry.backoff.is_zero() || self.retry.max_backoff < self.retry.backoff {
            return bad("`retry.backoff` must not be 0, nor above `retry.max_backoff`".into());
        }
        let Resources { cpu, gpu, .. } = self.resources;
        if !(cpu > 0.0 && cpu <= 4096.0 && (0.0..=1024.0).contains(&gpu)) {
            return bad(format!("`resources` cpu = {cpu}, gpu = {gpu} cannot be"));
        }
        if gpu > 0.0 {
            return bad(format!(
                "`resources.gpu` is {gpu}: this host hands out no accelerators yet; leave it out"
            ));
        }
        let zero = |d: Option<Duration>| d == Some(Duration::ZERO);
        for (field, given) in [
            ("timeout", self.timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("stall", self.stall),
            ("kill_after", self.kill_after),
            ("batch.latency", self.batch.latency),
        ] {
            if zero(given) {
                return bad(format!("`{field}` must not be 0; leave it out for none"));
            }
        }
        for (field, given) in [("batch.weight", self.batch.weight), ("weight.memory", self.weight.memory)] {
            if given.is_some_and(|w| !(w.is_finite() && w > 0.0)) {
                return bad(format!("`{field}` must be above 0"));
            }
        }
        if !(0.0..=10.0).contains(&self.retry.budget) {
            return bad(format!("`retry.budget` is {}; 0 to 10", self.retry.budget));
        }
        if self.lease < Duration::from_millis(100) || self.lease > Duration::from_secs(24 * 3600) {
            return bad(format!("`lease` is {:?}; 100ms to 24h", self.lease));
        }
        if self.max_backlog < self.max_message {
            return bad(format!(
                "`max_backlog` is {}, less than `max_message` ({})",
                self.max_backlog, self.max_message
            ));
        }
        if self.max_message < Bytes::kib(64) || self.max_message > Bytes::mib(1024) {
            return bad(format!("`max_message` is {}; 64 KiB to 1 GiB", self.max_message));
        }
        let shared = self.shared_memory;
        if shared != Bytes(0) && (shared < Bytes::mib(1) || shared > Bytes::mib(1024)) {
            return bad(format!("`shared_memory` is {shared}; 1 MiB to 1 GiB, or 0 for none"));
        }
        match (&self.remote, self.kind.as_deref() == Some(remote::KIND)) {
            (None, false) => {}
            (None, true) => {
                return bad("kind `remote` needs a table `[remote]` with protocol, urls and model".into());
            }
            (Some(_), false) => {
                return bad("`[remote]` is for kind `remote`; set `kind`, or leave it out".into());
            }
            (Some(remote), true) => {
                remote.check().map_err(|e| e.context(format_args!("service `{}`", self.name)))?;
                if let Some(field) = self.set_for_instances_only() {
                    return bad(format!(
                        "`{field}` is for instances of our own, and kind `remote` has none; leave it out"
                    ));
                }
            }
        }
        Ok(self)
    }

    /// A setting that says something of instances alone.
    pub(crate) fn set_for_instances_only(&self) -> Option<&'static str> {
        let plain = Declaration::new(&self.name);
        let set = [
            ("program", !self.program.is_empty()),
            ("instances", self.instances != plain.instances),
            ("permits", self.permits != plain.permits),
            ("ledger", self.ledger != plain.ledger),
            ("stream", self.stream != plain.stream),
            ("lease", self.lease != plain.lease),
            ("resources", self.resources != plain.resources),
            ("stall", self.stall.is_some()),
            ("kill_after", self.kill_after.is_some()),
            ("batch.latency", self.batch.latency.is_some()),
            ("weight.memory", self.weight.memory.is_some()),
            ("weight.output", self.weight.output.is_some()),
            ("options", !self.options.is_empty()),
        ];
        set.into_iter().find(|(_, given)| *given).map(|(field, _)| field)
    }

    /// Whether servers of other people answer, and no instances.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }
}

/// TOML has no word for nothing: what is not there is not written.
fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message that a declaration is refused with.
    fn refused(toml: &str) -> String {
        Declaration::from_toml(toml, "test.toml").expect_err("this declaration must be refused").to_string()
    }

    #[test]
    fn a_declaration_that_is_written_reads_as_the_same() {
        let mut declaration = Declaration::new("embedder").instances(3).max_rows(8).option("model", "m");
        declaration.program = vec!["python".into(), "-m".into(), "serve".into()];
        declaration.timeout = Some(Duration::from_millis(1500));
        let mut nested =
            serde_json::json!({ "methods": [{ "name": "embed", "concurrency": null }], "device": "cpu" });
        declaration.options.insert("service".into(), nested.clone());
        let text = declaration.to_toml().unwrap();
        drop_nulls(&mut nested);
        declaration.options.insert("service".into(), nested);
        assert_eq!(
            Declaration::from_toml(&text, "written").unwrap(),
            declaration.checked().unwrap(),
            "{text}"
        );
    }

    #[test]
    fn a_declaration_reads_back_as_written() {
        let text = "name = \"embedder\"\ninstances = 2\ntimeout = \"3s\"\non_error = \"error-output\"\n\
                    [batch]\nrows = 8\nbytes = \"1MiB\"\nlinger = \"5ms\"\n[ledger]\nspill = \"/var/tmp\"\nspill_bytes = \"1GiB\"\n\
                    [options]\nmodel = \"m\"\n";
        let d = Declaration::from_toml(text, "test.toml").unwrap();
        assert_eq!(d.instances, Instances::fixed(2));
        assert_eq!(
            d.batch,
            BatchLimits {
                rows: 8,
                bytes: Bytes::mib(1),
                linger: Duration::from_millis(5),
                ..BatchLimits::default()
            }
        );
        assert_eq!(d.on_error, ErrorPolicy::ErrorOutput);
        let spill = (d.ledger.spill.as_deref(), d.ledger.spill_bytes);
        assert_eq!(spill, (Some(Path::new("/var/tmp")), Bytes::mib(1024)));
        let again: Declaration = serde_json::from_str(&serde_json::to_string(&d).unwrap()).unwrap();
        assert_eq!(again, d);
        let range = Declaration::from_toml("name = \"a\"\ninstances = { min = 3, max = 3 }", "t").unwrap();
        assert_eq!(range.instances, Instances::fixed(3));
    }

    #[test]
    fn refusals_name_the_field() {
        for (toml, expected) in [
            ("name = \"a\"\nreplicas = 2", "unknown field `replicas`"),
            ("name = \"a b\"", "`name`"),
            ("name = \"a\"\nprogram = [\"\"]", "`program`"),
            ("name = \"a\"\ninstances = 0", "`instances`"),
            ("name = \"a\"\ninstances = -1", "-1 instances"),
            ("name = \"a\"\ninstances = { min = 1, max = 4 }", "min = max"),
            ("name = \"a\"\n[batch]\nrows = 0", "`batch.rows`"),
            ("name = \"a\"\n[batch]\nlinger = \"2h\"", "`batch.linger`"),
            ("name = \"a\"\n[batch]\nlinger = 5", "linger"),
            ("name = \"a\"\n[batch]\nbytes = \"huge\"", "huge"),
            ("name = \"a\"\n[permits]\nrows = 1", "`permits.rows`"),
            ("name = \"a\"\n[stream]\nwindow = \"1GiB\"", "`stream.total`"),
            (
                "name = \"a\"\n[ledger]\nspill = \"spilled\"",
                "`ledger.spill` is `spilled`; it must be an absolute",
            ),
            ("name = \"a\"\n[ledger]\nspill = \"\"", "`ledger.spill`"),
            ("name = \"a\"\n[ledger]\nspill = \"/var/tmp\"\nspill_bytes = 5", "`ledger.spill_bytes` is 5 B"),
            ("name = \"a\"\n[ledger]\nspill_bytes = \"1GiB\"", "`ledger.spill_bytes` is of no use without"),
            ("name = \"a\"\n[resources]\ngpu = 1.0", "`resources.gpu`"),
            ("name = \"a\"\n[resources]\ncpu = 0.0", "`resources`"),
            ("name = \"a\"\non_error = \"shrug\"", "shrug"),
            ("name = \"a\"\nlease = \"0s\"", "`lease`"),
            ("name = \"a\"\nkind = \"remote\"", "`[remote]`"),
            ("name = \"a\"\n[remote]\nprotocol = \"openai\"\nurls = [\"http://a\"]\nmodel = \"m\"", "`kind`"),
            ("name = \"a\"\nkind = \"remote\"\n[remote]\nprotocol = \"soap\"", "soap"),
            (
                "name = \"a\"\nkind = \"remote\"\n[remote]\nprotocol = \"openai\"\nurls = []\nmodel = \"m\"",
                "`remote.urls`",
            ),
            (
                "name = \"a\"\nkind = \"remote\"\n[remote]\nprotocol = \"openai\"\nurls = [\"a\"]\nmodel = \"m\"",
                "`remote.urls`",
            ),
            (
                "name = \"a\"\ninstances = 2\nkind = \"remote\"\n[remote]\nprotocol = \"openai\"\nurls = [\"http://a\"]\nmodel = \"m\"",
                "`instances`",
            ),
            (
                "name = \"a\"\nkind = \"remote\"\n[remote]\nprotocol = \"oip-http\"\nurls = [\"http://a\"]\nmodel = \"m\"\n[remote.methods.x]\nsystem = \"s\"",
                "`system`",
            ),
            ("instances = 1", "missing field `name`"),
            ("name = ", "test.toml"),
        ] {
            let message = refused(toml);
            assert!(message.contains(expected), "{toml:?} gave: {message}");
        }
    }
}
