//! One instance's life, as a state machine: events and time in, actions out.
//!
//! ```text
//! Starting -> Opening -> Ready -> Draining -> Stopped
//!     ^  \________|________|                     ^
//!     |           v                              |
//!     +------- Waiting --------------------------+
//! ```

use std::time::Duration;

use pelton_core::declaration::RetryLimits;
use pelton_core::{Error, Time};
use pelton_policy::backoff;
use pelton_wire::State;

use crate::report::Phase;

/// An instance that was ready for this long and then dies is not one that cannot start.
const STABLE: Duration = Duration::from_secs(10);

/// What happened to the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It shall be there.
    Begin,
    /// It is there already: a process of this incarnation, which an earlier run of the job started.
    Adopted(u32),
    /// No process could be started.
    NotStarted(String),
    /// It says where it is.
    Reported(State),
    /// It has said nothing for too long.
    Silent,
    /// Its process is gone.
    Exited(String),
    /// The wait is over, maybe.
    Tick,
    /// It shall leave, now.
    Stop,
}

/// What to do about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a process, of this incarnation.
    Start(u32),
    Kill,
    /// Ask it to leave.
    AskToStop,
    /// Clients may send to it.
    Add,
    /// It takes nothing new.
    Drain,
    /// It is gone.
    Remove,
    /// The service cannot run; the job has to know.
    GiveUp(Error),
}

#[derive(Debug)]
pub(crate) struct Lifecycle {
    service: String,
    retry: RetryLimits,
    pub(crate) phase: Phase,
    pub(crate) incarnation: u32,
    /// Starts in a row that came to nothing.
    failures: u32,
    pub(crate) restarts: u32,
    pub(crate) last_error: Option<String>,
    ready_since: Option<Time>,
    pub(crate) wait_until: Option<Time>,
    stopping: bool,
}

/// Facts from outside that a decision needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) now: Time,
    /// Uniform in 0..1.
    pub(crate) random: f64,
    /// Whether any instance of the service has ever been ready.
    pub(crate) ever_ready: bool,
}

impl Lifecycle {
    /// `incarnation`: of the last one before it.
    pub(crate) fn new(service: String, retry: RetryLimits, incarnation: u32) -> Self {
        Lifecycle {
            service,
            retry,
            phase: Phase::Waiting,
            incarnation,
            failures: 0,
            restarts: 0,
            last_error: None,
            ready_since: None,
            wait_until: None,
            stopping: false,
        }
    }

    pub(crate) fn handle(&mut self, event: Event, facts: Facts) -> Vec<Action> {
        match (event, self.phase) {
            (Event::Stop, phase) => self.stop(phase),
            (Event::Begin, Phase::Waiting) => self.start(),
            (Event::Adopted(incarnation), Phase::Waiting) => {
                self.incarnation = incarnation;
                self.phase = Phase::Starting;
                vec![]
            }
            (Event::Tick, Phase::Waiting) if self.wait_until.is_some_and(|at| facts.now >= at) => {
                self.restarts += 1;
                self.start()
            }
            (Event::NotStarted(why) | Event::Exited(why), phase) => self.ended(why, phase, facts),
            (Event::Silent, Phase::Starting | Phase::Opening | Phase::Ready | Phase::Draining) => {
                self.last_error = Some("it said nothing for too long".into());
                vec![Action::Kill]
            }
            (Event::Reported(state), Phase::Starting | Phase::Opening | Phase::Ready) => {
                self.reported(state, facts)
            }
            // A report that crossed with an end, a wait that is over already.
            (Event::Begin | Event::Adopted(_) | Event::Tick | Event::Silent | Event::Reported(_), _) => {
                vec![]
            }
        }
    }

    fn start(&mut self) -> Vec<Action> {
        self.incarnation += 1;
        self.phase = Phase::Starting;
        self.wait_until = None;
        vec![Action::Start(self.incarnation)]
    }

