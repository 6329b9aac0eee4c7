//! Tables for people: every cell, and the figures.

use super::figures::best;
use super::stacks::Stack;
use crate::figures::table::{short, table};
use crate::runs::{Cell, Run};
use crate::stats::Paired;

/// A cell for each stack that was measured, with the ratio to virtiofsd at
/// its best cache mode in the same run.
pub(super) fn cells(run: &Run) -> String {
    let mut out = table(&[
        "cell",
        "stack",
        "MB/s",
        "spread",
        "p50",
        "p99",
        "/ virtiofsd",
    ]);
    let cells = run.cells().iter().filter(|cell| cell.goal.is_none());
    let mut ids: Vec<&str> = Vec::new();
    for cell in cells.clone() {
        if !ids.contains(&cell.id.as_str()) {
            ids.push(&cell.id);
        }
    }
    let all = ids
        .iter()
        .flat_map(|id| cells.clone().filter(move |cell| cell.id == *id));
    let mut last = "";
    for cell in all {
        let id = if cell.id == last {
            ""
        } else {
            cell.id.as_str()
        };
        last = &cell.id;
        let Some(series) = cell.series() else {
            out.add_row([id, &cell.stack, "failed"]);
            continue;
        };
        out.add_row([
            id.to_owned(),
            cell.stack.clone(),
            short(series.median),
            format!("{:.0} %", series.spread * 100.0),
            at(cell, 0.5),
            at(cell, 0.99),
            against_virtiofsd(run, cell),
        ]);
    }
    out.to_string()
}

fn at(cell: &Cell, quantile: f64) -> String {
    let percentiles = cell.latency.iter().flat_map(|l| &l.percentiles);
    let found = percentiles.into_iter().find(|p| p.0 == quantile);
    found.map_or("-".into(), |(_, us)| format!("{} us", short(*us)))
}

fn against_virtiofsd(run: &Run, cell: &Cell) -> String {
    let get = |stack: Stack| run.get(&cell.id, stack.name());
    let base = best(get(Stack::VirtiofsdAuto), get(Stack::VirtiofsdAlways));
    let mut pairs = Paired::default();
    for (value, base) in cell.values.iter().zip(base.iter().flat_map(|b| &b.values)) {
        pairs.push(*value, *base);
    }
    pairs
        .ratio()
        .map_or("-".into(), |r| format!("{:.2}", r.median))
}

/// The figures with goals, and why there is none.
pub(super) fn figures(figures: &[Cell]) -> String {
    let mut out = table(&["figure", "DAX", "against", "ratio", "spread", "goal", "met"]);
    for figure in figures {
        let speed = |key: &str| {
            let found = figure.detail.get(key);
            found.map_or("-".into(), |v| format!("{} MB/s", short(*v)))
        };
        let series = figure.series();
        out.add_row([
            figure.what.clone(),
            speed("ours_mb_s"),
            speed("base_mb_s"),
            series.map_or("failed".into(), |s| format!("{:.2}", s.median)),
            series.map_or("-".into(), |s| format!("{:.0} %", s.spread * 100.0)),
            figure.goal.map_or("-".into(), |goal| goal.to_string()),
            match figure.met() {
                Some(true) => "yes".into(),
                Some(false) => "NO".into(),
                None => "-".into(),
            },
        ]);
    }
    out.to_string()
}

/// What failed and why, a line each.
pub(super) fn failures<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<String> {
    let told = |cell: &Cell| {
        let why = cell.error.as_ref()?;
        Some(format!("{} on {}: {why}", cell.id, cell.stack))
    };
    cells.filter_map(told).collect()
}
