//! Which charts show which cells.
//!
//! Law: every cell is in some chart, or in the summary, or in the table of
//! failures; none is left out because it does not fit.

use std::collections::BTreeSet;

use anyhow::Result;

use super::chart::{Bars, Dot, Line, Lines, Palette, Panel, Quantiles, Range, Ratios, Row, number};
use super::names::{in_order, pretty, shorten, slug};
use super::studies::known;
use crate::runs::{Better, Cell, Study};

/// Rows of one chart.
const MOST_RATIOS: usize = 18;
/// Letters of a row's name.
const MOST_NAME: usize = 26;

/// What may be on the lower axis of a line: the name in a cell's details, and
/// what it is called.
const AXES: [Axis; 3] = [
    ("guests", "guests", Some("a guest")),
    ("live_ranges", "live ranges", None),
    ("window_mib", "window, MiB", None),
];

/// With what a slope is by, where a straight line is expected.
type Axis = (&'static str, &'static str, Option<&'static str>);

/// One study's part of a report.
pub(super) struct Section<'a> {
    pub study: &'a Study,
    pub heading: String,
    pub about: &'static str,
    pub groups: Vec<Group>,
}

/// Charts that belong together.
pub(super) struct Group {
    pub heading: String,
    pub charts: Vec<Chart>,
    /// For those who want to know more.
    pub more: Vec<Chart>,
}

/// One picture.
pub(super) struct Chart {
    /// Name of its files, and of its place in the page.
    pub id: String,
    /// What it shows, in words.
    pub name: String,
    pub svg: String,
}

/// Draws everything.
pub(super) fn sections(studies: &[Study]) -> Result<Vec<Section<'_>>> {
    studies.iter().map(section).collect()
}

fn section(study: &Study) -> Result<Section<'_>> {
    let about = known(&study.header.study);
    let name = &study.header.study;
    let mut groups = Vec::new();
    // The summed figures are the summary's.
    let drawn: Vec<&Cell> = study.cells.iter().filter(|c| c.goal.is_none()).collect();
    let palette = Palette::of(drawn.iter().map(|c| c.stack.as_str()));
    for group in in_order(drawn.iter().map(|c| c.group.as_str())) {
        let cells: Vec<&Cell> = drawn.iter().copied().filter(|c| c.group == group).collect();
        let heading = pretty(name, group);
        let mut maker = Maker {
            palette: &palette,
            prefix: slug(&format!("{name} {heading}")),
            charts: Vec::new(),
        };
        for (metric, unit) in in_order(cells.iter().map(|c| (&*c.metric, &*c.unit))) {
            let same = |c: &&Cell| c.metric == metric && c.unit == unit;
            let cells: Vec<&Cell> = cells.iter().copied().filter(same).collect();
            if let Some(axis) = AXES.iter().find(|a| is_line(&cells, a.0)) {
                maker.lines(&heading, &cells, axis)?;
            } else if about.is_some_and(|k| k.ratios) && maker.ratios(&heading, &cells)? {
                // The ratios say it.
            } else {
                maker.bars(&heading, &cells)?;
            }
        }
        let mut charts = std::mem::take(&mut maker.charts);
        maker.latencies(&cells)?;
        let mut more = maker.charts;
        if !about.is_some_and(|k| k.ratios) {
            charts.append(&mut more);
        }
        groups.push(Group {
            heading,
            charts,
            more,
        });
    }
    Ok(Section {
        study,
        heading: about.map_or_else(|| name.clone(), |k| k.heading.to_owned()),
        about: about.map_or("", |k| k.about),
        groups,
    })
}

struct Maker<'a> {
    palette: &'a Palette,
    prefix: String,
    charts: Vec<Chart>,
}

