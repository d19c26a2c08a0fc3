//! What is shown: tables, one JSON object a line, and what happened over time.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::algorithm::Algorithm;
use super::record::{Record, SLICES};
use super::scale::{Counts, Measured};
use super::scenario::Scenario;
use super::suite::{Row, Suite};

const COLUMNS: [&str; 9] = [
    "algorithm",
    "ratio",
    "worst seed",
    "worst regime",
    "p99/deadline",
    "oom",
    "refused/1000",
    "reconverge",
    "jain",
];

/// One table a scenario, and one of the ratios of all.
pub fn tables(suite: &Suite, rows: &[Row]) -> String {
    let mut text = String::new();
    for (i, scenario) in suite.scenarios.iter().enumerate() {
        let _ = writeln!(text, "{}: {}", scenario.name, scenario.about);
        let mut table = vec![COLUMNS.map(String::from).to_vec()];
        for Row { algorithm, summary: s, .. } in rows.iter().filter(|row| row.scenario == i) {
            table.push(vec![
                algorithm.to_string(),
                format!("{:.3}", s.ratio),
                format!("{:.3}", s.ratio_worst_seed),
                format!("{:.2}", s.worst_regime),
                format!("{:.2}", s.p99_over_deadline),
                format!("{}", s.oom),
                format!("{:.1}", s.refusals_per_1000),
                format!("{:.2} s", s.reconverge_s),
                format!("{:.4}", s.jain),
            ]);
        }
        text.push_str(&aligned(&table));
        text.push('\n');
    }
    text.push_str(&overview(suite, rows));
    text
}

fn overview(suite: &Suite, rows: &[Row]) -> String {
    let mut head = vec!["goodput over the oracle's".to_owned()];
    head.extend(suite.scenarios.iter().map(|s| s.name.clone()));
    head.extend(["worst".to_owned(), "mean".to_owned()]);
    let mut table = vec![head];
    for algorithm in &suite.algorithms {
        let ratio = |scenario| {
            let row = rows.iter().find(|row| row.scenario == scenario && row.algorithm == *algorithm);
            row.map(|row| row.summary.ratio)
        };
        let ratios: Vec<Option<f64>> = (0..suite.scenarios.len()).map(ratio).collect();
        let played: Vec<f64> = ratios.iter().flatten().copied().collect();
        if played.is_empty() {
            continue;
        }
        let mut line = vec![algorithm.to_string()];
        line.extend(ratios.iter().map(|ratio| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"))));
        line.push(format!("{:.3}", played.iter().copied().fold(f64::INFINITY, f64::min)));
        line.push(format!("{:.3}", played.iter().sum::<f64>() / played.len() as f64));
        table.push(line);
    }
    aligned(&table)
}

/// What was measured of how things grow.
pub fn scale(all: &[Measured]) -> String {
    let heads = [
        "instances",
        "callers",
        "connections/caller",
        "messages/request",
        "saturated",
        "us/request",
        "saturated",
        "deltas/change",
        "messages/change",
        "both/caller",
    ];
    let mut table = vec![heads.map(String::from).to_vec()];
    for measured in all {
        let mut line = vec![
            measured.instances.to_string(),
            measured.callers.to_string(),
            measured.connections_per_caller.to_string(),
        ];
        line.extend(match &measured.counts {
            Some(Counts { one_by_one, saturated, change }) => vec![
                format!("{:.2}", one_by_one.messages_per_request),
                format!("{:.2}", saturated.messages_per_request),
                format!("{:.1}", one_by_one.cpu_micros_per_request),
                format!("{:.1}", saturated.cpu_micros_per_request),
                format!("{:.0}", change.deltas),
                format!("{:.0}", change.messages),
                format!("{:.2}", change.per_caller),
            ],
            None => vec!["too many connections to simulate".to_owned()],
        });
        table.push(line);
    }
    aligned(&table)
}

/// The first column to the left, the others to the right.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| table.iter().filter_map(|line| line.get(i)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in table {
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if i == 0 { write!(text, "  {cell:width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

/// One line of JSON for a row.
pub fn json(suite: &Suite, row: &Row, jitter: Option<u64>) -> String {
    let scenario = &suite.scenarios[row.scenario];
    let mut object = json!({
        "scenario": scenario.name,
        "algorithm": row.algorithm.to_string(),
        "seeds": suite.seeds,
        "callers": scenario.callers.number,
        "belief": scenario.belief,
        "jitter": jitter,
    });
    if let (Value::Object(object), Ok(Value::Object(summary))) =
        (&mut object, serde_json::to_value(&row.summary))
    {
        object.extend(summary);
    }
    object.to_string()
}

/// Slices of time in one line of a trace.
const LINE: usize = 5;

/// A run over time beside the oracle's.
pub fn trace(scenario: &Scenario, algorithm: Algorithm, seed: u64, run: &Record, oracle: &Record) -> String {
    let ratios: Vec<String> = run
        .good
        .iter()
        .zip(&oracle.good)
        .map(|(run, oracle)| format!("{:.3}", run / oracle.max(1.0)))
        .collect();
    let mut text = format!(
        "{} with {algorithm}, seed {seed}: {:.3} of the oracle ({} by regime), oom {}, refused {}, failed {}, late {}, tried again {}, preempted {}\n",
        scenario.name,
        run.total() / oracle.total().max(1.0),
        ratios.join(" "),
        run.out_of_memory,
        run.refused,
        run.failed,
        run.late,
        run.again,
        run.preempted,
    );
    let heads = ["s", "in flight", "oracle", "permits", "goodput/s", "oracle", "ratio", ""];
    let mut table = vec![heads.map(String::from).to_vec()];
    for from in (0..SLICES).step_by(LINE) {
        let begins = from as f64 * run.slice();
        let mean = |values: &[f64]| values[from..from + LINE].iter().sum::<f64>() / LINE as f64;
        let (good, best) =
            (mean(&run.good_by_slice) / run.slice(), mean(&oracle.good_by_slice) / run.slice());
        let begun =
            scenario.regimes.iter().find(|r| r.at >= begins && r.at < begins + LINE as f64 * run.slice());
        table.push(vec![
            format!("{begins:.2}"),
            format!("{:.1}", mean(&run.in_flight)),
            format!("{:.1}", mean(&oracle.in_flight)),
            format!("{:.1}", mean(&run.permits)),
            format!("{good:.1}"),
            format!("{best:.1}"),
            format!("{:.2}", if best > 0.0 { good / best } else { 0.0 }),
            begun.map(|regime| regime.name.clone()).unwrap_or_default(),
        ]);
    }
    text.push_str(&aligned(&table));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_one_another() {
        let table = [vec!["a".to_owned(), "ratio".to_owned()], vec!["longer".to_owned(), "1.0".to_owned()]];
        assert_eq!(aligned(&table), "  a       ratio\n  longer    1.0\n");
    }
}
