use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::Kind;
use pelton_dataflow::sink::{Sink, Staged};
use pelton_files::sink::Settings;
use pelton_files::{JsonLines, Parquet, read_parquet};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{error, rows, says, schema, write};

/// One behaviour, whatever the format.
fn both(check: impl Fn(&dyn Fn(&str) -> Box<dyn Sink>, &Path)) {
    for parquet in [true, false] {
        let dir = tempdir().unwrap();
        let out = dir.path().join("out");
        let make = |prefix: &str| -> Box<dyn Sink> {
            let settings = Settings::new(&out).with_prefix(prefix);
            if parquet {
                Box::new(Parquet::new(&settings).unwrap())
            } else {
                Box::new(JsonLines::new(&settings).unwrap())
            }
        };
        check(&make, &out);
    }
}

/// Names in a folder, without `_staging`.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| n != "_staging");
    names.sort();
    names
}

fn stems(folder: &Path) -> Vec<String> {
    names(folder).into_iter().map(|n| n.split('.').next().unwrap().to_owned()).collect()
}

fn staged(out: &Path) -> Vec<String> {
    names(&out.join("_staging"))
}

/// A generation that writes a row range and prepares it as a checkpoint.
fn stage(sink: &dyn Sink, generation: u64, subtask: u32, checkpoint: u64) -> Vec<Staged> {
    let mut writer = sink.writer(subtask, generation, schema()).unwrap();
    writer.write(rows(0..10)).unwrap();
    writer.prepare(checkpoint).unwrap()
}

#[test]
fn rows_appear_at_commit_and_once() {
    both(|sink, out| {
        let sink = sink("part");
        sink.start(1, &[]).unwrap();
        let mut writer = sink.writer(3, 1, schema()).unwrap();
        writer.write(rows(0..0)).unwrap();
        assert!(writer.prepare(1).unwrap().is_empty(), "nothing written, nothing staged");
        writer.write(rows(0..10)).unwrap();
        writer.write(rows(10..20)).unwrap();
        assert!(names(out).is_empty());
        let first = writer.prepare(2).unwrap();
        writer.write(rows(20..30)).unwrap();
        let second = writer.prepare(3).unwrap();
        assert!(names(out).is_empty(), "staged is invisible");
        assert_eq!(staged(out).len(), 2);
        sink.commit(&first).unwrap();
        assert_eq!(stems(out), ["part-00001-0003-000002"]);
        for _ in 0..3 {
            sink.commit(&[first.clone(), second.clone()].concat()).unwrap();
        }
        sink.commit(&[]).unwrap();
        assert_eq!(stems(out), ["part-00001-0003-000002", "part-00001-0003-000003"]);
        assert!(staged(out).is_empty());
    });
}

#[test]
fn a_killed_run_leaves_what_a_checkpoint_recorded_and_nothing_else() {
    both(|make, out| {
        let recorded = {
            let sink = make("part");
            sink.start(1, &[]).unwrap();
            let recorded = stage(&*sink, 1, 0, 1);
            stage(&*sink, 1, 0, 2);
            stage(&*sink, 1, 1, 2);
            recorded
        };
        // Killed in the middle of a file: its writer has no time to clean up.
        write(out, "_staging/part-00001-0000-000099.parquet.tmp", "PAR1 and no more");
        write(out, "_staging/part-00001-0000-000099.jsonl.tmp", "{\"a");
        write(out, "_staging/other-00001-0000-000099.parquet.tmp", "another sink's");
        assert_eq!(staged(out).len(), 6);

        let sink = make("part");
        sink.start(2, &recorded).unwrap();
        sink.start(2, &recorded).unwrap();
        let left = staged(out);
        assert_eq!(left.len(), 3, "recorded, another format's and another prefix's: {left:?}");
        sink.commit(&recorded).unwrap();
        sink.commit(&stage(&*sink, 2, 0, 3)).unwrap();
        assert_eq!(stems(out), ["part-00001-0000-000001", "part-00002-0000-000003"]);

        // What was recorded was committed before the kill: the next start commits it again.
        let sink = make("part");
        sink.start(3, &recorded).unwrap();
        sink.commit(&recorded).unwrap();
        assert_eq!(stems(out).len(), 2);
    });
}

#[test]
fn a_failed_writer_removes_what_it_began() {
    both(|make, out| {
        let sink = make("part");
        sink.start(1, &[]).unwrap();
        let mut writer = sink.writer(0, 1, schema()).unwrap();
        writer.write(rows(0..10)).unwrap();
        assert_eq!(staged(out).len(), 1);
        drop(writer);
        assert!(staged(out).is_empty());
    });
}

#[test]
fn the_same_names_are_never_used_twice() {
    both(|make, out| {
        let sink = make("part");
        sink.start(1, &[]).unwrap();
        let one = stage(&*sink, 1, 0, 1);
        let other = stage(&*sink, 1, 0, 1);
        assert_eq!(staged(out).len(), 2, "staged files never overwrite one another");
        sink.commit(&one).unwrap();
        says(
            error(sink.commit(&other)),
            &["exists and is not the one of this run", "two runs write into one folder"],
        );
        sink.commit(&one).unwrap();

        says(error(make("part").start(1, &[])), &["already holds part-00001-0000-000001", "another run"]);
        make("errors").start(1, &[]).unwrap();
        make("part").start(2, &[]).unwrap();
    });
}

