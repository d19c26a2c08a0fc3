use super::*;
use crate::flow::clock::{Agenda, at, seconds};
use crate::flow::scenario::Scenario;

/// What happened to calls, in the order in which it happened: when, which, and how it ended.
type Ends = Vec<(f64, u32, Answer)>;

/// A replica of this kind, and what becomes of calls that come at these times with this cost and output.
fn play(backend: &str, replica: &str, calls: &[(f64, f64, f64)]) -> (Ends, usize, u64) {
    let output = if backend.contains("language-model") { "work = { output = { median = 1.0 } }" } else { "" };
    let text = format!(
        r#"
        name = "one"
        length = "1000s"
        callers = {{ deadline = "1s" }}
        backend = {{ {backend} }}
        {output}
        regimes = [{{ at = "0s", name = "only", replicas = [{{ number = 0, {replica} }}] }}]
        "#
    );
    let scenario = Scenario::from_toml(&text, "one").unwrap_or_else(|e| panic!("{e}"));
    let mut host = Host::new(&scenario.regimes[0].replicas[0], Draws::new(1, 1));
    let mut agenda: Agenda<Result<Call, Alarm>> = Agenda::default();
    for (key, &(time, cost, output)) in (0..).zip(calls) {
        agenda.at(at(time), Ok(Call { key, items: 1.0, cost, output }));
    }
    let (mut ends, mut out_of_memory, mut effects) = (Ends::new(), 0, Vec::new());
    while let Some(event) = agenda.next_before(at(1000.0)) {
        let now = agenda.now();
        match event {
            Ok(call) => host.arrive(call, now, &mut effects),
            Err(alarm) => host.wake(alarm, now, &mut effects),
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::Answer { key, answer, leaves } => ends.push((seconds(now) + leaves, key, answer)),
                Effect::Wake { at, alarm } => agenda.at(at, Err(alarm)),
                Effect::OutOfMemory => out_of_memory += 1,
                Effect::Loaded => {}
            }
        }
    }
    (ends, out_of_memory, host.preempted())
}

fn ends(ends: &Ends) -> Vec<(u64, u32, Answer)> {
    ends.iter().map(|(at, key, answer)| ((at * 1e3).round() as u64, *key, *answer)).collect()
}

use Answer::{Done, Failed, Refused};

const BATCHING: &str = r#"kind = "batching", run = "20ms", per_cost = "4ms", noise = 0.0, max_rows = 2"#;

#[test]
fn batches_run_one_after_another_and_cost_what_the_formula_says() {
    let calls = [(0.0, 1.0, 0.0), (0.001, 1.0, 0.0), (0.002, 2.0, 0.0), (0.003, 1.0, 0.0)];
    let (all, ..) = play(BATCHING, "slow = 1.0", &calls);
    assert_eq!(ends(&all), [(24, 0, Done), (56, 1, Done), (56, 2, Done), (80, 3, Done)]);
    let (all, ..) = play(BATCHING, "slow = 2.0", &calls[..1]);
    assert_eq!(ends(&all), [(48, 0, Done)]);
}

