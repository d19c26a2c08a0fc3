//! The receiving half: whole frames, their lengths checked before anything is allocated.
//!
//! Memory grows with what has come, not with what a peer says will come: a body is received into a buffer that is at most twice
//! as long as what is there of it, and 1 MiB at first.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use pelton_core::{Error, Fate, Kind, Result, Retry};
use pelton_wire::frame::{MAX_INLINE, MAX_META};
use pelton_wire::{Frame, HEADER, Header, Place, body, in_place};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::pool::Pool;
use crate::shared::incoming::{Body, Incoming, Releases};
use crate::shared::outgoing::Taken;
use crate::{Message, Methods};

/// Room for what is read at once: many small frames.
const AT_ONCE: usize = 16 << 10;
const LITTLE: usize = 1 << 10;
/// Most messages that are given out together.
const TOGETHER: usize = 64;
/// Shorter parts are taken from the buffer that was read into.
const SMALL: usize = 4 << 10;

/// Yields the peer's messages.
pub struct Receiver {
    pub(crate) read: Box<dyn AsyncRead + Send + Sync + Unpin>,
    buffer: BytesMut,
    pub(crate) methods: Methods,
    max_meta: u32,
    max_body: u64,
    pool: Pool,
    /// Where the peer puts bodies.
    pub(crate) incoming: Incoming,
    /// What is taken of the segment in which this side puts bodies.
    pub(crate) taken: Taken,
    /// A body of which some pieces are missing.
    begun: Option<Begun>,
    /// What is wrong with the peer, found behind messages that were given out.
    wrong: Option<Error>,
}

/// What one frame was.
enum Read {
    Message(Message),
    /// Part of a message, or between the two ends only.
    Part,
    /// There is none: the peer has closed.
    End,
}

struct Begun {
    frame: Frame,
    schema: SchemaRef,
    total: usize,
    bytes: Vec<u8>,
}

/// A connection broke while something may have been under way on it.
pub(crate) fn broken(e: &std::io::Error) -> Error {
    Error::new(kind(e, Kind::Reset), Fate::Unknown, Retry::Elsewhere, format!("the connection broke: {e}"))
}

/// What an error of a connection is: one that passes, unless it says that trust is missing, or that the peer speaks something else.
pub(crate) fn kind(e: &std::io::Error, passing: Kind) -> Kind {
    match e.kind() {
        std::io::ErrorKind::PermissionDenied => Kind::Denied,
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::Unsupported => Kind::Protocol,
        _ => passing,
    }
}

impl Receiver {
    /// For a peer that we went to: what it says is held against the limits of a peer that is known.
    pub(crate) fn of_known(
        read: Box<dyn AsyncRead + Send + Sync + Unpin>,
        max_message: pelton_core::Bytes,
    ) -> Self {
        let mut receiver = Receiver::of_stranger(read);
        receiver.trust(max_message);
        receiver
    }

    /// For a peer that came to us and has not said who it is: it gets room for a greeting.
    pub(crate) fn of_stranger(read: Box<dyn AsyncRead + Send + Sync + Unpin>) -> Self {
        Receiver {
            read,
            buffer: BytesMut::with_capacity(AT_ONCE),
            methods: Methods([].into()),
            max_meta: 16 << 10,
            max_body: 0,
            pool: Pool::default(),
            incoming: Incoming::new(None, Releases::default()),
            taken: Taken::default(),
            begun: None,
            wrong: None,
        }
    }

    /// Messages up to `max_message` of row data; what Arrow puts around the rows comes on top.
    pub(crate) fn trust(&mut self, max_message: pelton_core::Bytes) {
        self.max_meta = MAX_META;
        self.max_body = max_message.get() + max_message.get() / 8 + (1 << 20);
    }

    /// The next message; `None` when the peer has closed between two frames. Not cancel-safe in the middle of a frame: call it from
    /// one task that does nothing else.
    pub async fn next(&mut self) -> Result<Option<Message>> {
        if let Some(e) = self.wrong.take() {
            return Err(e);
        }
        loop {
            match self.frame().await? {
                Read::Message(message) => return Ok(Some(message)),
                Read::Part => {}
                Read::End => return Ok(None),
            }
        }
    }