#[test]
fn two_sinks_share_a_folder() {
    both(|make, out| {
        let (results, errors) = (make("part"), make("part-errors"));
        results.start(1, &[]).unwrap();
        let kept = stage(&*results, 1, 0, 1);
        errors.start(1, &[]).unwrap();
        errors.start(2, &[]).unwrap();
        results.commit(&kept).unwrap();
        errors.commit(&stage(&*errors, 2, 0, 1)).unwrap();
        assert_eq!(stems(out), ["part-00001-0000-000001", "part-errors-00002-0000-000001"]);
        results.start(2, &[]).unwrap();
    });
}

#[test]
fn lost_and_changed_output_is_noticed() {
    both(|make, out| {
        let sink = make("part");
        sink.start(1, &[]).unwrap();
        let first = stage(&*sink, 1, 0, 1);
        let file = |folder: &Path| folder.join(names(folder).remove(0));
        let whole = fs::read(file(&out.join("_staging"))).unwrap();
        fs::write(file(&out.join("_staging")), &whole[1..]).unwrap();
        says(error(sink.commit(&first)), &["_staging", "bytes and was written with"]);
        assert!(names(out).is_empty());
        fs::write(file(&out.join("_staging")), &whole).unwrap();
        sink.commit(&first).unwrap();
        fs::write(file(out), &whole[1..]).unwrap();
        says(error(sink.commit(&first)), &["part-00001-0000-000001", "bytes and was written with"]);
        fs::remove_file(file(out)).unwrap();
        let gone = error(sink.commit(&first));
        assert_eq!(gone.kind(), Kind::Storage);
        says(gone, &["part-00001-0000-000001", "is gone", "start again without checkpoints"]);
        says(error(sink.commit(&[Staged(json!({ "table": 1 }))])), &["not of a file sink"]);
    });
}

#[test]
fn targets_that_cannot_be_written_are_refused() {
    both(|make, out| {
        fs::write(out, "a file").unwrap();
        let refused = error(make("part").start(1, &[]));
        assert_eq!(refused.kind(), Kind::Invalid);
        says(refused, &["is a file; give a folder"]);
    });
    // Even an administrator can't write here.
    #[cfg(target_os = "linux")]
    for folder in ["/proc/pelton", "/dev/null/pelton"] {
        let refused = error(Parquet::new(&Settings::new(folder)).unwrap().start(1, &[]));
        assert_eq!(refused.kind(), Kind::Storage);
        says(refused, &[folder, "output folder"]);
    }
    says(error(Parquet::new(&Settings::new("x").with_prefix("a/b"))), &["prefix `a/b`"]);
}

#[test]
fn columns_are_checked() {
    both(|make, out| {
        let sink = make("part");
        sink.check(&schema()).unwrap();
        says(error(sink.check(&Schema::empty())), &["no columns"]);
        assert!(!out.exists(), "a check has no side effects");
        sink.start(1, &[]).unwrap();
        let wrong = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        let mut writer = sink.writer(0, 1, wrong).unwrap();
        assert_eq!(error(writer.write(rows(0..1))).kind(), Kind::Internal);
    });
    let union = DataType::Union(arrow_schema::UnionFields::empty(), arrow_schema::UnionMode::Sparse);
    let schema = Schema::new(vec![Field::new("u", union, true)]);
    let sink = Parquet::new(&Settings::new("x")).unwrap();
    says(error(sink.check(&schema)), &["column `u` is a union"]);
}

fn embedded() -> RecordBatch {
    let mut vectors = FixedSizeListBuilder::new(Float32Builder::new(), 3);
    for i in 0..10u8 {
        vectors.values().append_slice(&[f32::from(i), 0.5, -1.0]);
        vectors.append(true);
    }
    let (vectors, rows) = (vectors.finish(), rows(0..10));
    let field = Field::new("embedding", vectors.data_type().clone(), true);
    let fields = rows.schema().fields().iter().cloned().chain([Arc::new(field)]).collect::<Vec<_>>();
    let columns = rows.columns().iter().cloned().chain([Arc::new(vectors) as _]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn write_embedded(sink: &dyn Sink) {
    sink.start(1, &[]).unwrap();
    let mut writer = sink.writer(0, 1, embedded().schema()).unwrap();
    writer.write(embedded()).unwrap();
    sink.commit(&writer.prepare(1).unwrap()).unwrap();
}

#[test]
fn embeddings_survive_parquet_with_their_metadata() {
    let dir = tempdir().unwrap();
    let metadata = [("model".to_owned(), "a".to_owned()), ("dimensions".to_owned(), "3".to_owned())];
    write_embedded(&Parquet::with_metadata(&Settings::new(dir.path()), metadata.clone()).unwrap());
    let parts = read_parquet(dir.path(), "part").unwrap();
    assert_eq!(parts.metadata(), &BTreeMap::from(metadata));
    assert_eq!(parts.schema().fields(), embedded().schema().fields());
    let read = parts.collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].columns(), embedded().columns());
}

#[test]
fn embeddings_survive_json() {
    let dir = tempdir().unwrap();
    write_embedded(&JsonLines::new(&Settings::new(dir.path())).unwrap());
    let text = fs::read_to_string(dir.path().join("part-00001-0000-000001.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[2], json!({ "id": 2, "text": "row 2", "embedding": [2.0, 0.5, -1.0] }));
    assert_eq!(lines[3]["text"], Value::Null);
    assert!(lines[3].as_object().unwrap().contains_key("text"), "a null is written");
}