#[test]
fn above_its_memory_it_dies_with_all_it_holds_and_comes_back() {
    let calls = [(0.0, 2.0, 0.0), (0.001, 2.0, 0.0), (0.002, 2.0, 0.0), (0.5, 1.0, 0.0), (1.5, 1.0, 0.0)];
    let backend = format!(r#"{BATCHING}, memory = 5.0, reload = "1s""#);
    let (all, out_of_memory, _) = play(&backend, "slow = 1.0", &calls);
    let expected = [(2, 1, Failed), (2, 2, Failed), (2, 0, Failed), (500, 3, Failed), (1524, 4, Done)];
    assert_eq!((ends(&all), out_of_memory), (expected.to_vec(), 1));
}

#[test]
fn a_queue_has_an_end() {
    let calls = [(0.0, 1.0, 0.0), (0.001, 1.0, 0.0), (0.002, 1.0, 0.0)];
    let (all, ..) = play(&format!("{BATCHING}, queue = 1.0"), "slow = 1.0", &calls);
    assert_eq!(ends(&all)[0], (2, 2, Refused));
}

#[test]
fn a_replica_fails_calls_at_once_or_is_not_there() {
    let calls: Vec<(f64, f64, f64)> = (0..1000).map(|i| (f64::from(i) * 0.1, 1.0, 0.0)).collect();
    let (all, ..) = play(BATCHING, "failing = 0.6", &calls);
    let failed = all.iter().filter(|(.., answer)| *answer == Failed).count();
    assert!((550..650).contains(&failed), "{failed}");
    let (all, ..) = play(BATCHING, "removed = true", &calls[..2]);
    assert_eq!(ends(&all), [(0, 0, Failed), (100, 1, Failed)]);
}

#[test]
fn workers_run_side_by_side() {
    let cpu = r#"kind = "cpu", cores = 2, per_call = "4ms", per_item = "6ms", noise = 0.0"#;
    let calls = [(0.0, 1.0, 0.0), (0.001, 1.0, 0.0), (0.002, 1.0, 0.0)];
    let (all, ..) = play(cpu, "slow = 1.0", &calls);
    assert_eq!(ends(&all), [(10, 0, Done), (11, 1, Done), (20, 2, Done)]);
}

#[test]
fn a_gateway_lets_in_its_rate_and_its_slots() {
    let gateway =
        |slots| format!(r#"kind = "gateway", rate = 100.0, slots = {slots}, latency = {{ median = 0.5 }}"#);
    // Half as many calls again as the rate for 10 s; a refusal costs a fifth of a token.
    let calls: Vec<(f64, f64, f64)> = (0..1500).map(|i| (f64::from(i) / 150.0, 1.0, 0.0)).collect();
    let (all, ..) = play(&gateway("1000.0"), "slow = 1.0", &calls);
    let done = all.iter().filter(|(.., answer)| *answer == Done).count() as f64;
    // accepted + refused / 5 = 1000, accepted + refused = 1500
    assert!((done - 875.0).abs() < 10.0, "{done}");
    assert!(all.iter().all(|(.., answer)| *answer != Failed));
    // Ten at a time, half a second each: 20 a second.
    let (all, ..) = play(&gateway("10.0"), "slow = 1.0", &calls);
    let done = all.iter().filter(|(.., answer)| *answer == Done).count() as f64;
    assert!((done - 200.0).abs() <= 10.0, "{done}");
}

fn language_model(over_memory: &str, memory: &str) -> String {
    format!(
        r#"kind = "language-model", step = "10ms", step_per_sequence = "1ms", step_per_token = "0ns", noise = 0.0,
           prefill = 10000.0, memory = {memory}, over_memory = "{over_memory}", reload = "1s""#
    )
    .replace('\n', " ")
}

#[test]
fn sequences_share_steps() {
    // The first alone: prefill of 100 tokens 10 ms and a step of 11 ms; then both, 10 ms of prefill and steps of 12 ms.
    let calls = [(0.0, 100.0, 3.0), (0.001, 100.0, 2.0)];
    let (all, ..) = play(&language_model("preempts", "1000.0"), "slow = 1.0", &calls);
    assert_eq!(ends(&all), [(55, 0, Done), (55, 1, Done)]);
}

#[test]
fn over_its_memory_it_preempts_or_dies() {
    let calls = [(0.0, 100.0, 40.0), (0.001, 100.0, 40.0)];
    let (all, out_of_memory, preempted) = play(&language_model("preempts", "220.0"), "slow = 1.0", &calls);
    assert_eq!((all.len(), out_of_memory), (2, 0));
    assert!(preempted >= 1 && all.iter().all(|(.., answer)| *answer == Done));
    assert!(all[1].0 - all[0].0 > 0.2, "the younger one waited for the older: {all:?}");
    let (all, out_of_memory, preempted) = play(&language_model("dies", "220.0"), "slow = 1.0", &calls);
    assert_eq!((out_of_memory, preempted), (1, 0));
    assert!(all.iter().all(|(.., answer)| *answer == Failed));
}
