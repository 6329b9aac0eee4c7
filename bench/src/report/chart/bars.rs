//! Bars: one a stack, with the range of the repetitions.

use anyhow::Result;
use plotters::prelude::*;

use super::canvas::{
    BODY, Font, GRID, INK, MUTED, SMALL, TITLE, WIDTH, draw, failed, line, text, title,
    title_height, title_lines,
};
use super::palette::{Palette, bar};
use super::{Range, number, round, round_up};

const ROW: i32 = 44;
const BAR: i32 = 26;
const NAME: i32 = 40;
const AXIS: i32 = 40;
/// Rows of one chart, about as many as a screen holds.
const MOST_BARS: usize = 14;
/// Between the largest bars of two panels on one scale.
const MOST_APART: f64 = 6.0;
const NAMES_AT_MOST: i32 = 340;

/// A chart of bars on one scale.
#[derive(Clone, Debug)]
pub(crate) struct Bars {
    pub title: String,
    /// Unit, and which way is good.
    pub under: String,
    pub panels: Vec<Panel>,
}

/// Bars that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// Empty when the title says it.
    pub name: String,
    pub rows: Vec<Row>,
}

/// One stack.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub stack: String,
    /// Or why there is none.
    pub value: Result<Range, String>,
}

impl Bars {
    /// The drawing.
    pub(crate) fn draw(&self, palette: &Palette) -> Result<String> {
        let lines = title_lines(&self.title, &self.under);
        let top = title_height(&lines) + 8;
        let font = Font::new(BODY, INK);
        let rows = || self.panels.iter().flat_map(|p| &p.rows);
        let names = rows().map(|r| font.width(&r.stack)).max().unwrap_or(0);
        let names = names.min(NAMES_AT_MOST) + 16;
        let values = rows().filter_map(|r| r.value.as_ref().ok());
        let most = values.clone().map(|v| v.high).fold(0.0, f64::max);
        let labels = values.map(|v| font.bold().width(&number(v.median))).max();
        // A label stands behind its bar.
        let room = f64::from(WIDTH - names);
        let most = most / ((room - f64::from(labels.unwrap_or(0) + 30)) / room).max(0.2);
        let most = if most > 0.0 { most } else { 1.0 };
        let height = top + self.body() + AXIS;
        draw(height, |area| {
            title(area, &lines.0, &lines.1)?;
            let chart = ChartBuilder::on(area)
                .margin_top(top)
                .x_label_area_size(AXIS)
                .y_label_area_size(names)
                .build_cartesian_2d(0.0..most, 0..self.body())
                .map_err(failed)?;
            let at = |value: f64| chart.backend_coord(&(value, 0)).0;
            let bottom = height - AXIS;
            let small = Font::new(SMALL, MUTED).middle();
            for tick in ticks(most) {
                let words = round(tick);
                // The last one stays within the picture.
                let x = at(tick).min(WIDTH - small.width(&words) / 2 - 4);
                text(area, small, (x, bottom + 20), &words)?;
            }
            let mut y = top;
            for panel in &self.panels {
                if !panel.name.is_empty() {
                    let bold = Font::new(BODY, INK).bold();
                    text(area, bold, (0, y + NAME / 2), &bold.fit(&panel.name, WIDTH))?;
                    y += NAME;
                }
                // Not through the panel's name.
                let end = y + ROW * panel.rows.len() as i32;
                for tick in ticks(most) {
                    let color = if tick == 0.0 { MUTED } else { GRID };
                    line(area, &[(at(tick), y), (at(tick), end)], color, 2)?;
                }
                for row in &panel.rows {
                    self.row(area, palette, row, y, (names, &at))?;
                    y += ROW;
                }
            }
            Ok(())
        })
    }

    fn body(&self) -> i32 {
        let of = |panel: &Panel| {
            let name = if panel.name.is_empty() { 0 } else { NAME };
            name + ROW * panel.rows.len() as i32
        };
        self.panels.iter().map(of).sum()
    }

