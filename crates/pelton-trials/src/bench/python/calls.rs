//! Requests: to a method that does nothing, in Python and in Rust, and to the model, here and behind the servers of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, BinaryArray, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field};
use pelton::client::{ServiceClient, Target};
use pelton::env::Env;
use pelton::service::{Context, Methods, Service};
use pelton::{Declaration, Job, Settings};
use pelton_peers::load::{self, FILL, Summary};
use serde::Deserialize;

use super::program::Program;
use super::{LOOP, Part, System, Trial};
use crate::bench::report::{Better, OURS};
use crate::bench::wire::measured::{Spending, Spent};
use crate::bench::wire::peer::{free_port, said};

/// The figure that says what Python adds.
pub(super) const MORE: &str = "32 rows of 256 B: median, more than Rust";
/// Rows of a batch to a method that returns it, and the bytes of one.
const ROWS: usize = 32;
const ECHOED: [(&str, usize); 2] = [("256 B", 256), ("32 KB", 32 << 10)];
/// How long servers may take to answer their first request.
const START: Duration = Duration::from_secs(120);

struct Echo;

impl Service for Echo {
    fn open(_: &Context) -> pelton::Result<Self> {
        Ok(Echo)
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::new().serial("echo", payload(), payload(), |_, batch, _| Ok(batch))
    }
}

/// A job with a service in Rust that returns what it gets.
pub(super) fn native(name: &str, state: &Path) -> Result<Job> {
    let name = if name.is_empty() { "bench-python" } else { name };
    let mut job = Job::with(name, Settings::new(state.join("native")));
    job.service::<Echo>(Declaration::new("echo").max_rows(ROWS as u32))?;
    Ok(job)
}

/// Requests with images of digits.
struct Images {
    name: &'static str,
    /// The method that takes them, and the files with what is sent and what must come back.
    service: &'static str,
    file: &'static str,
    images: usize,
    in_flight: usize,
}

const REQUESTS: [Images; 3] = [
    Images { name: "1 image, 64 in flight", service: "digits", file: "one", images: 1, in_flight: 64 },
    Images { name: "1 image, 256 in flight", service: "digits", file: "one", images: 1, in_flight: 256 },
    Images { name: "64 images, 8 in flight", service: "digits-many", file: "many", images: 64, in_flight: 8 },
];

