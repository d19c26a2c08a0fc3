//! A disk that is really full: a file system of 1 MiB, in a mount namespace of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::{Kind, Result};
use pelton_dataflow::sink::Sink;
use pelton_files::sink::Settings;
use pelton_files::{JsonLines, Parquet};

use crate::{error, says};

const SMALL_DISK: &str = "PELTON_TEST_SMALL_DISK";

/// Runs itself again where a small disk can be mounted; elsewhere the unit test with `/dev/full` stands for it.
#[test]
fn a_full_disk_fails_the_job_with_a_hint_and_leaves_no_part() {
    if let Some(disk) = std::env::var_os(SMALL_DISK) {
        return on_a_small_disk(disk.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let inside = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--map-root-user", "sh", "-ec", command, "sh"]).arg(dir.path());
        unshare
    };
    let mount = r#"mount -t tmpfs -o size=1m tmpfs "$1"; "#;
    if !inside(mount).output().is_ok_and(|o| o.status.success()) {
        eprintln!("not run: no file system can be mounted here");
        return;
    }
    let mut again = inside(&format!(r#"{mount} {SMALL_DISK}="$1" exec "$2" --exact "$3""#));
    again.arg(std::env::current_exe().unwrap());
    again.arg("disk_full::a_full_disk_fails_the_job_with_a_hint_and_leaves_no_part");
    let output = again.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn on_a_small_disk(disk: &Path) {
    let settings = |name: &str| Settings::new(disk.join(name));
    let sinks: [(&str, Box<dyn Sink>); 2] = [
        ("parquet", Box::new(Parquet::new(&settings("parquet")).unwrap())),
        ("json", Box::new(JsonLines::new(&settings("json")).unwrap())),
    ];
    for (name, sink) in sinks {
        sink.start(1, &[]).unwrap();
        let full = error(write_4_mib(&*sink, 1));
        assert_eq!(full.kind(), Kind::Storage);
        says(full, &["writing", "_staging", "No space left on device", "df -h", "last checkpoint"]);
        let names: Vec<_> =
            std::fs::read_dir(disk.join(name)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["_staging"], "no part");
        assert_eq!(
            std::fs::read_dir(disk.join(name).join("_staging")).unwrap().count(),
            0,
            "the space is free again"
        );
    }
}

/// Numbers that do not compress.
fn write_4_mib(sink: &dyn Sink, generation: u64) -> Result<()> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let mut writer = sink.writer(0, generation, schema.clone())?;
    for batch in 0..64i64 {
        let noise =
            (0..8192i64).map(|i| (batch * 8192 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64));
        let column = Arc::new(Int64Array::from_iter_values(noise));
        writer.write(RecordBatch::try_new(schema.clone(), vec![column])?)?;
    }
    let staged = writer.prepare(1)?;
    sink.commit(&staged)
}
