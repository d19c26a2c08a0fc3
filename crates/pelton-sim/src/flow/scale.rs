//! How what is said grows with the number of instances and callers: messages for a request, and what a change costs.
//!
//! The real state machines again, with a backend whose only property is how long it takes. Counted are messages, not bytes.

use std::collections::BTreeMap;

use pelton_core::Time;
use serde::Serialize;

use super::real;
use super::scenario::Scenario;

/// Instances and callers.
pub const SIZES: [(usize, usize); 5] = [(10, 100), (30, 300), (100, 1000), (300, 3000), (1000, 10_000)];

/// More connections than this are not simulated: each takes memory at both ends.
const MOST_CONNECTIONS: usize = 1_000_000;
/// How long is simulated.
const LENGTH: &str = "1s";
/// Requests a second for each instance where there is a rate; about half of what it can do.
const RATE: f64 = 60.0;

const CHANGES: f64 = 2.0;

/// What was measured at one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub instances: usize,
    pub callers: usize,
    pub connections_per_caller: usize,
    /// None: too many connections.
    pub counts: Option<Counts>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counts {
    /// Requests come one by one, and instances are half busy.
    pub one_by_one: PerRequest,
    /// There is always more to send.
    pub saturated: PerRequest,
    /// The mean of two: an instance is removed, and one is added, while nothing is asked for.
    pub change: Change,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PerRequest {
    pub requests: u64,
    pub messages_per_request: f64,
    /// Of these, by what they say.
    pub by_kind: BTreeMap<&'static str, f64>,
    /// Of all that is simulated, at both ends, for each request.
    pub cpu_micros_per_request: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// News of it that control gives, to all callers.
    pub deltas: f64,
    /// Messages between callers and instances because of it.
    pub messages: f64,
    /// Deltas and messages, for each caller.
    pub per_caller: f64,
}

/// Measures one size. `clock` tells how long the simulation itself takes.
pub fn measure(instances: usize, callers: usize, clock: &dyn Fn() -> Time) -> Measured {
    let idle = scenario(instances, callers, Some(1e-6), false);
    let connections_per_caller = real::connections_of_a_caller(&idle);
    let fits = connections_per_caller * callers <= MOST_CONNECTIONS;
    let counts = fits.then(|| Counts {
        one_by_one: per_request(&scenario(instances, callers, Some(RATE * instances as f64), false), clock),
        saturated: per_request(&scenario(instances, callers, None, false), clock),
        change: change(&idle, &scenario(instances, callers, Some(1e-6), true)),
    });
    Measured { instances, callers, connections_per_caller, counts }
}

fn per_request(scenario: &Scenario, clock: &dyn Fn() -> Time) -> PerRequest {
    let began = clock();
    let mut run = real::play_counted(scenario, 1);
    let took = clock().since(began).as_secs_f64();
    // Connections are made once, and not for a request.
    run.messages.remove(real::GREETING);
    let requests = (run.record.total() + run.record.late).max(1.0);
    let each = |n: &u64| *n as f64 / requests;
    PerRequest {
        requests: requests as u64,
        messages_per_request: each(&run.messages.values().sum()),
        by_kind: run.messages.iter().map(|(kind, n)| (*kind, each(n))).collect(),
        cpu_micros_per_request: took * 1e6 / requests,
    }
}

/// What there is more of with the change than without.
fn change(without: &Scenario, with: &Scenario) -> Change {
    let [before, after] = [without, with].map(|scenario| real::play_counted(scenario, 1));
    let messages = |run: &real::Counted| run.messages.values().sum::<u64>();
    let each = |more: u64| more as f64 / CHANGES;
    let deltas = each(after.deltas - before.deltas);
    let messages = each(messages(&after).saturating_sub(messages(&before)));
    let per_caller = (deltas + messages) / without.callers.number as f64;
    Change { deltas, messages, per_caller }
}

fn scenario(instances: usize, callers: usize, rate: Option<f64>, changes: bool) -> Scenario {
    let rate = rate.map_or(String::new(), |rate| format!("work = {{ rate = {rate:?} }}"));
    let changes = if changes {
        r#"{ at = "400ms", name = "one less", replicas = [{ number = 0, removed = true }] }, { at = "700ms", name = "one more" },"#
    } else {
        ""
    };
    let text = format!(
        r#"
        name = "scale"
        length = "{LENGTH}"
        replicas = {instances}
        callers = {{ number = {callers}, deadline = "1s" }}
        backend = {{ kind = "batching", run = "20ms", per_cost = "4ms", max_rows = 32 }}
        {rate}
        regimes = [{{ at = "0s", name = "all" }}, {changes}]
        "#
    );
    Scenario::from_toml(&text, "scale").expect("as it is written here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_changes_are_counted() {
        let measured = measure(4, 8, &|| Time::ZERO);
        let counts = measured.counts.expect("few connections");
        // Announce, request and result at least: permits come by themselves only where somebody waits for them.
        let single = &counts.one_by_one;
        assert!(single.requests > 150 && (3.0..20.0).contains(&single.messages_per_request), "{single:?}");
        // Some are under way at the end.
        assert!((0.5..1.1).contains(&single.by_kind["request"]), "{single:?}");
        assert!(counts.saturated.messages_per_request < single.messages_per_request, "{counts:?}");
        // Each caller hears of the one that goes and of the one that comes.
        assert_eq!(counts.change.deltas, 8.0);
        // And connects to the one that comes; what would have been acknowledged to the one that goes is not.
        assert!(counts.change.messages >= 4.0, "{counts:?}");
    }
}
