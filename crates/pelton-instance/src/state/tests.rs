//! Lives of an instance told as text: events on the left, what it does about each on the right.

use std::time::Duration;

use arrow_array::UInt64Array;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_schema::{DataType, Field, Schema};

use pelton_core::Bytes;
use pelton_core::declaration::{LedgerLimits, StreamLimits};
use pelton_core::service::Cardinality;

use super::*;

fn spec(name: &str, cardinality: Cardinality) -> MethodSpec {
    let schema = Arc::new(Schema::new(vec![Field::new("key", DataType::UInt64, false)]));
    MethodSpec { name: name.into(), input: schema.clone(), output: schema, cardinality, concurrency: None }
}

/// Batches of 2 rows, 4 rows permitted, a linger of 5 ms, a lease of 1 s; method 0 is `call`, method 1 streams.
fn state() -> State {
    let mut d = Declaration::new("s").max_rows(2);
    d.permits.rows = Some(4);
    d.batch.linger = Duration::from_millis(5);
    d.lease = Duration::from_secs(1);
    d.ledger.age = Duration::from_secs(60);
    State::new(d, vec![spec("call", Cardinality::One), spec("stream", Cardinality::Many)].into())
}

fn id(sequence: u64) -> RequestId {
    RequestId { operator: 1, group: 1, sequence }
}

fn rows(keys: impl IntoIterator<Item = u64>) -> RecordBatch {
    let keys = Arc::new(UInt64Array::from_iter_values(keys));
    RecordBatch::try_new(spec("call", Cardinality::One).input, vec![keys]).unwrap()
}

/// `3..5` or `3`.
fn range(text: &str) -> (u64, u64) {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let from: u64 = from.parse().unwrap();
    (from, if text.contains("..") { to.parse().unwrap() } else { from + 1 })
}

fn runs(text: &str) -> Vec<RequestRun> {
    let (from, to) = range(text);
    RequestRun::pack((from..to).map(id))
}

/// One line of a script: `MS EVENT ARGUMENTS`.
fn event(state: &State, text: &str) -> (Time, Event) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |i: usize| words[i].parse::<u64>().unwrap();
    let received = |frame: Frame| Event::Received { connection: number(2), message: frame.into() };
    let batch_rows =
        |batch: u64| state.running[&batch].items.iter().map(|item| item.id.sequence).collect::<Vec<_>>();
    let event = match words[1] {
        "opened" => Event::Opened(Ok(())),
        "join" => Event::Joined { connection: number(2), client: words[3].into(), epoch: number(4) },
        "left" => Event::Left(number(2)),
        "announce" => {
            received(Frame::Announce { rows: number(3), like: Demand { row_bytes: 8, ..Demand::default() } })
        }
        "return" => received(Frame::Return { rows: number(3) }),
        "attach" => received(Frame::Attach { runs: runs(words[3]) }),
        "cancel" => received(Frame::Cancel { runs: runs(words[3]) }),
        "resume" => received(Frame::Resume { streams: vec![(id(number(3)), number(4) as u32)] }),
        "took" => {
            let stream = &state.declaration.stream;
            let (window, total) = (stream.window.get(), stream.total.get());
            received(Frame::Credit { window, total, taken: vec![(id(number(3)), number(4) as u32)] })
        }
        "ack" => received(Frame::Acknowledge { runs: runs(words[3]) }),
        kind @ ("request" | "stream") => {
            let (from, to) = range(words[3]);
            let deadline = words.get(4).map(|ms| Duration::from_millis(ms.parse().unwrap()));
            let (method, priority) = (u16::from(kind == "stream"), Priority::Normal);
            let deadlines = deadline.map_or(Deadlines::None, Deadlines::All);
            let frame = Frame::Request { method, priority, alone: false, deadlines, runs: runs(words[3]) };
            Event::Received { connection: number(2), message: Message { frame, rows: Some(rows(from..to)) } }
        }
        "emit" => Event::Emitted { batch: number(2), rows: rows([number(3)]) },
        "emit-many" => Event::Emitted { batch: number(2), rows: rows(0..number(3)) },
        "end" => Event::Ended { batch: number(2), result: Ok(rows(batch_rows(number(2)))) },
        "fail" => Event::Ended { batch: number(2), result: Err(Error::user("no")) },
        "hiccup" => Event::Ended { batch: number(2), result: Err(Error::transient("not now")) },
        // The method says that this row of the batch failed.
        "mark" => {
            state.running[&number(2)].invocation.fail(number(3) as usize, Error::user("this one"));
            Event::Tick
        }
        "too-large" => Event::Ended { batch: number(2), result: Err(Error::out_of_memory("no room")) },
        // The disk has, or gives, the block that begins with this result.
        "written" => {
            let extent = Extent { offset: 0, length: 2000, checksum: 0 };
            Event::Written { first: number(2), result: Ok(extent) }
        }
        "full" => Event::Written { first: number(2), result: Err(Failed) },
        "loaded" => {
            let (from, to) = range(words[3]);
            let batch = Arc::new(rows(from..to));
            // Some results, the order of each its key; or one of a stream, with some rows.
            let piece = |offset: u64, rows| Piece { batch: batch.clone(), offset: offset as usize, rows };
            let parts = match words.get(4) {
                Some(_) => {
                    vec![(number(2), (0..to - from).map(|i| piece(i, 1)).collect())]
                }
                None => (from..to).map(|key| (key, vec![piece(key - from, 1)])).collect(),
            };
            Event::Loaded { first: number(2), result: Ok(parts) }
        }
        "damaged" => Event::Loaded { first: number(2), result: Err(Failed) },
        "drain" => Event::Drain,
        "tick" => Event::Tick,
        other => panic!("no event `{other}`"),
    };
    (Time::from_origin(Duration::from_millis(number(0))), event)
}

