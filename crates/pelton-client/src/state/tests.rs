//! What a client does, told as text: events on the left, what it does about each on the right.

use std::path::PathBuf;

use arrow_array::UInt64Array;
use arrow_schema::{DataType, Field, Schema};
use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::service::Cardinality;
use pelton_wire::{Entry, State as Phase, Status};
use rand::SeedableRng;

use super::*;

/// What instances have of others, unless a script says `idle`: what is sent to them waits for permits.
const WORK: u64 = 1;

struct Nobody;
impl Receiver for Nobody {
    fn deliver(&self, _: Vec<Outcome>) {}
}

fn methods() -> Vec<MethodSpec> {
    let schema = Arc::new(Schema::new(vec![Field::new("key", DataType::UInt64, false)]));
    let spec = |name: &str, cardinality| MethodSpec {
        name: name.into(),
        input: schema.clone(),
        output: schema.clone(),
        cardinality,
        concurrency: None,
    };
    vec![spec("call", Cardinality::One), spec("stream", Cardinality::Many)]
}

fn rows(keys: impl IntoIterator<Item = u64>) -> RecordBatch {
    RecordBatch::try_new(methods()[0].input.clone(), vec![Arc::new(UInt64Array::from_iter_values(keys))])
        .unwrap()
}

fn id(sequence: u64) -> RequestId {
    RequestId { operator: 1, group: 1, sequence }
}

/// `3..5` or `3`.
fn ids(text: &str) -> Vec<RequestId> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let from: u64 = from.parse().unwrap();
    let to = if text.contains("..") { to.parse().unwrap() } else { from + 1 };
    (from..to).map(id).collect()
}

fn instance(number: u32) -> InstanceId {
    InstanceId { service: "s".into(), number, incarnation: 1 }
}

fn welcome(number: u32) -> Box<Welcome> {
    let status = Status {
        state: Phase::Ready,
        pid: 1,
        held: WORK,
        executed: 0,
        batches: 0,
        ledger_bytes: 0,
        evicted: 0,
        standstill: std::time::Duration::ZERO,
        meter: Default::default(),
    };
    Box::new(Welcome {
        version: 1,
        instance: instance(number),
        config: String::new(),
        methods: methods(),
        max_message: Bytes::mib(1),
        segment: 0,
        status,
    })
}

