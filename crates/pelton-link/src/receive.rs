//! The receiving half: whole frames, their lengths checked before anything is allocated for them.

use arrow_schema::SchemaRef;
use bytes::BytesMut;
use pelton_core::{Bytes, Error, Fate, Kind, Result, Retry};
use pelton_wire::frame::MAX_META;
use pelton_wire::{Frame, HEADER, Header, body};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{Message, Methods};

/// What a claimed length gets room for at once. More of it comes as the bytes do, so that a claim costs little.
const AHEAD: usize = 1 << 20;

/// Yields the peer's messages.
pub struct Receiver {
    pub(crate) read: Box<dyn AsyncRead + Send + Sync + Unpin>,
    pub(crate) buffer: BytesMut,
    pub(crate) methods: Methods,
    max_meta: u32,
    max_body: u64,
}

/// A connection broke while something may have been under way on it.
pub(crate) fn broken(e: &std::io::Error) -> Error {
    Error::new(Kind::Reset, Fate::Unknown, Retry::Elsewhere, format!("the connection broke: {e}"))
}

impl Receiver {
    /// For a peer that we went to: what it says is held against the limits of a peer that is known.
    pub(crate) fn of_known(read: Box<dyn AsyncRead + Send + Sync + Unpin>, max_message: Bytes) -> Self {
        let mut receiver = Receiver::of_stranger(read);
        receiver.trust(max_message);
        receiver
    }

    /// For a peer that came to us and has not said who it is: it gets room for a greeting.
    pub(crate) fn of_stranger(read: Box<dyn AsyncRead + Send + Sync + Unpin>) -> Self {
        Receiver {
            read,
            buffer: BytesMut::with_capacity(16 << 10),
            methods: Methods([].into()),
            max_meta: 16 << 10,
            max_body: 0,
        }
    }

    /// Messages up to `max_message` of row data; what Arrow puts around the rows comes on top.
    pub(crate) fn trust(&mut self, max_message: Bytes) {
        self.max_meta = MAX_META;
        self.max_body = max_message.get() + max_message.get() / 8 + (1 << 20);
    }

    /// The next message; `None` when the peer has closed between two frames. Not cancel-safe in the middle of a frame: call it from
    /// one task that does nothing else.
    pub async fn next(&mut self) -> Result<Option<Message>> {
        let Some(header) = self.header().await? else { return Ok(None) };
        let meta = self.take(header.meta as usize).await?;
        let frame = Frame::decode_meta(header.kind, &meta)?;
        if header.body == 0 {
            if frame.has_body() {
                return Err(Error::protocol("a frame that carries rows has no body"));
            }
            return Ok(Some(frame.into()));
        }
        let schema = self.schema(&frame)?;
        let rows = body::decode(self.take(header.body as usize).await?.freeze(), &schema)?;
        check_rows(&frame, rows.num_rows())?;
        Ok(Some(Message { frame, rows: Some(rows) }))
    }

    async fn header(&mut self) -> Result<Option<Header>> {
        while self.buffer.len() < HEADER {
            if self.read.read_buf(&mut self.buffer).await.map_err(|e| broken(&e))? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut_off()) };
            }
        }
        let bytes: [u8; HEADER] = self.buffer.split_to(HEADER)[..].try_into().expect("as long as asked for");
        Header::decode(&bytes, self.max_meta, self.max_body).map(Some)
    }

    /// Exactly `n` bytes. A large part gets a buffer of its own, which then lives as long as the rows in it.
    async fn take(&mut self, n: usize) -> Result<BytesMut> {
        if n <= self.buffer.len() && n < 4096 {
            return Ok(self.buffer.split_to(n));
        }
        let have = self.buffer.len().min(n);
        let mut part = BytesMut::with_capacity(n.min(AHEAD));
        part.extend_from_slice(&self.buffer.split_to(have));
        while part.len() < n {
            let missing = n - part.len();
            if part.len() == part.capacity() {
                part.reserve(part.len().min(missing));
            }
            let mut limited = bytes::BufMut::limit(&mut part, missing);
            if self.read.read_buf(&mut limited).await.map_err(|e| broken(&e))? == 0 {
                return Err(cut_off());
            }
        }
        Ok(part)
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
