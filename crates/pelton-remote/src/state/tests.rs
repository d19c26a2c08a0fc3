//! The state by tables: what happens, line by line, and what it does about it.

use std::sync::Mutex;

use arrow_array::{Int64Array, StringArray};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::call::Priority;
use rand::SeedableRng;

use super::*;

#[derive(Default)]
struct Inbox(Mutex<Vec<Outcome>>);

impl Receiver for Inbox {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        self.0.lock().unwrap().extend(outcomes);
    }
}

fn schema(name: &str, column: DataType) -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new(name, column, false)]))
}

fn methods() -> Arc<[MethodSpec]> {
    let spec = |name: &str, cardinality| MethodSpec {
        name: name.into(),
        input: schema("text", DataType::Utf8),
        output: schema("n", DataType::Int64),
        cardinality,
        concurrency: None,
    };
    Arc::new([spec("one", Cardinality::One), spec("many", Cardinality::Many)])
}

fn settings(endpoints: usize, rows: usize) -> Settings {
    Settings {
        service: "s".into(),
        methods: methods(),
        rows: vec![rows, 1],
        endpoints,
        batch: BatchLimits::default(),
        retry: RetryLimits {
            attempts: 3,
            backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(10),
            ..RetryLimits::default()
        },
        timeout: None,
        attempt_timeout: Some(Duration::from_secs(1)),
        weight: Weight::default(),
    }
}

fn id(sequence: u64) -> RequestId {
    RequestId { operator: 1, group: 1, sequence }
}

fn at(ms: u64) -> Time {
    Time::from_origin(Duration::from_millis(ms))
}

fn rows(n: usize) -> RecordBatch {
    RecordBatch::try_new(
        schema("n", DataType::Int64),
        vec![Arc::new(Int64Array::from_iter_values(0..n as i64))],
    )
    .unwrap()
}

fn ids(text: &str) -> Vec<RequestId> {
    text.split(',').map(|n| id(n.parse().unwrap())).collect()
}

fn submission(words: &[&str]) -> Submission {
    let ids = ids(words[1]);
    let texts: Vec<String> = ids.iter().map(|id| id.sequence.to_string()).collect();
    let arguments =
        RecordBatch::try_new(schema("text", DataType::Utf8), vec![Arc::new(StringArray::from(texts))])
            .unwrap();
    let mut s = Submission::new(0, ids, arguments);
    for word in &words[2..] {
        match word.split_once('=').unwrap_or((word, "")) {
            ("within", ms) => s.timeout = Some(Duration::from_millis(ms.parse().unwrap())),
            ("key", key) => s.keys = Some(vec![key.parse().unwrap(); s.ids.len()]),
            ("many", _) => s.method = 1,
            ("first", _) => s.priority = Priority::Interactive,
            other => panic!("{other:?}"),
        }
    }
    s
}

fn event(words: &[&str], receiver: &Arc<dyn Receiver>) -> Event {
    let call = || words[1].parse().unwrap();
    let failure =
        |kind, fate, retry, cause| Failure { error: Error::new(kind, fate, retry, "it failed"), cause };
    let ended = |result| Event::Ended { call: call(), result };
    let failed = |kind, fate, retry, cause| ended(Err(failure(kind, fate, retry, cause)));
    match words[0] {
        "submit" => Event::Submitted { submission: submission(words), receiver: receiver.clone() },
        "cancel" => Event::Cancelled(ids(words[1])),
        "hold" => Event::Held,
        "tick" => Event::Tick,
        "part" => Event::Part { call: call(), rows: rows(1) },
        "ok" => ended(Ok(rows(words.get(2).map_or(1, |n| n.parse().unwrap())))),
        "429" => {
            let pause = Some(Duration::from_millis(words[2].parse().unwrap()));
            failed(Kind::Overload, Fate::Refused, Retry::Elsewhere, Cause::Refused { pause })
        }
        "503" => failed(Kind::Overload, Fate::Refused, Retry::Elsewhere, Cause::Endpoint),
        "reset" => failed(Kind::Reset, Fate::Unknown, Retry::Elsewhere, Cause::Endpoint),
        "400" => failed(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: true }),
        other => panic!("{other}"),
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::Start(s) => {
            let texts: Vec<String> = (0..s.arguments.num_rows())
                .map(|i| {
                    s.arguments.column(0).as_any().downcast_ref::<StringArray>().unwrap().value(i).to_owned()
                })
                .collect();
            format!("start {} at {} with {}", s.call, s.endpoint, texts.join(","))
        }
        Action::Abort(call) => format!("abort {call}"),
        Action::Deliver(_, outcomes) => {
            let shown = outcomes.iter().map(|o| {
                let what = match &o.rows {
                    Ok(_) if o.last => "ok".to_owned(),
                    Ok(_) => "part".to_owned(),
                    Err(e) => format!("{}:{:?}", e.kind().name(), e.fate()),
                };
                format!("{}={what}", o.id.sequence)
            });
            format!("give {}", shown.collect::<Vec<_>>().join(" "))
        }
    }
}