impl Maker<'_> {
    fn add(&mut self, what: &str, name: String, svg: String) {
        let taken = |id: &str| self.charts.iter().any(|c| c.id == id);
        let plain = format!("{}-{}", self.prefix, slug(what));
        let numbered = (2..).map(|n| format!("{plain}-{n}"));
        let mut ids = std::iter::once(plain.clone()).chain(numbered);
        let id = ids.find(|id| !taken(id)).unwrap_or_else(|| plain.clone());
        self.charts.push(Chart { id, name, svg });
    }

    fn bars(&mut self, group: &str, cells: &[&Cell]) -> Result<()> {
        let Some(first) = cells.first() else {
            return Ok(());
        };
        let under = measured_in(first);
        let mut panels = Vec::new();
        for id in in_order(cells.iter().map(|c| c.id.as_str())) {
            let mut of: Vec<&Cell> = cells.iter().copied().filter(|c| c.id == id).collect();
            of.sort_by_key(|c| self.palette.rank(&c.stack));
            panels.push(Panel {
                name: of.first().map_or(id, |c| words(c)).to_owned(),
                rows: of.iter().map(|c| row(c)).collect(),
            });
        }
        for mut panels in Panel::in_parts(panels) {
            let mut title = format!("{group}: {}", first.metric);
            let mut names: Vec<String> = panels.iter().map(|p| p.name.clone()).collect();
            shorten(&mut names, &title);
            for (panel, name) in panels.iter_mut().zip(names) {
                panel.name = name;
            }
            if let [only] = &mut panels[..] {
                title = std::mem::take(&mut only.name);
            }
            let name = format!("Bars: {title} ({under})");
            let bars = Bars {
                title,
                under: under.clone(),
                panels,
            };
            let svg = bars.draw(self.palette)?;
            self.add(&first.metric, name, svg);
        }
        Ok(())
    }

    fn lines(&mut self, group: &str, cells: &[&Cell], axis: &Axis) -> Result<()> {
        let Some(first) = cells.first() else {
            return Ok(());
        };
        let mut stacks = in_order(cells.iter().map(|c| c.stack.as_str()));
        stacks.sort_by_key(|s| self.palette.rank(s));
        let line = |stack: &str| {
            let of = cells.iter().filter(|c| c.stack == stack);
            let point = |c: &&Cell| Some((*c.detail.get(axis.0)?, range(c)?));
            let mut points: Vec<(f64, Range)> = of.filter_map(point).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let note = slope(&points).zip(axis.2).map(|(s, step)| {
                let sign = if s < 0.0 { "" } else { "+" };
                format!("{sign}{} {} {step}", number(s), first.unit)
            });
            Line {
                stack: stack.to_owned(),
                note: note.unwrap_or_default(),
                points,
            }
        };
        let title = match group.is_empty() {
            true => first.metric.clone(),
            false => format!("{group}: {}", first.metric),
        };
        let lines = Lines {
            under: measured_in(first),
            across: axis.1.to_owned(),
            lines: stacks.into_iter().map(line).collect(),
            title: title.clone(),
        };
        let svg = lines.draw(self.palette)?;
        let name = format!("Lines: {title} ({}) by {}", measured_in(first), axis.1);
        self.add(&first.metric, name, svg);
        Ok(())
    }

    /// Ours over every other, where both were measured; false when nothing was.
    fn ratios(&mut self, group: &str, cells: &[&Cell]) -> Result<bool> {
        let ours = |stack: &str| stack.starts_with("daxwindow");
        let mut rows: Vec<(String, Vec<Dot>)> = Vec::new();
        let mut names = Vec::new();
        for id in in_order(cells.iter().map(|c| c.id.as_str())) {
            let of = || cells.iter().copied().filter(|c| c.id == id);
            let Some(mine) = of().find(|c| ours(&c.stack)) else {
                continue;
            };
            let dots = of().filter(|c| !ours(&c.stack)).filter_map(|theirs| {
                let ratio = paired(mine, theirs)?;
                let peer = theirs.stack.clone();
                Some(Dot { peer, ratio })
            });
            let mut dots: Vec<Dot> = dots.collect();
            dots.sort_by_key(|d| self.palette.rank(&d.peer));
            if !dots.is_empty() {
                names.push(words(mine).to_owned());
                rows.push((mine.id.clone(), dots));
            }
        }
        let Some(first) = cells.first().filter(|_| !rows.is_empty()) else {
            return Ok(false);
        };
        // What a row has room for, or all by the cell's name.
        if names.iter().all(|name| name.chars().count() <= MOST_NAME) {
            for (row, name) in rows.iter_mut().zip(names) {
                row.0 = name;
            }
        }
        let mut peers = in_order(rows.iter().flat_map(|r| &r.1).map(|d| d.peer.as_str()));
        peers.sort_by_key(|p| self.palette.rank(p));
        let peers: Vec<String> = peers.into_iter().map(str::to_owned).collect();
        let way = match first.better {
            Better::Higher => "right of 1 ours is better",
            Better::Lower => "left of 1 ours is better",
        };
        let under = format!("ours / theirs: {way}");
        for rows in rows.chunks(MOST_RATIOS) {
            let title = format!("{group}: {}", first.metric);
            let name = format!("Ratios: {title} ({under})");
            let chart = Ratios {
                title,
                under: under.clone(),
                peers: peers.clone(),
                rows: rows.to_vec(),
            };
            let svg = chart.draw(self.palette)?;
            self.add(&first.metric, name, svg);
        }
        Ok(true)
    }

    fn latencies(&mut self, cells: &[&Cell]) -> Result<()> {
        let with = || cells.iter().filter(|c| c.latency.is_some());
        for id in in_order(with().map(|c| c.id.as_str())) {
            let mut of: Vec<&&Cell> = with().filter(|c| c.id == id).collect();
            of.sort_by_key(|c| self.palette.rank(&c.stack));
            let title = of.first().map_or(id, |c| words(c));
            let curve = |c: &&&Cell| {
                let points = c.latency.as_ref().map(|l| l.percentiles.clone());
                (c.stack.clone(), points.unwrap_or_default())
            };
            let chart = Quantiles {
                title: format!("Latency: {title}"),
                under: "by quantile, both axes logarithmic, less is better".into(),
                curves: of.iter().map(curve).collect(),
            };
            let svg = chart.draw(self.palette)?;
            let name = format!("Latency curves: {title} (less is better)");
            self.add(&format!("latency {id}"), name, svg);
        }
        Ok(())
    }
}

