//! The limiter against small models of servers, in a loop with virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

fn at(seconds: f64) -> Time {
    Time::from_origin(Duration::from_secs_f64(seconds))
}

fn seconds(t: Time) -> f64 {
    t.since_origin().as_secs_f64()
}

fn d(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A few random numbers, the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal =
            (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        median * (sigma * normal).exp()
    }
}

/// What a model says to a call that arrives: how long until it ends, and whether it is refused.
type Server<'a> = dyn FnMut(f64, &mut Random) -> (f64, bool) + 'a;

#[derive(Default, Debug)]
struct Outcome {
    answers: usize,
    late: usize,
    refused: usize,
    /// The longest answer of the second half.
    longest: f64,
    windows: Vec<f64>,
}

/// Clients with more than enough to send, for so many seconds.
fn drive(clients: usize, deadline: Option<f64>, length: f64, server: &mut Server<'_>) -> Outcome {
    let mut limiters = vec![Limiter::new(); clients];
    let mut random = Random(7);
    let mut outcome = Outcome::default();
    // Ends of calls, and times at which a client looks again.
    let mut events: BinaryHeap<Reverse<(Time, usize, usize)>> =
        (0..clients).map(|c| Reverse((at(0.001 * c as f64), c, 0))).collect();
    let mut calls: Vec<Option<(Call, bool)>> = vec![None];
    while let Some(Reverse((now, client, call))) = events.pop() {
        if now >= at(length) {
            break;
        }
        let limiter = &mut limiters[client];
        if let Some((call, refused)) = calls[call].take() {
            let took = seconds(now) - seconds(call.sent);
            if refused {
                outcome.refused += 1;
                limiter.ended(call, Ended::Refused { pause: d(0.2 * (1.0 + 0.5 * random.uniform())) }, now);
            } else {
                outcome.answers += 1;
                outcome.late += usize::from(deadline.is_some_and(|d| took > d));
                if seconds(now) > length / 2.0 {
                    outcome.longest = outcome.longest.max(took);
                }
                limiter.ended(call, Ended::Answered { deadline: deadline.map(d) }, now);
            }
        }
        loop {
            match limiter.room(1.0, now) {
                Room::Now(_) => {
                    let sent = limiter.sent(1.0, false, now);
                    let (took, refused) = server(seconds(now), &mut random);
                    calls.push(Some((sent, refused)));
                    events.push(Reverse((now + d(took), client, calls.len() - 1)));
                }
                Room::NotBefore(then) => {
                    events.push(Reverse((then, client, 0)));
                    break;
                }
                Room::Full => break,
            }
        }
    }
    outcome.windows = limiters.iter().map(|l| l.window(at(length))).collect();
    outcome
}

/// So many workers with one queue; each call takes as long as the function of time says.
fn workers(n: usize, run: impl Fn(f64) -> f64) -> impl FnMut(f64, &mut Random) -> (f64, bool) {
    let mut free = vec![0.0f64; n];
    move |now, random| {
        let next = (0..n).min_by(|a, b| free[*a].total_cmp(&free[*b])).unwrap();
        free[next] = free[next].max(now) + random.lognormal(run(now), 0.1);
        (free[next] - now + 0.001, false)
    }
}

/// A token bucket as gateways have it, in front of a server whose latency does not depend on load. Refusals cost a fifth of a token.
fn gateway(rate: impl Fn(f64) -> f64) -> impl FnMut(f64, &mut Random) -> (f64, bool) {
    let (mut tokens, mut last) = (0.0f64, 0.0);
    move |now, random| {
        let rate = rate(now);
        tokens = (tokens + rate * (now - last)).min(0.25 * rate);
        last = now;
        if tokens < 1.0 {
            tokens = (tokens - 0.2).max(-0.25 * rate);
            return (0.03, true);
        }
        tokens -= 1.0;
        (random.lognormal(0.25, 0.5), false)
    }
}

#[test]
fn a_gateway_is_used_up_with_few_refusals_and_shared_fairly() {
    for clients in [1, 4] {
        let rate = |t: f64| if t < 150.0 { 200.0 } else { 80.0 };
        let outcome = drive(clients, Some(2.0), 300.0, &mut gateway(rate));
        let ideal = 150.0 * 280.0;
        let per_1000 = 1000.0 * outcome.refused as f64 / (outcome.refused + outcome.answers) as f64;
        assert!(outcome.answers as f64 >= 0.93 * ideal, "{clients}: {outcome:?}");
        // More than where each client has more calls to take off.
        assert!(per_1000 <= 55.0, "{clients}: {per_1000} refusals in 1000");
        let (least, most) =
            outcome.windows.iter().fold((f64::MAX, 0.0f64), |(l, m), w| (l.min(*w), m.max(*w)));
        // At one moment: windows go up and down by several calls.
        assert!(most < 3.0 * least, "{clients}: {:?}", outcome.windows);
    }
}

#[test]
fn a_queue_is_kept_within_the_deadline_also_after_a_change() {
    let run = |t: f64| if (60.0..120.0).contains(&t) { 0.4 } else { 0.1 };
    for clients in [1, 4, 16] {
        let outcome = drive(clients, Some(2.0), 180.0, &mut workers(8, run));
        let ideal = 8.0 * (60.0 / 0.1 + 60.0 / 0.4 + 60.0 / 0.1);
        let good = (outcome.answers - outcome.late) as f64;
        assert!(good >= 0.93 * ideal, "{clients}: {good} of {ideal}, {outcome:?}");
        // What stood in the queue when the server became slower is late, and little else.
        assert!(outcome.late * 25 < outcome.answers, "{clients}: {outcome:?}");
    }
}