impl Trial<'_> {
    pub(super) fn calls(&mut self) -> Result<()> {
        let folder = self.scratch.join("calls");
        fs::create_dir_all(&folder)?;
        self.make("make_calls.py", |command| {
            command.arg(&folder);
        })?;
        let peers = self.peers(&[System::Mosec, System::Ray]);
        // One after another in each round, so that what else the machine does hits all of them.
        for round in 0..self.effort.rounds {
            if let Err(e) = self.own(round, &folder) {
                self.report.missing(OURS, &format!("{e:#}"));
            }
            if !self.wants(Part::Online) {
                continue;
            }
            if let Err(e) = self.in_a_loop(&folder) {
                self.report.missing(LOOP, &format!("{e:#}"));
            }
            for system in &peers {
                if let Err(e) = self.peer(round, *system, &folder) {
                    self.report.missing(system.name(), &format!("{e:#}"));
                }
            }
        }
        Ok(())
    }

    fn own(&mut self, round: usize, folder: &Path) -> Result<()> {
        let state = self.scratch.join(format!("pelton{round}"));
        let name = |language: &str| format!("bench-{language}-{}", std::process::id());
        let program =
            Program::start(self.host.env(), self.pelton()?, "pelton_service.py", &state, |command| {
                command.arg("--job").arg(name("python")).arg("--model").arg(&self.model);
            })?;
        let failed = |e: anyhow::Error| pelton::Error::internal(format!("{e:#}"));
        native(&name("rust"), &state)?.serve(async |services| {
            services.ready().await?;
            let measured = async {
                let client = async |language: &str, service: &str| {
                    let target = Target::job(name(language), service).patience(START);
                    ServiceClient::connect(target).await
                };
                if self.wants(Part::Overhead) {
                    let rust = client("rust", "echo").await?;
                    self.overhead(&rust, &client("python", "echo").await?).await?;
                }
                if self.wants(Part::Online) {
                    for images in &REQUESTS {
                        let client = client("python", images.service).await?;
                        let pids = program.pids();
                        self.own_images(&client, images, folder, &pids).await?;
                    }
                }
                anyhow::Ok(())
            };
            let measured = measured.await.map_err(failed);
            program.stop(services.env()).await;
            measured
        })?;
        Ok(())
    }

    async fn overhead(&mut self, rust: &ServiceClient, python: &ServiceClient) -> Result<()> {
        for (size, bytes) in ECHOED {
            let column: ArrayRef =
                Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n(vec![FILL; bytes], ROWS)));
            let batch = RecordBatch::try_from_iter([("payload", column)])?;
            let mut medians = Vec::new();
            for (system, client) in [("rust", rust), ("pelton", python)] {
                let call = async || {
                    let answer = client.call("echo", batch.clone()).await.map_err(|e| e.to_string())?;
                    let same = answer.num_rows() == ROWS && answer.column(0).len() == ROWS;
                    if same { Ok(()) } else { Err(format!("{} rows for {ROWS}", answer.num_rows())) }
                };
                let ended = load::lanes(vec![call], self.effort.calls).await;
                if let Some(why) = &ended.why {
                    self.report.missing(system, why);
                }
                let what = format!("{ROWS} rows of {size}: median");
                self.report.add("overhead", &what, system, "us", Better::Less, ended.p50);
                medians.push(ended.p50);
            }
            let what = format!("{ROWS} rows of {size}: median, more than Rust");
            self.report.add("overhead", &what, OURS, "us", Better::Less, medians[1] - medians[0]);
        }
        // Of columns that are large enough to pass through shared memory, where the method sees their bytes.
        let column = |n: usize| -> ArrayRef {
            Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n(vec![n as u8; 16 << 10], ROWS)))
        };
        let batch = RecordBatch::try_from_iter([("first", column(1)), ("second", column(2))])?;
        let seen = python.call("where", batch).await?;
        let count = |column: usize| seen.column(column).as_primitive::<Int64Type>().value(0) as f64;
        let what = "two columns of 32 rows of 16 KB: buffers that the method sees";
        self.report.add("overhead", &format!("{what}, in all"), OURS, "buffers", Better::More, count(0));
        self.report.add(
            "overhead",
            &format!("{what} where they were received"),
            OURS,
            "buffers",
            Better::More,
            count(1),
        );
        Ok(())
    }

    async fn own_images(
        &mut self,
        client: &ServiceClient,
        images: &Images,
        folder: &Path,
        pids: &[u32],
    ) -> Result<()> {
        let method = &client.methods()[0];
        let (sent, expected) = exchanged(folder, images)?;
        let pixels: Vec<f32> =
            sent.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let labels: Vec<i64> =
            expected.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8"))).collect();
        let column = nested(method.input.field(0).data_type(), pixels)?;
        let batch = RecordBatch::try_new(method.input.clone(), vec![column])?;
        let name = method.name.as_str();
        let lanes = (0..images.in_flight).map(|_| {
            async || {
                let answer = client.call(name, batch.clone()).await.map_err(|e| e.to_string())?;
                let column = answer.column(0);
                let values = column.as_fixed_size_list_opt().map_or(column, |list| list.values());
                let same =
                    values.as_primitive_opt::<Int64Type>().is_some_and(|v| v.values()[..] == labels[..]);
                if same { Ok(()) } else { Err("an answer is wrong".to_owned()) }
            }
        });
        let env = self.host.env();
        let spending = Spending::begin(env, pids);
        let ended = load::bounded(async { Ok(load::lanes(lanes.collect(), self.effort.calls).await) }).await;
        let ended = ended.map_err(|why| anyhow!("{}: {why}", images.name))?;
        self.images(OURS, images, &ended, spending.end(env));
        Ok(())
    }

    /// The model alone, in a program that does nothing else.
    fn in_a_loop(&mut self, folder: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Rates {
            one: f64,
            many: f64,
        }
        let mut command = Command::new(self.pelton()?);
        command.arg("-B").arg(super::program::scripts().join("loop_calls.py")).arg(folder);
        command.arg("--model").arg(&self.model);
        command.arg("--seconds").arg(self.effort.calls.as_secs_f64().to_string());
        let rates: Rates = said(&mut command)?;
        for (name, rate) in [("1 image, in a loop", rates.one), (REQUESTS[2].name, rates.many)] {
            self.report.add("online", &format!("{name}: images/s"), LOOP, "images/s", Better::More, rate);
        }
        Ok(())
    }

    fn peer(&mut self, round: usize, system: System, folder: &Path) -> Result<()> {
        let env = self.host.env();
        let caller = self.arguments.program.as_deref();
        let caller =
            caller.context("there is no program of pelton-peers; `cargo xtask bench python` builds it")?;
        let place = self.scratch.join(format!("{}{round}", system.name()));
        let port = free_port()?;
        let python = self.python(system)?;
        let script = format!("{}_server.py", system.name());
        let mut server = Program::start(env, python, &script, &place, |command| {
            command.env("DIGITS_MODEL", &self.model).args(["--port", &port.to_string()]);
            match system {
                System::Mosec => {
                    command.args(["--address", "127.0.0.1", "--timeout", "60000", "--capacity", "8192"]);
                    command.args(["--log-level", "error"]);
                }
                _ => {
                    command.arg("--folder").arg(&place);
                    command
                        .envs([("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")]);
                    // Ray gives its workers a lower priority, and reports its use to its makers, unless it is told.
                    command.envs([("RAY_worker_niceness", "0"), ("RAY_USAGE_STATS_ENABLED", "0")]);
                }
            }
        })?;
        let path = if system == System::Mosec { "/inference" } else { "/" };
        let call = |what: &str, images: &Images| {
            let mut command = Command::new(caller);
            command.args([what, "--address", &format!("127.0.0.1:{port}"), "--path", path]);
            command.arg("--payload").arg(file(folder, images, "f32"));
            command.arg("--answer").arg(file(folder, images, "i64"));
            command
        };
        self.host.block_on(answers(env, &mut server, || call("once", &REQUESTS[0])))?;
        let pids = server.pids();
        for images in &REQUESTS {
            let mut command = call("load", images);
            command.args(["--in-flight", &images.in_flight.to_string()]);
            command.args(["--seconds", &self.effort.calls.as_secs_f64().to_string()]);
            let spending = Spending::begin(env, &pids);
            let ended: Summary = said(&mut command)?;
            let spent = spending.end(env).with_caller(&ended);
            self.images(system.name(), images, &ended, spent);
        }
        self.host.block_on(server.stop(env));
        Ok(())
    }

    fn images(&mut self, system: &str, images: &Images, ended: &Summary, spent: Spent) {
        if let Some(why) = &ended.why {
            self.report.missing(system, &format!("{}: {} calls failed: {why}", images.name, ended.failed));
        }
        self.report.others(spent.others);
        let rate = ended.rate * images.images as f64;
        let mut add = |which: &str, unit, better, value| {
            self.report.add("online", &format!("{}: {which}", images.name), system, unit, better, value);
        };
        add("images/s", "images/s", Better::More, rate);
        add("median", "ms", Better::Less, ended.p50 / 1e3);
        add("99 %", "ms", Better::Less, ended.p99 / 1e3);
        // What was called while it was measured, in millions.
        let each = rate * spent.seconds / 1e6;
        add("server, processor", "us an image", Better::Less, spent.server / each);
        add("caller, processor", "us an image", Better::Less, spent.caller / each);
    }
}