    /// The messages that have come whole already: what is said together is best answered together. What is wrong with the one
    /// behind them [`next`](Receiver::next) says.
    pub fn next_now(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < TOGETHER && self.is_next_whole() {
            // It waits for nothing, as all of this one frame is here.
            match self.frame().now_or_never() {
                Some(Ok(Read::Message(message))) => messages.push(message),
                Some(Ok(Read::Part)) => {}
                Some(Ok(Read::End)) | None => break,
                Some(Err(e)) => {
                    self.wrong = Some(e);
                    break;
                }
            }
        }
        messages
    }

    /// Takes in one frame.
    async fn frame(&mut self) -> Result<Read> {
        let Some(header) = self.header().await? else { return Ok(Read::End) };
        let meta = self.take(header.meta as usize).await?;
        let frame = Frame::decode_meta(header.kind, &meta)?;
        if let Some(begun) = &self.begun
            && frame.keeps_order()
        {
            let (have, total) = (begun.bytes.len(), begun.total);
            return Err(Error::protocol(format!("another frame came at byte {have} of a body of {total}")));
        }
        match frame {
            Frame::Piece => Ok(self.piece(header).await?.map_or(Read::Part, Read::Message)),
            Frame::Segment { bytes } if header.body == 0 => {
                self.incoming.open(bytes)?;
                Ok(Read::Part)
            }
            Frame::Release { offsets } if header.body == 0 => {
                self.taken.release(&offsets)?;
                Ok(Read::Part)
            }
            frame if header.body == 0 && frame.has_body() => {
                Err(Error::protocol("a frame that carries rows has no body"))
            }
            frame if header.body == 0 => Ok(Read::Message(frame.into())),
            frame if header.place == Place::Pieces => {
                let (schema, total) = (self.schema(&frame)?, header.body as usize);
                let bytes = self.pool.take(total, total.min(MAX_INLINE as usize));
                self.begun = Some(Begun { frame, schema, total, bytes });
                Ok(Read::Part)
            }
            frame => {
                let schema = self.schema(&frame)?;
                let rows = match header.place {
                    Place::Segment => self.shared(header.body, &schema).await?,
                    _ => body::decode(self.take(header.body as usize).await?, &schema)?,
                };
                message(frame, rows).map(Read::Message)
            }
        }
    }