fn show_runs(runs: &[RequestRun]) -> String {
    let ids: Vec<String> = runs.iter().flat_map(|r| r.ids()).map(|id| id.sequence.to_string()).collect();
    ids.join(",")
}

fn show(action: &Action) -> String {
    match action {
        Action::Close(connection) => format!("close {connection}"),
        Action::Report => "report".into(),
        Action::Disk(Order::Write(block)) => {
            let ids: Vec<String> = block.results.iter().map(|(order, _)| order.to_string()).collect();
            format!("write {} to {}", ids.join(","), block.segment)
        }
        Action::Disk(Order::Load(load)) => format!("load {} of {}", load.first, load.segment),
        Action::Disk(Order::Free(segment)) => format!("free {segment}"),
        Action::Leave => "leave".into(),
        Action::Abort(why) => format!("abort: {}", why.lines().next().unwrap_or_default()),
        Action::Run(batch) => {
            let keys = batch.rows.column(0).as_primitive::<UInt64Type>().values().iter();
            format!("run {}: {}", batch.id, keys.map(u64::to_string).collect::<Vec<_>>().join(","))
        }
        Action::Send(to, message) => match &message.frame {
            Frame::Permit { rows, .. } => format!("permit {to} {rows}"),
            Frame::Load { held } => format!("load {held}"),
            Frame::Results { entries, .. } => {
                let runs: Vec<RequestRun> = entries.iter().map(|e| e.run).collect();
                format!("{} {to} {}", if entries[0].last { "results" } else { "part" }, show_runs(&runs))
            }
            Frame::Failure { runs, error } => format!("{} {to} {}", error.kind().name(), show_runs(runs)),
            Frame::HandBack { runs } => format!("hand-back {to} {}", show_runs(runs)),
            Frame::Holds { runs, .. } if runs.is_empty() => String::new(),
            Frame::Holds { runs, .. } => format!("holds {to} {}", show_runs(runs)),
            Frame::Draining => format!("draining {to}"),
            other => format!("{other:?}"),
        },
    }
}

/// Plays `EVENT => ACTIONS` lines.
fn check(script: &str) -> State {
    check_with(state(), script)
}

/// With room for one result of 8 bytes in memory, and a disk for the others.
fn check_spill(script: &str) -> State {
    let mut state = state();
    state.declaration.ledger = LedgerLimits {
        bytes: Bytes(10),
        spill: Some("/".into()),
        age: Duration::from_secs(60),
        ..state.declaration.ledger
    };
    state.ledger = Ledger::new(state.declaration.ledger.clone());
    check_with(state, script)
}

fn check_with(mut state: State, script: &str) -> State {
    let (mut told, mut expected) = (Vec::new(), Vec::new());
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (text, actions) = line.split_once("=>").unwrap_or((line, ""));
        let (now, event) = event(&state, text.trim());
        let suspended = |state: &State| {
            let all = state.running.iter().filter(|(_, r)| r.suspended.0.is_some());
            all.map(|(batch, r)| (*batch, r.gate.clone())).collect::<Vec<_>>()
        };
        let before = suspended(&state);
        let mut shown =
            state.handle(event, now).iter().map(show).filter(|s| !s.is_empty()).collect::<Vec<_>>();
        let after = suspended(&state);
        assert!(after.iter().all(|(_, gate)| !gate.is_open()));
        let is_new = |(batch, _): &&(u64, _)| before.iter().all(|(b, _)| b != batch);
        shown.extend(after.iter().filter(is_new).map(|(batch, _)| format!("hold {batch}")));
        let went_on = |(_, gate): &&(u64, Gate)| gate.is_open();
        shown.extend(before.iter().filter(went_on).map(|(batch, _)| format!("go-on {batch}")));
        told.push(format!("{} => {}", text.trim(), shown.join("; ")).trim().to_owned());
        expected.push(format!("{} => {}", text.trim(), actions.trim()).trim().to_owned());
    }
    assert_eq!(told.join("\n"), expected.join("\n"));
    state
}

#[test]
fn requests_run_in_batches_and_are_answered() {
    let state = check(
        "0 opened => report
         1 join 1 a 1
         1 announce 1 3 => permit 1 3
         2 request 1 0..3 => run 0: 0,1
         3 end 0 => results 1 0,1; run 1: 2
         4 end 1 => results 1 2
         5 ack 1 0..3",
    );
    assert_eq!((state.ledger.bytes(), state.held(), state.ledger.evicted()), (0, 0, 0));
    assert_eq!(state.wake_at(), None);
}

#[test]
fn rows_that_a_method_names_fail_and_the_others_are_answered() {
    let state = check(
        "0 opened => report
         1 join 1 a 1
         1 announce 1 4 => permit 1 4
         2 request 1 0..4 => run 0: 0,1
         3 mark 0 1
         3 end 0 => user 1 1; results 1 0; run 1: 2,3
         4 mark 1 0
         4 mark 1 1
         4 end 1 => user 1 2; user 1 3",
    );
    assert_eq!(state.held(), 0);
    assert_eq!(state.meter().failed["user"], 3);
}