/// One line of a script, whose answers are of this method: `MS EVENT ARGUMENTS`. Peers are numbered as they are added, connections as they are made.
fn event(text: &str, method: u16, receiver: &Arc<dyn Receiver>) -> (Time, Event) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |i: usize| words[i].parse::<u64>().unwrap();
    let runs = |i: usize| RequestRun::pack(ids(words[i]));
    // `PEER.CONNECTION`
    let link = || {
        let (peer, connection) = words[2].split_once('.').unwrap();
        (peer.parse().unwrap(), connection.parse().unwrap())
    };
    let received = |message: Message| {
        let (peer, connection) = link();
        Event::Received { peer, connection, message }
    };
    let results = |last| {
        let frame = Frame::Results {
            method,
            entries: runs(3).into_iter().map(|run| Entry { run, rows: 1, last }).collect(),
        };
        Message { frame, rows: Some(rows(ids(words[3]).iter().map(|id| id.sequence))) }
    };
    let event = match words[1] {
        "add" => {
            let address = Address::Unix(PathBuf::from(words[2]));
            Event::Endpoints(EndpointDelta::Add(Endpoint { instance: instance(number(2) as u32), address }))
        }
        "drain" => Event::Endpoints(EndpointDelta::Drain(instance(number(2) as u32))),
        "remove" => Event::Endpoints(EndpointDelta::Remove(instance(number(2) as u32))),
        "connected" => {
            let (peer, connection) = link();
            Event::Connected { peer, connection, welcome: welcome(peer as u32) }
        }
        "another" => {
            let (peer, connection) = link();
            let mut welcome = welcome(peer as u32);
            welcome.instance.incarnation += 1;
            Event::Connected { peer, connection, welcome }
        }
        "lost" => {
            let (peer, connection) = link();
            Event::Disconnected { peer, connection }
        }
        "unreachable" => {
            let error = Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, "no");
            Event::NotConnected { peer: number(2), error }
        }
        kind @ ("submit" | "explicit" | "stream" | "paced") => {
            let submission = Submission {
                timeout: words.get(3).map(|ms| Duration::from_millis(ms.parse().unwrap())),
                acknowledge: if kind == "explicit" { Acknowledge::Explicit } else { Acknowledge::OnReceipt },
                paced: kind == "paced",
                ..Submission::new(
                    usize::from(kind == "stream" || kind == "paced"),
                    ids(words[2]),
                    rows(ids(words[2]).iter().map(|id| id.sequence)),
                )
            };
            Event::Submitted { submission, receiver: receiver.clone() }
        }
        "permit" => received(Frame::Permit { rows: number(3), held: WORK }.into()),
        "idle" => received(Frame::Load { held: 0 }.into()),
        "results" => received(results(true)),
        "two-rows-each" => {
            let run = RequestRun { count: 1, ..runs(3)[0] };
            let frame = Frame::Results { method, entries: vec![Entry { run, rows: 2, last: true }] };
            received(Message { frame, rows: Some(rows(0..2)) })
        }
        "part" => received(results(false)),
        "hand-back" => received(Frame::HandBack { runs: runs(3) }.into()),
        "reset" => {
            let endpoint = |number: &&str| {
                let number: u32 = number.parse().unwrap();
                Endpoint {
                    instance: instance(number),
                    address: Address::Unix(PathBuf::from(number.to_string())),
                }
            };
            Event::Endpoints(EndpointDelta::Reset(words[2..].iter().map(endpoint).collect()))
        }
        "holds" => {
            received(Frame::Holds { runs: words.get(3).map_or(vec![], |_| runs(3)), last: true }.into())
        }
        "draining" => received(Frame::Draining.into()),
        "marked" => received(Frame::Pong(number(3) | 1 << 63).into()),
        "late" => {
            let error = Error::new(Kind::Deadline, Fate::Unknown, Retry::Never, "too late");
            received(Frame::Failure { runs: runs(3), error }.into())
        }
        "pong" => received(Frame::Pong(number(3)).into()),
        "refused" => {
            let error = Error::new(Kind::Overload, Fate::Refused, Retry::Elsewhere, "no permit");
            received(Frame::Failure { runs: runs(3), error }.into())
        }
        "poison" => received(Frame::Failure { runs: runs(3), error: Error::user("bad row") }.into()),
        "hiccup" => received(Frame::Failure { runs: runs(3), error: Error::transient("not now") }.into()),
        "cancel" => Event::Cancelled(ids(words[2])),
        "ack" => Event::Acknowledged(ids(words[2])),
        "took" => Event::Took(ids(words[2])),
        "hold" => Event::Held,
        "abandon" => Event::Abandoned(vec![1]),
        "tick" => Event::Tick,
        other => panic!("no event `{other}`"),
    };
    (Time::from_origin(Duration::from_millis(number(0))), event)
}

fn show_runs(runs: &[RequestRun]) -> String {
    runs.iter().flat_map(|r| r.ids()).map(|id| id.sequence.to_string()).collect::<Vec<_>>().join(",")
}

fn show_streams(streams: &[(RequestId, u32)]) -> String {
    let each = streams.iter().map(|(id, parts)| format!("{}+{parts}", id.sequence));
    each.collect::<Vec<_>>().join(",")
}

