//! Pictures of results, each an SVG that a page holds inline, and a PNG.

mod bars;
mod canvas;
mod lines;
mod palette;
mod picture;
mod quantiles;
mod ratios;

pub(crate) use bars::{Bars, Panel, Row};
pub(crate) use lines::{Line, Lines};
pub(crate) use palette::Palette;
pub(crate) use picture::{inline, standalone, to_png};
pub(crate) use quantiles::Quantiles;
pub(crate) use ratios::{Dot, Ratios};

use crate::figures::table::short;
use crate::stats::series;

/// Median, smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub n: usize,
}

impl Range {
    /// Of the repetitions; none when there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Range> {
        let found = series(values)?;
        Some(Range {
            median: found.median,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            n: found.n,
        })
    }
}

/// A number for people: three digits, thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 1000.0 {
        return match value {
            0.0 => "0".into(),
            _ if value.fract() == 0.0 => format!("{value}"),
            _ => short(value),
        };
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    match value < 0.0 {
        true => format!("-{out}"),
        false => out,
    }
}

/// A round number, as short as it is: of an axis, of a goal.
pub(crate) fn round(value: f64) -> String {
    match value.abs() < 1000.0 {
        // Sums of tenths are not exact.
        true => ((value * 1e6).round() / 1e6).to_string(),
        false => number(value),
    }
}

/// The next power of ten, or two or five times one, from here on.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let found = steps.iter().find(|&&s| s * power >= value * 0.999);
    found.unwrap_or(&10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let cases = [
            (0.0, "0"),
            (0.12345, "0.123"),
            (16.0, "16"),
            (99.94, "99.9"),
            (1234.4, "1,234"),
            (-1_234_567.0, "-1,234,567"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        let cases = [(0.1 + 0.2, "0.3"), (2.5, "2.5"), (1e4, "10,000")];
        for (value, text) in cases {
            assert_eq!(round(value), text);
        }
    }

    #[test]
    fn axes_end_on_round_numbers() {
        for (value, end) in [(0.0, 1.0), (9.9, 10.0), (11.0, 20.0), (430.0, 500.0)] {
            assert!((round_up(value) - end).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn a_range_spans_its_repetitions() {
        let range = Range::of(&[3.0, 1.0, 2.0]).expect("values");
        assert_eq!((range.low, range.median, range.high), (1.0, 2.0, 3.0));
        assert_eq!(range.n, 3);
        assert_eq!(Range::of(&[]), None);
    }
}