fn words(cell: &Cell) -> &str {
    match cell.what.is_empty() {
        true => &cell.id,
        false => &cell.what,
    }
}

fn measured_in(cell: &Cell) -> String {
    let way = match cell.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    match cell.unit.is_empty() {
        true => way.to_owned(),
        false => format!("{}, {way}", cell.unit),
    }
}

fn range(cell: &Cell) -> Option<Range> {
    cell.series().and_then(|_| Range::of(&cell.values))
}

fn row(cell: &Cell) -> Row {
    let why = || cell.error.clone().unwrap_or_else(|| "no value".into());
    Row {
        stack: cell.stack.clone(),
        value: range(cell).ok_or_else(why),
    }
}

/// Round by round.
pub(super) fn paired(ours: &Cell, theirs: &Cell) -> Option<Range> {
    ours.series().and(theirs.series())?;
    let pairs = ours.values.iter().zip(&theirs.values);
    let ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
    match ratios.iter().all(|r| r.is_finite() && *r > 0.0) {
        true => Range::of(&ratios),
        false => None,
    }
}

/// Whether some stack has several places on this axis, and all cells have one.
fn is_line(cells: &[&Cell], axis: &str) -> bool {
    let place = |c: &&Cell| Some((c.stack.clone(), c.detail.get(axis)?.to_bits()));
    let places: Option<BTreeSet<_>> = cells
        .iter()
        .filter(|c| c.error.is_none())
        .map(place)
        .collect();
    let Some(places) = places else {
        return false;
    };
    let stacks: BTreeSet<_> = places.iter().map(|p| &p.0).collect();
    let whole = cells.iter().filter(|c| c.error.is_none()).count();
    places.len() > stacks.len() && places.len() == whole
}