fn show(action: &Action) -> String {
    match action {
        Action::Connect { peer, .. } => format!("connect {peer}"),
        Action::Disconnect(peer) => format!("disconnect {peer}"),
        Action::Deliver(_, outcomes) => {
            let each = outcomes.iter().map(|o| match &o.rows {
                Ok(_) if !o.last => format!("{}~", o.id.sequence),
                Ok(_) => o.id.sequence.to_string(),
                Err(e) => format!("{}:{}:{:?}", o.id.sequence, e.kind().name(), e.fate()),
            });
            format!("deliver {}", each.collect::<Vec<_>>().join(","))
        }
        Action::DeliverRows(_, first, rows) => {
            let ids = (first.sequence..).take(rows.num_rows());
            format!("deliver {}", ids.map(|s| s.to_string()).collect::<Vec<_>>().join(","))
        }
        Action::Send(to, message) => match &message.frame {
            Frame::Announce { rows, .. } => format!("announce {to} {rows}"),
            Frame::Return { rows } => format!("return {to} {rows}"),
            Frame::Request { runs, deadlines: Deadlines::None, .. } => {
                format!("request {to} {}", show_runs(runs))
            }
            Frame::Request { runs, deadlines: Deadlines::All(d), .. } => {
                format!("request {to} {} within {d:?}", show_runs(runs))
            }
            Frame::Request { runs, deadlines: Deadlines::Each(each), .. } => {
                format!("request {to} {} within {each:?}", show_runs(runs))
            }
            Frame::Attach { runs } => format!("attach {to} {}", show_runs(runs)),
            Frame::Cancel { runs } => format!("cancel {to} {}", show_runs(runs)),
            Frame::Acknowledge { runs } => format!("ack {to} {}", show_runs(runs)),
            Frame::Resume { streams } => format!("resume {to} {}", show_streams(streams)),
            Frame::Credit { taken, .. } => format!("credit {to} {}", show_streams(taken)),
            Frame::Ping(n) if *n >= 1 << 63 => format!("mark {to} {}", n - (1 << 63)),
            Frame::Ping(n) => format!("ping {to} {n}"),
            other => format!("{other:?}"),
        },
    }
}

/// Plays `EVENT => ACTIONS` lines. Two attempts at a request.
fn check(script: &str) -> State {
    let retry = RetryLimits { attempts: 2, ..RetryLimits::default() };
    check_with(&Declaration { retry, max_message: Bytes::mib(1), ..Declaration::new("s") }, script)
}

fn check_with(declaration: &Declaration, script: &str) -> State {
    let mut state = State::new(declaration, methods().into(), StdRng::seed_from_u64(1), Time::ZERO);
    let receiver: Arc<dyn Receiver> = Arc::new(Nobody);
    let (mut told, mut expected) = (Vec::new(), Vec::new());
    let method = u16::from(script.contains(" stream ") || script.contains(" paced "));
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (text, actions) = line.split_once("=>").unwrap_or((line, ""));
        let (now, event) = event(text.trim(), method, &receiver);
        let shown: Vec<String> = state.handle(event, now).iter().map(show).collect();
        told.push(format!("{} => {}", text.trim(), shown.join("; ")).trim().to_owned());
        expected.push(format!("{} => {}", text.trim(), actions.trim()).trim().to_owned());
    }
    assert_eq!(told.join("\n"), expected.join("\n"));
    state
}

/// One instance is connected.
const ONE: &str = "0 add 0 => connect 0\n 0 connected 0.1\n";

fn check_one(script: &str) -> State {
    check(&format!("{ONE}{script}"))
}

#[test]
fn what_is_permitted_is_sent_and_what_is_too_much_given_back() {
    let state = check_one(
        "1 submit 0..3 => announce 0 3
         2 permit 0.1 2 => request 0 0,1
         3 permit 0.1 5 => request 0 2; return 0 2
         4 results 0.1 0..3 => deliver 0,1,2
         504 tick => ack 0 0,1,2; ping 0 1
         505 pong 0.1 1",
    );
    assert_eq!((state.unended(), state.sent(), state.retries()), (0, 0, 0));
}

#[test]
fn a_lost_connection_is_made_again_and_requests_attached() {
    check_one(
        "1 submit 0..4 => announce 0 4
         2 permit 0.1 2 => request 0 0,1
         3 lost 0.1 => connect 0
         4 results 0.1 0..2
         5 connected 0.2 => attach 0 0,1; announce 0 2
         6 hand-back 0.2 1 => announce 0 3
         7 permit 0.2 3 => request 0 1,2,3
         8 results 0.2 0..2 => deliver 0,1",
    );
}

