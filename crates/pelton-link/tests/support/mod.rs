//! Two ends of a connection; an end that says whatever it likes; rows.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::call::Priority;
use pelton_core::id::{InstanceId, RequestId, RequestRun};
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_core::{Bytes, Error};
use pelton_env::real::Host;
use pelton_env::{Address, Connection};
use pelton_link::{Door, Link, Message, Receiver, Sharing, connect_sharing, greeting};
use pelton_wire::body::Encoder;
use pelton_wire::{Deadlines, Entry, Frame, Header, Place, Role, State, Status, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const TOKEN: &str = "token";

/// Every end takes messages up to this.
pub(crate) const MAX_MESSAGE: Bytes = Bytes::mib(128);

pub(crate) struct World {
    pub(crate) host: Host,
    folder: tempfile::TempDir,
}

pub(crate) fn sharing(bytes: u64) -> Sharing {
    Sharing::of(Bytes(bytes))
}

impl World {
    pub(crate) fn new() -> World {
        World { host: Host::new(2, 1).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// Someone who listens at a socket, and how it shares.
    async fn listening(&self, tcp: bool, how: Sharing) -> (Address, impl Future<Output = Link>) {
        let name = format!("{:x}", self.host.env().entropy.seed());
        let at = match tcp {
            true => Address::Tcp("127.0.0.1:0".parse().unwrap()),
            false => Address::Unix(self.folder.path().join(name)),
        };
        let mut listener = self.host.env().network.listen(&at).unwrap();
        let address = listener.address();
        let env = self.host.env().clone();
        let link = async move {
            let connection = listener.accept().await.unwrap();
            let door = Door { token: TOKEN.into(), max_message: MAX_MESSAGE, sharing: how };
            let caller = door.answer(&env, connection).await.unwrap();
            let version = caller.version;
            caller.welcome(&env, welcome(version)).await.unwrap()
        };
        (address, link)
    }

    /// Two ends of a connection that share in these ways: who connected, who listened.
    pub(crate) async fn pair(&self, tcp: bool, [near, far]: [Sharing; 2]) -> (Link, Link) {
        let (address, listening) = self.listening(tcp, far).await;
        let greeting = greeting(Role::Caller, TOKEN, "job", "client", 1);
        let connecting = connect_sharing(self.host.env(), &address, greeting, MAX_MESSAGE, near);
        let (near, far) = tokio::join!(connecting, listening);
        (near.unwrap().1, far)
    }

    /// A real end that listened, and one that has greeted properly and now says what it likes.
    pub(crate) async fn with_a_liar(&self, how: Sharing) -> (Liar, Link) {
        let (address, listening) = self.listening(false, how).await;
        let lying = async {
            let connection = self.host.env().network.connect(&address).await.unwrap();
            connection.descriptors.as_ref().unwrap().expect();
            let mut liar = Liar { connection };
            let mut hello = greeting(Role::Caller, TOKEN, "job", "client", 1);
            hello.segment = 1 << 30;
            liar.say(&Frame::Hello(hello)).await;
            assert!(matches!(liar.hear().await.1, Frame::Welcome(_)));
            liar
        };
        tokio::join!(lying, listening)
    }
}

/// An end that is under the test's control, byte by byte.
pub(crate) struct Liar {
    pub(crate) connection: Connection,
}

impl Liar {
    pub(crate) async fn say(&mut self, frame: &Frame) {
        self.say_with(frame, Place::Inline, 0, &[]).await;
    }

    /// A frame with this header, and these bytes behind its meta part.
    pub(crate) async fn say_with(&mut self, frame: &Frame, place: Place, body: u32, bytes: &[u8]) {
        let meta = frame.encode_meta();
        let header = Header { kind: frame.kind(), place, meta: meta.len() as u32, body };
        let all = [&header.encode()[..], &meta, bytes].concat();
        // The other end may have hung up already.
        let _ = self.connection.write.write_all(&all).await;
        let _ = self.connection.write.flush().await;
    }

    /// A request of one row, its body at this offset of the segment.
    pub(crate) async fn say_shared(&mut self, offset: u64, length: u32) {
        self.say_with(&request(1), Place::Segment, length, &offset.to_le_bytes()).await;
    }

    pub(crate) fn attach(&self, descriptor: OwnedFd) {
        self.connection.descriptors.as_ref().unwrap().attach(descriptor);
    }

    /// The next frame, and the bytes of its body if they are behind it.
    pub(crate) async fn hear(&mut self) -> (Header, Frame, Vec<u8>) {
        let mut header = [0; pelton_wire::HEADER];
        self.connection.read.read_exact(&mut header).await.unwrap();
        let header = Header::decode(&header, u32::MAX, u64::MAX).unwrap();
        let mut meta = vec![0; header.meta as usize];
        self.connection.read.read_exact(&mut meta).await.unwrap();
        let behind = match header.place {
            Place::Inline => header.body as usize,
            Place::Segment => 8,
            Place::Pieces => 0,
        };
        let mut body = vec![0; behind];
        self.connection.read.read_exact(&mut body).await.unwrap();
        (header, Frame::decode_meta(header.kind, &meta).unwrap(), body)
    }
}

fn columns() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("payload", DataType::Binary, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("number", DataType::Int64, false),
    ]))
}

