//! Time and tasks of a simulation: everything runs on one thread, in an order that the seed chooses, and time moves only
//! when nobody can go on.
//!
//! An executor of our own rather than tokio's with paused time: the order of ready tasks is part of what the seed explores,
//! time has nanoseconds and not milliseconds, and a killed process loses all its tasks between two polls.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pelton_core::BoxFuture;
use pelton_core::time::{Clock, Time};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// A simulated process; 0 is the one that the scenario itself runs in.
pub type Pid = u32;

/// The process of the scenario: control, clients, observers.
pub const HOST: Pid = 0;

/// Polls without any passing of time: more are a task that spins.
const MOST_POLLS: u64 = 500_000;

type TaskId = u64;

/// The executor. Cheap to clone.
#[derive(Clone)]
pub struct World {
    core: Arc<Core>,
}

struct Core {
    state: Mutex<State>,
}

struct State {
    now: Time,
    rng: StdRng,
    tasks: BTreeMap<TaskId, Slot>,
    /// Sorted, so that the order in which they were woken does not count: tokio's `watch` wakes in a random one.
    ready: BTreeSet<TaskId>,
    timers: BTreeMap<(Time, u64), Waker>,
    next: u64,
    /// Ended before their time; dropped between two polls, as a real executor would.
    graveyard: Vec<BoxFuture<()>>,
    dead: Vec<Pid>,
    /// Processes that do not run until they are told to, with those of their tasks that are ready.
    paused: BTreeMap<Pid, BTreeSet<TaskId>>,
    /// How far the calendar is from what it was at the start, in milliseconds.
    calendar: i64,
    failure: Option<String>,
}

