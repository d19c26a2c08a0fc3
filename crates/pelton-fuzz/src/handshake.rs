//! Who is there? Asked of bytes.

use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::{Bytes, Fate};
use pelton_env::Connection;
use pelton_link::{Door, connect, greeting};
use pelton_wire::{Frame, HEADER, Header, Role, State, Status, VERSION, Welcome};

use crate::frame::says_what_is_wrong;
use crate::link::{Still, Stream, Written};
use crate::methods;

pub(crate) const TOKEN: &str = "a token that nobody guesses";
/// What a stranger gets room for.
const STRANGERS: usize = 16 << 10;

/// The first byte says who is under attack, the second how its bytes are cut.
pub(crate) fn run(bytes: &[u8]) {
    let Some(([side, piece], rest)) = bytes.split_first_chunk() else { return };
    let stream = Stream::new(rest.to_vec(), &[*piece]);
    if side % 2 == 0 { door(rest, stream) } else { visitor(stream) }
}

fn door(bytes: &[u8], stream: Stream) {
    let (still, written) = (Still::default(), Written::default());
    let connection = Connection { read: Box::new(stream), write: Box::new(written.clone()) };
    let env = still.env();
    let answer = still.run(door_of_ours().answer(&env, connection));
    let said = written.take();
    match answer {
        Ok(caller) => {
            assert!(said.is_empty(), "a welcome is not the door's to say");
            assert_eq!(caller.greeting.token, TOKEN, "let in without the token");
            assert!(caller.greeting.oldest <= caller.version && caller.version <= caller.greeting.newest);
            assert!(caller.greeting.client.len() < STRANGERS);
            let length = u32::from_le_bytes(bytes[4..8].try_into().expect("it had a header"));
            assert!(length as usize <= STRANGERS, "a greeting of {length} bytes");
        }
        Err(e) => {
            says_what_is_wrong(e.message());
            match decoded(&said) {
                Frame::Refused(told) => assert_eq!(told, e, "it is told what is wrong"),
                other => panic!("a stranger is told {other:?}"),
            }
        }
    }
}

fn visitor(stream: Stream) {
    let written = Written::default();
    let still = Still::answered_by(Connection { read: Box::new(stream), write: Box::new(written.clone()) });
    let env = still.env();
    let address = Address::Unix("/there".into());
    let greeting = greeting(Role::Caller, TOKEN, "job", "client", 1);
    let connected = still.run(connect(&env, &address, greeting, Bytes::mib(1)));
    assert!(matches!(decoded(&written.take()), Frame::Hello(_)));
    match connected {
        Ok((welcome, _)) => assert!(welcome.methods.len() < 1 << 16),
        Err(e) => {
            assert_eq!(e.fate(), Fate::NotSent, "no request has been near it");
            assert!(!e.message().contains(TOKEN));
        }
    }
}

fn decoded(bytes: &[u8]) -> Frame {
    let (header, meta) = bytes.split_first_chunk::<HEADER>().expect("a frame has a header");
    let header = Header::decode(header, u32::MAX, 0).expect("ours");
    assert_eq!(header.meta as usize, meta.len(), "one frame and nothing else");
    Frame::decode_meta(header.kind, meta).expect("ours")
}

pub(crate) fn door_of_ours() -> Door {
    Door { token: TOKEN.into(), max_message: Bytes::mib(1) }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        instance: InstanceId { service: "s".into(), number: 0, incarnation: 1 },
        config: "c".into(),
        methods: methods::all().to_vec(),
        max_message: Bytes::mib(1),
        status: Status {
            state: State::Ready,
            pid: 1,
            held: 0,
            executed: 0,
            batches: 0,
            ledger_bytes: 0,
            evicted: 0,
            standstill: std::time::Duration::ZERO,
            meter: Default::default(),
        },
    }
}

/// One frame without a body, as it stands on the wire.
pub(crate) fn on_the_wire(frame: &Frame) -> Vec<u8> {
    let meta = frame.encode_meta();
    let header = Header { kind: frame.kind(), meta: meta.len() as u32, body: 0 };
    [&header.encode()[..], &meta].concat()
}
