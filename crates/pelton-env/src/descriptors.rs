//! One descriptor in each direction of a Unix socket, beside the bytes (`SCM_RIGHTS`, unix(7)).
//!
//! A descriptor travels with the first byte that is written after it was attached. Nothing is received that nobody waits for: the
//! kernel closes what arrives on a socket that is read in the plain way, and all but the first where one is waited for.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Most bytes that are read at once while a descriptor is waited for: so many are zeroed for it.
const AT_ONCE: usize = 16 << 10;

/// The way of descriptors beside a connection's bytes.
#[derive(Clone, Default)]
pub struct Descriptors(Arc<Slots>);

#[derive(Default)]
struct Slots {
    outgoing: Mutex<Option<OwnedFd>>,
    /// Whether one is waited for.
    expected: AtomicBool,
    incoming: Mutex<Option<OwnedFd>>,
}

impl Descriptors {
    /// Sends this one with the next byte that is written.
    pub fn attach(&self, descriptor: OwnedFd) {
        *self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor);
    }

    /// Waits for one from here on; the first that comes is kept.
    pub fn expect(&self) {
        self.0.expected.store(true, Ordering::Release);
    }

    /// One has come: from whoever reads the bytes beside it.
    pub fn arrived(&self, descriptor: OwnedFd) {
        self.0.arrived(descriptor);
    }

    /// The one that came, if it did.
    pub fn take(&self) -> Option<OwnedFd> {
        self.0.incoming.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Slots {
    fn arrived(&self, descriptor: OwnedFd) {
        self.expected.store(false, Ordering::Release);
        *self.incoming.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor);
    }
}

/// The halves of a stream, and the way of descriptors beside it.
pub(crate) fn split(stream: UnixStream) -> (ReadHalf, WriteHalf, Descriptors) {
    let (read, write) = stream.into_split();
    let descriptors = Descriptors::default();
    let slots = descriptors.0.clone();
    (ReadHalf { half: read, slots: slots.clone() }, WriteHalf { half: write, slots }, descriptors)
}

pub(crate) struct ReadHalf {
    half: OwnedReadHalf,
    slots: Arc<Slots>,
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.slots.expected.load(Ordering::Acquire) {
            return Pin::new(&mut self.half).poll_read(cx, buf);
        }
        loop {
            let stream: &UnixStream = self.half.as_ref();
            ready!(stream.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled_to(buf.remaining().min(AT_ONCE));
            match stream.try_io(Interest::READABLE, || receive(stream, into)) {
                Ok((bytes, descriptor)) => {
                    buf.advance(bytes);
                    if let Some(descriptor) = descriptor {
                        self.slots.arrived(descriptor);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// There is room for one descriptor: the kernel closes more.
fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for one in descriptors {
                descriptor.get_or_insert(one);
            }
        }
    }
    Ok((received.bytes, descriptor))
}

pub(crate) struct WriteHalf {
    half: OwnedWriteHalf,
    slots: Arc<Slots>,
}

impl WriteHalf {
    /// Writes with what is attached; `None` if nothing is.
    fn poll_attached(&self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Option<Poll<io::Result<usize>>> {
        let mut outgoing = self.slots.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = outgoing.as_ref()?;
        let stream: &UnixStream = self.half.as_ref();
        loop {
            match stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Some(Poll::Ready(Err(e))),
                Poll::Pending => return Some(Poll::Pending),
            }
            let send = || {
                let rights = [descriptor.as_fd()];
                let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&rights));
                Ok(sendmsg(stream, bytes, &mut ancillary, SendFlags::NOSIGNAL)?)
            };
            match stream.try_io(Interest::WRITABLE, send) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Some(Poll::Ready(Err(e))),
                Ok(written) => {
                    *outgoing = None;
                    return Some(Poll::Ready(Ok(written)));
                }
            }
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_attached(cx, &[IoSlice::new(bytes)]) {
            Some(done) => done,
            None => Pin::new(&mut self.half).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.poll_attached(cx, bytes) {
            Some(done) => done,
            None => Pin::new(&mut self.half).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(cx)
    }
}