/// Least squares through the medians, where there are at least three.
fn slope(points: &[(f64, Range)]) -> Option<f64> {
    let n = points.len() as f64;
    if points.len() < 3 {
        return None;
    }
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1.median).sum::<f64>() / n;
    let up: f64 = (points.iter())
        .map(|p| (p.0 - mean_x) * (p.1.median - mean_y))
        .sum();
    let across: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    (across > 0.0).then(|| up / across)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::{Header, Latency};

    fn cell(id: &str, stack: &str, group: &str, values: &[f64]) -> Cell {
        let mut cell = Cell::new(id, stack, "MB/s", Better::Higher);
        cell.group = group.into();
        cell.metric = "throughput".into();
        cell.values = values.to_vec();
        cell
    }

    fn study(name: &str, cells: Vec<Cell>) -> Study {
        let header = Header {
            study: name.into(),
            ..Header::default()
        };
        Study { header, cells }
    }

    fn charts(studies: &[Study]) -> Vec<(String, String)> {
        let sections = sections(studies).expect("drawn");
        let groups = sections.iter().flat_map(|s| &s.groups);
        let all = groups.flat_map(|g| g.charts.iter().chain(&g.more));
        all.map(|c| (c.id.clone(), c.name.clone())).collect()
    }

    #[test]
    fn cells_are_drawn_by_what_they_are() {
        let mut slow = cell("a", "9p", "Sequential", &[1.0]);
        slow.latency = Some(Latency {
            percentiles: vec![(0.5, 2.0)],
            count: 1,
        });
        let mut failed = cell("b", "9p", "Sequential", &[]);
        failed.error = Some("hung".into());
        let at = |guests: f64, stack: &str| {
            let mut cell = cell(&format!("m/{guests}"), stack, "fio-memory", &[guests * 3.0]);
            cell.detail.insert("guests".into(), guests);
            cell
        };
        let mut summed = cell("sum", "x", "figures", &[3.0]);
        summed.goal = Some(crate::figures::Goal::AtLeast(1.0));
        let ours = cell("a", "daxwindow dax=always", "Sequential", &[9.0, 8.0]);
        let points = [at(1.0, "dax"), at(2.0, "dax"), at(4.0, "dax")];
        let cells = [vec![slow, failed, summed, ours], points.to_vec()].concat();
        let found = charts(&[study("fio", cells)]);
        let ids: Vec<_> = found.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(
            ids,
            [
                "fio-sequential-throughput",
                "fio-sequential-throughput-2",
                "fio-sequential-latency-a",
                "fio-memory-throughput"
            ]
        );
        assert!(
            found[3].1.starts_with("Lines: Memory: throughput"),
            "{found:?}"
        );
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let ours = cell("getattr", "daxwindow", "compare: metadata", &[10.0, 30.0]);
        let theirs = cell("getattr", "virtiofsd", "compare: metadata", &[5.0, 10.0]);
        let ratio = paired(&ours, &theirs).expect("pairs");
        assert_eq!((ratio.low, ratio.median, ratio.high), (2.0, 2.5, 3.0));
        let nothing = cell("getattr", "x", "g", &[0.0]);
        assert_eq!(paired(&ours, &nothing), None);
        let found = charts(&[study("compare", vec![ours, theirs])]);
        assert_eq!(found[0].0, "compare-metadata-throughput");
        assert!(found[0].1.starts_with("Ratios: Metadata"), "{found:?}");
    }

    #[test]
    fn slopes_want_three_points() {
        let point = |x: f64, y: f64| (x, Range::of(&[y]).expect("value"));
        let line = [point(1.0, 10.0), point(2.0, 12.0), point(4.0, 16.0)];
        assert!((slope(&line).expect("a slope") - 2.0).abs() < 1e-9);
        assert_eq!(slope(&line[..2]), None);
    }
}
