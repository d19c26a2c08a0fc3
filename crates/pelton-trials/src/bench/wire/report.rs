//! What was measured, by what it is and by whom; shown as tables, JSON and pictures.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::OURS;
use super::plot::{self, Bar, shown};
use crate::bench::figure::{Machine, load, median};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    More,
    Less,
}

#[derive(Debug, Serialize)]
struct Figure {
    part: &'static str,
    what: String,
    system: String,
    unit: &'static str,
    better: Better,
    rounds: Vec<f64>,
}

impl Figure {
    fn median(&self) -> f64 {
        median(&self.rounds)
    }

    fn is_ours(&self) -> bool {
        self.system.starts_with(OURS)
    }
}

/// Pelton's figure beside the best of the others.
#[derive(Debug, Serialize)]
struct Compared<'a> {
    part: &'static str,
    what: &'a str,
    unit: &'static str,
    system: &'a str,
    ours: f64,
    best_peer: &'a str,
    theirs: f64,
    /// How many times better ours is.
    times_better: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
    missing: Vec<String>,
    others: Vec<f64>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        part: &'static str,
        what: &str,
        system: &str,
        unit: &'static str,
        better: Better,
        value: f64,
    ) {
        match self.figures.iter_mut().find(|f| f.part == part && f.what == what && f.system == system) {
            Some(figure) => figure.rounds.push(value),
            None => self.figures.push(Figure {
                part,
                what: what.to_owned(),
                system: system.to_owned(),
                unit,
                better,
                rounds: vec![value],
            }),
        }
    }

    /// Cores that were taken meanwhile by what does not belong to the measurement.
    pub(super) fn others(&mut self, cores: f64) {
        self.others.push(cores);
    }

    pub(super) fn missing(&mut self, system: &str, why: &str) {
        let line = format!("{system}: {why}");
        if !self.missing.contains(&line) {
            eprintln!("NOT MEASURED, or not all of it: {line}");
            self.missing.push(line);
        }
    }

    fn groups(&self) -> Vec<Vec<&Figure>> {
        let mut groups: Vec<Vec<&Figure>> = Vec::new();
        for figure in &self.figures {
            match groups.iter_mut().find(|g| g[0].part == figure.part && g[0].what == figure.what) {
                Some(group) => group.push(figure),
                None => groups.push(vec![figure]),
            }
        }
        groups
    }

    fn compared(&self) -> Vec<Compared<'_>> {
        let mut all = Vec::new();
        for group in self.groups() {
            let (ours, theirs): (Vec<&Figure>, Vec<&Figure>) = group.into_iter().partition(|f| f.is_ours());
            let Some(best) = best(&theirs) else { continue };
            for figure in ours {
                let (mine, other) = (figure.median(), best.median());
                let ratio = if figure.better == Better::More { mine / other } else { other / mine };
                all.push(Compared {
                    part: figure.part,
                    what: &figure.what,
                    unit: figure.unit,
                    system: &figure.system,
                    ours: mine,
                    best_peer: &best.system,
                    theirs: other,
                    times_better: Some(ratio).filter(|r| r.is_finite()),
                });
            }
        }
        all
    }

    pub(super) fn print(&self) {
        let compared = self.compared();
        if !compared.is_empty() {
            println!(
                "\nPelton beside the best of the others (more than 1: Pelton is that many times better)"
            );
        }
        for c in &compared {
            let ratio = c.times_better.map_or("-".to_owned(), shown);
            let what = format!("{}, {}", c.what, c.unit);
            println!(
                "{ratio:>8}  {what:<52} {:<15} {:>11}  {:<9} {:>11}",
                c.system,
                shown(c.ours),
                c.best_peer,
                shown(c.theirs)
            );
        }
        for group in self.groups() {
            println!("\n{} | {}, {}", group[0].part, group[0].what, group[0].unit);
            for figure in group {
                let spread =
                    |f: fn(f64, f64) -> f64| figure.rounds.iter().copied().reduce(f).unwrap_or(f64::NAN);
                let (low, high) = (shown(spread(f64::min)), shown(spread(f64::max)));
                println!("  {:<15} {:>11}   {low} to {high}", figure.system, shown(figure.median()));
            }
        }
        for line in &self.missing {
            println!("NOT MEASURED, or not all of it: {line}");
        }
        if !self.others.is_empty() {
            let most = self.others.iter().copied().fold(0.0, f64::max);
            println!("\nothers took {:.2} cores meanwhile (median), {most:.2} at most", median(&self.others));
        }
    }

    pub(super) fn write(&self, file: &Path, machine: &Machine, quick: bool) -> Result<()> {
        if let Some(folder) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let all = serde_json::json!({
            "machine": machine, "load_at_the_end": load(), "others": self.others, "quick": quick,
            "compared": self.compared(), "figures": self.figures, "missing": self.missing,
        });
        Ok(fs::write(file, serde_json::to_vec_pretty(&all)?)?)
    }

    /// A picture for each thing that was measured of more than one system.
    pub(super) fn plot(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for group in self.groups().into_iter().filter(|g| g.len() > 1) {
            let bar = |f: &&Figure| Bar { name: f.system.clone(), value: f.median(), ours: f.is_ours() };
            let mut bars: Vec<Bar> = group.iter().map(bar).collect();
            bars.sort_by(|a, b| b.value.total_cmp(&a.value));
            let svg = plot::bars(&group[0].what, group[0].unit, &bars);
            let name: String = group[0]
                .what
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                .collect();
            let words: Vec<&str> = name.split('-').filter(|w| !w.is_empty()).collect();
            fs::write(folder.join(format!("{}-{}.svg", group[0].part, words.join("-"))), svg)?;
        }
        Ok(())
    }
}

fn best<'a>(figures: &[&'a Figure]) -> Option<&'a Figure> {
    let order = |a: &&&Figure, b: &&&Figure| match a.better {
        Better::More => a.median().total_cmp(&b.median()),
        Better::Less => b.median().total_cmp(&a.median()),
    };
    figures.iter().max_by(order).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ratio of ours to the best of the others, and who that is.
    fn check(better: Better, figures: &[(&str, f64)], expected: (Option<f64>, &str)) {
        let mut report = Report::default();
        figures.iter().for_each(|(system, value)| report.add("p", "w", system, "u", better, *value));
        let compared = report.compared();
        assert_eq!((compared[0].times_better, compared[0].best_peer), expected, "{figures:?}");
    }

    #[test]
    fn the_best_of_the_others_is_what_counts() {
        check(Better::More, &[("pelton", 10.0), ("a", 5.0), ("b", 2.0)], (Some(2.0), "a"));
        check(Better::Less, &[("pelton", 10.0), ("a", 5.0), ("b", 2.0)], (Some(0.2), "b"));
        check(Better::Less, &[("a", 5.0), ("pelton, window", 0.0)], (None, "a"));
    }

    #[test]
    fn rounds_of_one_figure_come_together() {
        let mut report = Report::default();
        for value in [3.0, 1.0, 2.0] {
            report.add("p", "w", "pelton", "u", Better::More, value);
        }
        assert_eq!((report.figures.len(), report.figures[0].median()), (1, 2.0));
        assert!(report.compared().is_empty(), "nobody to compare with");
    }
}
