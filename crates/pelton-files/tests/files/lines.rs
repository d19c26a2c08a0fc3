use std::io::Write;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt64Type, Utf8Type};
use pelton_core::{Bytes, Kind};
use pelton_dataflow::source::{Read, Source, Split};
use pelton_files::{Lines, Selection, lines};
use tempfile::tempdir;

use crate::{error, read, says, write};

fn open(folder: &Path, max_line: u64) -> (Lines, Split) {
    let settings = lines::Settings { files: Selection::all([folder]), max_line: Bytes(max_line) };
    let source = Lines::new(&settings).unwrap();
    let split = source.splits().unwrap().remove(0);
    (source, split)
}

fn rows(reads: &[Read]) -> Vec<(u64, String)> {
    let of = |read: &Read| {
        let numbers = read.rows.column(0).as_primitive::<UInt64Type>().values().to_vec();
        let texts = read.rows.column(1).as_bytes::<Utf8Type>().iter().map(|t| t.unwrap().to_owned());
        numbers.into_iter().zip(texts.collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    reads.iter().flat_map(of).collect()
}

fn row(line: u64, text: &str) -> (u64, String) {
    (line, text.to_owned())
}

#[test]
fn lines_are_numbered_and_lose_their_ends() {
    let dir = tempdir().unwrap();
    write(dir.path(), "a.txt", "\u{feff}one\r\n\ntwo\rstill two\nlast");
    let (source, split) = open(dir.path(), 100);
    let reads = read(&source, &split, 0);
    assert_eq!(rows(&reads), [row(1, "one"), row(2, ""), row(3, "two\rstill two"), row(4, "last")]);
    assert_eq!(reads.last().unwrap().position, split.bytes);
    assert!(read(&source, &split, split.bytes).is_empty());
}

#[test]
fn an_empty_file_has_no_lines() {
    let dir = tempdir().unwrap();
    write(dir.path(), "a.txt", "");
    let (source, split) = open(dir.path(), 100);
    assert!(read(&source, &split, 0).is_empty());
}

#[test]
fn batches_are_bounded_and_every_position_resumes() {
    let dir = tempdir().unwrap();
    let text: String = (0..5000).map(|i| format!("line {i} {}\n", "x".repeat(i % 2500))).collect();
    write(dir.path(), "a.txt", &text);
    let (source, split) = open(dir.path(), 1 << 20);
    let reads = read(&source, &split, 0);
    let all = rows(&reads);
    assert_eq!(all.len(), 5000);
    assert!(reads.iter().any(|r| r.rows.num_rows() == 1024), "by lines");
    assert!(reads.iter().all(|r| r.rows.num_rows() <= 1024));
    assert!(reads.iter().all(|r| r.rows.get_array_memory_size() < 3 << 20), "by bytes");
    let mut done = 0;
    for one in &reads {
        done += one.rows.num_rows();
        assert_eq!(rows(&read(&source, &split, one.position)), all[done..]);
    }
}

#[test]
fn bad_lines_are_bad_rows_and_the_others_go_on() {
    let dir = tempdir().unwrap();
    let long = "x".repeat(1_000_000);
    let mut text = b"good\nb\xffd\n".to_vec();
    text.extend(
        format!("{}\n{}\r\n{long}\n{}\nend\n{long}", "y".repeat(10), "z".repeat(10), "w".repeat(11)).bytes(),
    );
    write(dir.path(), "a.txt", &text);
    let (source, split) = open(dir.path(), 10);
    let mut reads = read(&source, &split, 0);
    assert_eq!(rows(&reads), [row(1, "good"), row(3, "yyyyyyyyyy"), row(4, "zzzzzzzzzz"), row(7, "end")]);
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].position, text.len() as u64);
    let bad = std::mem::take(&mut reads[0].bad);
    let named: Vec<_> = bad.iter().map(|b| (b.row.as_str(), b.error.kind())).collect();
    use Kind::{Invalid, Limit};
    assert_eq!(named, [("a.txt:2", Invalid), ("a.txt:5", Limit), ("a.txt:6", Limit), ("a.txt:8", Limit)]);
    let mut errors = bad.into_iter().map(|b| b.error);
    says(errors.next().unwrap(), &["a.txt line 2", "not UTF-8 from byte 2 on"]);
    says(errors.next().unwrap(), &["a.txt line 5", "1000001 bytes", "limit of 10 B a line", "--max-line"]);
}

#[test]
fn only_bad_lines_still_move_the_position() {
    let dir = tempdir().unwrap();
    write(dir.path(), "a.txt", b"\xff\n".repeat(2000));
    let (source, split) = open(dir.path(), 10);
    let reads = read(&source, &split, 0);
    assert_eq!(
        reads.iter().map(|r| (r.rows.num_rows(), r.bad.len())).collect::<Vec<_>>(),
        [(0, 1024), (0, 976)]
    );
    assert_eq!(read(&source, &split, reads[0].position)[0].bad[0].row, "a.txt:1025");
}

#[test]
fn what_is_appended_later_is_not_read_and_what_is_cut_off_is_noticed() {
    let dir = tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "one\ntwo\n");
    let (source, split) = open(dir.path(), 100);
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"three\n").unwrap();
    assert_eq!(rows(&read(&source, &split, 0)), [row(1, "one"), row(2, "two")]);
    std::fs::write(&path, "one\n").unwrap();
    let mut reader = source.open(&split, 0).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().rows.num_rows(), 1);
    says(error(reader.next()), &["a.txt ends after 4 bytes and had 8"]);
}