pub(crate) fn welcome(version: u16) -> Welcome {
    let method = MethodSpec {
        name: "echo".into(),
        input: columns(),
        output: columns(),
        cardinality: Cardinality::One,
        concurrency: None,
    };
    Welcome {
        version,
        instance: InstanceId { service: "s".into(), number: 0, incarnation: 1 },
        config: String::new(),
        methods: vec![method],
        max_message: MAX_MESSAGE,
        segment: 0,
        status: Status {
            state: State::Ready,
            pid: 1,
            held: 0,
            executed: 0,
            batches: 0,
            ledger_bytes: 0,
            evicted: 0,
            standstill: Default::default(),
            meter: Default::default(),
        },
    }
}

/// One row with about so many bytes, of which no two of a row are the same for long.
pub(crate) fn rows(bytes: usize, seed: u64) -> RecordBatch {
    let byte = |i: usize| (i as u64).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9).to_le_bytes()[3];
    let pattern: Vec<u8> = (0..bytes.min(65_521)).map(byte).collect();
    let mut payload = pattern.repeat(bytes / pattern.len().max(1));
    payload.extend_from_slice(&pattern[..bytes - payload.len()]);
    let text = format!("{seed} {}", "x".repeat(bytes / 50));
    let columns: [ArrayRef; 3] = [
        Arc::new(BinaryArray::from_iter_values([payload])),
        Arc::new(StringArray::from_iter_values([text])),
        Arc::new(Int64Array::from_iter_values([seed as i64])),
    ];
    RecordBatch::try_new(self::columns(), columns.into()).unwrap()
}

fn run(count: u32) -> RequestRun {
    RequestRun { first: RequestId { operator: 1, group: 1, sequence: 1 }, count }
}

pub(crate) fn request(count: u32) -> Frame {
    let (priority, deadlines) = (Priority::Normal, Deadlines::None);
    Frame::Request { method: 0, priority, alone: false, deadlines, runs: vec![run(count)] }
}

pub(crate) fn results() -> Frame {
    Frame::Results { method: 0, entries: vec![Entry { run: run(1), rows: 1, last: true }] }
}

pub(crate) fn message(frame: Frame, rows: &RecordBatch) -> Message {
    Message { frame, rows: Some(rows.clone()) }
}

pub(crate) fn body(rows: &RecordBatch) -> Vec<u8> {
    Encoder::default().encode(rows).unwrap().into_parts().concat()
}

pub(crate) async fn received(receiver: &mut Receiver) -> RecordBatch {
    receiver.next().await.unwrap().expect("the connection is open").rows.expect("a frame with rows")
}

/// What `from` does not look at any more goes out with its next frame, and `to` hears of it with that.
pub(crate) async fn released(to: &mut Link, from: &Link) {
    from.sender.send(Frame::Load { held: 0 });
    assert_eq!(to.receiver.next().await, Ok(Some(Frame::Load { held: 0 }.into())));
}

pub(crate) async fn refusal(receiver: &mut Receiver) -> Error {
    loop {
        match receiver.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was not refused"),
            Err(e) => return e,
        }
    }
}

/// Whether a batch's payload is in memory that is shared.
pub(crate) fn is_shared(rows: &RecordBatch) -> bool {
    let at = rows.column(0).to_data().buffers()[1].as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("/memfd:pelton")).any(|line| {
        let range = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |hex| usize::from_str_radix(hex, 16).unwrap();
        (number(range.0)..number(range.1)).contains(&at)
    })
}
