//! What was measured, by what it is and by whom; shown as tables, JSON and pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::figure::{Machine, load, median};
use super::plot::{self, Bar, Panel, shown};

/// What Pelton's own figures are called, or begin with.
pub(crate) const OURS: &str = "pelton";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
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

    fn bar(&self) -> Bar {
        let spread = |f: fn(f64, f64) -> f64| self.rounds.iter().copied().reduce(f).unwrap_or(f64::NAN);
        Bar {
            name: self.system.clone(),
            value: self.median(),
            low: spread(f64::min),
            high: spread(f64::max),
            ours: self.is_ours(),
        }
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
    /// How many times better ours is; none if one of the two is 0.
    times_better: Option<f64>,
}

/// What one of Pelton's figures should be.
#[derive(Debug, Serialize)]
pub(crate) struct Aim {
    what: &'static str,
    system: &'static str,
    /// As a multiple of this system's; none: by itself.
    of: Option<&'static str>,
    better: Better,
    limit: f64,
}

impl Aim {
    /// At least so many times another system's.
    pub(crate) const fn least(what: &'static str, system: &'static str, of: &'static str, times: f64) -> Aim {
        Aim { what, system, of: Some(of), better: Better::More, limit: times }
    }

    /// At most so much.
    pub(crate) const fn most(what: &'static str, system: &'static str, limit: f64) -> Aim {
        Aim { what, system, of: None, better: Better::Less, limit }
    }
}

/// An aim, and what came of it.
#[derive(Debug, Serialize)]
struct Reached<'a> {
    #[serde(flatten)]
    aim: &'a Aim,
    value: f64,
    reached: bool,
}

#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    quick: bool,
    /// Of each system.
    versions: BTreeMap<String, String>,
    figures: Vec<Figure>,
    aims: &'static [Aim],
    missing: Vec<String>,
    others: Vec<f64>,
    load_at_the_end: String,
}

impl Report {
    pub(crate) fn new(machine: Machine, quick: bool) -> Report {
        Report {
            machine,
            quick,
            versions: BTreeMap::new(),
            figures: Vec::new(),
            aims: &[],
            missing: Vec::new(),
            others: Vec::new(),
            load_at_the_end: String::new(),
        }
    }

    pub(crate) fn version(&mut self, system: &str, version: &str) {
        self.versions.insert(system.to_owned(), version.to_owned());
    }

    /// All has been measured.
    pub(crate) fn end(&mut self) {
        self.load_at_the_end = load();
    }