#[test]
fn acknowledgements_that_may_be_lost_are_said_again() {
    check_one(
        "1 submit 0..2 => announce 0 2
         2 permit 0.1 2 => request 0 0,1
         3 results 0.1 0 => deliver 0
         503 tick => ack 0 0; ping 0 1
         504 results 0.1 1 => deliver 1
         505 lost 0.1 => connect 0
         506 connected 0.2
         1004 tick => ack 0 1,0; ping 0 2
         1005 pong 0.2 2
         1006 lost 0.2 => connect 0
         1007 connected 0.3
         2000 tick",
    );
}

#[test]
fn an_id_that_is_in_flight_again_is_not_acknowledged_again() {
    check_one(
        "1 submit 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 results 0.1 0 => deliver 0
         4 submit 0 => ack 0 0; announce 0 2
         5 permit 0.1 2 => request 0 0
         6 lost 0.1 => connect 0
         7 connected 0.2 => attach 0 0",
    );
}

#[test]
fn explicit_results_are_kept_until_acknowledged() {
    check_one(
        "1 explicit 0..2 => announce 0 2
         2 permit 0.1 2 => request 0 0,1
         3 results 0.1 0..2 => deliver 0,1
         4 results 0.1 0..2
         5 ack 0
         6 ack 0
         505 tick => ack 0 0; ping 0 1",
    );
}

#[test]
fn what_a_gone_instance_held_is_tried_elsewhere_as_often_as_allowed() {
    check(
        "0 add 0 => connect 0
         0 connected 0.1
         1 submit 0..2 => announce 0 2
         2 permit 0.1 2 => request 0 0,1
         3 remove 0 => disconnect 0
         4 add 1 => connect 1
         5 connected 1.2 => announce 1 2
         6 permit 1.2 2 => request 1 0,1
         7 results 1.2 0 => deliver 0
         8 remove 1 => deliver 1:reset:Unknown; disconnect 1",
    );
}

#[test]
fn an_instance_out_of_reach_is_given_up_and_told_so_when_it_is_back() {
    check(
        "0 add 0 => connect 0
         0 connected 0.1
         1 explicit 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 lost 0.1 => connect 0
         4 unreachable 0 => connect 0
         5 unreachable 0 => connect 0
         6 unreachable 0 => connect 0
         7 add 1 => connect 1
         8 connected 1.2
         1003 unreachable 0 => connect 0; announce 1 1
         1004 permit 1.2 1 => request 1 0
         1005 results 1.2 0 => deliver 0
         1006 connected 0.3 => cancel 0 0
         1007 results 0.3 0
         1507 tick => ack 0 0; ping 0 1",
    );
}

#[test]
fn each_request_has_its_own_deadline() {
    let state = check_one(
        "1 submit 0 10 => announce 0 1
         1 submit 1 50 => announce 0 2
         1 submit 2 => announce 0 3
         2 permit 0.1 3 => request 0 0,1 within [9ms, 49ms]; request 0 2
         11 tick => cancel 0 0; deliver 0:deadline:Unknown; mark 0 1
         51 tick => cancel 0 1; deliver 1:deadline:Unknown; mark 0 2
         52 results 0.1 0..3 => deliver 2
         552 tick => ack 0 0,1,2; ping 0 1",
    );
    assert_eq!(state.wake_at(), None);
}

#[test]
fn what_is_cancelled_ends_at_once_wherever_it_is() {
    check_one(
        "1 submit 0..3 => announce 0 3
         2 permit 0.1 1 => request 0 0
         3 cancel 0..2 => cancel 0 0; deliver 0:cancelled:Unknown,1:cancelled:NotSent; mark 0 1; announce 0 2
         4 results 0.1 0
         5 cancel 0",
    );
    check_one(
        "1 submit 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 lost 0.1 => connect 0
         4 cancel 0 => deliver 0:cancelled:Unknown
         5 connected 0.2 => cancel 0 0",
    );
}

