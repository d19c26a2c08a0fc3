//! The bytes of every kind of frame. A change here is a change of the protocol: raise `VERSION`.

use std::time::Duration;

use pelton_core::Bytes;
use pelton_core::call::Priority;
use pelton_core::error::{Error, Fate, Kind, Retry};
use pelton_core::id::{InstanceId, RequestId, RequestRun};
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_wire::frame::MAX_INLINE;
use pelton_wire::{
    Deadlines, Demand, Entry, Frame, Greeting, HEADER, Header, Place, Role, State, Status, Welcome,
};

fn run(group: u64, sequence: u64, count: u32) -> RequestRun {
    RequestRun { first: RequestId { operator: 7, group, sequence }, count }
}

fn status(state: State) -> Box<Status> {
    Box::new(Status {
        state,
        pid: 42,
        held: 1,
        executed: 2,
        batches: 3,
        ledger_bytes: 4,
        evicted: 5,
        standstill: Duration::from_millis(8),
        meter: Default::default(),
    })
}

/// One of every kind; `protocol.rs` finds out if one is missing.
fn frames() -> Vec<Frame> {
    let error = Error::new(Kind::Overload, Fate::Refused, Retry::After(Duration::from_millis(5)), "full");
    let column = |name| arrow_schema::Field::new(name, arrow_schema::DataType::Utf8, false);
    let method = MethodSpec {
        name: "embed".into(),
        input: std::sync::Arc::new(arrow_schema::Schema::new(vec![column("text")])),
        output: std::sync::Arc::new(arrow_schema::Schema::new(vec![column("out")])),
        cardinality: Cardinality::One,
        concurrency: None,
    };
    vec![
        Frame::Hello(Greeting {
            oldest: 1,
            newest: 1,
            role: Role::Caller,
            token: "t".into(),
            job: "j".into(),
            client: "c".into(),
            epoch: 9,
            segment: 1 << 20,
        }),
        Frame::Welcome(Box::new(Welcome {
            version: 1,
            instance: InstanceId { service: "s".into(), number: 1, incarnation: 2 },
            config: "f00".into(),
            methods: vec![method],
            max_message: Bytes::mib(64),
            segment: 0,
            status: *status(State::Ready),
        })),
        Frame::Refused(error.clone()),
        Frame::Announce {
            rows: 1,
            like: Demand {
                row_bytes: 2,
                row_weight: 1.5,
                patience: Some(Duration::from_millis(3)),
                interactive: 4,
                bulk: 5,
            },
        },
        Frame::Permit { rows: 3, held: 8 },
        Frame::Return { rows: 4 },
        Frame::Request {
            method: 1,
            priority: Priority::Bulk,
            alone: true,
            deadlines: Deadlines::All(Duration::from_micros(1500)),
            runs: vec![run(1, 2, 3)],
        },
        Frame::Request {
            method: 1,
            priority: Priority::Normal,
            alone: false,
            deadlines: Deadlines::Each(vec![Duration::from_micros(1500), Duration::from_secs(600)]),
            runs: vec![run(1, 2, 2)],
        },
        Frame::Results {
            method: 1,
            entries: vec![
                Entry { run: run(1, 2, 3), rows: 1, last: true },
                Entry { run: run(1, 9, 1), rows: 0, last: false },
            ],
        },
        Frame::Failure { runs: vec![run(1, 2, 1)], error },
        Frame::HandBack { runs: vec![run(1, 2, 1), run(2, 0, 5)] },
        Frame::Attach { runs: vec![] },
        Frame::Cancel { runs: vec![run(1, 2, 1)] },
        Frame::Acknowledge { runs: vec![run(1, 2, 1)] },
        Frame::Draining,
        Frame::Load { held: 5 },
        Frame::Ping(6),
        Frame::Pong(6),
        Frame::Status(status(State::Failed { message: "no".into(), permanent: true })),
        Frame::Drain,
        Frame::Stop,
        Frame::Query,
        Frame::Report("{}".into()),
        Frame::Command("{}".into()),
        Frame::Holds { runs: vec![run(1, 2, 3)], last: true },
        Frame::Credit { window: 1 << 22, total: 1 << 25, taken: vec![(run(1, 2, 1).first, 3)] },
        Frame::Resume { streams: vec![(run(1, 2, 1).first, 4), (run(2, 0, 1).first, 1)] },
        Frame::Segment { bytes: 1 << 20 },
        Frame::Release { offsets: vec![0, 4096] },
        Frame::Piece,
    ]
}

