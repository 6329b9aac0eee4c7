//! Lines: how something grows, and by how much a step.

use anyhow::Result;
use plotters::prelude::*;

use super::canvas::{
    Area, At, BODY, Font, GRID, INK, MUTED, SMALL, WIDTH, dashed, draw, failed, line, text, title,
    title_height, title_lines,
};
use super::palette::{Look, Palette, marker};
use super::{Range, round, round_up};

const PLOT: i32 = 400;
const ENTRY: i32 = 38;
const AXIS: i32 = 76;
const RIGHT: i32 = 30;

/// A chart of lines.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    pub title: String,
    /// Unit, and which way is good.
    pub under: String,
    /// What goes to the right.
    pub across: String,
    pub lines: Vec<Line>,
}

/// One stack.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub stack: String,
    /// Said behind its name: its slope.
    pub note: String,
    /// By x, ascending.
    pub points: Vec<(f64, Range)>,
}

impl Lines {
    /// The drawing.
    pub(crate) fn draw(&self, palette: &Palette) -> Result<String> {
        let lines = title_lines(&self.title, &self.under);
        let top = title_height(&lines);
        let legend = ENTRY * self.lines.len() as i32 + 14;
        let points = || self.lines.iter().flat_map(|l| &l.points);
        let highest = points().map(|p| p.1.high).fold(0.0, f64::max);
        let step = round_up(highest / 4.5);
        let most = (highest / step).ceil().max(1.0) * step;
        let last = points().map(|p| p.0).fold(0.0, f64::max);
        let last = if last > 0.0 { last } else { 1.0 };
        let small = Font::new(SMALL, MUTED);
        let ticks: Vec<f64> = (0..=(most / step).round() as i32)
            .map(|n| f64::from(n) * step)
            .collect();
        let left = ticks.iter().map(|&t| small.width(&round(t))).max();
        let left = left.unwrap_or(0) + 18;
        let height = top + legend + PLOT + AXIS;
        draw(height, |area| {
            title(area, &lines.0, &lines.1)?;
            for (place, entry) in self.lines.iter().enumerate() {
                let y = top + ENTRY * place as i32 + ENTRY / 2;
                legend_entry(
                    area,
                    y,
                    palette.look(&entry.stack),
                    &entry.stack,
                    &entry.note,
                )?;
            }
            let chart = ChartBuilder::on(area)
                .margin_top(top + legend)
                .margin_right(RIGHT)
                .x_label_area_size(AXIS)
                .y_label_area_size(left)
                .build_cartesian_2d(0.0..last * 1.02, 0.0..most)
                .map_err(failed)?;
            let at = |x: f64, y: f64| chart.backend_coord(&(x, y));
            let end = WIDTH - RIGHT;
            for &tick in &ticks {
                let (x, y) = at(0.0, tick);
                line(area, &[(x, y), (end, y)], GRID, 2)?;
                text(area, small.right(), (x - 10, y), &round(tick))?;
            }
            let bottom = at(0.0, 0.0).1;
            for x in self.marks() {
                let (px, _) = at(x, 0.0);
                line(area, &[(px, bottom), (px, bottom + 8)], MUTED, 2)?;
                text(area, small.middle(), (px, bottom + 24), &round(x))?;
            }
            let middle = (left + end) / 2;
            text(area, small.middle(), (middle, bottom + 56), &self.across)?;
            line(area, &[(left, bottom), (end, bottom)], MUTED, 2)?;
            for entry in &self.lines {
                let look = palette.look(&entry.stack);
                let places: Vec<At> = entry.points.iter().map(|(x, r)| at(*x, r.median)).collect();
                dashed(area, &places, look.color, look.dash)?;
                for ((x, range), &place) in entry.points.iter().zip(&places) {
                    let ends = [at(*x, range.low), at(*x, range.high)];
                    if range.n > 1 {
                        line(area, &ends, INK, 2)?;
                    }
                    marker(area, place, look, 9)?;
                }
            }
            Ok(())
        })
    }

    /// Where something was measured, where there is room to say so.
    fn marks(&self) -> Vec<f64> {
        let mut all: Vec<f64> = (self.lines.iter().flat_map(|l| &l.points))
            .map(|p| p.0)
            .collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        let last = all.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
        let mut marks: Vec<f64> = Vec::new();
        // From the right, where the widest are.
        for x in all.into_iter().rev() {
            if marks.last().is_none_or(|m| (m - x) / last > 0.08) {
                marks.push(x);
            }
        }
        marks
    }
}

/// A line's look, its name, and a note.
pub(super) fn legend_entry(
    area: &Area<'_>,
    y: i32,
    look: Look,
    name: &str,
    note: &str,
) -> Result<()> {
    dashed(area, &[(4, y), (76, y)], look.color, look.dash)?;
    marker(area, (40, y), look, 9)?;
    let font = Font::new(BODY, INK);
    let name = font.fit(name, WIDTH - 100);
    text(area, font, (92, y), &name)?;
    let x = 92 + font.width(&name) + 18;
    let bold = font.bold();
    text(area, bold, (x, y), &bold.fit(note, WIDTH - x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(stack: &str, values: &[(f64, f64)]) -> Line {
        let range = |v: f64| Range::of(&[v, v * 1.1, v * 0.9]).expect("values");
        Line {
            stack: stack.into(),
            note: "+3 MiB a guest".into(),
            points: values.iter().map(|&(x, y)| (x, range(y))).collect(),
        }
    }

    #[test]
    fn every_line_is_named_with_its_slope() {
        let lines = Lines {
            title: "Host memory".into(),
            under: "MiB, less is better".into(),
            across: "guests".into(),
            lines: vec![
                line_of("with DAX", &[(1.0, 1024.0), (16.0, 1060.0)]),
                line_of("without", &[(1.0, 2048.0), (16.0, 17000.0)]),
            ],
        };
        let palette = Palette::of(["with DAX", "without"].into_iter());
        let svg = lines.draw(&palette).expect("drawn");
        for words in ["with DAX", "without", "+3 MiB a guest", "guests", "20,000"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }

    #[test]
    fn marks_do_not_run_into_each_other() {
        let all: Vec<_> = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
            .map(|x| (x, 1.0))
            .into();
        let lines = Lines {
            title: String::new(),
            under: String::new(),
            across: String::new(),
            lines: vec![line_of("a", &all)],
        };
        assert_eq!(lines.marks(), [64.0, 32.0, 16.0, 8.0, 2.0]);
    }
}
