//! Measured numbers, and how they are shown.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use pelton::env::{Env, Time};
use serde::Serialize;

/// Something measured several times, and what it is compared with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) part: &'static str,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) rounds: Vec<f64>,
    pub(crate) against: Option<Against>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Against {
    pub(crate) name: String,
    pub(crate) median: f64,
    /// The figure divided by this.
    pub(crate) share: f64,
}

impl Figure {
    pub(crate) fn new(
        part: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        rounds: Vec<f64>,
    ) -> Figure {
        Figure { part, name: name.into(), unit, median: median(&rounds), rounds, against: None }
    }

    /// Compares it with something of the same unit.
    pub(crate) fn against(mut self, name: impl Into<String>, rounds: &[f64]) -> Figure {
        let other = median(rounds);
        self.against = Some(Against { name: name.into(), median: other, share: self.median / other });
        self
    }
}

pub(crate) const HEADER: &str = "part      figure                                        median unit          spread               share  against";

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { part, name, unit, median, rounds, against } = self;
        let (low, high) = rounds.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
        let spread = format!("{}..{}", number(low), number(high));
        write!(f, "{part:<9} {name:<42} {:>9} {unit:<9} {spread:>19}", number(*median))?;
        if let Some(Against { name, median, share }) = against {
            write!(f, " {:>9}  {} {unit}, {name}", number(*share), number(*median))?;
        }
        Ok(())
    }
}

/// Three digits that count.
fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 0.1 || a == 0.0 => format!("{x:.3}"),
        _ => format!("{x:.5}"),
    }
}

pub(crate) fn median(of: &[f64]) -> f64 {
    quantile(of, 0.5)
}

/// The value below which a share of them lies.
pub(crate) fn quantile(of: &[f64], share: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * sorted.len().saturating_sub(1) as f64;
    match (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract(),
        _ => f64::NAN,
    }
}

/// When something was done, and how much by then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    points: Vec<(f64, f64)>,
    total: f64,
}

impl Course {
    pub(crate) fn add(&mut self, at: Time, n: usize) {
        self.total += n as f64;
        self.points.push((at.since_origin().as_secs_f64(), self.total));
    }

    /// The part from `begin` on, without what came after the first `total`.
    pub(crate) fn cut(&self, begin: Time, total: f64) -> Course {
        let begin = begin.since_origin().as_secs_f64();
        let points: Vec<_> =
            self.points.iter().copied().filter(|(at, n)| *at >= begin && *n <= total).collect();
        Course { total: points.last().map_or(0.0, |p| p.1), points }
    }

    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// How much a second: the slope of the line with the least squares. What comes in batches makes steps, of which the first and the
    /// last one would count too much if only they were looked at.
    pub(crate) fn rate(&self) -> f64 {
        let n = self.points.len() as f64;
        let (t, y) = self.points.iter().fold((0.0, 0.0), |(t, y), p| (t + p.0 / n, y + p.1 / n));
        let (up, down) = self
            .points
            .iter()
            .fold((0.0, 0.0), |(up, down), p| (up + (p.0 - t) * (p.1 - y), down + (p.0 - t) * (p.0 - t)));
        up / down
    }
}

/// Where and when it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    processor: String,
    load: String,
    unix_millis: u64,
    /// In UTC, as in 2026-11-21.
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn look(env: &Env) -> Machine {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
        let unix_millis = env.clock.unix_millis();
        Machine {
            cores: cores(),
            processor: name.unwrap_or("unknown processor").to_owned(),
            load: load(),
            unix_millis,
            date: date(unix_millis),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; load at the begin: {}", self.name(), self.load)
    }
}

impl Machine {
    /// The day, and what it is.
    pub(crate) fn name(&self) -> String {
        format!("{}; {} cores ({})", self.date, self.cores, self.processor)
    }
}

fn date(unix_millis: u64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp((unix_millis / 1000) as i64);
    at.map_or_else(|_| "no day".to_owned(), |at| at.date().to_string())
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load over 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

pub(crate) fn write(path: &Path, machine: &Machine, quick: bool, figures: &[Figure]) -> Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let all = serde_json::json!({ "machine": machine, "quick": quick, "figures": figures });
    Ok(fs::write(path, serde_json::to_vec_pretty(&all)?)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_that_of_the_steps() {
        let mut course = Course::default();
        for batch in 0..50u64 {
            (0..32).for_each(|_| course.add(Time::from_origin(Duration::from_millis(100 + 36 * batch)), 1));
        }
        assert!((course.rate() / (32.0 / 0.036) - 1.0).abs() < 0.005, "{}", course.rate());
    }

    #[test]
    fn days_are_those_of_utc() {
        assert_eq!([0, 86_399_999, 1_795_219_200_000].map(date), ["1970-01-01", "1970-01-01", "2026-11-21"]);
    }

    #[test]
    fn quantiles_lie_between() {
        assert_eq!(
            (quantile(&[3.0, 1.0, 2.0], 0.5), quantile(&[1.0, 2.0], 0.5), quantile(&[1.0, 2.0], 1.0)),
            (2.0, 1.5, 2.0)
        );
        assert!(median(&[]).is_nan());
    }
}
