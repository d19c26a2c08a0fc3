//! Scenarios as they are written: what is common stands once, and a regime says what is different.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use super::{Backend, Callers, Regime, Replica, Scenario, Search, Spread, Work};

/// A time, written as `"20ms"` or `"1s 500ms"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Seconds(f64);

impl Seconds {
    pub const fn new(seconds: f64) -> Self {
        Seconds(seconds)
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        humantime_serde::deserialize(d).map(|duration: std::time::Duration| Seconds(duration.as_secs_f64()))
    }
}

pub(super) fn slight() -> f64 {
    0.05
}
pub(super) fn half_a_minute() -> Seconds {
    Seconds(30.0)
}
pub(super) fn many_sequences() -> usize {
    256
}
pub(super) fn unit_cost() -> Spread {
    Spread::exactly(1.0)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    about: String,
    length: Seconds,
    #[serde(default = "one")]
    replicas: usize,
    #[serde(default = "unchanged")]
    belief: f64,
    callers: WrittenCallers,
    backend: Table,
    #[serde(default)]
    work: Table,
    #[serde(default)]
    oracle: WrittenSearch,
    regimes: Vec<WrittenRegime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCallers {
    #[serde(default = "one")]
    number: usize,
    deadline: Seconds,
    #[serde(default)]
    deadline_per_token: Seconds,
    #[serde(default = "half_a_millisecond")]
    network: Seconds,
    #[serde(default = "a_tenth")]
    retry_after: Seconds,
    #[serde(default = "one")]
    items_per_call: usize,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenSearch {
    from: f64,
    to: f64,
    apart: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRegime {
    at: Seconds,
    name: String,
    #[serde(default = "unchanged")]
    slow: f64,
    #[serde(default)]
    failing: f64,
    #[serde(default)]
    backend: Table,
    #[serde(default)]
    work: Table,
    #[serde(default)]
    replicas: Vec<WrittenReplica>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReplica {
    number: usize,
    slow: Option<f64>,
    failing: Option<f64>,
    #[serde(default)]
    removed: bool,
    #[serde(default)]
    backend: Table,
}

fn one() -> usize {
    1
}
fn unchanged() -> f64 {
    1.0
}
fn half_a_millisecond() -> Seconds {
    Seconds(0.0005)
}
fn a_tenth() -> Seconds {
    Seconds(0.1)
}

impl Default for WrittenSearch {
    fn default() -> Self {
        WrittenSearch { from: 2.0, to: 300.0, apart: Vec::new() }
    }
}

pub(super) fn read(text: &str) -> Result<Scenario, String> {
    let written: Written = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    let WrittenCallers { number, deadline, deadline_per_token, network, retry_after, items_per_call } =
        written.callers;
    let WrittenSearch { from, to, apart } = written.oracle;
    let mut regimes = Vec::new();
    for regime in written.regimes {
        let named = format!("regime `{}`", regime.name);
        regimes.push(
            write_out(regime, written.replicas, &written.backend, &written.work)
                .map_err(|e| format!("{named}: {e}"))?,
        );
    }
    let scenario = Scenario {
        name: written.name,
        about: written.about,
        length: written.length.0,
        callers: Callers {
            number,
            deadline: deadline.0,
            deadline_per_token: deadline_per_token.0,
            network: network.0,
            retry_after: retry_after.0,
            items_per_call,
        },
        belief: written.belief,
        oracle: Search { from, to, apart },
        regimes,
    };
    check(&scenario)?;
    Ok(scenario)
}

/// A regime in full: what is said of all, then of this regime, then of one replica in it.
fn write_out(
    written: WrittenRegime,
    replicas: usize,
    backend: &Table,
    work: &Table,
) -> Result<Regime, String> {
    let backend = over(backend, &written.backend);
    let work: Work = typed("work", over(work, &written.work))?;
    let mut all = vec![
        Replica {
            backend: typed("backend", backend.clone())?,
            slow: written.slow,
            failing: written.failing,
            removed: false,
        };
        replicas
    ];
    for one in written.replicas {
        let Some(replica) = all.get_mut(one.number) else {
            return Err(format!(
                "`replicas.number` {} is not one of 0 to {}",
                one.number,
                replicas.max(1) - 1
            ));
        };
        let named = format!("replica {}: backend", one.number);
        *replica = Replica {
            backend: typed(&named, over(&backend, &one.backend))?,
            slow: one.slow.unwrap_or(replica.slow),
            failing: one.failing.unwrap_or(replica.failing),
            removed: one.removed,
        };
    }
    Ok(Regime { at: written.at.0, name: written.name, replicas: all, work })
}

fn over(base: &Table, changes: &Table) -> Table {
    let mut table = base.clone();
    table.extend(changes.clone());
    table
}

fn typed<T: serde::de::DeserializeOwned>(what: &str, table: Table) -> Result<T, String> {
    table
        .try_into()
        .map_err(|e: toml::de::Error| format!("{what}: {}", e.to_string().trim_end().replace('\n', " ")))
}

pub(super) fn check(scenario: &Scenario) -> Result<(), String> {
    let Scenario { length, callers, belief, oracle, regimes, .. } = scenario;
    let above_zero = |what: &str, value: f64| match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(format!("`{what}` must be above 0, not {value}")),
    };
    above_zero("length", *length)?;
    above_zero("belief", *belief)?;
    above_zero("callers.deadline", callers.deadline)?;
    above_zero("callers.number", callers.number as f64)?;
    above_zero("callers.items_per_call", callers.items_per_call as f64)?;
    above_zero("oracle.from", oracle.from)?;
    if oracle.to < oracle.from {
        return Err(format!("`oracle.to` is {}, below `oracle.from` ({})", oracle.to, oracle.from));
    }
    let Some(first) = regimes.first() else { return Err("`regimes` must not be empty".into()) };
    above_zero("replicas", first.replicas.len() as f64)?;
    if let Some(number) = oracle.apart.iter().find(|number| **number >= first.replicas.len()) {
        return Err(format!("`oracle.apart` names replica {number}; there are {}", first.replicas.len()));
    }
    if first.at != 0.0 {
        return Err(format!("the first regime must begin `at = \"0s\"`, not {}s", first.at));
    }
    for pair in regimes.windows(2) {
        if pair[1].at <= pair[0].at || pair[1].at >= *length {
            return Err(format!(
                "regime `{}` begins at {}s: not after the one before it ({}s), or not before the end ({length}s)",
                pair[1].name, pair[1].at, pair[0].at
            ));
        }
    }
    let kind = std::mem::discriminant(&first.replicas[0].backend);
    for regime in regimes {
        let named = |e: String| format!("regime `{}`: {e}", regime.name);
        for replica in &regime.replicas {
            if std::mem::discriminant(&replica.backend) != kind {
                return Err(named("`backend.kind` changes; a scenario has one kind of backend".into()));
            }
            check_replica(replica, &above_zero).map_err(named)?;
        }
        check_work(&regime.work, &first.replicas[0].backend, &above_zero).map_err(named)?;
    }
    Ok(())
}

type AboveZero<'a> = &'a dyn Fn(&str, f64) -> Result<(), String>;

fn check_replica(replica: &Replica, above_zero: AboveZero<'_>) -> Result<(), String> {
    above_zero("slow", replica.slow)?;
    if !(0.0..=1.0).contains(&replica.failing) {
        return Err(format!("`failing` is a share, from 0 to 1, not {}", replica.failing));
    }
    match &replica.backend {
        Backend::Batching(b) => {
            above_zero("backend.max_rows", f64::from(b.max_rows))?;
            above_zero("backend.run and per_cost together", b.run.0 + b.per_cost.0)?;
            above_zero("backend.memory", b.memory.unwrap_or(1.0))
        }
        Backend::LanguageModel(m) => {
            above_zero("backend.step", m.step.0)?;
            above_zero("backend.prefill", m.prefill)?;
            above_zero("backend.memory", m.memory)?;
            above_zero("backend.sequences", m.sequences as f64)
        }
        Backend::Gateway(g) => {
            above_zero("backend.rate", g.rate)?;
            above_zero("backend.slots", g.slots)?;
            above_zero("backend.latency.median", g.latency.median)
        }
        Backend::Cpu(c) => {
            above_zero("backend.cores", c.cores as f64)?;
            above_zero("backend.per_call and per_item together", c.per_call.0 + c.per_item.0)
        }
    }
}

fn check_work(work: &Work, backend: &Backend, above_zero: AboveZero<'_>) -> Result<(), String> {
    above_zero("work.cost.median", work.cost.median)?;
    above_zero("work.rate", work.rate.unwrap_or(1.0))?;
    let models = matches!(backend, Backend::LanguageModel(_));
    match &work.output {
        Some(output) if models => above_zero("work.output.median", output.median)?,
        None if models => return Err("a language model needs `work.output`".into()),
        Some(_) => return Err("`work.output` is for language models".into()),
        None => {}
    }
    let Some(burst) = work.burst else { return Ok(()) };
    above_zero("work.burst.lasts", burst.lasts.0)?;
    if work.rate.is_none() {
        return Err("`work.burst` needs `work.rate`: a saturated source has no bursts".into());
    }
    if burst.lasts >= burst.every || burst.times < 1.0 || burst.times * burst.lasts.0 > burst.every.0 {
        return Err(format!(
            "`work.burst` of {} times for {}s every {}s leaves less than nothing between the bursts",
            burst.times, burst.lasts, burst.every
        ));
    }
    Ok(())
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