#[test]
fn nothing_is_granted_beyond_the_budget_or_before_it_is_open() {
    check(
        "0 join 1 a 1
         0 announce 1 100
         1 opened => report; permit 1 4
         2 join 2 b 1
         2 announce 2 100
         3 request 1 0..2 => run 0: 0,1
         4 return 1 2 => permit 1 5; permit 2 1
         5 end 0 => results 1 0,1; permit 1 6; permit 2 2
         6 request 2 50..53 => overload 2 50,51,52",
    );
}

#[test]
fn an_idle_instance_lingers_only_for_what_was_announced() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0",
    );
    assert_eq!(state.wake_at(), Some(Time::from_origin(Duration::from_millis(6))));
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0
         6 tick => run 0: 0",
    );
}

#[test]
fn a_caller_that_comes_back_is_attached() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 end 0 => results 1 0,1; run 1: 2,3
         3 left 1
         4 join 2 a 1 => holds 2 0,1,2,3
         5 attach 2 0..6 => results 2 0; results 2 1; hand-back 2 4,5
         6 end 1 => results 2 2,3",
    );
}

#[test]
fn what_an_older_connection_says_is_not_heard() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 join 2 a 1 => close 1
         2 attach 2 0..2 => hand-back 2 0,1
         3 request 1 0..2
         4 left 1",
    );
}

#[test]
fn an_older_epoch_that_was_overtaken_is_closed() {
    let state = check(
        "0 join 1 a 2
         1 join 2 a 1 => close 2
         2 announce 2 9
         3 opened => report",
    );
    assert!(state.admit("a", 1).is_err());
    assert!(state.admit("a", 2).is_ok());
}

#[test]
fn what_was_told_to_stop_runs_again_when_it_is_asked_for_again() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0..2 => run 0: 0,1
         2 cancel 1 0..2
         3 announce 1 3 => permit 1 3
         4 request 1 0
         5 end 0 => run 1: 0; load 1
         6 end 1 => results 1 0; load 0",
    );
}

#[test]
fn a_request_that_is_wanted_again_keeps_its_batch_going() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0..2 => run 0: 0,1
         2 cancel 1 0
         3 attach 1 0
         4 cancel 1 1",
    );
    assert!(!state.running[&0].cancelled.load(Ordering::Relaxed));
}

#[test]
fn what_is_cancelled_in_the_queue_never_runs() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 cancel 1 2
         3 end 0 => results 1 0,1; run 1: 3",
    );
}

#[test]
fn a_deadline_ends_a_request_in_the_queue() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 5 => run 0: 0,1
         9 end 0 => results 1 0,1; deadline 1 2,3",
    );
}

#[test]
fn draining_hands_back_and_finishes() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 9 => permit 1 4
         1 request 1 0..3 => run 0: 0,1
         2 drain => draining 1; hand-back 1 2; report
         3 drain
         4 end 0 => results 1 0,1
         5 request 1 3 => hand-back 1 3; leave",
    );
}

#[test]
fn draining_waits_a_while_for_callers_that_lost_their_connection() {
    let waits = "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0..2 => run 0: 0,1
         2 left 1
         3 drain => report
         4 end 0\n";
    check(&format!(
        "{waits} 5 join 2 a 1 => holds 2 0,1; draining 2\n 6 attach 2 0..2 => results 2 0; results 2 1; leave"
    ));
    check(&format!("{waits} 1003 tick => leave"));
}

#[test]
fn what_waits_for_a_caller_that_stays_away_is_dropped() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 left 1
         1002 tick
         1003 end 0",
    );
    assert!(state.is_idle());
}

/// One stream has room for two parts, all together for three, and three are kept; parts are small, and count for 1 KB each.
fn narrow() -> State {
    let mut state = state();
    let stream = StreamLimits { window: Bytes(1500), total: Bytes(2500), kept: Bytes(2500) };
    state.declaration.stream = stream;
    state.declaration.permits.rows = Some(9);
    state
}

/// With a stream that runs.
fn check_streaming(script: &str) -> State {
    let begun = "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 => run 0: 0
         2 emit 0 0 => part 1 0\n";
    check_with(narrow(), &format!("{begun}{script}"))
}

#[test]
fn a_stream_goes_no_further_than_its_caller_takes() {
    let state = check_streaming(
        "3 emit 0 0 => part 1 0; hold 0
         4 emit 0 0
         5 took 1 0 1 => part 1 0
         6 took 1 0 1 => go-on 0
         7 emit 0 0 => part 1 0; hold 0
         8 end 0 => results 1 0
         9 took 1 0 2
         10 ack 1 0",
    );
    assert_eq!((state.held(), state.ledger.bytes()), (0, 0));
    assert!(state.connections.values().all(|c| !c.untaken.is_full() && c.untaken.parts(id(0)) == 0));
}

#[test]
fn a_stream_that_waits_for_its_caller_stands_not_still() {
    let mut state = check_streaming("3 emit 0 0 => part 1 0; hold 0");
    assert_eq!(state.wake_at(), None);
    let much_later = Time::from_origin(Duration::from_secs(24 * 3600));
    assert_eq!(state.standstill(much_later), Duration::ZERO);
    assert!(state.handle(Event::Tick, much_later).is_empty());
    // Its time counts from when it could go on.
    let taken = Frame::Credit { window: 1500, total: 2500, taken: vec![(id(0), 2)] };
    state.handle(Event::Received { connection: 1, message: taken.into() }, much_later);
    assert_eq!(state.wake_at(), Some(much_later + Duration::from_secs(15 * 60)));
    state.handle(Event::Ended { batch: 0, result: Ok(rows([])) }, much_later);
    let ran = state.meter().run.mean();
    assert!(ran < 1e6, "the wait is not the run's: {ran} us");
}

