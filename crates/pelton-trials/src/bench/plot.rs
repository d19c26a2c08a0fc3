//! Pictures as SVG: the things that were measured of one load, side by side, a panel each.

use std::fmt::Write as _;

/// One thing that was measured, of several systems.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
    pub(crate) bars: Vec<Bar>,
}

/// One system's figure, with its lowest and highest round.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Drawn in the colour of our own.
    pub(crate) ours: bool,
}

const OURS: &str = "#2563a8";
const OTHERS: &str = "#a3afbd";
const INK: &str = "#1f2933";
const FAINT: &str = "#5f6b7a";
const GRID: &str = "#e2e6eb";

const ROW: f64 = 22.0;
const NAMES: f64 = 110.0;
const WIDE: f64 = 230.0;
const VALUES: f64 = 80.0;
const PANEL: f64 = NAMES + WIDE + VALUES;
/// Above a panel's bars (its title), and below them (the scale and its name).
const OVER: f64 = 26.0;
const UNDER: f64 = 46.0;
/// Above all panels (title and legend), and below them (when, where, what).
const HEAD: f64 = 62.0;
const FOOT: f64 = 46.0;
const MARGIN: f64 = 16.0;
/// Letters in a line of the foot, for each panel that is side by side.
const LETTERS: usize = 68;

/// Where values are from left to right. Where the largest is more than 20 times the smallest, on a logarithmic scale.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(bars: &[Bar]) -> Scale {
        let values =
            || bars.iter().flat_map(|b| [b.value, b.low, b.high]).filter(|v| v.is_finite() && *v > 0.0);
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        if most == 0.0 {
            return Scale { low: 0.0, high: 1.0, logarithmic: false };
        }
        if most / least > 20.0 {
            let (low, high) = (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil()));
            return Scale { low, high: high.max(low * 10.0), logarithmic: true };
        }
        let step = step(most);
        Scale { low: 0.0, high: (most / step).ceil() * step, logarithmic: false }
    }

    /// From 0 to 1.
    fn at(&self, value: f64) -> f64 {
        if !value.is_finite() {
            return 0.0;
        }
        let share = match self.logarithmic {
            true => (value.max(self.low) / self.low).log10() / (self.high / self.low).log10(),
            false => value / self.high,
        };
        share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers = (self.high / self.low).log10().round() as i32;
            // Not more than fit beside each other.
            let every = powers / 5 + 1;
            return (0..=powers).step_by(every as usize).map(|p| self.low * 10f64.powi(p)).collect();
        }
        let step = step(self.high);
        (0..=(self.high / step).round() as i32).map(|n| f64::from(n) * step).collect()
    }
}

/// Between ticks: 1, 2 or 5 times a power of ten, so that there are three to five of them.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|n| n * power)
        .into_iter()
        .find(|step| most / step <= 5.0)
        .unwrap_or(10.0 * power)
}

/// Panels under a title, two side by side; `below`: lines under them.
pub(crate) fn picture(title: &str, panels: &[Panel], below: &[String]) -> String {
    let columns = panels.len().min(2);
    let rows: Vec<&[Panel]> = panels.chunks(2).collect();
    let tall = |row: &[Panel]| {
        let most = row.iter().map(|p| p.bars.len()).max().unwrap_or(0);
        OVER + ROW * most as f64 + UNDER
    };
    let foot: Vec<String> = below.iter().flat_map(|line| folded(line, LETTERS * columns)).collect();
    let width = MARGIN + columns as f64 * (PANEL + MARGIN);
    let height =
        HEAD + rows.iter().map(|row| tall(row)).sum::<f64>() + FOOT.max(16.0 * foot.len() as f64 + 14.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, MARGIN, 24.0, "font-size=\"16\" font-weight=\"bold\"", title);
    legend(&mut svg, panels);
    let mut y = HEAD;
    for row in rows {
        for (column, panel) in row.iter().enumerate() {
            draw(&mut svg, panel, MARGIN + column as f64 * (PANEL + MARGIN), y);
        }
        y += tall(row);
    }
    for (number, line) in foot.iter().enumerate() {
        text(
            &mut svg,
            MARGIN,
            y + 14.0 + 16.0 * number as f64,
            &format!("fill=\"{FAINT}\" font-size=\"11\""),
            line,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// What the colours mean, and the lines across the bars if there are any.
fn legend(svg: &mut String, panels: &[Panel]) {
    let mut x = MARGIN;
    for (colour, name) in [(OURS, "Pelton"), (OTHERS, "others")] {
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"38\" width=\"12\" height=\"10\" fill=\"{colour}\"/>");
        text(svg, x + 17.0, 47.0, "", name);
        x += 72.0;
    }
    if panels.iter().flat_map(|p| &p.bars).any(|b| b.high > b.low) {
        whisker(svg, x, x + 22.0, 43.0);
        text(svg, x + 28.0, 47.0, "", "lowest to highest round (bar or point: the median)");
    }
}

fn draw(svg: &mut String, panel: &Panel, x: f64, y: f64) {
    let scale = Scale::of(&panel.bars);
    let better = if panel.more_is_better { "more is better" } else { "less is better" };
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\"><tspan font-weight=\"bold\" font-size=\"13\">{}</tspan><tspan fill=\"{FAINT}\"> ({better})</tspan></text>",
        y + 14.0,
        escaped(&panel.title)
    );
    let (left, top) = (x + NAMES, y + OVER);
    let bottom = top + ROW * panel.bars.len() as f64;
    for tick in scale.ticks() {
        let at = left + WIDE * scale.at(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"{GRID}\"/>"
        );
        text(
            svg,
            at,
            bottom + 14.0,
            &format!("text-anchor=\"middle\" fill=\"{FAINT}\" font-size=\"11\""),
            &rounded(tick),
        );
    }
    let logarithmic = if scale.logarithmic { ", logarithmic scale" } else { "" };
    let axis = format!("{}{logarithmic}", panel.unit);
    text(
        svg,
        left + WIDE / 2.0,
        bottom + 30.0,
        &format!("text-anchor=\"middle\" fill=\"{FAINT}\" font-size=\"11\""),
        &axis,
    );
    for (number, bar) in panel.bars.iter().enumerate() {
        let middle = top + ROW * (number as f64 + 0.5);
        let (fill, weight) = if bar.ours { (OURS, " font-weight=\"bold\"") } else { (OTHERS, "") };
        let long = WIDE * scale.at(bar.value);
        text(svg, left - 7.0, middle + 4.0, &format!("text-anchor=\"end\"{weight}"), &bar.name);
        // Where the scale has no 0, the length of a bar would mean nothing: a point.
        let _ = match scale.logarithmic {
            true if bar.value > 0.0 => writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{middle:.1}\" x2=\"{0:.1}\" y2=\"{middle:.1}\" stroke=\"{fill}\"/>\
                 <circle cx=\"{0:.1}\" cy=\"{middle:.1}\" r=\"5.5\" fill=\"{fill}\"/>",
                left + long
            ),
            true => Ok(()),
            false => writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{:.1}\" width=\"{long:.1}\" height=\"14\" fill=\"{fill}\"/>",
                middle - 7.0
            ),
        };
        let mut end = long;
        if bar.high > bar.low {
            end = WIDE * scale.at(bar.high);
            whisker(svg, left + WIDE * scale.at(bar.low), left + end, middle);
        }
        text(svg, left + end.max(long) + 9.0, middle + 4.0, weight.trim_start(), &shown(bar.value));
    }
}

