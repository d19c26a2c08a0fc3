use std::fs;
use std::io::BufRead;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use pelton_core::ObjectRef;
use pelton_core::object::{self, Objects};
use pelton_dataflow::sink::Sink;
use pelton_dataflow::source::Source;
use pelton_files::{JsonLines, Parquet, References, Selection, read_parquet, sink};
use tempfile::tempdir;

use crate::{read, says, write};

fn source(folder: &std::path::Path) -> References {
    References::new(&Selection::all([folder])).unwrap()
}

#[test]
fn a_folder_gives_a_reference_a_file_and_reads_none() {
    let dir = tempdir().unwrap();
    for name in ["b.png", "a/c d.txt", ".hidden.png"] {
        write(dir.path(), name, name);
    }
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.png")).unwrap();
    let source = source(dir.path());
    let splits = source.splits().unwrap();
    assert_eq!(splits, source.splits().unwrap(), "the same in every run");
    let uris: Vec<&str> = splits.iter().map(|s| s.uri.as_str()).collect();
    assert_eq!(uris, ["a/c d.txt", "b.png", "dangling.png"]);
    for (split, media_type) in splits.iter().zip(["text/plain", "image/png"]) {
        let reads = read(&source, split, 0);
        assert_eq!((reads.len(), reads[0].position), (1, 1));
        let rows = &reads[0].rows;
        assert_eq!(rows.schema(), source.schema());
        assert!(object::is_object(rows.schema().field(1)));
        let found = Objects::of(rows, "object").unwrap().get(0).unwrap().unwrap();
        let uri = format!("file://{}/{}", dir.path().display(), split.uri.replace(' ', "%20"));
        assert_eq!(found.uri(), uri);
        assert_eq!((found.version(), found.media_type()), (Some(split.version.as_str()), Some(media_type)));
        assert_eq!((found.offset(), found.length()), (None, None));
        assert_eq!(rows.column(2).as_primitive::<UInt64Type>().value(0), split.bytes);
        assert!(read(&source, split, 1).is_empty(), "nothing comes after the file");
    }
    let reads = read(&source, &splits[2], 0);
    assert_eq!((reads[0].rows.num_rows(), reads[0].bad[0].row.as_str()), (0, "dangling.png"));
    says(reads[0].bad[0].error.clone(), &["dangling.png", "finding"]);
}

#[test]
fn references_come_back_from_parquet_and_json_lines() {
    let (dir, out) = (tempdir().unwrap(), tempdir().unwrap());
    write(dir.path(), "x.png", "x");
    let source = source(dir.path());
    let rows = read(&source, &source.splits().unwrap()[0], 0).remove(0).rows;
    let expected = Objects::of(&rows, "object").unwrap().all().unwrap();
    let written = |sink: &dyn Sink| {
        sink.check(&source.schema()).unwrap();
        sink.start(1, &[]).unwrap();
        let mut writer = sink.writer(0, 1, source.schema()).unwrap();
        writer.write(rows.clone()).unwrap();
        sink.commit(&writer.prepare(1).unwrap()).unwrap();
    };
    written(&Parquet::new(&sink::Settings::new(out.path())).unwrap());
    for found in read_parquet(out.path(), "part").unwrap() {
        let found = found.unwrap();
        assert!(object::is_object(found.schema().field(1)), "{:?}", found.schema());
        assert_eq!(Objects::of(&found, "object").unwrap().all().unwrap(), expected);
    }
    written(&JsonLines::new(&sink::Settings::new(out.path()).with_prefix("lines")).unwrap());
    let mut found = Vec::new();
    for entry in fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().path()) {
        if entry.extension().is_some_and(|e| e == "jsonl") {
            for line in fs::read(entry).unwrap().lines() {
                let mut line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                found.push(serde_json::from_value::<ObjectRef>(line["object"].take()).unwrap());
            }
        }
    }
    assert_eq!(found, expected);
}