#[test]
fn a_stream_that_is_cancelled_or_late_is_let_go() {
    check_streaming(
        "3 emit 0 0 => part 1 0; hold 0
         4 cancel 1 0 => go-on 0
         5 emit 0 0
         6 fail 0",
    );
    let state = check_with(
        narrow(),
        "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 50 => run 0: 0
         2 emit 0 0 => part 1 0
         3 emit 0 0 => part 1 0; hold 0
         51 tick => go-on 0
         52 emit 0 0
         53 fail 0 => user 1 0",
    );
    assert!(state.is_idle());
}

#[test]
fn another_connection_goes_on_after_what_its_caller_has() {
    // What it had taken was told, or not; nothing of the old connection counts for the new one.
    check_streaming(
        "3 emit 0 0 => part 1 0; hold 0
         4 left 1 => go-on 0
         5 emit 0 0 => hold 0
         6 join 2 a 1 => holds 2 0
         7 resume 2 0 2 => part 2 0; go-on 0
         8 emit 0 0 => part 2 0; hold 0
         9 end 0 => results 2 0",
    );
    check_streaming("3 resume 1 0 5 => hand-back 1 0");
    check_streaming("3 resume 1 7 1 => hand-back 1 7");
}

#[test]
fn a_stream_that_is_kept_whole_is_given_to_a_caller_that_was_started_again() {
    check_streaming(
        "3 took 1 0 1
         4 end 0 => results 1 0
         5 left 1
         6 join 2 a 2 => holds 2 0
         7 attach 2 0 => part 2 0; results 2 0",
    );
    // More than it has room for comes as it takes it, and is not forgotten meanwhile.
    let state = check_streaming(
        "3 took 1 0 1
         4 emit 0 0 => part 1 0
         5 left 1
         5 emit 0 0 => hold 0
         5 end 0
         6 join 2 a 2 => holds 2 0
         7 attach 2 0 => part 2 0; part 2 0
         8 took 2 0 1 => part 2 0; results 2 0",
    );
    assert_eq!(state.ledger.evicted(), 0);
}

#[test]
fn a_stream_whose_begin_is_forgotten_is_run_again() {
    let cut = "3 took 1 0 1
         4 emit 0 0 => part 1 0
         5 took 1 0 1
         6 emit 0 0 => part 1 0
         7 took 1 0 1\n";
    // By a caller that has nothing of it: it is not told of it, and what it asks for is begun.
    check_streaming(&format!(
        "{cut}
         8 left 1 => hold 0
         9 join 2 a 2 => go-on 0
         10 announce 2 1 => permit 2 1
         11 stream 2 0
         12 fail 0 => run 1: 0
         13 emit 1 0 => part 2 0"
    ));
    check_streaming(&format!(
        "{cut}
         8 left 1 => hold 0
         9 join 2 a 2 => go-on 0
         11 attach 2 0 => hand-back 2 0"
    ));
    // By another client it is not forgotten, unless that asks for it.
    check_streaming(&format!(
        "{cut}
         8 left 1 => hold 0
         9 join 2 b 2
         11 attach 2 0 => hand-back 2 0; go-on 0"
    ));
    // Who has those parts goes on.
    check_streaming(&format!(
        "{cut}
         8 left 1 => hold 0
         9 join 2 a 1
         11 resume 2 0 3 => go-on 0
         12 emit 0 0 => part 2 0"
    ));
}

/// The same with methods that run two requests side by side.
fn side_by_side() -> State {
    let mut state = narrow();
    let spec = |name, cardinality| MethodSpec { concurrency: Some(2), ..spec(name, cardinality) };
    state.methods = vec![spec("call", Cardinality::One), spec("stream", Cardinality::Many)].into();
    state
}

#[test]
fn streams_that_are_held_back_take_no_permits_from_calls() {
    let mut state = side_by_side();
    state.declaration.permits.rows = Some(3);
    check_with(
        state,
        "0 opened => report
         0 join 1 a 1
         0 announce 1 3 => permit 1 3
         1 stream 1 0..3 => run 0: 0; run 1: 1
         2 announce 1 4
         3 emit 0 0 => part 1 0
         4 emit 0 0 => part 1 0; permit 1 4; hold 0
         5 request 1 9 => run 2: 9
         6 end 2 => results 1 9",
    );
}

#[test]
fn streams_share_what_is_kept() {
    let state = side_by_side();
    // The first has more than its half when the second needs room.
    let state = check_with(
        state,
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 stream 1 0..2 => run 0: 0; run 1: 1
         2 emit 0 0 => part 1 0
         3 took 1 0 1
         4 emit 0 0 => part 1 0
         5 took 1 0 1
         6 emit 1 1 => part 1 1
         7 took 1 1 1
         8 emit 0 0 => part 1 0
         9 left 1 => hold 0
         10 join 2 a 2 => holds 2 1; go-on 0",
    );
    assert!(state.ledger.get(id(0)).is_none() && state.ledger.get(id(1)).is_some());
}

#[test]
fn a_stream_that_nobody_comes_back_for_ends_with_the_lease() {
    let state = check_streaming(
        "3 left 1
         4 emit 0 0
         5 emit 0 0 => hold 0
         1004 tick
         1005 tick => go-on 0
         1006 fail 0",
    );
    assert!(state.is_idle());
}

