//! How a running job is told to end: by signals, or by whoever runs it.

use pelton_core::{Error, Fate, Kind, Result, Retry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Ends a job that somebody else waits for. Cheap to clone; all clones end the same job.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<Option<Wish>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// In good order. A second one comes of an impatient user.
    Stop,
    Cancel,
}

impl Default for Stopper {
    fn default() -> Self {
        Stopper::new()
    }
}

impl Stopper {
    pub fn new() -> Self {
        Stopper(watch::Sender::new(None))
    }

    /// Instances finish what they hold, a checkpoint is written, and the job ends. Started again, it goes on.
    pub fn stop(&self) {
        self.0.send_if_modified(|wish| wish.is_none() && wish.replace(Wish::Stop).is_none());
    }

    /// Ends it at once, and kills its instances. The job's error is of kind `Cancelled`.
    pub fn cancel(&self) {
        self.0.send_replace(Some(Wish::Cancel));
    }
}

/// Who tells a job to end.
pub(crate) enum End {
    Signals,
    By(Stopper),
}

impl End {
    pub(crate) fn listen(self) -> Result<Listening> {
        Ok(match self {
            End::Signals => Listening::Signals(Interrupts::listen()?),
            End::By(stopper) => Listening::By(stopper.0.subscribe(), None),
        })
    }
}

pub(crate) enum Listening {
    Signals(Interrupts),
    /// And what was heard last.
    By(watch::Receiver<Option<Wish>>, Option<Wish>),
}

impl Listening {
    /// The next wish. Nothing is lost where nobody waits.
    pub(crate) async fn next(&mut self) -> Wish {
        match self {
            Listening::Signals(interrupts) => {
                interrupts.next().await;
                Wish::Stop
            }
            Listening::By(wishes, heard) => match wishes.wait_for(|wish| wish != heard).await.map(|w| *w) {
                Ok(Some(wish)) => {
                    *heard = Some(wish);
                    wish
                }
                // Nobody can wish anything any more.
                _ => std::future::pending().await,
            },
        }
    }
}

pub(crate) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, Fate::Unknown, Retry::Never, "interrupted")
}

/// Ctrl-C, and polite requests to end. None that comes while nobody waits is lost.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(crate) fn listen() -> Result<Self> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_stop_is_heard_once_and_a_cancellation_after_it() {
        let stopper = Stopper::new();
        let mut listening = End::By(stopper.clone()).listen().unwrap();
        stopper.stop();
        stopper.stop();
        assert_eq!(block_on(listening.next()), Wish::Stop);
        stopper.cancel();
        assert_eq!(block_on(listening.next()), Wish::Cancel);
        stopper.stop();
        let nothing = std::task::Poll::Pending;
        let mut next = std::pin::pin!(listening.next());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert_eq!(next.as_mut().poll(&mut context), nothing);
    }
}