/// A line from here to there, with ends.
fn whisker(svg: &mut String, from: f64, to: f64, y: f64) {
    let (over, under) = (y - 3.0, y + 3.0);
    let _ = writeln!(
        svg,
        "<path d=\"M{from:.1} {over:.1}V{under:.1}M{from:.1} {y:.1}H{to:.1}M{to:.1} {over:.1}V{under:.1}\" stroke=\"{INK}\" fill=\"none\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, what: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escaped(what));
}

/// A line as several of so many letters at most, where its words allow it.
fn folded(line: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if last.is_empty() {
            last.push_str(word);
        } else if last.len() + 1 + word.len() <= letters {
            *last += " ";
            *last += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Three digits that count, thousands apart; whole numbers whole.
pub(crate) fn shown(x: f64) -> String {
    let text = match x.abs() {
        a if a >= 100.0 || x.fract() == 0.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    };
    let whole = text.find('.').unwrap_or(text.len());
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i > 0 && i < whole && (whole - i).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A number that is round already.
fn rounded(x: f64) -> String {
    let text = shown(x);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, value: f64) -> Bar {
        Bar { name: name.to_owned(), value, low: value * 0.9, high: value * 1.1, ours: name == "a" }
    }

    fn panel(values: &[(&str, f64)]) -> Panel {
        let bars = values.iter().map(|(name, value)| bar(name, *value)).collect();
        Panel { title: "calls <all>".to_owned(), unit: "calls/s", more_is_better: true, bars }
    }

    #[test]
    fn numbers_are_short() {
        for (x, expected) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.5, "1.50"),
            (2.0, "2"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234567.0, "1,234,567"),
        ] {
            assert_eq!(shown(x), expected);
        }
    }

    #[test]
    fn scales_begin_at_nothing_unless_values_lie_far_apart() {
        for (values, expected) in [
            (&[8.0, 3.0][..], &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0][..]),
            (&[0.09, 0.03], &[0.0, 0.02, 0.04, 0.06, 0.08, 0.1]),
            (&[90.0, 0.0], &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (&[5000.0, 12.0], &[10.0, 100.0, 1000.0, 10_000.0]),
            (&[0.0, 0.0], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ] {
            let bars: Vec<Bar> = values.iter().map(|value| bar("x", *value)).collect();
            let ticks = Scale::of(&bars).ticks();
            let alike = ticks.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9 * b.max(1.0));
            assert!(alike && ticks.len() == expected.len(), "{values:?}: {ticks:?}");
        }
    }

    /// The ends of what is drawn for each system, as `before` stands before their numbers.
    fn ends(values: &[(&str, f64)], before: &str) -> Vec<f64> {
        let svg = picture("all", &[panel(values)], &["here & now".to_owned()]);
        assert!(
            svg.contains("calls &lt;all&gt;") && svg.contains("here &amp; now") && svg.ends_with("</svg>\n")
        );
        let number = |rest: &str| rest.split('"').next()?.parse().ok();
        svg.split(before).skip(1).filter_map(number).collect()
    }

    #[test]
    fn what_is_more_is_further_to_the_right() {
        let points = ends(&[("a", 1000.0), ("b", 10.0), ("none", 0.0)], "<circle cx=\"");
        assert!(points.len() == 2 && points[0] > points[1], "{points:?}");
        let bars = ends(&[("a", 100.0), ("b", 90.0), ("none", f64::NAN)], "<rect x=\"126\" y=\"");
        assert_eq!(bars.len(), 3);
        let svg = picture("all", &[panel(&[("a", 100.0), ("b", 90.0)])], &[]);
        let long: Vec<f64> = svg
            .split("height=\"14\"")
            .filter_map(|r| r.rsplit("width=\"").next()?.split('"').next()?.parse().ok())
            .collect();
        assert!(long[0] > long[1], "{long:?}");
    }

    #[test]
    fn long_lines_are_folded_between_words() {
        assert_eq!(folded("one two three", 8), ["one two", "three"]);
        assert_eq!(folded("", 8), [""]);
    }
}
