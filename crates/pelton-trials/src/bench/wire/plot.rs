//! Bars as SVG: one picture for each thing that was measured, on a scale of powers of ten.

use std::fmt::Write as _;

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    /// Drawn in the colour of our own.
    pub(super) ours: bool,
}

const ROW: f64 = 26.0;
const NAMES: f64 = 190.0;
const WIDE: f64 = 420.0;
const TOP: f64 = 44.0;

/// Horizontal bars under a title. Values of 0 and below have no bar.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let values = || bars.iter().map(|b| b.value).filter(|v| *v > 0.0);
    let low = values().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values().fold(f64::NEG_INFINITY, f64::max).log10().ceil().max(low + 1.0);
    let height = TOP + ROW * bars.len() as f64 + 30.0;
    let width = NAMES + WIDE + 110.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"22\" font-size=\"15\">{} ({})</text>\n",
        escaped(title),
        escaped(unit)
    );
    if !low.is_finite() || !high.is_finite() {
        svg.push_str("</svg>\n");
        return svg;
    }
    let x = |value: f64| NAMES + WIDE * (value.log10() - low) / (high - low);
    for power in low as i32..=high as i32 {
        let (at, bottom) = (x(10f64.powi(power)), height - 26.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            height - 10.0,
            shown(10f64.powi(power))
        );
    }
    for (number, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * number as f64;
        let fill = if bar.ours { "#2563a8" } else { "#a9b4c0" };
        let long = if bar.value > 0.0 { (x(bar.value) - NAMES).max(1.0) } else { 0.0 };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{:.1}\" width=\"{long:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAMES - 8.0,
            y + 17.0,
            escaped(&bar.name),
            y + 4.0,
            ROW - 8.0,
            NAMES + long + 6.0,
            y + 17.0,
            shown(bar.value)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Three digits that count, thousands apart.
pub(super) fn shown(x: f64) -> String {
    let text = match x.abs() {
        a if a >= 100.0 || a == 0.0 => format!("{x:.0}"),
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

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (x, expected) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.5, "1.50"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234567.0, "1,234,567"),
        ] {
            assert_eq!(shown(x), expected);
        }
    }

    #[test]
    fn a_longer_bar_is_more() {
        let bar = |name: &str, value| Bar { name: name.to_owned(), value, ours: name == "a" };
        let svg = bars("calls <all>", "calls/s", &[bar("a", 1000.0), bar("b", 10.0), bar("none", 0.0)]);
        let widths: Vec<f64> = svg
            .split("<rect x=")
            .skip(1)
            .filter_map(|r| r.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert!(widths[0] > widths[1] && widths[1] > widths[2] && widths[2] == 0.0, "{widths:?}");
        assert!(svg.contains("calls &lt;all&gt;") && svg.ends_with("</svg>\n"));
        assert!(bars("nothing", "s", &[]).ends_with("</svg>\n"));
    }
}
