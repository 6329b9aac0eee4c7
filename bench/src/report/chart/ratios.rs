//! Ratios: ours over another, operation by operation, around the line where
//! both are alike.

use anyhow::Result;
use plotters::prelude::*;

use super::canvas::{
    BODY, Font, GRID, INK, MUTED, SMALL, WIDTH, draw, failed, line, text, title, title_height,
    title_lines,
};
use super::palette::{Palette, marker};
use super::{Range, number, round};

const ROW: i32 = 26;
const DOT: i32 = 15;
const ENTRY: i32 = 36;
const AXIS: i32 = 44;
const NAMES_AT_MOST: i32 = 380;

/// A chart of ratios.
#[derive(Clone, Debug)]
pub(crate) struct Ratios {
    pub title: String,
    pub under: String,
    /// What ours is compared to, in the order of each row's dots.
    pub peers: Vec<String>,
    pub rows: Vec<(String, Vec<Dot>)>,
}

/// One ratio.
#[derive(Clone, Debug)]
pub(crate) struct Dot {
    pub peer: String,
    pub ratio: Range,
}

impl Ratios {
    /// The drawing.
    pub(crate) fn draw(&self, palette: &Palette) -> Result<String> {
        let lines = title_lines(&self.title, &self.under);
        let top = title_height(&lines);
        let legend = ENTRY * self.peers.len() as i32 + 10;
        let font = Font::new(BODY, INK);
        let names = self.rows.iter().map(|r| font.width(&r.0)).max();
        let names = names.unwrap_or(0).min(NAMES_AT_MOST) + 16;
        let words = |dots: &[Dot]| {
            let all = dots.iter().map(|d| number(d.ratio.median));
            all.collect::<Vec<_>>().join(" · ")
        };
        let values = self
            .rows
            .iter()
            .map(|r| font.bold().width(&words(&r.1)))
            .max();
        let values = values.unwrap_or(0) + 24;
        let dots = || self.rows.iter().flat_map(|r| &r.1).map(|d| d.ratio);
        let low = dots()
            .map(|r| r.low)
            .filter(|&v| v > 0.0)
            .fold(0.8, f64::min)
            * 0.9;
        let high = dots().map(|r| r.high).fold(1.25, f64::max) * 1.1;
        let row = ROW + DOT * self.peers.len().min(4) as i32;
        let body = row * self.rows.len() as i32;
        draw(top + legend + body + AXIS, |area| {
            title(area, &lines.0, &lines.1)?;
            for (place, peer) in self.peers.iter().enumerate() {
                let y = top + ENTRY * place as i32 + ENTRY / 2;
                marker(area, (14, y), palette.look(peer), 9)?;
                let words = font.fit(&format!("against {peer}"), WIDTH - 40);
                text(area, font, (36, y), &words)?;
            }
            let chart = ChartBuilder::on(area)
                .margin_top(top + legend)
                .margin_right(values)
                .x_label_area_size(AXIS)
                .y_label_area_size(names)
                .build_cartesian_2d((low..high).log_scale(), 0..body)
                .map_err(failed)?;
            let at = |ratio: f64| chart.backend_coord(&(ratio.clamp(low, high), 0)).0;
            let (first, bottom) = (top + legend, top + legend + body);
            let mut free = i32::MIN;
            for tick in ticks(low, high) {
                let (x, color) = (at(tick), if tick == 1.0 { INK } else { GRID });
                line(area, &[(x, first), (x, bottom)], color, 2)?;
                let small = Font::new(SMALL, MUTED).middle();
                let half = small.width(&round(tick)) / 2 + 6;
                if x - half > free {
                    text(area, small, (x, bottom + 20), &round(tick))?;
                    free = x + half;
                }
            }
            for (place, (name, dots)) in self.rows.iter().enumerate() {
                let y = first + row * place as i32 + row / 2;
                text(
                    area,
                    font.right(),
                    (names - 14, y),
                    &font.fit(name, names - 16),
                )?;
                for (number, dot) in dots.iter().enumerate() {
                    // Side by side, so that none hides another.
                    let y = y + DOT * number as i32 - DOT * (dots.len() as i32 - 1) / 2;
                    let ends = [(at(dot.ratio.low), y), (at(dot.ratio.high), y)];
                    line(area, &ends, MUTED, 3)?;
                    marker(area, (at(dot.ratio.median), y), palette.look(&dot.peer), 8)?;
                }
                text(area, font.bold().right(), (WIDTH, y), &words(dots))?;
            }
            Ok(())
        })
    }
}

/// Round ratios between these.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let few = high / low > 200.0;
    let mut found = Vec::new();
    for decade in -4..6 {
        for step in [1.0, 2.0, 5.0] {
            let tick: f64 = step * 10f64.powi(decade);
            // Tenths are not exact, one has to be.
            let tick = (tick * 1e4).round() / 1e4;
            if (low..=high).contains(&tick) && !(few && step != 1.0) {
                found.push(tick);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_peer_is_named() {
        let dot = |peer: &str, values: &[f64]| Dot {
            peer: peer.into(),
            ratio: Range::of(values).expect("values"),
        };
        let chart = Ratios {
            title: "Operations a second".into(),
            under: "ours / theirs".into(),
            peers: vec!["virtiofsd".into(), "alioth".into()],
            rows: vec![
                (
                    "getattr".into(),
                    vec![dot("virtiofsd", &[2.0, 2.2]), dot("alioth", &[0.5])],
                ),
                ("rename".into(), vec![dot("virtiofsd", &[30.0])]),
            ],
        };
        let palette = Palette::of(["virtiofsd", "alioth"].into_iter());
        let svg = chart.draw(&palette).expect("drawn");
        for words in [
            "getattr",
            "rename",
            "against virtiofsd",
            "2.10 · 0.500",
            "10",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }

    #[test]
    fn one_is_always_marked() {
        assert_eq!(ticks(0.72, 1.4), [1.0]);
        assert_eq!(ticks(0.4, 6.0), [0.5, 1.0, 2.0, 5.0]);
        assert_eq!(ticks(0.09, 300.0), [0.1, 1.0, 10.0, 100.0]);
    }
}