    pub(crate) fn add(
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
    pub(crate) fn others(&mut self, cores: f64) {
        self.others.push(cores);
    }

    pub(crate) fn missing(&mut self, system: &str, why: &str) {
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
                    times_better: Some(ratio).filter(|r| r.is_finite() && *r > 0.0),
                });
            }
        }
        all
    }

    /// What some of the figures should be.
    pub(crate) fn aims(&mut self, aims: &'static [Aim]) {
        self.aims = aims;
    }

    /// The aims whose figures were measured.
    fn reached(&self) -> Vec<Reached<'_>> {
        let value = |what: &str, system: &str| {
            self.figures.iter().find(|f| f.what == what && f.system == system).map(Figure::median)
        };
        let reached = self.aims.iter().filter_map(|aim| {
            let ours = value(aim.what, aim.system)?;
            let value = match aim.of {
                Some(other) => ours / value(aim.what, other)?,
                None => ours,
            };
            let reached = if aim.better == Better::More { value >= aim.limit } else { value <= aim.limit };
            Some(Reached { aim, value, reached })
        });
        reached.collect()
    }

    /// When, where and what was measured.
    fn circumstances(&self) -> [String; 2] {
        let versions: Vec<String> = self.versions.iter().map(|(s, v)| format!("{s} {v}")).collect();
        let effort = if self.quick { "; --quick: not to compare" } else { "" };
        let others = match self.others.as_slice() {
            [] => String::new(),
            others => {
                let most = others.iter().copied().fold(0.0, f64::max);
                format!("; others took {:.2} cores meanwhile (median), {most:.2} at most", median(others))
            }
        };
        [format!("{}{others}{effort}", self.machine.name()), versions.join("; ")]
    }

    pub(crate) fn print(&self) {
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
                let Bar { name, value, low, high, .. } = figure.bar();
                println!("  {name:<15} {:>11}   {} to {}", shown(value), shown(low), shown(high));
            }
        }
        let reached = self.reached();
        if !reached.is_empty() {
            println!("\nwhat it should be");
        }
        for Reached { aim, value, reached } in reached {
            let most = if aim.better == Better::More { "at least" } else { "at most" };
            let of = aim.of.map_or(String::new(), |of| format!(" times {of}"));
            let no = if reached { "" } else { "  NOT REACHED" };
            let (value, limit) = (shown(value), shown(aim.limit));
            println!("{value:>8}{of} ({most} {limit}): {}, {}{no}", aim.what, aim.system);
        }
        for line in &self.missing {
            println!("NOT MEASURED, or not all of it: {line}");
        }
        let [where_and_when, versions] = self.circumstances();
        println!("\n{where_and_when}; load at the end: {}\n{versions}", self.load_at_the_end);
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let all = serde_json::json!({
            "machine": self.machine, "versions": self.versions, "quick": self.quick,
            "load_at_the_end": self.load_at_the_end, "others": self.others,
            "compared": self.compared(), "figures": self.figures, "aims": self.reached(), "missing": self.missing,
        });
        Ok(fs::write(file, serde_json::to_vec_pretty(&all)?)?)
    }

    /// A picture for each load, or part, that was measured of more than one system; `title` is given the part and what it was of.
    pub(crate) fn plot(&self, folder: &Path, title: fn(&str, &str) -> String) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut pictures: Vec<(&str, &str, Vec<Panel>)> = Vec::new();
        for group in self.groups().into_iter().filter(|g| g.len() > 1) {
            // What it was of stands before the colon.
            let (of, which) = group[0].what.split_once(": ").unwrap_or(("", group[0].what.as_str()));
            let mut bars: Vec<Bar> = group.iter().map(|f| f.bar()).collect();
            bars.sort_by(|a, b| b.ours.cmp(&a.ours).then(a.name.cmp(&b.name)));
            let (title, unit) = (which.to_owned(), group[0].unit);
            let panel = Panel { title, unit, more_is_better: group[0].better == Better::More, bars };
            match pictures.iter_mut().find(|p| (p.0, p.1) == (group[0].part, of)) {
                Some(picture) => picture.2.push(panel),
                None => pictures.push((group[0].part, of, vec![panel])),
            }
        }
        let below = self.circumstances();
        for (part, of, panels) in pictures {
            let all = format!("{part} {of}").to_ascii_lowercase();
            let words: Vec<&str> =
                all.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
            let title = title(part, of);
            fs::write(folder.join(words.join("-") + ".svg"), plot::picture(&title, &panels, &below))?;
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

    fn report() -> Report {
        let host = pelton::env::real::Host::new(1, 1).unwrap();
        Report::new(Machine::look(host.env()), true)
    }

    /// The ratio of ours to the best of the others, and who that is.
    fn check(better: Better, figures: &[(&str, f64)], expected: (Option<f64>, &str)) {
        let mut report = report();
        figures.iter().for_each(|(system, value)| report.add("p", "w", system, "u", better, *value));
        let compared = report.compared();
        assert_eq!((compared[0].times_better, compared[0].best_peer), expected, "{figures:?}");
    }

    #[test]
    fn the_best_of_the_others_is_what_counts() {
        check(Better::More, &[("pelton", 10.0), ("a", 5.0), ("b", 2.0)], (Some(2.0), "a"));
        check(Better::Less, &[("pelton", 10.0), ("a", 5.0), ("b", 2.0)], (Some(0.2), "b"));
        check(Better::Less, &[("a", 5.0), ("pelton, window", 0.0)], (None, "a"));
        check(Better::Less, &[("a", 0.0), ("pelton", 5.0)], (None, "a"));
    }

    #[test]
    fn rounds_of_one_figure_come_together() {
        let mut report = report();
        for value in [3.0, 1.0, 2.0] {
            report.add("p", "w", "pelton", "u", Better::More, value);
        }
        assert_eq!((report.figures.len(), report.figures[0].median()), (1, 2.0));
        assert!(report.compared().is_empty(), "nobody to compare with");
    }

    #[test]
    fn loads_have_a_picture_each() {
        let mut report = report();
        for system in ["pelton", "a"] {
            report.add("calls", "100 B, 1 in flight: median", system, "us", Better::Less, 1.0);
            report.add("calls", "100 B, 1 in flight: 99 %", system, "us", Better::Less, 2.0);
            report.add("kill", "calls that hung", system, "calls", Better::Less, 0.0);
        }
        report.add("memory", "1 GB: alone", "pelton", "MB", Better::Less, 1.0);
        let folder = tempfile::tempdir().unwrap();
        report.plot(folder.path(), |part, of| format!("{part}: {of}")).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["calls-100-b-1-in-flight.svg", "kill.svg"]);
    }
}
