//! Bodies in memory that both ends map, instead of through the socket.
//!
//! Each direction of a connection has one segment, made by the side that sends when its first large body leaves. [`outgoing`] puts bodies
//! in, [`incoming`] reads them where they are and says when nobody looks at them any more. The segment is never waited for: what finds no
//! room in it goes through the socket.

pub(crate) mod arena;
pub(crate) mod incoming;
pub(crate) mod outgoing;

/// The largest segment that is read from.
pub(crate) const LARGEST: u64 = 1 << 30;

/// How bodies are shared with peers on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Bytes of the segment that this side makes for a connection, of which memory is used as far as bodies are under way. 0: bodies go through
    /// the socket, in both directions.
    pub segment: u64,
    /// Shorter bodies go through the socket: that costs less than to say where they are and that they are not needed any more.
    pub from: usize,
}

impl Sharing {
    /// Nothing is shared.
    pub const NONE: Sharing = Sharing { segment: 0, from: usize::MAX };

    /// A segment of so many bytes for each direction of a connection; none if 0.
    pub fn of(bytes: pelton_core::Bytes) -> Sharing {
        if bytes.get() == 0 { Sharing::NONE } else { Sharing { segment: bytes.get(), from: FROM } }
    }
}

/// See `docs/decisions/016-shared-memory.md`.
const FROM: usize = 8 << 10;