/// Lines of `MILLISECONDS EVENT => ACTIONS`, as they follow one another.
fn check(settings: Settings, script: &str) -> State {
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox::default());
    let mut state = State::new(settings, StdRng::seed_from_u64(1), at(0));
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (left, expected) = line.split_once("=>").unwrap_or_else(|| panic!("no => in `{line}`"));
        let words: Vec<&str> = left.split_whitespace().collect();
        let actions = state.handle(event(&words[1..], &inbox), at(words[0].parse().unwrap()));
        let found: Vec<String> = actions.iter().map(show).collect();
        assert_eq!(found.join("; "), expected.trim(), "{line}");
    }
    state
}

#[test]
fn a_call_at_a_time_at_first_and_rows_share_calls() {
    let state = check(
        settings(1, 3),
        "0 submit 0,1,2,3,4 => start 0 at 0 with 0,1,2
         5 ok 0 3 => give 0=ok 1=ok 2=ok; start 1 at 0 with 3,4
         9 ok 1 2 => give 3=ok 4=ok",
    );
    assert_eq!((state.unended(), state.sent(), state.wake_at()), (0, 0, None));
}

#[test]
fn each_request_ends_once_whatever_comes_after() {
    check(
        settings(1, 1),
        "0 submit 0 => start 0 at 0 with 0
         1 cancel 0 => abort 0; give 0=cancelled:Unknown
         2 ok 0 =>
         3 submit 1 within=20 => start 1 at 0 with 1
         24 tick => abort 1; give 1=deadline:Unknown
         25 reset 1 =>
         26 submit 2 => start 2 at 0 with 2
         27 ok 2 => give 2=ok
         28 ok 2 =>
         29 cancel 2 =>",
    );
}

#[test]
fn a_row_of_several_that_is_not_wanted_leaves_the_others_their_call() {
    check(
        settings(1, 3),
        "0 submit 0,1,2 => start 0 at 0 with 0,1,2
         1 cancel 1 => give 1=cancelled:Unknown
         2 ok 0 3 => give 0=ok 2=ok",
    );
}

#[test]
fn an_attempt_that_takes_too_long_is_given_up_and_another_made() {
    let state = check(
        settings(1, 1),
        "0 submit 0 => start 0 at 0 with 0
         1000 tick => abort 0
         1020 tick => start 1 at 0 with 0
         1030 ok 1 => give 0=ok",
    );
    assert_eq!(state.retries(), 1);
}

#[test]
fn attempts_are_what_may_have_run() {
    check(
        settings(1, 1),
        "0 submit 0,1 => start 0 at 0 with 0
         1 ok 0 => give 0=ok; start 1 at 0 with 1
         2 503 1 =>
         500 tick => start 2 at 0 with 1
         501 503 2 =>
         1000 tick => start 3 at 0 with 1
         1001 503 3 =>
         1500 tick => start 4 at 0 with 1
         1501 reset 4 =>
         2000 tick => start 5 at 0 with 1
         2001 reset 5 =>
         4500 tick => start 6 at 0 with 1
         4501 reset 6 => give 1=reset:Unknown",
    );
    // Nothing was ever answered: then refusals count too.
    check(
        settings(1, 1),
        "0 submit 0 => start 0 at 0 with 0
         1 503 0 =>
         500 tick => start 1 at 0 with 0
         501 503 1 =>
         1000 tick => start 2 at 0 with 0
         1001 503 2 => give 0=overload:Refused",
    );
}

#[test]
fn a_refusal_keeps_its_place_until_its_pause_is_over() {
    let state = check(
        settings(1, 1),
        "0 submit 0,1 => start 0 at 0 with 0
         10 ok 0 => give 0=ok; start 1 at 0 with 1
         20 429 1 500 =>
         21 submit 2 =>
         519 tick =>",
    );
    let wake = state.wake_at().unwrap();
    assert!(wake >= at(520) && wake <= at(770), "{wake}");
}

#[test]
fn what_one_row_spoils_is_halved_until_it_is_alone() {
    check(
        settings(1, 4),
        "0 submit 0,1,2,3 => start 0 at 0 with 0,1,2,3
         1 400 0 => start 1 at 0 with 0,1
         2 ok 1 2 => give 0=ok 1=ok; start 2 at 0 with 2,3
         3 400 2 => start 3 at 0 with 2
         4 400 3 => give 2=invalid:Refused; start 4 at 0 with 3
         5 ok 4 => give 3=ok",
    );
}

