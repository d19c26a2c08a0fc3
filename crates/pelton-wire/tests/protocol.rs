//! docs/protocol.md says what the code does: its table of frames, its numbers, and all bytes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::Kind;
use pelton_wire::body::{Encoder, decode};
use pelton_wire::{Frame, HEADER, MAX_REQUESTS, VERSION};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
const GOLDEN: &str = include_str!("golden.txt");

/// Kinds and names of the golden file.
fn golden_kinds() -> BTreeMap<u8, String> {
    let kind = |line: &str| {
        let (name, rest) = line.split_once(' ').expect("a name and bytes");
        (u8::from_str_radix(&rest[..2], 16).expect("hexadecimal"), name.to_owned())
    };
    GOLDEN.lines().map(kind).collect()
}

/// The cells of the table whose header begins with these words.
fn table(header: &str) -> Vec<Vec<String>> {
    let lines = DOCUMENT.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// The digits in the blocks of a name: what stands before two spaces, or all of a line without.
fn blocks(name: &str) -> Vec<String> {
    let begin = format!("```hex {name}\n");
    let digits = |block: &str| -> String {
        let bytes = block.lines().map(|line| {
            let indented = line.trim_start();
            indented
                .split_once("  ")
                .map_or(indented, |(bytes, _)| bytes)
                .split('"')
                .next()
                .unwrap_or_default()
        });
        bytes.flat_map(|line| line.chars().filter(|c| !c.is_whitespace())).collect()
    };
    DOCUMENT.split(&begin).skip(1).map(|rest| digits(rest.split("```").next().unwrap_or_default())).collect()
}

#[test]
fn every_kind_of_frame_is_in_the_golden_file() {
    let known = |kind: &u8| match Frame::decode_meta(*kind, &[]) {
        Ok(_) => true,
        Err(e) => !e.message().contains("unknown kind"),
    };
    let known: BTreeSet<u8> = (0..=u8::MAX).filter(known).collect();
    let golden: BTreeSet<u8> = golden_kinds().into_keys().collect();
    assert_eq!(golden, known, "golden.txt and the decoder know different kinds of frames");
}

#[test]
fn the_table_of_frames_is_that_of_the_code() {
    let told: BTreeMap<u8, String> = (table("| kind | name |").into_iter())
        .map(|cells| (cells[0].parse().expect("a number"), cells[1].clone()))
        .collect();
    assert_eq!(told, golden_kinds());
}

#[test]
fn the_errors_and_numbers_are_those_of_the_code() {
    let mut told: BTreeMap<u8, String> = BTreeMap::new();
    for cells in table("| error kind |") {
        for pair in cells.chunks(2) {
            let name = pair[1].split([':', ';']).next().unwrap_or_default();
            told.insert(pair[0].parse().expect("a number"), name.to_owned());
        }
    }
    let known: BTreeMap<u8, String> = Kind::ALL.iter().map(|k| (k.code(), k.name().to_owned())).collect();
    assert_eq!(told, known);
    for said in [
        format!("This is version {VERSION}."),
        format!("A frame is a header of {HEADER} bytes"),
        format!("a frame is about at most 2^{} requests", MAX_REQUESTS.ilog2()),
        format!("a meta part has at most {} MiB", pelton_wire::frame::MAX_META >> 20),
    ] {
        assert!(DOCUMENT.contains(&said), "the document does not say: {said}");
    }
}

#[test]
fn the_bytes_of_frames_are_golden() {
    let mut seen = 0;
    for line in GOLDEN.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        for block in blocks(name) {
            let golden = |line: &&str| {
                line.split(' ').next() == Some(name) && line.split(' ').skip(1).collect::<String>() == block
            };
            assert!(GOLDEN.lines().any(|line| golden(&line)), "{name} {block} is not in the golden file");
            seen += 1;
        }
    }
    assert!(seen >= 3, "the document has examples");
}

#[test]
fn the_bytes_of_a_body_are_what_is_written() {
    let schema = Arc::new(Schema::new(vec![Field::new("key", DataType::UInt64, false)]));
    let keys = Arc::new(UInt64Array::from_iter_values(0..3));
    let rows = RecordBatch::try_new(schema.clone(), vec![keys]).expect("one column");
    let written = Encoder::default().encode(&rows).expect("it can be written").concat();
    let hex: String = written.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(blocks("body"), [hex]);
    assert_eq!(decode(written.into(), &schema), Ok(rows));
}
