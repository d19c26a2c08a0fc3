use std::fs;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use pelton_dataflow::sink::Sink;
use pelton_files::sink::Settings;
use pelton_files::{Parquet, read_parquet};
use tempfile::{TempDir, tempdir};

use crate::{error, rows, says, schema, write};

/// Three parts of 10 rows, of two generations and two subtasks.
fn index() -> TempDir {
    let dir = tempdir().unwrap();
    let sink = Parquet::new(&Settings::new(dir.path())).unwrap();
    for (generation, subtask, from) in [(1, 0, 0), (1, 1, 10), (2, 0, 20)] {
        sink.start(generation + 1, &[]).unwrap();
        let mut writer = sink.writer(subtask, generation, schema()).unwrap();
        writer.write(rows(from..from + 10)).unwrap();
        sink.commit(&writer.prepare(7).unwrap()).unwrap();
    }
    dir
}

#[test]
fn all_parts_are_read_in_order() {
    let dir = index();
    write(dir.path(), "part-errors-00001-0000-000001.parquet", "of another sink");
    write(dir.path(), "_staging/part-00009-0000-000001.parquet.tmp", "not committed");
    let parts = read_parquet(dir.path(), "part").unwrap();
    assert_eq!(parts.files().len(), 3);
    let ids = parts.flat_map(|rows| rows.unwrap().column(0).as_primitive::<Int64Type>().values().to_vec());
    assert_eq!(ids.collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
}

#[test]
fn a_damaged_part_is_named_and_the_others_are_read() {
    for (file, content) in
        [("part-00001-0001-000007.parquet", "not parquet"), ("part-00002-0000-000007.parquet", "")]
    {
        let dir = index();
        fs::write(dir.path().join(file), content).unwrap();
        let (good, bad): (Vec<_>, Vec<_>) =
            read_parquet(dir.path(), "part").unwrap().partition(|r| r.is_ok());
        assert_eq!((good.len(), bad.len()), (2, 1));
        says(error(bad.into_iter().next().unwrap()), &[file, "damaged", "again"]);
    }
    let dir = index();
    let file = dir.path().join("part-00001-0000-000007.parquet");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4..60].fill(0xaa);
    fs::write(&file, bytes).unwrap();
    let first = read_parquet(dir.path(), "part").unwrap().next().unwrap();
    says(error(first), &["part-00001-0000-000007.parquet", "damaged"]);
}

#[test]
fn where_there_is_no_index_it_says_so() {
    let dir = tempdir().unwrap();
    says(
        error(read_parquet(dir.path(), "part")),
        &["no index here", "no part-*.parquet in", "run `pelton index`"],
    );
    says(
        error(read_parquet(dir.path().join("absent"), "part")),
        &["there is no folder", "absent", "`pelton index`"],
    );
    let file = write(dir.path(), "a.txt", "");
    says(error(read_parquet(file, "part")), &["a.txt is a file; give the folder"]);
}

#[test]
fn parts_with_other_columns_are_refused() {
    let dir = index();
    let other = rows(0..1).project(&[0]).unwrap();
    let sink = Parquet::new(&Settings::new(dir.path())).unwrap();
    let mut writer = sink.writer(0, 5, other.schema()).unwrap();
    writer.write(other).unwrap();
    sink.commit(&writer.prepare(1).unwrap()).unwrap();
    let last = read_parquet(dir.path(), "part").unwrap().last().unwrap();
    says(error(last), &["part-00005-0000-000001.parquet has other columns", "part-00001"]);
}
