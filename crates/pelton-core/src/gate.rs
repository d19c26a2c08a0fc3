//! What holds a streaming method back while nobody takes what it gives.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use arrow_array::RecordBatch;

use crate::error::Result;

/// Open or shut. Whoever comes to it while it is shut waits, as a thread or as a future. Cheap to clone; all clones are one gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    wakers: Vec<Waker>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self) {
        let mut state = self.lock();
        state.shut = false;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.0.opened.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub fn shut(&self) {
        self.lock().shut = true;
    }

    pub fn is_open(&self) -> bool {
        !self.lock().shut
    }

    /// Blocks the thread until it is open.
    pub fn wait(&self) {
        let mut state = self.lock();
        while state.shut {
            state = self.0.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends once it is open.
    pub async fn passed(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if !state.shut {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Where a streaming method's rows go, part by part. Both ways wait while the caller has not taken enough of what went before; an error
/// means that nobody wants more: return it. Cheap to clone.
#[derive(Clone)]
pub struct Emitter {
    gate: Gate,
    put: Arc<Put>,
}

type Put = dyn Fn(RecordBatch) -> Result<()> + Send + Sync;

impl Emitter {
    /// One that hands parts to `put`, as long as `gate` is open. `put` does not wait.
    pub fn new(gate: Gate, put: impl Fn(RecordBatch) -> Result<()> + Send + Sync + 'static) -> Self {
        Emitter { gate, put: Arc::new(put) }
    }

    /// For methods that give no parts.
    pub fn none() -> Self {
        Emitter::new(Gate::default(), |_| Ok(()))
    }

    pub async fn emit(&self, rows: RecordBatch) -> Result<()> {
        self.gate.passed().await;
        (self.put)(rows)
    }

    pub fn emit_blocking(&self, rows: RecordBatch) -> Result<()> {
        self.gate.wait();
        (self.put)(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_future_waits_while_it_is_shut_and_is_woken_once() {
        let (gate, count) = (Gate::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        gate.shut();
        let mut passed = pin!(gate.passed());
        assert!(passed.as_mut().poll(&mut context).is_pending());
        assert!(passed.as_mut().poll(&mut context).is_pending());
        gate.open();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(passed.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_thread_waits_while_it_is_shut() {
        let (gate, through) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
        gate.shut();
        std::thread::scope(|scope| {
            let (theirs, passed) = (gate.clone(), through.clone());
            let waiting = scope.spawn(move || {
                theirs.wait();
                passed.store(1, Ordering::SeqCst);
            });
            assert_eq!(through.load(Ordering::SeqCst), 0);
            gate.open();
            waiting.join().unwrap();
        });
        assert!(gate.is_open() && through.load(Ordering::SeqCst) == 1);
    }
}
