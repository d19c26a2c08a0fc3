//! An open loop: requests that begin when they are due, whatever became of those before, and what is found of them afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

/// After so long the share of answers is looked at again.
const BIN: Duration = Duration::from_millis(250);
/// The least share of a bin's requests that are answered in time, where a service is at full speed.
const FULL: f64 = 0.95;

/// Three times what the service can do, then half of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// Rows a second that the service can do.
    pub(crate) capacity: f64,
    /// How long it is asked for more.
    pub(crate) overload: Duration,
    /// How long it is asked for less, afterwards.
    pub(crate) after: Duration,
    /// An answer that takes longer is worth nothing.
    pub(crate) deadline: Duration,
}

pub(crate) const TIMES_CAPACITY: f64 = 3.0;
const TIMES_AFTERWARDS: f64 = 0.5;

impl Course {
    /// How many requests have begun by then.
    pub(crate) fn due(&self, at: Duration) -> u64 {
        let over = at.min(self.overload).as_secs_f64() * TIMES_CAPACITY;
        let after = at.min(self.end()).saturating_sub(self.overload).as_secs_f64() * TIMES_AFTERWARDS;
        ((over + after) * self.capacity) as u64
    }

    pub(crate) fn end(&self) -> Duration {
        self.overload + self.after
    }
}

/// What became of each request, by its number.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    begun: Vec<Duration>,
    /// When it ended, and whether with an answer.
    ended: Vec<Option<(Duration, bool)>>,
    failures: BTreeMap<String, u64>,
    ended_again: u64,
    open: u64,
}

impl Requests {
    /// The number of one that begins now.
    pub(crate) fn begin(&mut self, at: Duration) -> u64 {
        self.begun.push(at);
        self.ended.push(None);
        self.open += 1;
        self.begun.len() as u64 - 1
    }

    /// `failure` says why there is no answer.
    pub(crate) fn end(&mut self, number: u64, at: Duration, failure: Option<&str>) {
        let Some(ended) = self.ended.get_mut(number as usize) else {
            self.ended_again += 1;
            return;
        };
        if ended.is_some() {
            self.ended_again += 1;
            return;
        }
        *ended = Some((at, failure.is_none()));
        self.open -= 1;
        if let Some(why) = failure {
            *self.failures.entry(why.to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.begun.len() as u64
    }

    /// Those that have not ended.
    pub(crate) fn open(&self) -> u64 {
        self.open
    }

    /// When each that was answered began and ended.
    fn answered(&self) -> impl Iterator<Item = (Duration, Duration)> {
        let each = self.begun.iter().zip(&self.ended);
        each.filter_map(|(begun, ended)| ended.filter(|e| e.1).map(|(at, _)| (*begun, at)))
    }

    pub(crate) fn judge(&self, course: &Course) -> Verdict {
        let in_time = |(begun, ended): &(Duration, Duration)| ended.saturating_sub(*begun) <= course.deadline;
        // While a queue fills for the first time, everything is in time; that is no overload yet.
        let from = course.deadline.min(course.overload / 2);
        let counted =
            self.answered().filter(in_time).filter(|(_, at)| (from..course.overload).contains(at)).count();
        let goodput = counted as f64 / (course.overload - from).as_secs_f64();
        let answered = self.answered().count() as u64;
        let answered_in_time = self.answered().filter(in_time).count() as u64;
        Verdict {
            goodput,
            share: goodput / course.capacity,
            recovered_seconds: self.recovered(course).map(|d| d.as_secs_f64()),
            sent: self.len(),
            answered_in_time,
            answered_late: answered - answered_in_time,
            failures: self.failures.clone(),
            not_ended: self.open,
            ended_again: self.ended_again,
        }
    }

    /// How long after the overload nearly all requests that begin are answered in time, and stay so.
    fn recovered(&self, course: &Course) -> Option<Duration> {
        let bins = (course.after.as_nanos() / BIN.as_nanos()) as usize;
        let mut of = vec![(0u64, 0u64); bins];
        for (begun, ended) in self.begun.iter().zip(&self.ended) {
            let Some(after) = begun.checked_sub(course.overload) else { continue };
            let Some(bin) = of.get_mut((after.as_nanos() / BIN.as_nanos()) as usize) else { continue };
            bin.0 += 1;
            bin.1 += u64::from(ended.is_some_and(|(at, answer)| answer && at - *begun <= course.deadline));
        }
        let bad = of.iter().rposition(|(all, good)| (*good as f64) < FULL * *all as f64 || *all == 0);
        match bad {
            None => Some(Duration::ZERO),
            Some(last) if last + 1 == bins => None,
            Some(last) => Some(BIN * (last as u32 + 1)),
        }
    }
}

/// What is found of an overload.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Verdict {
    /// Answers in time, a second of overload.
    pub(crate) goodput: f64,
    /// That, of the capacity.
    pub(crate) share: f64,
    /// From the end of the overload to full speed; None: not reached.
    pub(crate) recovered_seconds: Option<f64>,
    pub(crate) sent: u64,
    pub(crate) answered_in_time: u64,
    pub(crate) answered_late: u64,
    /// By what the error calls itself.
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) not_ended: u64,
    pub(crate) ended_again: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const COURSE: Course = Course {
        capacity: 100.0,
        overload: Duration::from_secs(4),
        after: Duration::from_secs(2),
        deadline: Duration::from_secs(1),
    };

    /// All requests of the course, each ended as `end` says: after how long, and whether with an answer.
    fn judged(end: impl Fn(u64, Duration) -> (Duration, bool)) -> Verdict {
        let mut requests = Requests::default();
        for tick in 0..=60_000u64 {
            let now = Duration::from_micros(100) * tick as u32;
            while requests.len() < COURSE.due(now) {
                let number = requests.begin(now);
                let (took, answer) = end(number, now);
                requests.end(number, now + took, (!answer).then_some("deadline"));
            }
        }
        requests.judge(&COURSE)
    }

    const SOON: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_millis(1001);

    #[test]
    fn one_in_three_answered_is_all_of_the_capacity() {
        let verdict = judged(|n, at| (SOON, n % 3 == 0 || at >= COURSE.overload));
        assert_eq!((verdict.sent, verdict.not_ended, verdict.ended_again), (1300, 0, 0));
        assert!((verdict.share - 1.0).abs() < 0.01, "{verdict:?}");
        assert_eq!(verdict.recovered_seconds, Some(0.0));
        assert_eq!(verdict.failures, [("deadline".to_owned(), 799)].into());
    }

    #[test]
    fn late_answers_are_worth_nothing_and_recovery_is_when_they_end() {
        let verdict = judged(|_, at| (if at < Duration::from_millis(4600) { LATE } else { SOON }, true));
        assert_eq!((verdict.goodput, verdict.answered_late), (0.0, 1229));
        assert_eq!(verdict.recovered_seconds, Some(0.75));
        assert_eq!(judged(|_, _| (LATE, true)).recovered_seconds, None);
    }

    #[test]
    fn ends_that_are_missing_or_too_many_are_counted() {
        let mut requests = Requests::default();
        let numbers = [0, 1].map(|_| requests.begin(Duration::ZERO));
        for _ in 0..2 {
            requests.end(numbers[0], SOON, None);
        }
        let verdict = requests.judge(&COURSE);
        assert_eq!((verdict.not_ended, verdict.ended_again, verdict.answered_in_time), (1, 1, 1));
    }
}
