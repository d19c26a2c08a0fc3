//! Rows on standard output, in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use arrow_schema::Schema;
use pelton_core::Result;
use pelton_dataflow::sink::{Guarantee, Sink};
use pelton_files::Console;
use serde_json::{Value, json};

use crate::{error, rows, says, schema};

const SHOW: &str = "PELTON_TEST_SHOW";

/// What runs in the child: batches of ten rows, each prepared and committed.
fn show(batches: i64) -> Result<()> {
    let sink = Console::new();
    sink.start(1, &[])?;
    let mut writer = sink.writer(0, 1, schema())?;
    for batch in 0..batches {
        writer.write(rows(batch * 10..batch * 10))?;
        writer.write(rows(batch * 10..batch * 10 + 10))?;
        let staged = writer.prepare(batch as u64 + 1)?;
        assert!(staged.is_empty(), "what is shown cannot wait");
        sink.commit(&staged)?;
    }
    Ok(())
}

fn again(test: &str, batches: i64) -> Command {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("console::{test}"), "--nocapture"]).env(SHOW, batches.to_string());
    again.stdout(Stdio::piped()).stderr(Stdio::piped());
    again
}

fn asked() -> Option<i64> {
    std::env::var(SHOW).ok()?.parse().ok()
}

#[test]
fn every_row_is_a_line() {
    if let Some(batches) = asked() {
        return show(batches).unwrap();
    }
    let output = again("every_row_is_a_line", 3).output().unwrap();
    assert!(output.status.success());
    // The test's own lines stand around them.
    let text = String::from_utf8(output.stdout).unwrap();
    let shown: Vec<Value> =
        text.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect();
    let expected: Vec<Value> =
        (0..30).map(|i| json!({ "id": i, "text": (i % 2 == 0).then(|| format!("row {i}")) })).collect();
    assert_eq!(shown, expected);
}

#[test]
fn a_reader_that_ends_fails_the_job() {
    if let Some(batches) = asked() {
        // As a job would show it.
        return eprintln!("{}", error(show(batches)));
    }
    let mut child = again("a_reader_that_ends_fails_the_job", 100_000).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with('{')));
    drop(lines);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    assert!(
        said.contains("writing to standard output") && said.contains("whoever read it has ended"),
        "{said}"
    );
}

#[test]
fn it_promises_no_more_than_it_can() {
    let sink = Console::new();
    assert_eq!(sink.guarantee(), Guarantee::AtLeastOnce);
    sink.check(&schema()).unwrap();
    says(error(sink.check(&Schema::empty())), &["no columns"]);
}