#[test]
fn errors_that_stay_end_a_request_and_others_are_tried_again() {
    let state = check_one(
        "1 submit 0..2 => announce 0 2
         2 permit 0.1 2 => request 0 0,1
         3 poison 0.1 0 => deliver 0:user:Executed
         4 hiccup 0.1 1
         300 tick => announce 0 3
         301 permit 0.1 3 => request 0 1
         302 hiccup 0.1 1 => deliver 1:user:Executed",
    );
    assert_eq!(state.retries(), 1);
}

#[test]
fn a_stream_goes_on_where_it_was_cut() {
    check_one(
        "1 stream 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 lost 0.1 => connect 0
         5 connected 0.2 => resume 0 0+1
         7 part 0.2 0 => deliver 0~
         8 results 0.2 0 => deliver 0",
    );
}

#[test]
fn what_its_caller_takes_of_a_stream_is_told() {
    // Of one who does not say, at once; all of it a little later.
    check_one(
        "1 stream 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 part 0.1 0 => deliver 0~
         8 tick => credit 0 0+2",
    );
    check_one(
        "1 paced 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 part 0.1 0 => deliver 0~
         9 tick
         10 took 0
         15 tick => credit 0 0+1
         16 results 0.1 0 => deliver 0
         17 took 0
         22 tick => ack 0 0; credit 0 0+1",
    );
    // What came over a connection that is lost is not told to the next one.
    check_one(
        "1 paced 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 part 0.1 0 => deliver 0~
         5 took 0
         6 lost 0.1 => connect 0
         7 connected 0.2 => resume 0 0+2
         8 part 0.2 0 => deliver 0~
         9 took 0
         14 tick
         15 took 0
         20 tick => credit 0 0+1",
    );
    // Nor what was cancelled; but what a caller leaves behind that had its end.
    check_one(
        "1 paced 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 cancel 0 => cancel 0 0; deliver 0:cancelled:Unknown; mark 0 1
         5 took 0
         12 tick",
    );
    check_one(
        "1 paced 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 results 0.1 0 => deliver 0
         5 cancel 0
         10 tick => ack 0 0; credit 0 0+1",
    );
}

#[test]
fn a_stream_that_was_given_out_in_part_is_not_begun_again() {
    for lost in
        ["4 remove 0 => deliver 0:reset:Unknown; disconnect 0", "4 hiccup 0.1 0 => deliver 0:reset:Unknown"]
    {
        check_one(&format!(
            "1 stream 0 => announce 0 1
             2 permit 0.1 1 => request 0 0
             3 part 0.1 0 => deliver 0~
             {lost}"
        ));
    }
}

/// Found by simulated chaos: a request went elsewhere between a new connection and the first word on it.
#[test]
fn what_an_instance_said_that_it_holds_counts_until_it_says_it_anew() {
    check(
        "0 reset 0 1 => connect 0; connect 1
         1 connected 0.1
         1 connected 1.2
         2 holds 0.1 5..8
         3 holds 1.2
         4 lost 0.1 => connect 0
         5 connected 0.3
         6 explicit 5..7 => attach 0 5,6
         7 holds 0.3 5..7
         8 explicit 7 => announce 1 1",
    );
}

#[test]
fn what_is_without_work_gets_a_few_rows_with_their_announcement() {
    let state = check_one(
        "1 idle 0.1
         2 submit 0..2 => announce 0 2; request 0 0,1
         3 submit 2 => announce 0 3
         4 permit 0.1 3 => request 0 2
         5 results 0.1 0..3 => deliver 0,1,2
         6 idle 0.1
         7 submit 3..5 => ack 0 0,1,2; announce 0 5; request 0 3,4
         8 refused 0.1 3..5
         9 submit 5 => announce 0 6
         10 permit 0.1 6 => request 0 3,4,5",
    );
    assert_eq!((state.unended(), state.sent(), state.retries()), (3, 3, 0));
    // More than a few ask first; and two instances share a few.
    check_one(
        "1 idle 0.1
         2 submit 0..17 => announce 0 17",
    );
    check(
        "0 add 0 => connect 0
         0 connected 0.1
         0 idle 0.1
         1 add 1 => connect 1
         1 connected 1.2
         1 idle 1.2
         2 submit 0..3 => announce 0 2; request 0 0,1; announce 1 1; request 1 2",
    );
}