#[test]
fn streams_wait_to_begin_while_their_caller_takes_nothing_and_others_go_on() {
    check_with(
        narrow(),
        "0 opened => report
         0 join 1 a 1
         0 join 2 b 1
         0 announce 1 4 => permit 1 4
         0 announce 2 1 => permit 2 1
         1 stream 1 0..3 => run 0: 0
         2 emit 0 0 => part 1 0
         3 emit 0 0 => part 1 0; hold 0
         4 end 0 => results 1 0; run 1: 1
         5 emit 1 1 => part 1 1; hold 1
         6 end 1 => results 1 1
         7 stream 2 9 => run 2: 9
         8 emit 2 9 => part 2 9
         9 end 2 => results 2 9
         10 request 1 3 => run 3: 3
         11 end 3 => results 1 3
         12 took 1 0 1 => run 4: 2
         13 end 4 => results 1 2",
    );
}

#[test]
fn parts_travel_in_pieces_and_a_row_that_is_too_large_ends_its_stream() {
    let mut state = narrow();
    state.declaration.stream.window = Bytes(4000);
    state.declaration.stream.total = Bytes::mib(1);
    let begun = "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 => run 0: 0\n";
    // 500 rows of 8 bytes, in pieces of at most 1000.
    check_with(
        state,
        &format!("{begun} 2 emit-many 0 500 => part 1 0; part 1 0; hold 0\n 3 took 1 0 1 => part 1 0"),
    );
    let mut state = narrow();
    state.declaration.max_message = Bytes(4);
    check_with(state, &format!("{begun} 2 emit 0 1 => limit 1 0\n 3 emit 0 1\n 4 fail 0"));
}

#[test]
fn an_instance_that_drains_waits_until_its_streams_are_taken() {
    check_streaming(
        "3 emit 0 0 => part 1 0; hold 0
         3 emit 0 0
         4 drain => draining 1; report
         5 end 0
         6 took 1 0 1 => part 1 0; results 1 0; leave",
    );
}

#[test]
fn a_stream_is_repeated_from_its_beginning() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 => run 0: 0
         2 emit 0 0 => part 1 0
         3 left 1
         4 emit 0 0
         5 join 2 a 1 => holds 2 0
         6 attach 2 0 => part 2 0; part 2 0
         7 end 0 => results 2 0",
    );
}

#[test]
fn a_failure_is_not_remembered() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 request 1 0..2 => run 0: 0,1
         2 hiccup 0 => user 1 0,1
         3 attach 1 0 => hand-back 1 0",
    );
}

#[test]
fn a_bad_row_is_found_and_the_others_have_their_results() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 fail 0 => run 1: 0
         3 end 1 => results 1 0; run 2: 1
         4 fail 2 => user 1 1; run 3: 2,3
         5 end 3 => results 1 2,3",
    );
    assert_eq!((state.meter.split, state.executed), (1, 4));
}

#[test]
fn a_batch_that_was_too_large_teaches() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 too-large 0 => run 1: 0
         3 cancel 1 1
         4 end 1 => results 1 0; run 2: 2
         5 end 2 => results 1 2; run 3: 3
         6 end 3 => results 1 3",
    );
    assert!(state.flow.belief() < 0.9);
}

#[test]
fn permits_that_nobody_uses_come_back() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 join 2 b 1
         0 announce 1 4 => permit 1 4
         1 announce 2 4
         2000 tick => permit 2 4
         2001 request 1 0..2 => hand-back 1 0,1
         2002 return 1 2
         2003 request 2 4..8 => run 0: 4,5",
    );
}

#[test]
fn permits_that_expired_and_come_back_late_count_once() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         2000 tick
         2001 return 1 4
         2002 announce 1 8 => permit 1 8",
    );
}

#[test]
fn a_run_that_gives_nothing_for_too_long_is_given_up() {
    let mut state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1",
    );
    let at = state.wake_at().unwrap();
    assert_eq!(at, Time::from_origin(Duration::from_millis(1) + Duration::from_secs(15 * 60)));
    let actions: Vec<String> = state.handle(Event::Tick, at).iter().map(show).collect();
    assert_eq!(actions[..2], ["draining 1", "hand-back 1 2,3"]);
    assert!(
        actions.iter().any(|a| a.starts_with("abort: batch 0 has given nothing for 900s")),
        "{actions:?}"
    );
}

#[test]
fn a_run_past_all_its_deadlines_is_told_and_then_ended() {
    let mut state = state();
    state.declaration.kill_after = Some(Duration::from_secs(1));
    for (ms, frame) in [
        (0, Frame::Announce { rows: 2, like: Demand::default() }),
        (
            1,
            Frame::Request {
                method: 0,
                priority: Priority::Normal,
                alone: false,
                deadlines: Deadlines::Each(vec![Duration::from_millis(5), Duration::from_millis(9)]),
                runs: runs("0..2"),
            },
        ),
    ] {
        if ms == 0 {
            state.handle(Event::Opened(Ok(())), Time::ZERO);
            state.handle(Event::Joined { connection: 1, client: "a".into(), epoch: 1 }, Time::ZERO);
        }
        let rows = matches!(frame, Frame::Request { .. }).then(|| rows(0..2));
        let at = Time::from_origin(Duration::from_millis(ms));
        state.handle(Event::Received { connection: 1, message: Message { frame, rows } }, at);
    }
    let told = state.wake_at().unwrap();
    assert_eq!(told, Time::from_origin(Duration::from_millis(10)));
    assert!(!state.running[&0].cancelled.load(Ordering::Relaxed));
    state.handle(Event::Tick, told);
    assert!(state.running[&0].cancelled.load(Ordering::Relaxed));
    let actions = state.handle(Event::Tick, told + Duration::from_secs(1));
    assert!(actions.iter().any(|a| matches!(a, Action::Abort(why) if why.contains("kill_after"))));
}