#[test]
fn a_stream_ends_with_its_last_rows_and_is_not_begun_again() {
    check(
        settings(1, 4),
        "0 submit 0,1 many => start 0 at 0 with 0
         1 part 0 => give 0=part
         2 ok 0 0 => give 0=ok; start 1 at 0 with 1
         3 part 1 => give 1=part
         4 reset 1 => give 1=reset:Unknown",
    );
}

#[test]
fn a_wrong_number_of_rows_is_no_answer() {
    check(
        settings(1, 4),
        "0 submit 0,1 => start 0 at 0 with 0,1
         1 ok 0 3 =>
         50 tick => start 1 at 0 with 0,1
         51 ok 1 2 => give 0=ok 1=ok",
    );
}

#[test]
fn one_of_a_key_goes_after_the_other_and_the_urgent_go_first() {
    check(
        settings(2, 4),
        "0 submit 0,1,2 key=7 => start 0 at 0 with 0
         1 submit 3 => start 1 at 1 with 3
         2 submit 4 =>
         3 submit 5 first =>
         4 ok 0 => give 0=ok; start 2 at 0 with 5
         5 ok 1 => give 3=ok; start 3 at 1 with 4,1",
    );
}

#[test]
fn after_hold_nothing_is_sent() {
    check(
        settings(1, 1),
        "0 submit 0,1 => start 0 at 0 with 0
         1 hold =>
         2 ok 0 => give 0=ok
         3 submit 2 =>",
    );
}

/// Rows of each call that these actions start, by call.
fn started(actions: &[Action]) -> Vec<(CallKey, usize)> {
    let start = |a: &Action| match a {
        Action::Start(s) => Some((s.call, s.arguments.num_rows())),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

#[test]
fn an_endpoint_that_is_gone_is_tried_by_one_row_now_and_then() {
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox::default());
    let mut state = State::new(settings(1, 2), StdRng::seed_from_u64(1), at(0));
    let mut open = started(&state.handle(event(&["submit", "0,1,2,3,4,5,6,7"], &inbox), at(0)));
    let (mut now, mut failed, mut probes) = (at(1), 0, 0);
    // For a minute, nobody is there.
    while now < at(60_000) {
        let gone = || Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, "gone");
        // Once it has answered, nothing that was not sent counts as an attempt.
        let result = if failed == 0 && probes == 0 && state.unended() == 8 {
            Ok(rows(2))
        } else {
            Err(Failure { error: gone(), cause: Cause::Endpoint })
        };
        let actions = match open.pop() {
            Some((call, n)) => {
                if state.endpoints(now)[0].ejected {
                    assert_eq!((n, open.len()), (1, 0), "one row in one call");
                    probes += 1;
                }
                failed += usize::from(result.is_err());
                state.handle(Event::Ended { call, result }, now)
            }
            None => {
                now = state.wake_at().expect("it goes on");
                state.handle(Event::Tick, now)
            }
        };
        open.extend(started(&actions));
    }
    assert_eq!((state.unended(), state.ready()), (6, 0));
    assert!((30..120).contains(&probes), "the last endpoint is never away for long: {probes}");
    // It is back.
    let mut ended = 0;
    for _ in 0..100 {
        match open.pop() {
            Some((call, n)) => {
                ended += n;
                open.extend(started(&state.handle(Event::Ended { call, result: Ok(rows(n)) }, now)));
            }
            None if state.unended() == 0 => break,
            None => {
                now = state.wake_at().expect("it goes on");
                open.extend(started(&state.handle(Event::Tick, now)));
            }
        }
    }
    assert_eq!((ended, state.unended(), state.ready()), (6, 0, 1));
}

#[test]
fn what_is_tried_again_comes_out_of_a_budget() {
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox::default());
    let mut s = settings(1, 1);
    s.retry.attempts = 1_000_000;
    let mut state = State::new(s, StdRng::seed_from_u64(1), at(0));
    let mut open = started(&state.handle(event(&["submit", "0"], &inbox), at(0)));
    let mut now = at(0);
    let mut tries = 0;
    while now < at(100_000) {
        let actions = match open.pop() {
            Some((call, _)) => {
                tries += 1;
                let error = Error::new(Kind::User, Fate::Executed, Retry::Elsewhere, "it failed");
                let failure = Failure { error, cause: Cause::Request { one: true } };
                state.handle(Event::Ended { call, result: Err(failure) }, now)
            }
            None => {
                now = state.wake_at().expect("it goes on");
                state.handle(Event::Tick, now)
            }
        };
        open.extend(started(&actions));
    }
    // A hundred saved up, and five a second.
    assert!((550..=602).contains(&tries), "{tries}");
}

/// A gateway with a token bucket in front of a server whose latency does not depend on load; two of a hundred calls fail at once.
struct Gateway {
    tokens: f64,
    last: f64,
    rng: StdRng,
}