/// Waits until a server answers.
async fn answers(env: &Env, server: &mut Program, once: impl Fn() -> Command) -> Result<()> {
    let until = env.now() + START;
    loop {
        server.check()?;
        let asked: Result<(Result<(), String>, f64)> = said(&mut once());
        match asked {
            Ok((Ok(()), _)) => return Ok(()),
            _ if env.now() < until => env.sleep(Duration::from_millis(100)).await,
            Ok((Err(why), _)) => {
                ensure!(false, "no answer within {START:?}: {why}; its last words:\n{}", server.last_words());
            }
            Err(e) => return Err(e),
        }
    }
}

fn file(folder: &Path, images: &Images, kind: &str) -> PathBuf {
    folder.join(format!("{}.{kind}", images.file))
}

/// The bytes of a request, and of its answer.
fn exchanged(folder: &Path, images: &Images) -> Result<(Vec<u8>, Vec<u8>)> {
    let read = |kind| {
        let path = file(folder, images, kind);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok((read("f32")?, read("i64")?))
}

/// Numbers as lists of fixed size, as deep as the type says.
fn nested(of: &DataType, numbers: Vec<f32>) -> Result<ArrayRef> {
    match of {
        DataType::FixedSizeList(item, size) => {
            let values = nested(item.data_type(), numbers)?;
            Ok(Arc::new(FixedSizeListArray::try_new(item.clone(), *size, values, None)?))
        }
        DataType::Float32 => Ok(Arc::new(Float32Array::from(numbers))),
        other => Err(anyhow!("images are no {other}")),
    }
}
