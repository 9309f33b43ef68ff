//! Two kinds of plot as SVG. A crate that draws would bring more code than the rest of the bench has.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const FONT: &str = "font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\"";
const COLOURS: [&str; 6] = ["#2a6fbb", "#c2563a", "#4f9d5d", "#8a63b0", "#b58b2b", "#777777"];

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What stands in front of it.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// The least and the most of several measurements, drawn as a line over its end.
    pub spread: Option<(f64, f64)>,
}

/// Bars from the left, a line each, with their numbers.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    const LINE: f64 = 26.0;
    const TOP: f64 = 34.0;
    const LEFT: f64 = 130.0;
    let longest = |bar: &Bar| bar.spread.map_or(bar.value, |(_, most)| most.max(bar.value));
    let most = bars.iter().map(longest).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let x = |value: f64| LEFT + value.max(0.0) / most * (WIDTH - LEFT - 110.0);
    let mut svg = open(TOP + LINE * bars.len() as f64 + 8.0, title);
    for (at, bar) in bars.iter().enumerate() {
        let (top, end, colour) = (TOP + LINE * at as f64, x(bar.value), COLOURS[at % COLOURS.len()]);
        let (label, middle) = (escape(&bar.label), top + 9.0);
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" {FONT}>{label}</text>\
             <rect x=\"{LEFT}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>",
            LEFT - 8.0,
            top + 13.0,
            (end - LEFT).max(1.0),
        );
        let mut text_from = end;
        if let Some((least, most)) = bar.spread {
            let (from, to) = (x(least), x(most));
            text_from = to.max(end);
            let _ = write!(
                svg,
                "<path d=\"M{from:.1} {middle:.0}H{to:.1}M{from:.1} {:.0}v8M{to:.1} {:.0}v8\" stroke=\"#222\"/>",
                middle - 4.0,
                middle - 4.0,
            );
        }
        let number = number(bar.value);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.0}\" {FONT}>{number} {}</text>",
            text_from + 6.0,
            top + 13.0,
            escape(unit)
        );
    }
    svg + "</svg>"
}

/// One line of a plot of times.
#[derive(Debug, Clone)]
pub struct Curve {
    /// What it is called.
    pub label: String,
    /// Shares of all, from 0 to 1, and times in microseconds.
    pub points: Vec<(f64, u64)>,
}

/// Times by their share of all. The axis to the right has each further nine as wide as the one before, the one upwards each
/// power of ten as high.
pub fn curves(title: &str, curves: &[Curve]) -> String {
    const HEIGHT: f64 = 300.0;
    const LEFT: f64 = 60.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 262.0;
    const NINES: f64 = 4.0;
    let all = || curves.iter().flat_map(|curve| &curve.points).map(|(_, us)| (*us).max(1) as f64);
    let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(1.0, f64::max));
    let (low, high) = (least.min(most).log10().floor(), most.log10().ceil().max(least.min(most).log10().floor() + 1.0));
    let x = |share: f64| LEFT + (-(1.0 - share).max(1e-4).log10() / NINES) * (WIDTH - LEFT - 150.0);
    let y = |us: f64| BOTTOM - (us.max(1.0).log10() - low) / (high - low) * (BOTTOM - TOP);
    let mut svg = open(HEIGHT, title);
    for (share, name) in [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "all")]
    {
        let at = x(share);
        let _ = write!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\" {FONT}>{name}</text>",
            BOTTOM + 18.0
        );
    }
    for power in low as i32..=high as i32 {
        let us = 10_f64.powi(power);
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{1:.0}\" stroke=\"#ddd\"/><text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\" {FONT}>{4} ms</text>",
            y(us),
            WIDTH - 150.0,
            LEFT - 6.0,
            y(us) + 4.0,
            us / 1_000.0,
        );
    }
    for (at, curve) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points: Vec<String> =
            curve.points.iter().map(|(share, us)| format!("{:.1},{:.1}", x(*share), y(*us as f64))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            WIDTH - 140.0,
            TOP + 14.0 + 16.0 * at as f64,
            escape(&curve.label),
        );
    }
    svg + "</svg>"
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"8\" y=\"20\" font-family=\"sans-serif\" font-size=\"14\" fill=\"#111\">{}</text>",
        escape(title)
    )
}

/// With as many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_bars_are_longer() {
        let bar = |value| Bar { label: "a<b".to_owned(), value, spread: Some((value / 2.0, value * 2.0)) };
        let svg = bars("x & y", "µs", &[bar(1.0), bar(2.0), bar(0.0)]);
        let widths: Vec<f64> =
            svg.split("width=\"").skip(3).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect();
        assert!(widths.len() == 3 && widths[1] > widths[0] * 1.9 && widths[2] >= 1.0, "{widths:?} of {svg}");
        assert!(svg.contains("a&lt;b") && svg.contains("x &amp; y") && svg.ends_with("</svg>"));
    }

    #[test]
    fn a_plot_without_numbers_has_none_that_are_not_finite() {
        for points in [vec![], vec![(0.0, 0)], vec![(0.0, 5), (1.0, 5_000_000)]] {
            let svg = curves("t", &[Curve { label: "l".to_owned(), points }]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert!(!bars("t", "u", &[]).contains("NaN"));
    }
}