impl Gateway {
    /// How long a call that comes now takes, and how it ends.
    fn take(&mut self, now: f64, rate: f64) -> (f64, Result<RecordBatch, Failure>) {
        let failed = |cause| {
            let error = Error::new(Kind::Overload, Fate::Refused, Retry::Elsewhere, "not now");
            Err(Failure { error, cause })
        };
        self.tokens = (self.tokens + rate * (now - self.last)).min(0.25 * rate);
        self.last = now;
        if self.rng.random::<f64>() < 0.02 {
            return (0.021, failed(Cause::Endpoint));
        }
        if self.tokens < 1.0 {
            self.tokens = (self.tokens - 0.2).max(-0.25 * rate);
            return (0.03, failed(Cause::Refused { pause: Some(Duration::from_millis(200)) }));
        }
        self.tokens -= 1.0;
        // Lognormal around a quarter of a second.
        let (a, b): (f64, f64) = (self.rng.random(), self.rng.random());
        let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        (0.02 + 0.25 * (0.5 * normal).exp(), Ok(rows(1)))
    }
}

#[test]
fn four_callers_share_a_gateway_and_use_it_up() {
    let runs: Vec<Vec<u64>> = (0..4).map(share_a_gateway).collect();
    // Two minutes with a few refusals each: shares are even in the mean, not in each run.
    let fair = |answers: &Vec<u64>| {
        let (sum, squares) =
            answers.iter().fold((0.0, 0.0), |(s, q), n| (s + *n as f64, q + (*n as f64).powi(2)));
        sum * sum / (answers.len() as f64 * squares)
    };
    let mean = runs.iter().map(fair).sum::<f64>() / runs.len() as f64;
    assert!(mean > 0.95 && runs.iter().all(|run| fair(run) > 0.9), "{mean}: {runs:?}");
}

/// Answers to each of four callers.
fn share_a_gateway(seed: u64) -> Vec<u64> {
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox::default());
    let mut gateway = Gateway { tokens: 0.0, last: 0.0, rng: StdRng::seed_from_u64(seed) };
    let mut s = settings(1, 1);
    (s.retry, s.attempt_timeout) = (RetryLimits::default(), Some(Duration::from_secs(2)));
    let mut callers: Vec<State> =
        (0..4).map(|i| State::new(s.clone(), StdRng::seed_from_u64(i), at(0))).collect();
    // What comes next, and to whom: an answer, or a look at the clock.
    let mut coming: BTreeMap<(Time, u64), (usize, Event)> = BTreeMap::new();
    let (mut number, mut next) = (4, 1000);
    let mut looks: Vec<Option<Time>> = vec![None; 4];
    let (mut answers, mut refusals) = (vec![0u64; 4], 0u64);
    for caller in 0..4 {
        let all: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        let submitted =
            Event::Submitted { submission: submission(&["submit", &all.join(",")]), receiver: inbox.clone() };
        coming.insert((at(caller), caller), (caller as usize, submitted));
    }
    let end = at(120_000);
    while let Some(((now, _), (caller, event))) = coming.pop_first() {
        if now > end {
            break;
        }
        let mut events = vec![event];
        if let Event::Ended { result, .. } = &events[0] {
            match result {
                Ok(_) => {
                    answers[caller] += 1;
                    // The source has always more.
                    let again = submission(&["submit", &next.to_string()]);
                    next += 1;
                    events.push(Event::Submitted { submission: again, receiver: inbox.clone() });
                }
                Err(f) => refusals += u64::from(matches!(f.cause, Cause::Refused { .. })),
            }
        }
        for event in events {
            for action in callers[caller].handle(event, now) {
                if let Action::Start(start) = action {
                    let rate = if now < at(60_000) { 200.0 } else { 80.0 };
                    let (took, result) = gateway.take(now.since_origin().as_secs_f64(), rate);
                    number += 1;
                    coming.insert(
                        (now + Duration::from_secs_f64(took), number),
                        (caller, Event::Ended { call: start.call, result }),
                    );
                }
            }
        }
        looks[caller] = looks[caller].filter(|at| *at > now);
        let wake = callers[caller].wake_at().filter(|at| looks[caller].is_none_or(|next| *at < next));
        if let Some(wake) = wake {
            looks[caller] = Some(wake.max(now + Duration::from_micros(1)));
            number += 1;
            coming.insert((wake.max(now + Duration::from_micros(1)), number), (caller, Event::Tick));
        }
    }
    let total: u64 = answers.iter().sum();
    let ideal = 60.0 * 280.0;
    assert!(total as f64 >= 0.9 * ideal, "{total} of {ideal}: {answers:?}");
    assert!(refusals as f64 <= 0.06 * total as f64, "{refusals} refusals to {total} answers");
    answers
}
