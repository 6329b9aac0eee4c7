//! The comparison for people and as JSON.

use std::collections::BTreeSet;

use anyhow::Result;
use comfy_table::{Cell, Table};
use serde::Serialize;

use super::contest::{Better, Field, Outcome, Rival, column};
use super::floor::Least;
use super::memory::Memory;
use super::summary::with_least;
use crate::figures::{Report, table};
use crate::stats::{Series, median};

/// One load, as `--json` prints it. Values are medians over the repetitions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Operation, depth and queues.
    pub name: String,
    /// Whom it is against.
    pub peer: String,
    /// Unit of `rate`.
    pub unit: &'static str,
    pub rate: Versus,
    /// Of whole operations, microseconds.
    pub p50_us: Versus,
    pub p99_us: Versus,
    /// Processor time of the daemon for one unit of work, microseconds; none
    /// where it has nothing to do.
    pub cpu_us: Option<Versus>,
    /// What the front end itself took for one unit, microseconds, of ours.
    pub front_end_us: f64,
    /// What it takes at least; none for the window.
    pub floor: Option<Floor>,
}

/// What one unit takes at least, whoever serves it, microseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Floor {
    /// Processor time of the bare system calls.
    pub calls_us: f64,
    /// Time by the clock on the wall, with the front end's own.
    pub time_us: f64,
    /// The ratio of rates that no daemon can better.
    pub at_best: f64,
    /// And no daemon with our queue.
    pub with_queue: Option<f64>,
}

impl Floor {
    fn of(outcome: &Outcome, rival: &Rival) -> Option<Floor> {
        let least = outcome.least()?;
        let pairs = outcome.pairs(rival, |s| s.rate, Better::Higher);
        let bounds = with_least(&least, &pairs, |least| Some(1e6 / least.time_us))?;
        let queued = with_least(&least, &pairs, |least| Some(1e6 / least.queued_us?));
        let middle = |of: fn(&Least) -> f64| median(&least.iter().map(of).collect::<Vec<_>>());
        Some(Floor {
            calls_us: middle(|least| least.calls_us)?,
            time_us: middle(|least| least.time_us)?,
            at_best: bounds.ratio()?.median,
            with_queue: queued.and_then(|bounds| Some(bounds.ratio()?.median)),
        })
    }
}

/// Ours and the peer's best.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Versus {
    pub ours: f64,
    pub peer: f64,
    /// Median of the paired ratios, ours / peer's.
    pub ratio: f64,
    /// (max - min) / median of the ratios.
    pub spread: f64,
    /// The flag with which the peer was best at this.
    pub flag: String,
}

impl Row {
    /// Sums an outcome up, once for each rival; none without repetitions.
    pub(super) fn of(outcome: &Outcome) -> Vec<Row> {
        let row = |rival: &Rival| Row::against(outcome, rival);
        outcome.rivals.iter().filter_map(row).collect()
    }

    fn against(outcome: &Outcome, rival: &Rival) -> Option<Row> {
        let versus = |field, better| versus(outcome, rival, field, better);
        Some(Row {
            name: outcome.load.name(),
            peer: rival.name.clone(),
            unit: outcome.load.operation.unit(),
            rate: versus(|s| s.rate, Better::Higher)?,
            p50_us: versus(|s| s.p50_us, Better::Lower)?,
            p99_us: versus(|s| s.p99_us, Better::Lower)?,
            cpu_us: versus(|s| s.cpu_us, Better::Lower),
            front_end_us: median(&column(&outcome.ours, |s| s.front_end_us))?,
            floor: Floor::of(outcome, rival),
        })
    }
}

fn versus(outcome: &Outcome, rival: &Rival, field: Field, better: Better) -> Option<Versus> {
    let pairs = outcome.pairs(rival, field, better);
    let Series { median, spread, .. } = pairs.ratio()?;
    Some(Versus {
        ours: pairs.value()?,
        peer: pairs.base()?,
        ratio: median,
        spread,
        flag: rival.best(field, better)?.0.clone(),
    })
}

