//! One job, of which only a declaration is changed: from instances of its own to a server that nobody here wrote. The rows are the same.
//!
//! This test has its own `main`, because the program is started again as the instances of its services.

#[path = "../../pelton-remote/tests/common/real.rs"]
mod real;

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array};
use pelton::env::real::Host;
use pelton::prelude::*;
use pelton::{Settings, control};
use real::Server;

/// Three numbers a text: characters, bytes, letters e. The servers' models compute the same.
struct Measure;

fn vector() -> Vec<Field> {
    vec![Field::new("vector", DataType::new_fixed_size_list(DataType::Float32, 3, false), false)]
}

impl Service for Measure {
    fn open(_: &Context) -> Result<Self> {
        Ok(Measure)
    }

    fn methods() -> Methods<Self> {
        let text = vec![Field::new("text", DataType::Utf8, false)];
        Methods::<Self>::new().serial("measure", text, vector(), |_, rows, _| {
            let texts = rows.column(0).as_string::<i32>().iter().flatten();
            let numbers = |t: &str| [t.chars().count() as f32, t.len() as f32, t.matches('e').count() as f32];
            let values = Arc::new(Float32Array::from_iter_values(texts.flat_map(numbers)));
            let item = Arc::new(Field::new_list_field(DataType::Float32, false));
            let column: ArrayRef = Arc::new(FixedSizeListArray::try_new(item, 3, values, None)?);
            Ok(RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(vector())), vec![column])?)
        })
    }
}

/// The job with this declaration, in this folder.
fn job(folder: &Path, name: &str, declaration: &str) -> Result<Job> {
    let mut job = Job::with(name, Settings::new(folder.join(name)));
    let measure = job.service::<Measure>(Declaration::from_toml(declaration, name)?)?;
    job.read("lines", read_lines(folder.join("in.txt"))?)
        .call(&measure.method("measure"), &["text"])
        .write("measured", json_lines(folder.join(format!("{name}-out")))?);
    Ok(job)
}

/// Runs it, and gives its output's lines.
fn rows(folder: &Path, name: &str, declaration: &str) -> Result<Vec<String>> {
    let mut seen: Vec<control::RemoteReport> = Vec::new();
    job(folder, name, declaration)?.run_observed(|snapshot| seen.clone_from(&snapshot.services.remotes))?;
    let remote = declaration.contains("kind");
    assert!(seen.iter().all(|r| remote && r.name == "measure" && r.endpoints.len() == 1), "{seen:?}");
    let mut lines = Vec::new();
    for file in std::fs::read_dir(folder.join(format!("{name}-out")))? {
        let path = file?.path();
        if path.is_file() {
            lines.extend(std::fs::read_to_string(path)?.lines().map(str::to_owned));
        }
    }
    lines.sort();
    Ok(lines)
}

fn remote(protocol: &str, port: u16, more: &str) -> String {
    format!(
        "name = \"measure\"\nkind = \"remote\"\n{more}\n[remote]\nprotocol = \"{protocol}\"\nurls = [\"http://127.0.0.1:{port}\"]\nmodel = \"sums\"\n"
    )
}

/// What cannot work is said when the job is put together, before anything runs.
fn check_refusals(folder: &Path) {
    let refused =
        |declaration: &str| job(folder, "refused", declaration).err().expect("it is refused").to_string();
    let chat = remote("openai", 1, "") + "[remote.methods.measure]\nroute = \"chat\"\n";
    let message = refused(&chat);
    assert!(
        message.contains("method `measure(text: Utf8)") && message.contains("`embeddings` takes"),
        "{message}"
    );
    let message = refused(&remote("openai", 1, "instances = 3"));
    assert!(message.contains("`instances`"), "{message}");
    let keyed = remote("openai", 1, "") + "api_key_env = \"NO_SUCH_VARIABLE_HERE\"\n";
    let Err(e) = job(folder, "keyed", &keyed).and_then(Job::run) else { panic!("it has no key") };
    assert!(e.message().contains("NO_SUCH_VARIABLE_HERE"), "{e}");
}

fn check_explanation(folder: &Path) -> Result<()> {
    let text = job(folder, "explained", &remote("oip-grpc", 7, "attempt_timeout = \"3s\""))?.explain()?;
    for expected in [
        "measure: remote, not ours; protocol oip-grpc, model sums",
        "http://127.0.0.1:7",
        "each within 3s",
        "up to 32 rows a call",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    Ok(())
}

/// Calls without a graph work the same.
fn check_services(folder: &Path, declaration: &str) -> Result<()> {
    let mut job = Job::with("served", Settings::new(folder.join("served")));
    job.service::<Measure>(Declaration::from_toml(declaration, "served")?)?;
    job.serve(async |services| {
        services.ready().await?;
        let texts: ArrayRef = Arc::new(arrow_array::StringArray::from(vec!["hello", "é"]));
        let answer =
            services.call("measure", "measure", RecordBatch::try_from_iter([("text", texts)])?).await?;
        let last = answer.column(0).as_fixed_size_list().value(1);
        assert_eq!(last.as_primitive::<arrow_array::types::Float32Type>().values().to_vec(), [1.0, 2.0, 0.0]);
        let report = services.report();
        assert!(report.services.is_empty(), "nothing of ours runs: {report:?}");
        let endpoint = &report.remotes[0].endpoints[0];
        assert!(endpoint.answers > 0 && endpoint.window >= 1.0 && !endpoint.ejected, "{endpoint:?}");
        assert_eq!(services.remotes()["measure"].unended, 0);
        Ok(())
    })
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text: String =
        (0..500).map(|i| format!("line {i}: {} ünï {}\n", "e".repeat(i % 9), "x".repeat(i % 31))).collect();
    std::fs::write(folder.path().join("in.txt"), text)?;
    // Its instances are this program once more, and end here.
    let own = rows(folder.path(), "own", "name = \"measure\"\ninstances = 2\n")?;
    assert_eq!(own.len(), 500);
    check_refusals(folder.path());
    check_explanation(folder.path())?;
    let host = Host::new(1, 1)?;
    let start = |script: &str, ports: usize, arguments: &[&str]| {
        host.block_on(Server::start(host.env(), script, ports, arguments))
    };
    let Some(kserve) = start("oip.py", 2, &[]) else { return Ok(()) };
    assert_eq!(rows(folder.path(), "oip-http", &remote("oip-http", kserve.ports[0], ""))?, own);
    assert_eq!(rows(folder.path(), "oip-grpc", &remote("oip-grpc", kserve.ports[1], ""))?, own);
    drop(kserve);
    let Some(litserve) = start("openai.py", 1, &["embeddings"]) else { return Ok(()) };
    assert_eq!(rows(folder.path(), "openai", &remote("openai", litserve.ports[0], ""))?, own);
    check_services(folder.path(), &remote("openai", litserve.ports[0], ""))?;
    println!("the same 500 rows from instances of our own, KServe over HTTP and gRPC, and LitServe");
    Ok(())
}