    /// Whether the next frame lies in the buffer with all that belongs to it.
    fn is_next_whole(&self) -> bool {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return false };
        let Ok(header) = Header::decode(header, self.max_meta, self.max_body) else { return false };
        let behind = match header.place {
            _ if header.body == 0 => 0,
            Place::Inline => header.body as usize,
            Place::Segment => 8,
            Place::Pieces => 0,
        };
        self.buffer.len() >= HEADER + header.meta as usize + behind
    }

    /// A body in the peer's segment, of which the offset follows.
    async fn shared(&mut self, length: u32, schema: &SchemaRef) -> Result<RecordBatch> {
        let offset = self.take(8).await?;
        let offset = u64::from_le_bytes(offset[..].try_into().expect("as long as asked for"));
        let pool = &self.pool;
        match self.incoming.body(offset, u64::from(length))? {
            Body::InPlace(body) => in_place::decode_in_place(&body, schema, &mut |bytes| pool.copy(bytes)),
            Body::ToCopy(body) => body::decode(pool.copy(&body), schema),
        }
    }

    /// The next piece of the body that was begun: the message, if that was the last.
    async fn piece(&mut self, header: Header) -> Result<Option<Message>> {
        let length = header.body as usize;
        let Some(mut begun) = self.begun.take() else {
            return Err(Error::protocol("a piece of a body that was not begun"));
        };
        let missing = begun.total - begun.bytes.len();
        if length == 0 || length > missing || header.place != Place::Inline {
            return Err(Error::protocol(format!(
                "a piece of {length} bytes, where {missing} are missing of a body"
            )));
        }
        self.fill(&mut begun.bytes, length, missing).await?;
        if length < missing {
            self.begun = Some(begun);
            return Ok(None);
        }
        let rows = body::decode(self.pool.share(begun.bytes), &begun.schema)?;
        message(begun.frame, rows).map(Some)
    }

    async fn header(&mut self) -> Result<Option<Header>> {
        while self.buffer.len() < HEADER {
            // Pieces of the buffer live as long as the rows in them: it is used up before there is another, but for so little that reads
            // would be many.
            if self.buffer.capacity() - self.buffer.len() < LITTLE {
                self.buffer.reserve(AT_ONCE);
            }
            if self.read.read_buf(&mut self.buffer).await.map_err(|e| broken(&e))? == 0 {
                let between = self.buffer.is_empty() && self.begun.is_none();
                return if between { Ok(None) } else { Err(cut_off()) };
            }
        }
        let bytes: [u8; HEADER] = self.buffer.split_to(HEADER)[..].try_into().expect("as long as asked for");
        Header::decode(&bytes, self.max_meta, self.max_body).map(Some)
    }

    /// Exactly `n` bytes. A large part gets a buffer of its own, which then lives as long as the rows in it.
    async fn take(&mut self, n: usize) -> Result<Bytes> {
        if n <= self.buffer.len() && n < SMALL {
            return Ok(self.buffer.split_to(n).freeze());
        }
        let mut part = self.pool.take(n, n.min(MAX_INLINE as usize));
        self.fill(&mut part, n, n).await?;
        Ok(self.pool.share(part))
    }

    /// Reads exactly `n` bytes more into a buffer that will need room for `missing`, and makes that as they come.
    async fn fill(&mut self, into: &mut Vec<u8>, n: usize, missing: usize) -> Result<()> {
        let end = into.len() + n;
        let whole = into.len() + missing;
        let have = self.buffer.len().min(n);
        into.extend_from_slice(&self.buffer.split_to(have));
        while into.len() < end {
            if into.len() == into.capacity() {
                into.reserve_exact((whole - into.len()).min(into.len().max(MAX_INLINE as usize)));
            }
            let left = end - into.len();
            let mut limited = (&mut *into).limit(left);
            if self.read.read_buf(&mut limited).await.map_err(|e| broken(&e))? == 0 {
                return Err(cut_off());
            }
        }
        Ok(())
    }

    fn schema(&self, frame: &Frame) -> Result<SchemaRef> {
        let method = |m: u16| {
            self.methods
                .0
                .get(usize::from(m))
                .ok_or_else(|| Error::protocol(format!("a frame names method {m}, which is none")))
        };
        match frame {
            Frame::Request { method: m, .. } => Ok(method(*m)?.input.clone()),
            Frame::Results { method: m, .. } => Ok(method(*m)?.output.clone()),
            _ => Err(Error::protocol("a frame that carries no rows has a body")),
        }
    }
}

fn message(frame: Frame, rows: RecordBatch) -> Result<Message> {
    check_rows(&frame, rows.num_rows())?;
    Ok(Message { frame, rows: Some(rows) })
}

fn cut_off() -> Error {
    Error::new(Kind::Reset, Fate::Unknown, Retry::Elsewhere, "the connection ended in the middle of a frame")
}

fn check_rows(frame: &Frame, rows: usize) -> Result<()> {
    let claimed = match frame {
        Frame::Request { runs, .. } => pelton_core::RequestRun::total(runs),
        Frame::Results { entries, .. } => entries
            .iter()
            .fold(0u64, |n, e| n.saturating_add(u64::from(e.run.count).saturating_mul(u64::from(e.rows)))),
        _ => 0,
    };
    if claimed == rows as u64 {
        return Ok(());
    }
    Err(Error::protocol(format!("a frame is about {claimed} rows, but carries {rows}")))
}