fn shown(frame: &Frame) -> String {
    let meta = frame.encode_meta();
    let header =
        Header { kind: frame.kind(), place: Place::Inline, meta: meta.len() as u32, body: 0 }.encode();
    let bytes = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let name = format!("{frame:?}");
    let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let meta = match std::str::from_utf8(&meta) {
        Ok(text) if text.starts_with('{') => text.to_owned(),
        _ => bytes(&meta),
    };
    format!("{name} {} {meta}", bytes(&header))
}

#[test]
fn every_frame_has_the_bytes_it_always_had() {
    let now: Vec<String> = frames().iter().map(shown).collect();
    let now = now.join("\n") + "\n";
    if std::env::var_os("PELTON_WRITE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt"), &now).unwrap();
    }
    assert_eq!(now, include_str!("golden.txt"), "the protocol changed: see the header of this file");
}

#[test]
fn every_frame_comes_back() {
    for frame in frames() {
        assert_eq!(Frame::decode_meta(frame.kind(), &frame.encode_meta()), Ok(frame));
    }
}

#[test]
fn cut_and_stretched_frames_are_refused() {
    for frame in frames() {
        let meta = frame.encode_meta();
        for cut in 0..meta.len() {
            if matches!(frame, Frame::Report(_) | Frame::Command(_)) {
                continue;
            }
            assert!(Frame::decode_meta(frame.kind(), &meta[..cut]).is_err(), "{frame:?} cut at {cut}");
        }
        let mut longer = meta.clone();
        longer.push(b'}');
        if !matches!(frame, Frame::Report(_) | Frame::Command(_)) {
            assert!(Frame::decode_meta(frame.kind(), &longer).is_err(), "{frame:?} with a byte too many");
        }
    }
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    let placed = |place, meta, body| Header { kind: 7, place, meta, body }.encode();
    let header = |meta, body| placed(Place::Inline, meta, body);
    assert!(Header::decode(&header(10, 1000), 500, 1000).is_ok());
    assert!(Header::decode(&header(10, 1001), 500, 1000).unwrap_err().message().contains("limit of 1000"));
    assert!(Header::decode(&header(u32::MAX, 0), 500, 1000).unwrap_err().message().contains("meta part"));
    let far = u64::from(u32::MAX);
    let long = MAX_INLINE + 1;
    assert!(Header::decode(&header(0, long), 0, far).unwrap_err().message().contains("in one piece"));
    for place in [Place::Segment, Place::Pieces] {
        assert!(Header::decode(&placed(place, 0, long), 0, far).is_ok());
        assert!(Header::decode(&placed(place, 0, 0), 0, far).is_err());
    }
    let mut reserved = header(1, 1);
    reserved[1] = 3;
    assert!(Header::decode(&reserved, 500, 1000).is_err());
    assert_eq!(HEADER, reserved.len());
    // Four thousand million runs in four bytes.
    assert!(Frame::decode_meta(12, &u32::MAX.to_le_bytes()).unwrap_err().message().contains("claims"));
}

#[test]
fn what_is_read_comes_back_when_it_is_written() {
    let error = [&[3, 1, 3][..], &[0; 8], &[0; 4]].concat();
    let request = [&[0, 0, 1, 0, 1][..], &[0; 8], &[0; 4]].concat();
    let status = br#"{"state":"ready","pid":1,"held":0,"executed":0,"batches":0,"ledger_bytes":0,"evicted":0,"standstill":{"secs":0,"nanos":0},"meter":{"memory_belief":1.7976931348623157e307}}"#;
    for (kind, meta) in [(3, &error[..]), (7, &request[..]), (18, &status[..])] {
        let frame = Frame::decode_meta(kind, meta).unwrap();
        assert_eq!(Frame::decode_meta(kind, &frame.encode_meta()), Ok(frame));
    }
}
