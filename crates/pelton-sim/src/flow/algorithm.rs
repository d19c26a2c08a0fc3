//! Who plays: the project's own code, and other ways beside it.

use std::fmt;
use std::str::FromStr;

use super::draw::Draws;
use super::record::Record;
use super::scenario::Scenario;
use super::window::{Aimd, Fixed, Gradient2, Vegas, Window};
use super::windowed::{self, Limits, Who};

/// A way to decide how much may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The project's client and instances; for servers that are not ours, its caller of those.
    Pelton,
    /// So many calls at each replica, split over the callers.
    Fixed(u32),
    Aimd,
    Vegas,
    Gradient2,
}

impl Algorithm {
    pub const ALL: [Algorithm; 7] = [
        Algorithm::Pelton,
        Algorithm::Fixed(8),
        Algorithm::Fixed(32),
        Algorithm::Fixed(128),
        Algorithm::Aimd,
        Algorithm::Vegas,
        Algorithm::Gradient2,
    ];

    pub fn play(self, scenario: &Scenario, seed: u64) -> Record {
        if self == Algorithm::Pelton {
            return super::real::play(scenario, seed);
        }
        let sample = windowed::sample_length(scenario);
        windowed::play(scenario, seed, &Limits::Windows(&|who| self.window(who, sample, seed)))
    }

    fn window(self, who: Who, sample: f64, seed: u64) -> Box<dyn Window> {
        match self {
            Algorithm::Fixed(calls) => Box::new(Fixed(f64::from(calls) / who.callers as f64)),
            Algorithm::Vegas => {
                let whose = (1 << 40) + (who.caller << 16) + who.replica;
                Box::new(Vegas::new(sample, Draws::new(seed, whose as u64)))
            }
            Algorithm::Gradient2 => Box::new(Gradient2::new(sample)),
            Algorithm::Aimd | Algorithm::Pelton => Box::new(Aimd::default()),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Algorithm::Fixed(calls) => f.pad(&format!("fixed-{calls}")),
            Algorithm::Pelton => f.pad("pelton"),
            Algorithm::Aimd => f.pad("aimd"),
            Algorithm::Vegas => f.pad("vegas"),
            Algorithm::Gradient2 => f.pad("gradient2"),
        }
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(calls) = name.strip_prefix("fixed-").and_then(|n| n.parse().ok()).filter(|n| *n > 0) {
            return Ok(Algorithm::Fixed(calls));
        }
        let known = Algorithm::ALL.iter().find(|known| known.to_string() == name);
        known.copied().ok_or_else(|| {
            let names: Vec<String> = Algorithm::ALL.iter().map(ToString::to_string).collect();
            format!("there is no algorithm `{name}`; there are: {}, and fixed-N for any N", names.join(", "))
        })
    }
}
