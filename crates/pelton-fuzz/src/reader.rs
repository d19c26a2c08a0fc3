//! A peer's bytes after the handshake, cut anywhere.

use pelton_core::Result;
use pelton_env::Connection;
use pelton_link::{Link, Message, greeting};
use pelton_wire::{Frame, Role};

use crate::handshake::{TOKEN, door_of_ours, on_the_wire, welcome};
use crate::link::{Still, Stream, Written};

/// Two bytes say how the rest, which is the stream, is cut.
pub(crate) fn run(bytes: &[u8]) {
    let Some((pieces, stream)) = bytes.split_first_chunk::<2>() else { return };
    let (whole, end) = read(stream, &[]);
    let (cut, cut_end) = read(stream, pieces);
    assert_eq!((&whole, &end), (&cut, &cut_end), "where it is cut makes no difference");
    if let Err(e) = end {
        assert!(e.message().split_whitespace().count() >= 4, "`{e}` says too little");
    }
    // What was understood can be said again, and is understood the same.
    let (again, end) = read(&said(&whole), pieces);
    assert_eq!(end, Ok(()));
    for keeps_order in [true, false] {
        let of = |all: &[Message]| -> Vec<Message> {
            all.iter().filter(|m| m.frame.keeps_order() == keeps_order).cloned().collect()
        };
        assert_eq!(of(&again), of(&whole));
    }
}

/// The messages of a stream, and how it ended.
fn read(stream: &[u8], pieces: &[u8]) -> (Vec<Message>, Result<()>) {
    let still = Still::default();
    let mut link = welcomed(&still, stream, pieces, &Written::default());
    let mut messages = Vec::new();
    let end = loop {
        match still.run(link.receiver.next()) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    (messages, end)
}

/// What a sender makes of messages.
fn said(messages: &[Message]) -> Vec<u8> {
    let (still, written) = (Still::default(), Written::default());
    let Link { sender, .. } = welcomed(&still, &[], &[], &written);
    written.take();
    messages.iter().for_each(|message| sender.send(message.clone()));
    drop(sender);
    still.settle();
    written.take()
}

fn welcomed(still: &Still, stream: &[u8], pieces: &[u8], written: &Written) -> Link {
    let hello = Frame::Hello(greeting(Role::Caller, TOKEN, "job", "client", 1));
    let bytes = [on_the_wire(&hello), stream.to_vec()].concat();
    let connection =
        Connection { read: Box::new(Stream::new(bytes, pieces)), write: Box::new(written.clone()) };
    let env = still.env();
    let caller = still.run(door_of_ours().answer(&env, connection)).expect("it greets well");
    still.run(caller.welcome(&env, welcome())).expect("it is there")
}