    fn stop(&mut self, phase: Phase) -> Vec<Action> {
        self.stopping = true;
        match phase {
            Phase::Waiting | Phase::Stopped => {
                self.phase = Phase::Stopped;
                vec![]
            }
            Phase::Starting => vec![Action::Kill],
            Phase::Ready => {
                self.phase = Phase::Draining;
                vec![Action::Drain, Action::AskToStop]
            }
            Phase::Opening | Phase::Draining => vec![Action::AskToStop],
        }
    }

    fn reported(&mut self, state: State, facts: Facts) -> Vec<Action> {
        match (state, self.phase) {
            (State::Opening, Phase::Starting) => {
                self.phase = Phase::Opening;
                vec![]
            }
            (State::Ready, Phase::Starting | Phase::Opening) => {
                self.phase = Phase::Ready;
                self.ready_since = Some(facts.now);
                vec![Action::Add]
            }
            (State::Draining, Phase::Ready) => {
                self.phase = Phase::Draining;
                vec![Action::Drain]
            }
            (State::Failed { message, permanent }, Phase::Starting | Phase::Opening) => {
                self.last_error = Some(message.clone());
                let mut actions = Vec::new();
                if permanent {
                    actions.push(Action::GiveUp(Error::invalid(format!(
                        "service `{}` cannot open: {message}",
                        self.service
                    ))));
                    self.stopping = true;
                }
                actions.push(Action::Kill);
                actions
            }
            _ => vec![],
        }
    }

