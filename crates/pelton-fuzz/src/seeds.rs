//! Honest inputs to begin with: every frame of the golden file, a batch of every kind of column, good handshakes, a conversation.

use pelton_link::greeting;
use pelton_wire::{Frame, Header, Role};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::handshake::{TOKEN, on_the_wire, welcome};
use crate::{arrays, body};

/// Seeds of a target, by file name.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "frame" => frame(),
        "body" => bodies(),
        "handshake" => handshakes(),
        "reader" => streams(),
        _ => lives(target),
    }
}

/// Name, header and meta part of each line of the golden file.
fn golden() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let lines = include_str!("../../pelton-wire/tests/golden.txt").lines().enumerate();
    let hex = |text: &str| -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|d| std::str::from_utf8(d).expect("ascii"));
        digits.map(|d| u8::from_str_radix(d, 16).expect("hexadecimal")).collect()
    };
    let parse = |(i, line): (usize, &str)| {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (name, header, meta) = (word(), hex(word()), word());
        let meta = if meta.starts_with('{') { meta.as_bytes().to_vec() } else { hex(meta) };
        (format!("{i:02}-{}", name.to_lowercase()), header, meta)
    };
    lines.map(parse).collect()
}

fn frame() -> Vec<(String, Vec<u8>)> {
    let metas = golden().into_iter().map(|(name, header, meta)| {
        let bytes = [&[2, header[0]][..], &meta].concat();
        (format!("meta-{name}"), bytes)
    });
    let headers = golden()
        .into_iter()
        .take(2)
        .map(|(name, header, _)| (format!("header-{name}"), [&[0][..], &header].concat()));
    metas.chain(headers).chain(random("choices", 4, |bytes| [&[1][..], bytes].concat())).collect()
}

fn bodies() -> Vec<(String, Vec<u8>)> {
    let batches = arrays::batches();
    let seed = |(i, rows): (usize, &arrow_array::RecordBatch)| {
        let name = rows.schema().field(0).name().clone();
        let of = |rows: &arrow_array::RecordBatch| [&[i as u8][..], &body::encoded(rows)].concat();
        [(format!("{i:02}-{name}"), of(rows)), (format!("{i:02}-{name}-slice"), of(&rows.slice(1, 2)))]
    };
    batches.iter().enumerate().flat_map(seed).collect()
}

fn handshakes() -> Vec<(String, Vec<u8>)> {
    let hello = |token: &str, role| on_the_wire(&Frame::Hello(greeting(role, token, "job", "client", 1)));
    let refused = Frame::Refused(pelton_core::Error::invalid("the token is not this job's"));
    let all: [(&str, u8, Vec<u8>); 7] = [
        ("caller", 0, hello(TOKEN, Role::Caller)),
        ("control", 0, hello(TOKEN, Role::Control)),
        ("observer", 0, hello(TOKEN, Role::Observer)),
        ("other-token", 0, hello("another", Role::Caller)),
        ("not-a-greeting", 0, on_the_wire(&Frame::Ping(1))),
        ("welcome", 1, on_the_wire(&Frame::Welcome(Box::new(welcome())))),
        ("refused", 1, on_the_wire(&refused)),
    ];
    all.into_iter().map(|(name, side, bytes)| (name.to_owned(), [&[side, 3][..], &bytes].concat())).collect()
}

fn streams() -> Vec<(String, Vec<u8>)> {
    let frames: Vec<(String, Vec<u8>)> = golden()
        .into_iter()
        .filter(|(name, ..)| !name.contains("request") && !name.contains("results"))
        .map(|(name, header, meta)| (name, [header, meta].concat()))
        .collect();
    let short: Vec<u8> = frames.iter().filter(|(_, b)| b.len() < 100).flat_map(|(_, b)| b.clone()).collect();
    let rows = crate::methods::rows(0..3);
    let body = body::encoded(&rows);
    let run = pelton_core::RequestRun {
        first: pelton_core::RequestId { operator: 1, group: 2, sequence: 3 },
        count: 3,
    };
    let request = Frame::Request {
        method: 0,
        priority: pelton_core::call::Priority::Normal,
        alone: false,
        deadlines: pelton_wire::Deadlines::None,
        runs: vec![run],
    };
    let entries = vec![pelton_wire::Entry { run, rows: 1, last: true }];
    let results = Frame::Results { method: 1, entries };
    let with_body = |frame: &Frame| {
        let meta = frame.encode_meta();
        let header = Header { kind: frame.kind(), meta: meta.len() as u32, body: body.len() as u32 }.encode();
        [&header[..], &meta, &body].concat()
    };
    let all = vec![
        ("control-frames".to_owned(), short.clone()),
        ("request".to_owned(), with_body(&request)),
        ("results".to_owned(), with_body(&results)),
        ("mixed".to_owned(), [with_body(&request), short, with_body(&results)].concat()),
    ];
    all.into_iter().map(|(name, stream)| (name, [&[7, 250][..], &stream].concat())).collect()
}

/// What happens to a state machine is a list of choices: any will do.
fn lives(target: &str) -> Vec<(String, Vec<u8>)> {
    let seed = if target == "client" { 1 } else { 2 };
    random("choices", 16 + seed, <[u8]>::to_vec)
}

fn random(name: &str, n: u64, make: impl Fn(&[u8]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let one = |i: u64| {
        let mut rng = StdRng::seed_from_u64(n << 8 | i);
        let mut bytes = vec![0; 64 << (i % 3)];
        rng.fill_bytes(&mut bytes);
        // Small numbers mean more than large ones.
        bytes.iter_mut().step_by(2).for_each(|b| *b %= 16);
        (format!("{name}-{i:02}"), make(&bytes))
    };
    (0..n).map(one).collect()
}
