//! Frames over a connection.
//!
//! [`connect`] and [`Door::answer`] shake hands: versions, role and token first, and nothing else is read before that. After it, a
//! [`Link`] is a [`Sender`] that anybody may push messages into (control frames overtake data) and a [`Receiver`] that
//! yields the peer's. A peer that breaks the protocol costs itself its connection.

mod handshake;
mod receive;
mod send;

use arrow_array::RecordBatch;
use pelton_core::service::MethodSpec;
use pelton_wire::Frame;
use std::sync::Arc;

pub use handshake::{Caller, Door, connect, greeting};
pub use receive::Receiver;
pub use send::{Room, Sender};

/// A frame and the record batch that it carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub frame: Frame,
    pub rows: Option<RecordBatch>,
}

impl From<Frame> for Message {
    fn from(frame: Frame) -> Self {
        Message { frame, rows: None }
    }
}

/// A connection after its handshake.
pub struct Link {
    pub sender: Sender,
    pub receiver: Receiver,
}

/// Which way a side sees the methods' columns: requests carry a method's input, results its output.
#[derive(Clone)]
pub(crate) struct Methods(pub(crate) Arc<[MethodSpec]>);