struct Slot {
    pid: Pid,
    /// Taken out while it is polled.
    future: Option<BoxFuture<()>>,
    queued: bool,
    waker: Waker,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let state = State {
            // Not zero, so that nothing takes the origin for "never".
            now: Time::from_origin(Duration::from_secs(1)),
            rng: StdRng::seed_from_u64(seed),
            tasks: BTreeMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeMap::new(),
            next: 0,
            graveyard: Vec::new(),
            dead: Vec::new(),
            paused: BTreeMap::new(),
            calendar: 0,
            failure: None,
        };
        World { core: Arc::new(Core { state: Mutex::new(state) }) }
    }

    pub fn now(&self) -> Time {
        self.core.lock().now
    }

    /// The next number that the seed gives.
    pub fn random(&self) -> u64 {
        self.core.lock().rng.next_u64()
    }

    /// Uniform in 0..1.
    pub fn share(&self) -> f64 {
        self.core.lock().rng.random()
    }

    /// Uniform between the two.
    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.share())
    }

    /// One of `0..n`.
    pub fn below(&self, n: u64) -> u64 {
        self.core.lock().rng.random_range(0..n.max(1))
    }

    pub fn chance(&self, share: f64) -> bool {
        self.share() < share
    }

    pub fn sleep(&self, d: Duration) -> Sleep {
        self.sleep_until(self.now() + d)
    }

    pub fn sleep_until(&self, until: Time) -> Sleep {
        Sleep { core: self.core.clone(), until, key: None }
    }

    /// Starts a task of a process. It is dropped at once if the process is gone.
    pub(crate) fn spawn(&self, pid: Pid, future: BoxFuture<()>) -> Option<u64> {
        let mut state = self.core.lock();
        if state.dead.contains(&pid) {
            state.graveyard.push(future);
            return None;
        }
        let id = state.next;
        state.next += 1;
        let waker = Waker::from(Arc::new(TaskWaker { core: Arc::downgrade(&self.core), id }));
        state.tasks.insert(id, Slot { pid, future: Some(future), queued: true, waker });
        state.ready_or_paused(pid).insert(id);
        Some(id)
    }

    pub(crate) fn abort(&self, id: u64) {
        let mut state = self.core.lock();
        if let Some(Slot { future: Some(future), .. }) = state.tasks.remove(&id) {
            state.graveyard.push(future);
        }
    }

    /// Ends all tasks of a process, and keeps it from starting others.
    pub(crate) fn end_process(&self, pid: Pid) {
        let mut state = self.core.lock();
        state.dead.push(pid);
        state.paused.remove(&pid);
        let ids: Vec<TaskId> = state.tasks.iter().filter(|(_, s)| s.pid == pid).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(Slot { future: Some(future), .. }) = state.tasks.remove(&id) {
                state.graveyard.push(future);
            }
        }
    }

    /// Stops a process as SIGSTOP does: its tasks stay as they are, and time goes on without it.
    pub fn pause(&self, pid: Pid) {
        let mut state = self.core.lock();
        if state.paused.contains_key(&pid) {
            return;
        }
        let (theirs, others) = std::mem::take(&mut state.ready)
            .into_iter()
            .partition(|id| state.tasks.get(id).is_some_and(|slot| slot.pid == pid));
        state.ready = others;
        state.paused.insert(pid, theirs);
    }

    /// Lets a process go on that was stopped.
    pub fn resume(&self, pid: Pid) {
        let mut state = self.core.lock();
        let ready = state.paused.remove(&pid).unwrap_or_default();
        state.ready.extend(ready);
    }

    /// Sets the calendar forward, or back. What is measured between two moments does not change.
    pub fn jump(&self, ms: i64) {
        self.core.lock().calendar += ms;
    }

    /// How many tasks a process has.
    pub fn tasks_of(&self, pid: Pid) -> usize {
        self.core.lock().tasks.values().filter(|s| s.pid == pid).count()
    }

    /// Ends the simulation with this failure, unless it has one already.
    pub fn fail(&self, why: impl Into<String>) {
        let mut state = self.core.lock();
        let now = state.now;
        let why = why.into();
        state.failure.get_or_insert_with(|| format!("at {now}: {why}"));
    }

    /// Runs `main` in the host's process, and everything else with it, until it ends. An error if anything failed, if
    /// nothing can go on any more, or if more than `limit` has passed.
    pub fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        self.spawn(
            HOST,
            Box::pin(async move {
                let output = main.await;
                *slot.lock().expect("nobody panics with it") = Some(output);
            }),
        );
        let end = self.now() + limit;
        let mut polls = 0;
        loop {
            let (dead, failure) = {
                let mut state = self.core.lock();
                (std::mem::take(&mut state.graveyard), state.failure.clone())
            };
            drop(dead);
            if let Some(why) = failure {
                return Err(why);
            }
            if let Some(output) = result.lock().expect("nobody panics with it").take() {
                return Ok(output);
            }
            if self.poll_one() {
                polls += 1;
                if polls > MOST_POLLS {
                    return Err(format!(
                        "at {}: {polls} polls without any passing of time: something spins",
                        self.now()
                    ));
                }
                continue;
            }
            if !self.core.lock().graveyard.is_empty() {
                continue;
            }
            polls = 0;
            if !self.advance() {
                return Err(format!("at {}: nothing can go on, and no time is waited for", self.now()));
            }
            if self.now() > end {
                return Err(format!("at {}: not done after {limit:?}", self.now()));
            }
        }
    }

    /// Drops all tasks, which breaks the circles among them.
    pub(crate) fn clear(&self) {
        loop {
            let (tasks, dead, timers) = {
                let mut state = self.core.lock();
                state.ready.clear();
                (
                    std::mem::take(&mut state.tasks),
                    std::mem::take(&mut state.graveyard),
                    std::mem::take(&mut state.timers),
                )
            };
            if tasks.is_empty() && dead.is_empty() && timers.is_empty() {
                return;
            }
        }
    }

    fn poll_one(&self) -> bool {
        let (id, mut future, waker) = {
            let mut state = self.core.lock();
            loop {
                if state.ready.is_empty() {
                    return false;
                }
                let n = state.ready.len();
                let at = state.rng.random_range(0..n);
                let id = *state.ready.iter().nth(at).expect("within its length");
                state.ready.remove(&id);
                let Some(slot) = state.tasks.get_mut(&id) else { continue };
                slot.queued = false;
                if let Some(future) = slot.future.take() {
                    break (id, future, slot.waker.clone());
                }
            }
        };
        let polled =
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        let finished = match polled {
            Ok(poll) => poll.is_ready(),
            Err(panic) => {
                let what = panic
                    .downcast_ref::<&str>()
                    .map(|s| (*s).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                self.fail(format!("a task panicked: {}", what.unwrap_or_default()));
                true
            }
        };
        let mut state = self.core.lock();
        if finished {
            state.tasks.remove(&id);
        } else if let Some(slot) = state.tasks.get_mut(&id) {
            slot.future = Some(future);
            return true;
        }
        drop(state);
        drop(future);
        true
    }

    /// Moves time to the next timer; false if there is none.
    fn advance(&self) -> bool {
        let mut due = Vec::new();
        {
            let mut state = self.core.lock();
            let Some(&(at, _)) = state.timers.keys().next() else { return false };
            state.now = state.now.max(at);
            while let Some(entry) = state.timers.first_entry().filter(|e| e.key().0 <= at) {
                due.push(entry.remove());
            }
        }
        due.into_iter().for_each(Waker::wake);
        true
    }
}