#[test]
fn a_row_that_does_not_fit_into_memory_goes_back() {
    let mut state = state();
    state.declaration.permits.rows = None;
    state.declaration.weight.memory = Some(10.0);
    state.flow = Flow::new(&state.declaration, &state.methods);
    state.handle(Event::Opened(Ok(())), Time::ZERO);
    state.handle(Event::Joined { connection: 1, client: "a".into(), epoch: 1 }, Time::ZERO);
    let like = Demand { row_weight: 1.0, ..Demand::default() };
    let announce = Message::from(Frame::Announce { rows: 9, like });
    let actions = state.handle(Event::Received { connection: 1, message: announce }, Time::ZERO);
    assert_eq!(actions.iter().map(show).collect::<Vec<_>>(), ["permit 1 4"]);
    // Its memory is smaller than was declared: there is room for two rows beside nothing else.
    state.handle(Event::Gauge { used: 0.0, total: 2.5 }, Time::ZERO);
    let frame = Frame::Request {
        method: 0,
        priority: Priority::Normal,
        alone: false,
        deadlines: Deadlines::None,
        runs: runs("0..4"),
    };
    let message = Message { frame, rows: Some(rows(0..4)) };
    let actions = state.handle(Event::Received { connection: 1, message }, Time::ZERO);
    assert_eq!(actions.iter().map(show).take(2).collect::<Vec<_>>(), ["hand-back 1 2,3", "run 0: 0,1"]);
    assert!(state.flow.belief() < 1.0);
}

#[test]
fn results_that_nobody_acknowledges_expire() {
    let mut state = check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 request 1 0 => run 0: 0
         2 end 0 => results 1 0",
    );
    let at = state.wake_at().unwrap();
    assert_eq!(at, Time::from_origin(Duration::from_millis(60_002)));
    state.handle(Event::Tick, at);
    assert_eq!((state.ledger.bytes(), state.ledger.evicted(), state.wake_at()), (0, 1, None));
}

/// Two results, of which one has no room in memory.
const SPILLED: &str = "0 opened => report
     0 join 1 a 1
     0 announce 1 2 => permit 1 2
     1 request 1 0..2 => run 0: 0,1
     2 end 0 => results 1 0,1; write 0 to 1\n";

#[test]
fn a_result_on_its_way_to_disk_is_answered_and_forgotten_as_any() {
    let state = check_spill(&format!(
        "{SPILLED}
         3 left 1
         4 join 2 a 1 => holds 2 0,1
         5 attach 2 0..2 => results 2 0; results 2 1
         6 ack 2 0
         7 written 0 => free 1
         8 attach 2 0 => hand-back 2 0
         9 ack 2 1"
    ));
    assert_eq!((state.ledger.bytes(), state.ledger.evicted()), (0, 0));
    let state = check_spill(&format!("{SPILLED} 3 cancel 1 0\n 4 full 0 => free 1"));
    assert_eq!((state.ledger.bytes(), state.ledger.evicted()), (8, 0));
}

#[test]
fn a_result_on_disk_is_read_back_for_who_presents_its_id() {
    let state = check_spill(&format!(
        "{SPILLED}
         3 written 0
         4 left 1
         5 join 2 a 1 => holds 2 0,1
         6 attach 2 0..2 => results 2 1; load 0 of 1
         7 attach 2 0
         8 loaded 0 0 => results 2 0
         9 announce 2 1 => permit 2 1
         10 request 2 0 => load 0 of 1
         11 loaded 0 0 => results 2 0
         12 ack 2 0..2 => free 1"
    ));
    assert_eq!((state.ledger.bytes(), state.ledger.evicted(), state.executed), (0, 0, 2));
    assert_eq!(state.ledger.meter().loaded, 2);
}

#[test]
fn who_waits_for_the_disk_may_leave_come_back_and_lose_interest() {
    // Another connection takes over while it is read.
    check_spill(&format!(
        "{SPILLED}
         3 written 0
         4 attach 1 0 => load 0 of 1
         5 join 2 a 1 => close 1; holds 2 0,1
         6 attach 2 0
         7 loaded 0 0 => results 2 0"
    ));
    // Nobody does.
    check_spill(&format!(
        "{SPILLED}
         3 written 0
         4 attach 1 0 => load 0 of 1
         5 left 1
         6 loaded 0 0
         7 join 2 a 1 => holds 2 0,1
         8 attach 2 0 => load 0 of 1"
    ));
    // It is acknowledged or taken back; asked for once more, it runs.
    for gone in ["ack", "cancel"] {
        check_spill(&format!(
            "{SPILLED}
             3 written 0
             4 attach 1 0 => load 0 of 1
             5 {gone} 1 0 => free 1
             6 announce 1 3 => permit 1 3
             7 request 1 0 => run 1: 0
             8 loaded 0 0
             9 end 1 => results 1 0; write 1 to 2"
        ));
    }
}

#[test]
fn what_the_disk_does_not_give_back_is_handed_back_and_runs_again() {
    let state = check_spill(&format!(
        "{SPILLED}
         3 written 0
         4 attach 1 0 => load 0 of 1
         5 damaged 0 => free 1; hand-back 1 0
         6 announce 1 3 => permit 1 3
         7 request 1 0 => run 1: 0
         8 end 1 => results 1 0; write 1 to 2"
    ));
    assert_eq!((state.ledger.evicted(), state.ledger.meter().damaged), (1, 1));
}