    fn ended(&mut self, why: String, phase: Phase, facts: Facts) -> Vec<Action> {
        let mut actions = Vec::new();
        if matches!(phase, Phase::Ready | Phase::Draining) {
            actions.push(Action::Remove);
        }
        if matches!(phase, Phase::Stopped | Phase::Waiting) {
            return vec![];
        }
        if self.stopping {
            self.phase = Phase::Stopped;
            return actions;
        }
        let was_stable = self.ready_since.take().is_some_and(|since| facts.now.since(since) >= STABLE);
        self.failures = if was_stable { 1 } else { self.failures + 1 };
        // What it said itself is worth more than how its process ended.
        let why = match (&self.last_error, phase) {
            (Some(said), Phase::Starting | Phase::Opening) => format!("{said} ({why})"),
            _ => why,
        };
        self.last_error = Some(why.clone());
        if self.failures >= self.retry.starts && !facts.ever_ready {
            self.phase = Phase::Stopped;
            let message =
                format!("service `{}` did not start in {} attempts: {why}", self.service, self.failures);
            actions.push(Action::GiveUp(Error::user(message)));
            return actions;
        }
        self.phase = Phase::Waiting;
        // One that was ready for long is started again at once: nothing says yet that its next start comes to nothing, and until then
        // the others do its work.
        let wait = match was_stable {
            true => Duration::ZERO,
            false => backoff::delay(self.failures, self.retry.backoff, self.retry.max_backoff, facts.random),
        };
        self.wait_until = Some(facts.now + wait);
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Facts {
        Facts { now: Time::from_origin(Duration::from_millis(ms)), random: 1.0, ever_ready: false }
    }

    /// A life told as events; each line of the expectation is the phase and the actions after one.
    fn check(events: Vec<(u64, Event)>, expected: &[&str]) {
        let mut life = Lifecycle::new("s".into(), RetryLimits { starts: 3, ..RetryLimits::default() }, 0);
        let told: Vec<String> = events
            .into_iter()
            .map(|(ms, event)| {
                let actions: Vec<String> =
                    life.handle(event, at(ms)).iter().map(|a| format!("{a:?}")).collect();
                format!("{} {}", life.phase, actions.join(" ")).trim_end().to_owned()
            })
            .collect();
        assert_eq!(told, expected);
    }

    fn failed(permanent: bool) -> Event {
        Event::Reported(State::Failed { message: "no model".into(), permanent })
    }

    #[test]
    fn a_good_life() {
        check(
            vec![
                (0, Event::Begin),
                (1, Event::Reported(State::Opening)),
                (2, Event::Reported(State::Ready)),
                (3, Event::Reported(State::Ready)),
                (4, Event::Stop),
                (5, Event::Exited("exit 0".into())),
                (6, Event::Tick),
            ],
            &[
                "starting Start(1)",
                "opening",
                "ready Add",
                "ready",
                "draining Drain AskToStop",
                "stopped Remove",
                "stopped",
            ],
        );
    }

    #[test]
    fn one_that_is_there_is_not_started() {
        check(
            vec![
                (0, Event::Adopted(7)),
                (1, Event::Reported(State::Ready)),
                (2, Event::Exited("killed".into())),
                (202, Event::Tick),
            ],
            &["starting", "ready Add", "waiting Remove", "starting Start(8)"],
        );
    }

    #[test]
    fn a_death_is_followed_by_a_wait_and_another_life() {
        check(
            vec![
                (0, Event::Begin),
                (1, Event::Reported(State::Ready)),
                (2, Event::Exited("killed".into())),
                (3, Event::Tick),
                (202, Event::Tick),
                (203, Event::Reported(State::Ready)),
            ],
            &[
                "starting Start(1)",
                "ready Add",
                "waiting Remove",
                "waiting",
                "starting Start(2)",
                "ready Add",
            ],
        );
    }

    #[test]
    fn one_that_was_ready_for_long_is_started_again_at_once() {
        check(
            vec![
                (0, Event::Begin),
                (1, Event::Reported(State::Ready)),
                (10_001, Event::Exited("killed".into())),
                (10_001, Event::Tick),
                (10_002, Event::Reported(State::Ready)),
                (10_003, Event::Exited("killed".into())),
                (10_402, Event::Tick),
                (10_403, Event::Tick),
            ],
            &[
                "starting Start(1)",
                "ready Add",
                "waiting Remove",
                "starting Start(2)",
                "ready Add",
                "waiting Remove",
                "waiting",
                "starting Start(3)",
            ],
        );
    }

    #[test]
    fn starts_that_come_to_nothing_are_given_up() {
        let mut life = Lifecycle::new("s".into(), RetryLimits { starts: 2, ..RetryLimits::default() }, 0);
        life.handle(Event::Begin, at(0));
        assert_eq!(life.handle(Event::Exited("exit 1".into()), at(1)), vec![]);
        life.handle(Event::Tick, at(10_000));
        let actions = life.handle(Event::Exited("exit 1".into()), at(10_001));
        assert!(
            matches!(&actions[..], [Action::GiveUp(e)] if e.message().contains("2 attempts: exit 1")),
            "{actions:?}"
        );
        assert_eq!(life.phase, Phase::Stopped);
    }

    #[test]
    fn a_permanent_failure_is_not_tried_again() {
        check(
            vec![
                (0, Event::Begin),
                (1, failed(true)),
                (2, Event::Exited("killed".into())),
                (9_999, Event::Tick),
            ],
            &[
                "starting Start(1)",
                "starting GiveUp(service `s` cannot open: no model [invalid, NotSent, retry Never]) Kill",
                "stopped",
                "stopped",
            ],
        );
        check(
            vec![(0, Event::Begin), (1, failed(false)), (2, Event::Exited("killed".into()))],
            &["starting Start(1)", "starting Kill", "waiting"],
        );
    }

    #[test]
    fn stopping_ends_every_phase() {
        for reports in [vec![], vec![State::Opening], vec![State::Ready], vec![State::Ready, State::Draining]]
        {
            let mut life = Lifecycle::new("s".into(), RetryLimits::default(), 0);
            life.handle(Event::Begin, at(0));
            for report in reports {
                life.handle(Event::Reported(report), at(1));
            }
            life.handle(Event::Stop, at(2));
            life.handle(Event::Exited("exit 0".into()), at(3));
            assert_eq!(life.phase, Phase::Stopped);
        }
        let mut waiting = Lifecycle::new("s".into(), RetryLimits::default(), 0);
        waiting.handle(Event::Begin, at(0));
        waiting.handle(Event::Exited("killed".into()), at(1));
        waiting.handle(Event::Stop, at(2));
        assert_eq!(waiting.phase, Phase::Stopped);
    }
}