impl State {
    /// Where a process's tasks go that can run.
    fn ready_or_paused(&mut self, pid: Pid) -> &mut BTreeSet<TaskId> {
        match self.paused.get_mut(&pid) {
            Some(paused) => paused,
            None => &mut self.ready,
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

struct TaskWaker {
    core: Weak<Core>,
    id: TaskId,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(core) = self.core.upgrade() else { return };
        let mut state = core.lock();
        if let Some(slot) = state.tasks.get_mut(&self.id)
            && !std::mem::replace(&mut slot.queued, true)
        {
            let pid = slot.pid;
            state.ready_or_paused(pid).insert(self.id);
        }
    }
}

/// Waits for a point in virtual time.
pub struct Sleep {
    core: Arc<Core>,
    until: Time,
    key: Option<(Time, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = self.core.clone();
        let mut state = core.lock();
        let old = self.key.take().and_then(|key| state.timers.remove(&key));
        if state.now >= self.until {
            drop(state);
            drop(old);
            return Poll::Ready(());
        }
        let key = (self.until, state.next);
        state.next += 1;
        state.timers.insert(key, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let old = self.core.lock().timers.remove(&key);
            drop(old);
        }
    }
}

impl Clock for World {
    fn now(&self) -> Time {
        World::now(self)
    }

    fn sleep(&self, d: Duration) -> BoxFuture<()> {
        Box::pin(World::sleep(self, d))
    }

    /// As if the simulation began in 2026.
    fn unix_millis(&self) -> u64 {
        let state = self.core.lock();
        let now = 1_767_225_600_000 + state.now.since_origin().as_millis() as u64;
        now.saturating_add_signed(state.calendar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What three tasks do, in the order in which they do it.
    fn order(seed: u64) -> Vec<(u32, Time)> {
        let world = World::new(seed);
        let log = Arc::new(Mutex::new(Vec::new()));
        for task in 0..3 {
            let (world_of_task, log) = (world.clone(), log.clone());
            world.spawn(
                HOST,
                Box::pin(async move {
                    for _ in 0..4 {
                        world_of_task.sleep(Duration::from_millis(1)).await;
                        log.lock().unwrap().push((task, world_of_task.now()));
                    }
                }),
            );
        }
        let main = world.clone();
        world
            .run(Duration::from_secs(1), async move { main.sleep(Duration::from_millis(10)).await })
            .unwrap();
        let log = log.lock().unwrap();
        log.clone()
    }

    #[test]
    fn the_seed_decides_the_order() {
        assert_eq!(order(1), order(1));
        assert!((2..20).any(|seed| order(seed) != order(1)));
    }

    #[test]
    fn a_paused_process_does_nothing_until_it_goes_on() {
        let world = World::new(1);
        let at = Arc::new(Mutex::new(None));
        let (sleeper, seen) = (world.clone(), at.clone());
        let work = async move {
            sleeper.sleep(Duration::from_millis(5)).await;
            *seen.lock().unwrap() = Some(sleeper.now());
        };
        world.spawn(7, Box::pin(work));
        let (main, seen) = (world.clone(), at.clone());
        let play = async move {
            // By then it sleeps, whichever of the two began.
            main.sleep(Duration::from_millis(1)).await;
            main.pause(7);
            main.sleep(Duration::from_millis(19)).await;
            let paused = *seen.lock().unwrap();
            main.resume(7);
            main.sleep(Duration::from_millis(1)).await;
            paused
        };
        assert_eq!(world.run(Duration::from_secs(1), play).unwrap(), None);
        let expected = Time::from_origin(Duration::from_millis(1020));
        assert_eq!(*at.lock().unwrap(), Some(expected));
    }

    #[test]
    fn what_waits_for_ever_is_found() {
        let world = World::new(1);
        let stuck = world.run(Duration::from_secs(1), std::future::pending::<()>()).unwrap_err();
        assert!(stuck.contains("nothing can go on"), "{stuck}");
        let world = World::new(1);
        let main = world.clone();
        let late = world.run(Duration::from_secs(1), async move { main.sleep(Duration::from_secs(9)).await });
        assert!(late.unwrap_err().contains("not done after 1s"));
    }
}