#[test]
fn without_a_deadline_workers_are_busy_and_their_queue_stays_short() {
    for (n, run) in [(1, 0.1), (8, 0.1), (64, 1.0)] {
        let outcome = drive(1, None, 300.0, &mut workers(n, |_| run));
        let ideal = n as f64 * 300.0 / run;
        assert!(outcome.answers as f64 >= 0.93 * ideal, "{n}: {} of {ideal}", outcome.answers);
        assert!(outcome.longest < 12.0 * run, "{n}: {outcome:?}");
    }
}

#[test]
fn without_a_deadline_a_slower_server_is_noticed() {
    let outcome = drive(1, None, 600.0, &mut workers(8, |t| if t < 200.0 { 0.1 } else { 0.8 }));
    let ideal = 8.0 * (200.0 / 0.1 + 400.0 / 0.8);
    assert!(outcome.answers as f64 >= 0.85 * ideal, "{} of {ideal}", outcome.answers);
    assert!(outcome.longest < 12.0 * 0.8, "{outcome:?}");
}

#[test]
fn who_refuses_everything_is_left_alone() {
    let outcome = drive(1, Some(1.0), 60.0, &mut |_, _| (0.01, true));
    assert!(
        outcome.refused < 300,
        "it asks for 0.2 s each time, and gets {} calls in a minute",
        outcome.refused
    );
    let mut limiter = Limiter::new();
    let call = limiter.sent(1.0, false, at(0.0));
    limiter.ended(call, Ended::Refused { pause: d(30.0) }, at(0.1));
    assert_eq!(limiter.room(1.0, at(1.0)), Room::NotBefore(at(30.1)));
    assert_eq!(limiter.room(1.0, at(30.1)), Room::Now(0.0));
}

/// A limiter with this window, all of it in flight since second 10; answers take 0.1 s.
fn busy(window: f64) -> (Limiter, Vec<Call>) {
    let mut limiter = Limiter::new();
    limiter.window = window;
    limiter.starting = false;
    for _ in 0..3 {
        let call = limiter.sent(1.0, false, at(9.0));
        limiter.ended(call, Ended::Answered { deadline: Some(d(1.0)) }, at(9.1));
    }
    let calls = (0..window as usize).map(|_| limiter.sent(1.0, false, at(10.0))).collect();
    (limiter, calls)
}

#[test]
fn fast_failures_leave_the_window_alone() {
    let (mut limiter, calls) = busy(40.0);
    let before = limiter.window(at(10.0));
    for call in calls {
        limiter.ended(call, Ended::Failed { ejected: false }, at(10.005));
    }
    assert_eq!((limiter.window(at(10.0)), limiter.calls()), (before, 0));
}

#[test]
fn a_crash_leaves_a_ceiling_that_rises_slowly() {
    let (mut limiter, mut calls) = busy(40.0);
    // One ends well, so that it is known how much was in flight; then all die in the middle.
    let answered = calls.pop().unwrap();
    limiter.ended(answered, Ended::Answered { deadline: Some(d(1.0)) }, at(10.1));
    limiter.peak = 40.0;
    for (i, call) in calls.into_iter().enumerate() {
        limiter.ended(call, Ended::Failed { ejected: i == 4 }, at(10.2));
    }
    let probe = limiter.sent(1.0, false, at(40.0));
    limiter.ended(probe, Ended::Answered { deadline: Some(d(1.0)) }, at(40.1));
    assert_eq!(limiter.window(at(40.1)), 20.0, "it begins anew at a half");
    limiter.window = 1000.0;
    assert_eq!(limiter.window(at(40.1)), 30.0, "three quarters are the ceiling");
    assert!((limiter.window(at(100.1)) - 33.0).abs() < 1e-9, "and a tenth more after a minute");
}

#[test]
fn below_one_call_it_paces() {
    let (mut limiter, _) = busy(1.0);
    limiter.window = 0.5;
    limiter.calls = 0;
    limiter.units = 0.0;
    let round_trip = limiter.round_trip().unwrap().as_secs_f64();
    let call = limiter.sent(1.0, false, at(20.0));
    assert_eq!(limiter.room(1.0, at(20.05)), Room::Full);
    limiter.ended(call, Ended::Silent, at(20.06));
    assert_eq!(limiter.room(1.0, at(20.1)), Room::NotBefore(at(20.0 + 2.0 * round_trip)));
}

#[test]
fn a_source_that_has_little_to_send_does_not_widen_the_window() {
    let mut limiter = Limiter::new();
    for i in 0..1000 {
        let now = f64::from(i);
        let call = limiter.sent(1.0, true, at(now));
        limiter.ended(call, Ended::Answered { deadline: Some(d(10.0)) }, at(now + 0.1));
    }
    assert_eq!(limiter.window(at(1000.0)), 1.0);
}

#[test]
fn silence_and_answers_far_too_late_cut_at_once_and_once_a_round_trip() {
    for how in [Ended::TimedOut, Ended::Answered { deadline: Some(d(0.1)) }] {
        let (mut limiter, calls) = busy(40.0);
        limiter.p90 = Some(0.5);
        for call in calls {
            limiter.ended(call, how, at(10.3));
        }
        assert!((limiter.window(at(10.3)) - 28.0).abs() < 1e-9, "{how:?}: {}", limiter.window(at(10.3)));
    }
}