/// The object `--json` prints.
#[derive(Serialize)]
pub(super) struct Comparison<'a> {
    /// The sums with their goals, the machine and the versions.
    #[serde(flatten)]
    pub report: &'a Report,
    /// What the peer says it is.
    pub peer: &'a str,
    /// Whether everything was on one processor.
    pub one_cpu: bool,
    /// Each load.
    pub loads: &'a [Row],
    /// Peak memory.
    pub memory: &'a [Memory],
    /// Loads that could not be measured, and why.
    pub failures: &'a [(String, String)],
    /// What a peer that serves a part of the requests does not do, and what
    /// it says.
    pub not_served: &'a [(String, String)],
}

impl Comparison<'_> {
    /// As one object.
    pub(super) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Tables.
    pub(super) fn print(&self) {
        let placed = if self.one_cpu { ", all on one CPU" } else { "" };
        println!("{}\nagainst {}{placed}", self.report.machine, self.peer);
        let peers: BTreeSet<&str> = self.loads.iter().map(|row| row.peer.as_str()).collect();
        for peer in peers {
            let of = |row: &&Row| row.peer == peer;
            println!("{}", loads(peer, self.loads.iter().filter(of)));
        }
        if !self.memory.is_empty() {
            println!("{}", memory(self.memory));
        }
        if !self.report.figures.is_empty() {
            println!("{}", table::figures(&self.report.figures));
        }
        for (name, why) in self.failures.iter().chain(self.not_served) {
            println!("{name}: {why}");
        }
    }
}

fn loads<'a>(peer: &str, rows: impl Iterator<Item = &'a Row>) -> Table {
    let mut out = table::table(&[
        "load",
        "ours",
        peer,
        "ratio",
        "at best",
        "with our queue",
        "spread",
        "p50 us",
        "p99 us",
        "CPU us",
        "calls us",
        "ratio",
        "peer's",
    ]);
    let both = |versus: &Versus| {
        let (ours, peer) = (table::short(versus.ours), table::short(versus.peer));
        format!("{ours} / {peer}")
    };
    let ratio = |versus: &Versus| format!("{:.2}", versus.ratio);
    let floor = |row: &Row, show: fn(&Floor) -> String| row.floor.as_ref().map_or("-".into(), show);
    for row in rows {
        let rate = |value| format!("{} {}", table::short(value), row.unit);
        out.add_row(vec![
            Cell::new(&row.name),
            Cell::new(rate(row.rate.ours)),
            Cell::new(table::short(row.rate.peer)),
            Cell::new(ratio(&row.rate)),
            Cell::new(floor(row, |floor| format!("{:.2}", floor.at_best))),
            Cell::new(floor(row, |floor| {
                floor.with_queue.map_or("-".into(), |r| format!("{r:.2}"))
            })),
            Cell::new(format!("{:.0} %", row.rate.spread * 100.0)),
            Cell::new(both(&row.p50_us)),
            Cell::new(both(&row.p99_us)),
            Cell::new(row.cpu_us.as_ref().map_or("-".into(), both)),
            Cell::new(floor(row, |floor| table::short(floor.calls_us))),
            Cell::new(row.cpu_us.as_ref().map_or("-".into(), ratio)),
            Cell::new(&row.rate.flag),
        ]);
    }
    out
}

fn memory(rows: &[Memory]) -> Table {
    let mut out = table::table(&["memory after a tree and a listing", "peak", "own"]);
    for row in rows {
        out.add_row(vec![
            Cell::new(&row.name),
            Cell::new(table::bytes(row.peak_bytes)),
            Cell::new(table::bytes(row.own_bytes)),
        ]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::contest::tests::outcome;
    use super::super::measure::Load;
    use super::super::operations::Operation;
    use super::*;

    #[test]
    fn a_row_names_the_flag_that_was_best() {
        let load = Load {
            operation: Operation::Getattr,
            depth: 16,
            queues: 2,
        };
        let outcome = outcome(load, &[200.0], &[&[50.0], &[100.0]]);
        let rows = Row::of(&outcome);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.rate.flag.as_str(), row.rate.ratio), ("b", 2.0));
        let floor = row.floor.as_ref().expect("measured");
        assert_eq!(
            (floor.calls_us, floor.time_us, floor.at_best),
            (1.5, 1.0, 1e4)
        );
        let with_queue = floor.with_queue.expect("measured");
        assert!((with_queue * 1.125 / 1e4 - 1.0).abs() < 1e-9);
        let text = loads("virtiofsd", rows.iter()).to_string();
        assert!(
            text.contains("getattr_d16_q2") && text.contains("200 ops/s"),
            "{text}"
        );
    }
}
