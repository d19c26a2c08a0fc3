//! Scenarios: backends, how they and the work change over time, and who calls. `scenarios/README.md` describes the files.

mod jitter;
mod written;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::draw::Spread;
pub use written::Seconds;

/// A scenario as it is played: checked, and each regime written out in full. All times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scenario {
    pub name: String,
    pub about: String,
    pub length: f64,
    pub callers: Callers,
    /// What an instance believes its memory to be, as a factor of what it is.
    pub belief: f64,
    pub oracle: Search,
    /// In the order of time; the first begins at 0.
    pub regimes: Vec<Regime>,
}

/// Who calls, and within what time an answer is worth something.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Callers {
    pub number: usize,
    pub deadline: f64,
    /// What the deadline grows by with each output token.
    pub deadline_per_token: f64,
    /// One way.
    pub network: f64,
    /// How long a place in a window rests after a refusal (half to one and a half times this).
    pub retry_after: f64,
    /// Items that a windowed caller puts in one call.
    pub items_per_call: usize,
}

/// Where the oracle looks for windows, in calls for each replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Search {
    pub from: f64,
    pub to: f64,
    /// Replicas that may have a window of their own.
    pub apart: Vec<usize>,
}

/// What holds from a moment on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regime {
    pub at: f64,
    pub name: String,
    pub replicas: Vec<Replica>,
    pub work: Work,
}

/// One copy of the backend, and how it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replica {
    pub backend: Backend,
    /// A factor of every time that it takes.
    pub slow: f64,
    /// The share of calls that fail at once.
    pub failing: f64,
    pub removed: bool,
}

/// What a backend is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Backend {
    Batching(Batching),
    LanguageModel(LanguageModel),
    Gateway(Gateway),
    Cpu(Cpu),
}

/// Runs whole batches, one after another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// A run takes `run + per_cost * (sum of costs)`.
    pub run: Seconds,
    pub per_cost: Seconds,
    #[serde(default = "written::slight")]
    pub noise: f64,
    pub max_rows: u32,
    /// Cost that may wait and run; above it the process dies with all that it holds. None: no cliff.
    #[serde(default)]
    pub memory: Option<f64>,
    /// How long it takes to come back.
    #[serde(default = "written::half_a_minute")]
    pub reload: Seconds,
    /// Items that may wait; more are refused. None: any number.
    #[serde(default)]
    pub queue: Option<f64>,
}

/// A language model with continuous batching.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageModel {
    /// A step takes `step + step_per_sequence * sequences + step_per_token * resident tokens`, and the prefill of new prompts.
    pub step: Seconds,
    pub step_per_sequence: Seconds,
    pub step_per_token: Seconds,
    #[serde(default = "written::slight")]
    pub noise: f64,
    /// Prompt tokens a second.
    pub prefill: f64,
    /// Tokens that may be resident.
    pub memory: f64,
    pub over_memory: OverMemory,
    #[serde(default = "written::many_sequences")]
    pub sequences: usize,
    #[serde(default = "written::half_a_minute")]
    pub reload: Seconds,
    #[serde(default)]
    pub queue: Option<f64>,
}

/// What a language model does with more tokens than its memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverMemory {
    /// The youngest sequences are put back, and computed again later.
    Preempts,
    /// The process dies with all that it holds.
    Dies,
}

/// Somebody else's server behind a gateway; its latency does not depend on our load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Calls a second that the token bucket lets in; it holds a quarter of a second's.
    pub rate: f64,
    /// How far other tenants move the rate up and down, as a share.
    #[serde(default)]
    pub sway: f64,
    /// Calls at a time.
    pub slots: f64,
    pub latency: Spread,
}

/// Workers that run calls side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    pub cores: usize,
    /// A call takes `per_call + per_item * items`.
    pub per_call: Seconds,
    pub per_item: Seconds,
    #[serde(default = "written::slight")]
    pub noise: f64,
    #[serde(default)]
    pub queue: Option<f64>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Of an item, in the backend's unit; for a language model prompt tokens.
    #[serde(default = "written::unit_cost")]
    pub cost: Spread,
    /// Output tokens, for a language model.
    #[serde(default)]
    pub output: Option<Spread>,
    /// Items a second, over all callers. None: there is always more to send.
    #[serde(default)]
    pub rate: Option<f64>,
    #[serde(default)]
    pub burst: Option<Burst>,
}

/// Arrivals that come in bursts; their mean rate stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// How much faster they come in a burst.
    pub times: f64,
    pub lasts: Seconds,
    pub every: Seconds,
}

impl Scenario {
    /// Reads a scenario from TOML; `origin` names it in messages.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, String> {
        written::read(text).map_err(|e| format!("scenario {origin}: {e}"))
    }

    /// Reads the scenario of this name in `folder`, or the file at this path.
    pub fn find(which: &str, folder: &Path) -> Result<Self, String> {
        let named = folder.join(format!("{which}.toml"));
        let path = if named.is_file() { named } else { PathBuf::from(which) };
        let text = std::fs::read_to_string(&path).map_err(|e| {
            let known = names(folder).join(", ");
            format!("there is no scenario `{which}`, and no file of this name can be read ({e}); there are: {known}")
        })?;
        Scenario::from_toml(&text, &path.display().to_string())
    }

    /// Refuses values that cannot be played.
    pub fn checked(self) -> Result<Self, String> {
        written::check(&self).map_err(|e| format!("scenario {}: {e}", self.name))?;
        Ok(self)
    }

    /// The regime that holds at this time, by its place.
    pub fn regime_at(&self, seconds: f64) -> usize {
        self.regimes.iter().rposition(|r| r.at <= seconds).unwrap_or(0)
    }

    pub fn regime_end(&self, regime: usize) -> f64 {
        self.regimes.get(regime + 1).map_or(self.length, |next| next.at)
    }

    /// Within what time an answer with this many output tokens is worth something.
    pub fn deadline(&self, output: u32) -> f64 {
        self.callers.deadline + self.callers.deadline_per_token * f64::from(output)
    }

    pub fn replicas(&self) -> usize {
        self.regimes[0].replicas.len()
    }
}

impl Work {
    /// The rate of arrivals at a time, over all callers.
    pub fn rate_at(&self, seconds: f64) -> Option<f64> {
        let rate = self.rate?;
        let Some(Burst { times, lasts, every }) = self.burst else { return Some(rate) };
        let (lasts, every) = (lasts.get(), every.get());
        let between = (every - times * lasts) / (every - lasts);
        Some(rate * if seconds % every < lasts { times } else { between })
    }
}

impl Work {
    /// The rate of arrivals of one of so many callers. Never none at all, so that whoever waits for the next one looks again.
    pub fn rate_of_one(&self, seconds: f64, callers: usize) -> Option<f64> {
        let least = 1e-4 * self.rate?;
        Some((self.rate_at(seconds)? / callers as f64).max(least))
    }
}

/// The names of the scenarios in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