#[test]
fn what_a_full_disk_does_not_take_is_forgotten() {
    let state = check_spill(&format!(
        "{SPILLED}
         3 full 0 => free 1
         4 attach 1 0..2 => results 1 1; hand-back 1 0"
    ));
    assert_eq!((state.ledger.evicted(), state.ledger.bytes()), (1, 8));
}

#[test]
fn a_stream_comes_back_from_disk_as_it_went() {
    check_spill(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 => run 0: 0
         2 emit 0 5 => part 1 0
         3 emit 0 6 => part 1 0
         4 end 0 => results 1 0; write 0 to 1
         5 written 0
         6 attach 1 0 => load 0 of 1
         7 loaded 0 5..7 stream => part 1 0; part 1 0; results 1 0; free 1; write 1 to 2
         8 resume 1 0 1 => part 1 0; results 1 0; write 2 to 2
         9 written 1
         10 written 2
         11 left 1
         12 join 2 a 1 => holds 2 0
         13 resume 2 0 1 => load 2 of 2
         14 loaded 2 5..7 stream => part 2 0; results 2 0; free 2; write 3 to 3
         15 ack 2 0
         16 written 3 => free 3",
    );
    // What is not with its caller yet stays in memory; what is not there any more cannot be gone on with.
    let window = StreamLimits { window: Bytes(1000), total: Bytes(4000), kept: Bytes::kib(64) };
    let mut state = state();
    state.declaration.stream = window;
    state.declaration.ledger = LedgerLimits {
        bytes: Bytes(10),
        spill: Some("/".into()),
        age: Duration::from_secs(60),
        ..state.declaration.ledger
    };
    state.ledger = Ledger::new(state.declaration.ledger.clone());
    check_with(
        state,
        "0 opened => report
         0 join 1 a 1
         0 announce 1 1 => permit 1 1
         1 stream 1 0 => run 0: 0
         2 emit 0 5 => part 1 0; hold 0
         3 emit 0 6
         4 end 0
         5 tick
         6 took 1 0 1 => part 1 0; results 1 0; write 0 to 1
         7 written 0
         8 left 1
         9 join 2 a 1 => holds 2 0
         10 resume 2 0 0 => load 0 of 1
         11 join 3 b 1
         12 resume 3 0 0 => denied 3 0
         13 loaded 0 5..7 stream => part 2 0; free 1
         14 attach 3 0 => denied 3 0
         15 took 2 0 1 => part 2 0; results 2 0; write 1 to 2
         16 resume 2 0 3 => hand-back 2 0",
    );
}

#[test]
fn one_that_drains_waits_for_the_disk() {
    check_spill(&format!(
        "{SPILLED}
         3 written 0
         4 attach 1 0 => load 0 of 1
         5 drain => draining 1; report
         6 loaded 0 0 => results 1 0; leave"
    ));
}