#[test]
fn who_drains_or_is_held_gets_nothing_new() {
    check_one(
        "1 submit 0..3 => announce 0 3
         2 permit 0.1 1 => request 0 0
         3 draining 0.1
         4 permit 0.1 2 => return 0 1
         5 hand-back 0.1 0",
    );
    check_one(
        "1 submit 0..3 => announce 0 3
         2 hold => announce 0 0
         3 permit 0.1 1 => return 0 1",
    );
}

#[test]
fn a_mistake_is_told_before_anything_is_sent() {
    check_one(
        "1 submit 0 => announce 0 1
         2 submit 0 => deliver 0:internal:Unknown",
    );
}

#[test]
fn a_client_connects_to_its_share_of_many_instances() {
    let endpoint = |number: u32| {
        let address = pelton_core::endpoint::Address::Unix("/x".into());
        Endpoint { instance: instance(number), address }
    };
    let connects =
        |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Connect { .. })).count();
    let leaves = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Disconnect(_))).count();
    let (instances, clients) = (200, 50);
    let mut callers_of = vec![0; instances as usize];
    for seed in 0..clients {
        let mut state =
            State::new(&Declaration::new("s"), methods().into(), StdRng::seed_from_u64(seed), Time::ZERO);
        let all = EndpointDelta::Reset((0..instances).map(endpoint).collect());
        assert_eq!(connects(&state.handle(Event::Endpoints(all), Time::ZERO)), MOST_PEERS);
        for peer in state.peers.values() {
            callers_of[peer.endpoint.instance.number as usize] += 1;
        }
        // One that leaves is replaced by one other; one that comes replaces at most one.
        let gone = state.peers.values().next().unwrap().endpoint.instance.clone();
        let actions = state.handle(Event::Endpoints(EndpointDelta::Remove(gone)), Time::ZERO);
        assert_eq!((connects(&actions), leaves(&actions)), (1, 1));
        let actions = state.handle(Event::Endpoints(EndpointDelta::Add(endpoint(instances))), Time::ZERO);
        assert!(connects(&actions) <= 1 && leaves(&actions) == connects(&actions));
        assert_eq!(state.peers.len(), MOST_PEERS);
    }
    assert!(callers_of.iter().all(|n| *n > 0), "{callers_of:?}");
}

#[test]
fn what_an_instance_held_is_lost_when_another_process_answers_at_its_address() {
    check(
        "0 add 0 => connect 0
         1 connected 0.1
         2 submit 0..2 => announce 0 2
         3 permit 0.1 2 => request 0 0,1
         4 lost 0.1 => connect 0
         5 another 0.2 => disconnect 0
         6 add 1 => connect 1
         7 connected 1.3 => announce 1 2
         8 permit 1.3 2 => request 1 0,1
         9 results 1.3 0..2 => deliver 0,1",
    );
}

#[test]
fn what_instances_hold_is_taken_up_there_and_nothing_is_sent_before_they_said_so() {
    check(
        "0 reset 0 1 => connect 0; connect 1
         1 explicit 0..4
         2 connected 0.1
         3 permit 0.1 9 => return 0 9
         4 holds 0.1 1..3 => attach 0 1,2
         5 connected 1.2
         6 holds 1.2 => announce 1 2
         7 permit 1.2 1 => request 1 0
         8 results 0.1 1..3 => deliver 1,2; announce 0 10; announce 1 1",
    );
    // One that never says anything is given up; one that comes back has what is not sent elsewhere yet.
    check(
        "0 reset 0 => connect 0
         1 submit 0..2
         2 unreachable 0 => connect 0
         600 unreachable 0 => connect 0
         1200 unreachable 0 => connect 0
         1300 connected 0.1 => announce 0 2
         1301 holds 0.1 1 => attach 0 1; announce 0 1",
    );
    // What comes later is asked for where it is; what was sent elsewhere meanwhile is cancelled there.
    check(
        "0 reset 0 1 => connect 0; connect 1
         1 connected 0.1
         2 connected 1.2
         3 holds 0.1 5..7
         4 holds 1.2
         5 submit 5 => attach 0 5
         6 lost 0.1 => connect 0
         7 remove 0 => disconnect 0; announce 1 1
         8 permit 1.2 1 => request 1 5",
    );
}