    fn row(
        &self,
        area: &super::canvas::Area<'_>,
        palette: &Palette,
        row: &Row,
        y: i32,
        (names, at): (i32, &dyn Fn(f64) -> i32),
    ) -> Result<()> {
        let font = Font::new(BODY, INK);
        let middle = y + ROW / 2;
        let name = font.fit(&row.stack, names - 16);
        text(area, font.right(), (names - 14, middle), &name)?;
        let value = match &row.value {
            Ok(value) => value,
            Err(reason) => {
                let small = Font::new(SMALL, INK);
                let words = small.fit(&format!("✗ failed: {reason}"), WIDTH - names - 12);
                return text(area, small, (names + 10, middle), &words);
            }
        };
        let (left, right) = (at(0.0), at(value.median.max(0.0)));
        let corners = [(left, middle - BAR / 2), (right, middle + BAR / 2)];
        bar(area, corners, palette.look(&row.stack))?;
        let mut end = right;
        if value.n > 1 {
            let (low, high) = (at(value.low), at(value.high));
            line(area, &[(low, middle), (high, middle)], INK, 3)?;
            for x in [low, high] {
                line(area, &[(x, middle - 7), (x, middle + 7)], INK, 3)?;
            }
            end = end.max(high);
        }
        text(area, font.bold(), (end + 12, middle), &number(value.median))
    }
}

impl Panel {
    /// Panels in charts of bearable height.
    pub(crate) fn in_parts(panels: Vec<Panel>) -> Vec<Vec<Panel>> {
        let mut parts: Vec<Vec<Panel>> = Vec::new();
        let mut rows = 0;
        let largest = |panel: &Panel| {
            let values = panel.rows.iter().filter_map(|r| r.value.as_ref().ok());
            values.map(|v| v.high).fold(0.0, f64::max)
        };
        // On one scale, none so small that its bars cannot be seen.
        let alike = |part: &[Panel], panel: &Panel| {
            let one = part.iter().map(largest).fold(0.0, f64::max);
            let other = largest(panel);
            one.max(other) <= MOST_APART * one.min(other)
        };
        for panel in panels {
            rows += panel.rows.len();
            match parts.last_mut() {
                Some(part) if rows <= MOST_BARS && alike(part, &panel) => part.push(panel),
                _ => {
                    rows = panel.rows.len();
                    parts.push(vec![panel]);
                }
            }
        }
        parts
    }
}

/// Round numbers from nought to here, three to six of them.
fn ticks(most: f64) -> Vec<f64> {
    let step = round_up(most / 5.0);
    let count = (most / step).floor() as usize;
    (0..=count).map(|n| n as f64 * step).collect()
}

const _: () = assert!(TITLE > BODY && BODY > SMALL);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stack_is_named_and_a_failure_says_why() {
        let row = |stack: &str, value| Row {
            stack: stack.into(),
            value,
        };
        let range = Range::of(&[10.0, 12.0]).expect("values");
        let bars = Bars {
            title: "Sequential read".into(),
            under: "MB/s, more is better".into(),
            panels: vec![Panel {
                name: "first pass".into(),
                rows: vec![row("9p", Ok(range)), row("other", Err("no guest".into()))],
            }],
        };
        let palette = Palette::of(["9p", "other"].into_iter());
        let svg = bars.draw(&palette).expect("drawn");
        for words in [
            "Sequential read",
            "first pass",
            "9p",
            "11",
            "failed: no guest",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }

    #[test]
    fn ticks_are_few_and_round() {
        assert_eq!(ticks(23.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        for most in [0.003, 1.0, 77.0, 12_345.0] {
            assert!((3..=7).contains(&ticks(most).len()), "{most}");
        }
    }

    #[test]
    fn a_chart_is_neither_too_high_nor_of_two_scales() {
        let panel = |rows: usize, value: f64| Panel {
            name: String::new(),
            rows: vec![
                Row {
                    stack: "x".into(),
                    value: Range::of(&[value]).ok_or_else(String::new),
                };
                rows
            ],
        };
        let panels = vec![
            panel(7, 10.0),
            panel(7, 12.0),
            panel(7, 9.0),
            panel(2, 900.0),
        ];
        let parts: Vec<usize> = Panel::in_parts(panels).iter().map(Vec::len).collect();
        assert_eq!(parts, [2, 1, 1]);
    }
}
