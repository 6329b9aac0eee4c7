//! Latency by quantile: how long the slowest in a hundred, in a thousand took.
//!
//! Both axes are logarithmic, the lower one in what is left above: each step
//! to the right is a tenth of the operations.

use anyhow::Result;
use plotters::prelude::*;

use super::canvas::{
    At, Font, GRID, MUTED, SMALL, WIDTH, dashed, draw, failed, line, text, title, title_height,
    title_lines,
};
use super::lines::legend_entry;
use super::number;
use super::palette::{Palette, marker};

const PLOT: i32 = 400;
const ENTRY: i32 = 38;
const AXIS: i32 = 76;
const RIGHT: i32 = 46;
/// Where the axis has a mark.
const MARKS: [(f64, &str); 5] = [
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
];

/// A chart of latencies.
#[derive(Clone, Debug)]
pub(crate) struct Quantiles {
    pub title: String,
    pub under: String,
    /// Stack, and quantiles with microseconds.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Quantiles {
    /// The drawing.
    pub(crate) fn draw(&self, palette: &Palette) -> Result<String> {
        let lines = title_lines(&self.title, &self.under);
        let top = title_height(&lines);
        let legend = ENTRY * self.curves.len() as i32 + 14;
        let curves: Vec<Vec<(f64, f64)>> = self.curves.iter().map(|c| shown(&c.1)).collect();
        let all = || curves.iter().flatten();
        let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let most = all().map(|p| p.1).fold(0.0, f64::max);
        let (low, high) = (decade(least, false), decade(most, true));
        let (low, high) = match high > low {
            true => (low, high),
            false => (low, low + 1.0),
        };
        let last = all().map(|p| p.0).fold(1.0, f64::max);
        let small = Font::new(SMALL, MUTED);
        let decades: Vec<f64> = (low as i32..=high as i32).map(f64::from).collect();
        let left = decades.iter().map(|&d| small.width(&time(d))).max();
        let left = left.unwrap_or(0) + 18;
        draw(top + legend + PLOT + AXIS, |area| {
            title(area, &lines.0, &lines.1)?;
            for (place, (stack, points)) in self.curves.iter().enumerate() {
                let y = top + ENTRY * place as i32 + ENTRY / 2;
                let median = points.iter().find(|p| p.0 >= 0.5);
                let note = median.map_or(String::new(), |p| format!("p50 {}", words(p.1)));
                legend_entry(area, y, palette.look(stack), stack, &note)?;
            }
            let chart = ChartBuilder::on(area)
                .margin_top(top + legend)
                .margin_right(RIGHT)
                .x_label_area_size(AXIS)
                .y_label_area_size(left)
                .build_cartesian_2d(0.0..last, low..high)
                .map_err(failed)?;
            let at = |x: f64, us: f64| chart.backend_coord(&(x, us.log10()));
            let end = WIDTH - RIGHT;
            let bottom = chart.backend_coord(&(0.0, low)).1;
            for &decade in &decades {
                let (x, y) = chart.backend_coord(&(0.0, decade));
                line(area, &[(x, y), (end, y)], GRID, 2)?;
                text(area, small.right(), (x - 10, y), &time(decade))?;
            }
            for (quantile, name) in MARKS.iter().filter(|m| nines(m.0) <= last + 0.01) {
                let x = chart.backend_coord(&(nines(*quantile), low)).0;
                line(area, &[(x, bottom), (x, bottom + 8)], MUTED, 2)?;
                text(area, small.middle(), (x, bottom + 24), name)?;
            }
            let words = "of operations were at least as fast";
            text(area, small.middle(), ((left + end) / 2, bottom + 56), words)?;
            line(area, &[(left, bottom), (end, bottom)], MUTED, 2)?;
            for ((stack, _), points) in self.curves.iter().zip(&curves) {
                let look = palette.look(stack);
                let places: Vec<At> = points.iter().map(|p| at(p.0, p.1)).collect();
                dashed(area, &places, look.color, look.dash)?;
                for &place in &places {
                    marker(area, place, look, 7)?;
                }
            }
            Ok(())
        })
    }
}

/// How many nines a quantile has: 0.99 has two.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// What the axes can hold: the largest of all is at no quantile.
fn shown(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let holds = |p: &&(f64, f64)| (0.0..0.99999).contains(&p.0) && p.1 > 0.0;
    points
        .iter()
        .filter(holds)
        .map(|p| (nines(p.0), p.1))
        .collect()
}

fn decade(us: f64, up: bool) -> f64 {
    match (us.is_finite() && us > 0.0, up) {
        (false, _) => 0.0,
        (true, true) => us.log10().ceil(),
        (true, false) => us.log10().floor(),
    }
}

/// A power of ten of microseconds, in its unit.
fn time(decade: f64) -> String {
    match decade {
        d if d >= 6.0 => format!("{} s", number(10f64.powf(d - 6.0))),
        d if d >= 3.0 => format!("{} ms", number(10f64.powf(d - 3.0))),
        d if d >= 0.0 => format!("{} us", number(10f64.powf(d))),
        d => format!("{} ns", number(10f64.powf(d + 3.0).round())),
    }
}

/// Microseconds in the unit that suits them.
fn words(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", number(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", number(us / 1e3)),
        us => format!("{} us", number(us)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_its_marks_and_its_median() {
        let points = vec![(0.5, 12.0), (0.9, 20.0), (0.99, 180.0), (1.0, 90_000.0)];
        let chart = Quantiles {
            title: "Random read".into(),
            under: "less is better".into(),
            curves: vec![("9p".into(), points)],
        };
        let palette = Palette::of(["9p"].into_iter());
        let svg = chart.draw(&palette).expect("drawn");
        for words in ["50 %", "99 %", "10 us", "1 ms", "p50 12 us"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert!(!svg.contains("99.9 %") && !svg.contains("100 ms"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_no_failure() {
        let chart = Quantiles {
            title: "x".into(),
            under: String::new(),
            curves: vec![("9p".into(), Vec::new())],
        };
        assert!(chart.draw(&Palette::default()).is_ok());
        assert_eq!(
            (words(1230.0), words(2e6)),
            ("1.23 ms".into(), "2 s".into())
        );
        assert_eq!((time(-1.0), time(4.0)), ("100 ns".into(), "10 ms".into()));
    }
}