#[test]
fn after_requests_were_abandoned_nothing_is_sent_before_instances_out_of_touch_have_said_what_they_hold() {
    check(
        "0 reset 0 1 => connect 0; connect 1
         1 connected 0.1
         1 connected 1.2
         1 holds 0.1
         1 holds 1.2
         2 explicit 0..4 => announce 0 2; announce 1 2
         3 permit 1.2 4 => request 1 0,1,2,3; announce 0 0
         4 lost 1.2 => connect 1
         5 abandon => disconnect 0; connect 0
         6 explicit 0..4
         7 connected 0.3
         8 holds 0.3
         9 connected 1.4
         10 holds 1.4 0..4 => attach 1 0,1,2,3",
    );
    // One that was given up before, and one that was never connected, are not waited for.
    check(
        "0 reset 0 1 => connect 0; connect 1
         1 connected 0.1
         1 holds 0.1
         2 unreachable 1 => connect 1
         600 unreachable 1 => connect 1
         1200 unreachable 1 => connect 1
         1300 add 2 => connect 2
         1301 abandon => disconnect 0; connect 0
         1302 connected 0.2
         1303 holds 0.2
         1304 submit 0..2 => announce 0 2",
    );
}

#[test]
fn what_was_said_of_an_attempt_that_was_given_up_is_no_answer_to_the_next() {
    // Parts and the end of a stream, a failure, and what is handed back.
    check_one(
        "1 stream 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 part 0.1 0 => deliver 0~
         4 cancel 0 => cancel 0 0; deliver 0:cancelled:Unknown; mark 0 1
         5 stream 0 => announce 0 2
         6 permit 0.1 2 => request 0 0
         7 part 0.1 0
         7 poison 0.1 0
         7 hand-back 0.1 0
         8 results 0.1 0
         9 marked 0.1 1
         10 part 0.1 0 => deliver 0~
         11 results 0.1 0 => deliver 0",
    );
    // Over another connection nothing of it comes.
    check_one(
        "1 submit 0 => announce 0 1
         2 permit 0.1 1 => request 0 0
         3 cancel 0 => cancel 0 0; deliver 0:cancelled:Unknown; mark 0 1
         4 lost 0.1 => connect 0
         5 submit 0
         6 connected 0.2 => announce 0 1
         7 permit 0.2 1 => request 0 0
         8 results 0.2 0 => deliver 0",
    );
}

#[test]
fn an_instance_that_takes_the_limit_of_an_attempt_for_the_deadline_ends_the_attempt_alone() {
    let attempt_timeout = Some(Duration::from_millis(10));
    let declaration = Declaration { attempt_timeout, ..Declaration::new("s") };
    // The second request's deadline comes first.
    let script = "1 submit 0 => announce 0 1
         1 submit 1 5 => announce 0 2
         2 permit 0.1 2 => request 0 0,1 within [10ms, 4ms]
         5 late 0.1 0
         5 late 0.1 1 => deliver 1:deadline:Unknown";
    check_with(&declaration, &format!("{ONE}{script}"));
}

#[test]
fn what_a_method_does_not_give_is_no_answer() {
    check(
        "0 add 0 => connect 0
         0 connected 0.1 =>
         1 submit 0..2 => announce 0 2
         2 permit 0.1 2 => request 0 0,1
         3 two-rows-each 0.1 0 =>
         4 part 0.1 1 =>",
    );
}