/// Events in any order, with a disk that is slow, and sometimes does not take or give what it should. At every step each request is
/// answered, known, or handed back; in the end all are gone, and nothing is left in memory or on disk.
#[test]
fn whatever_happens_meanwhile_every_request_is_answered_or_handed_back() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..300 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut state = state();
        state.declaration.permits.rows = Some(32);
        state.declaration.ledger.bytes = Bytes(8 * rng.random_range(1..20));
        state.declaration.ledger.spill = Some("/".into());
        state.ledger = Ledger::new(state.declaration.ledger.clone());
        let window = if rng.random_bool(0.5) { Bytes(1000) } else { Bytes::mib(1) };
        let kept = Bytes::kib(1 << rng.random_range(0..8));
        state.declaration.stream = StreamLimits { window, total: Bytes(4 * window.get()), kept };
        let bad = rng.random_bool(0.5);
        let (mut ms, mut connection, mut sent, mut announces) = (0, 0, 0, false);
        let (mut batches, mut writes, mut loads) = (Vec::new(), Vec::new(), Vec::new());
        let mut disk: BTreeMap<u64, Vec<(u64, Vec<Piece>)>> = BTreeMap::new();
        // Of those asked for on this connection, whether they were answered or handed back.
        let mut asked: BTreeMap<u64, bool> = BTreeMap::new();
        let mut known: Vec<u64> = Vec::new();
        state.handle(Event::Opened(Ok(())), Time::ZERO);
        for step in 0..3000 {
            ms += 1;
            // In the end, all that is under way comes to its end.
            let last = step >= 300;
            let under_way = !batches.is_empty() || !writes.is_empty() || !loads.is_empty();
            if last && !under_way && state.is_idle() && !state.ledger.has_unsent() {
                break;
            }
            let received = |connection, frame: Frame| Event::Received { connection, message: frame.into() };
            let some = |rng: &mut rand::rngs::StdRng, known: &[u64]| known[rng.random_range(0..known.len())];
            let choice = if last { 10 + step % 4 } else { rng.random_range(0..14) };
            let event = match choice {
                _ if std::mem::take(&mut announces) => {
                    received(connection, Frame::Announce { rows: 1 << 20, like: Demand::default() })
                }
                0 => {
                    connection += 1;
                    asked.clear();
                    announces = true;
                    Event::Joined { connection, client: "a".into(), epoch: 1 }
                }
                1 if connection > 0 => Event::Left(connection),
                2..=4 if connection > 0 => {
                    let n = rng.random_range(1..8);
                    let ids = format!("{sent}..{}", sent + n);
                    asked.extend((sent..sent + n).map(|key| (key, false)));
                    known.extend(sent..sent + n);
                    sent += n;
                    let kind = ["request", "stream"][rng.random_range(0..2)];
                    event(&state, &format!("{ms} {kind} {connection} {ids}")).1
                }
                5 | 6 if connection > 0 && !known.is_empty() => {
                    let key = some(&mut rng, &known);
                    asked.insert(key, false);
                    let after = rng.random_range(0..4);
                    let frame = match rng.random_bool(0.2) {
                        true => Frame::Resume { streams: vec![(id(key), after)] },
                        false => Frame::Attach { runs: RequestRun::pack([id(key)]) },
                    };
                    received(connection, frame)
                }
                7 | 8 if connection > 0 && !known.is_empty() => {
                    let key = some(&mut rng, &known);
                    known.retain(|k| *k != key);
                    asked.remove(&key);
                    let runs = RequestRun::pack([id(key)]);
                    received(
                        connection,
                        if rng.random_bool(0.5) {
                            Frame::Acknowledge { runs }
                        } else {
                            Frame::Cancel { runs }
                        },
                    )
                }
                9 | 10 if !batches.is_empty() => {
                    let (batch, method) = batches.remove(0);
                    if method == 1 && rng.random_bool(0.6) {
                        batches.push((batch, method));
                        Event::Emitted { batch, rows: rows([ms]) }
                    } else {
                        event(&state, &format!("{ms} end {batch}")).1
                    }
                }
                13 if connection > 0 => {
                    let all = if last || rng.random_bool(0.5) { 1 << 30 } else { 1000 };
                    let taken = known.iter().take(3).map(|key| (id(*key), 1)).collect();
                    received(connection, Frame::Credit { window: all, total: 4 * all, taken })
                }
                11 if !writes.is_empty() => {
                    let block: crate::spill::Block = writes.remove(0);
                    let full = bad && rng.random_bool(0.2);
                    let extent = Extent { offset: 0, length: 50, checksum: 0 };
                    if !full {
                        disk.insert(block.first, block.results);
                    }
                    Event::Written { first: block.first, result: if full { Err(Failed) } else { Ok(extent) } }
                }
                12 if !loads.is_empty() => {
                    let first: u64 = loads.remove(rng.random_range(0..loads.len()));
                    let damaged = bad && rng.random_bool(0.2);
                    Event::Loaded {
                        first,
                        result: if damaged { Err(Failed) } else { Ok(disk[&first].clone()) },
                    }
                }
                _ => Event::Tick,
            };
            for action in state.handle(event, Time::from_origin(Duration::from_millis(ms))) {
                match action {
                    Action::Run(batch) => batches.push((batch.id, batch.method)),
                    Action::Disk(Order::Write(block)) => writes.push(block),
                    Action::Disk(Order::Load(load)) => loads.push(load.first),
                    Action::Send(to, message) if to == connection => {
                        let runs: Vec<RequestRun> = match &message.frame {
                            Frame::Results { entries, .. } => {
                                entries.iter().filter(|e| e.last).map(|e| e.run).collect()
                            }
                            // For want of a permit.
                            Frame::HandBack { runs } | Frame::Failure { runs, .. } => runs.clone(),
                            _ => continue,
                        };
                        let ids: Vec<u64> = runs.iter().flat_map(|r| r.ids()).map(|id| id.sequence).collect();
                        if let (Frame::Results { method: 0, .. }, Some(rows)) =
                            (&message.frame, &message.rows)
                        {
                            let keys = rows.column(0).as_primitive::<UInt64Type>().values().to_vec();
                            assert_eq!(keys, ids, "seed {seed}, step {step}");
                        }
                        for key in ids {
                            asked.entry(key).and_modify(|answered| *answered = true);
                        }
                    }
                    _ => {}
                }
            }
        }
        // A last one asks for all that there is.
        assert!(batches.is_empty() && writes.is_empty() && loads.is_empty(), "seed {seed}");
        let open: Vec<u64> = asked
            .iter()
            .filter(|(key, answered)| !**answered && known.contains(key))
            .map(|(key, _)| *key)
            .collect();
        let attached = state.connections.contains_key(&connection);
        assert!(!attached || open.is_empty(), "seed {seed}: {open:?} of {asked:?}");
        if !bad {
            assert_eq!(state.ledger.evicted(), 0, "seed {seed}");
        }
        state.ledger.acknowledge(connection, &RequestRun::pack((0..sent).map(id)));
        let meter = state.ledger.meter();
        assert_eq!((state.ledger.bytes(), meter.on_disk, meter.disk_bytes), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_row_counts_for_its_own_bytes() {
    // As a received batch: all columns share one buffer.
    let wide = rows(0..1000);
    assert_eq!(body::bytes(&wide.slice(10, 2)), 16);
}

#[test]
fn a_caller_has_no_say_in_what_another_one_waits_for() {
    let state = check(
        "0 opened => report
         0 join 1 a 1
         0 join 2 b 1
         0 announce 1 4 => permit 1 4
         1 request 1 0..4 => run 0: 0,1
         2 cancel 2 0..4
         3 attach 2 0..3 => denied 2 0,1,2
         4 end 0 => results 1 0,1; run 1: 2,3
         5 ack 2 0..2
         6 end 1 => results 1 2,3",
    );
    assert_eq!(state.ledger.bytes(), 32, "what the other one acknowledges stays");
}

#[test]
fn no_more_is_given_back_than_was_permitted() {
    check(
        "0 opened => report
         0 join 1 a 1
         0 announce 1 2 => permit 1 2
         1 return 1 18446744073709551615
         2 announce 1 4 => permit 1 4
         3 return 1 0
         4 request 1 0..2 => run 0: 0,1",
    );
}
