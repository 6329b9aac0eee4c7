//! A contest as cells on disk, and back.
//!
//! A cell is one contender under one load. Its values are the rates; the
//! other numbers of each repetition are side results, `p50_us/0` being that
//! of the first, so that a run that goes on has all it needs for its tables.

use anyhow::{Context, Result};

use super::contender::Contender;
use super::contest::{Better, Held, Outcome, Setting, column};
use super::floor::QueueTime;
use super::measure::{Load, Sample};
use super::memory::Memory;
use super::operations::Operation;
use super::summary::Summed;
use crate::figures::{AT_BEST, WITH_QUEUE};
use crate::runs::{Cell, Latency, Run};
use crate::stats::median;

/// Percentiles that are kept.
const QUANTILES: [f64; 8] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

type Part = (&'static str, fn(&Sample) -> f64, fn(&mut Sample, f64));

/// What a sample has beside its rate.
const PARTS: [Part; 4] = [
    ("p50_us", |s| s.p50_us, |s, v| s.p50_us = v),
    ("p99_us", |s| s.p99_us, |s, v| s.p99_us = v),
    ("cpu_us", |s| s.cpu_us, |s, v| s.cpu_us = v),
    (
        "front_end_us",
        |s| s.front_end_us,
        |s, v| s.front_end_us = v,
    ),
];

/// What a sample of ours has of the bare system calls.
const CALLS: &str = "calls_us";

/// The contest as an earlier run left it, if everybody's cell is there.
pub(super) fn recall(run: &Run, setting: &Setting, load: Load) -> Option<Held> {
    let window = load.operation.needs_window();
    let back = |contender: &&Contender| {
        let cell = run.get(&id(load), &contender.stack(window))?;
        match &cell.error {
            Some(_) if !contender.dialect.is_partial() => None,
            Some(error) => Some(Err(error.clone())),
            None => samples(cell).map(Ok),
        }
    };
    setting.contenders(load).iter().map(back).collect()
}

/// Writes the cells of a contest.
pub(super) fn record(run: &mut Run, setting: &Setting, load: Load, held: &Held) -> Result<()> {
    for (contender, samples) in setting.contenders(load).into_iter().zip(held) {
        let mut cell = cell(load, contender);
        match samples {
            Ok(samples) => fill(&mut cell, samples),
            Err(error) => cell.error = Some(error.clone()),
        }
        run.record(cell)?;
    }
    Ok(())
}

/// Writes that there was no contest, because of ours.
pub(super) fn record_failure(
    run: &mut Run,
    setting: &Setting,
    load: Load,
    error: &str,
) -> Result<()> {
    let mut cell = cell(load, &setting.ours);
    cell.error = Some(error.into());
    run.record(cell)
}

/// Writes the sums: what each side did, and the ratio with its goal.
pub(super) fn record_sums(run: &mut Run, sums: &[Summed]) -> Result<()> {
    for sum in sums {
        let mut cell = Cell::new(
            format!("sum/{}", sum.name),
            format!("ours / {}", sum.rival),
            "",
            sum.better,
        );
        cell.group = format!("compare: sums against {}", sum.rival);
        cell.what = sum.what.into();
        cell.metric = "ratio".into();
        cell.goal = sum.goal;
        let pairs = (0..sum.pairs.len()).filter_map(|n| sum.pairs.get(n));
        cell.values = pairs.map(|(ours, theirs)| ours / theirs).collect();
        let (ours, theirs) = (sum.pairs.value(), sum.pairs.base());
        let bounds = [(AT_BEST, sum.at_best), (WITH_QUEUE, sum.with_queue)];
        cell.detail = [("ours", ours), ("theirs", theirs)]
            .into_iter()
            .chain(bounds)
            .filter_map(|(side, value)| Some((side.to_string(), value?)))
            .collect();
        run.record_part(cell).context("record a sum")?;
    }
    Ok(())
}

/// The cells of a contest, by id and stack.
pub(super) fn cells(setting: &Setting, load: Load) -> Vec<(String, String)> {
    let window = load.operation.needs_window();
    let contenders = setting.contenders(load).into_iter();
    let named = contenders.map(|contender| (id(load), contender.stack(window)));
    named.collect()
}

/// Writes what each daemon held.
pub(super) fn record_memory(run: &mut Run, memory: &[Memory]) -> Result<()> {
    for of in memory {
        let kinds = [
            ("peak", "most that was resident", of.peak_bytes),
            ("own", "own memory at the end", of.own_bytes),
        ];
        for (kind, what, bytes) in kinds {
            let mut cell = Cell::new(format!("memory/{kind}"), &of.stack, "MiB", Better::Lower);
            cell.group = "compare: memory".into();
            cell.what = what.into();
            cell.metric = "memory after a tree and a listing".into();
            cell.values = vec![bytes as f64 / f64::from(1 << 20)];
            run.record_part(cell).context("record memory")?;
        }
    }
    Ok(())
}

fn id(load: Load) -> String {
    let (operation, depth, queues) = (load.operation.name(), load.depth, load.queues);
    format!("{operation}/d{depth}/q{queues}")
}

fn cell(load: Load, contender: &Contender) -> Cell {
    let operation = load.operation;
    let stack = contender.stack(operation.needs_window());
    let mut cell = Cell::new(id(load), stack, operation.unit(), Better::Higher);
    cell.group = format!("compare: {}", group(operation));
    let of_queues = match load.queues {
        1 => "1 queue".to_string(),
        queues => format!("{queues} queues"),
    };
    cell.what = format!("{}, depth {}, {of_queues}", operation.what(), load.depth);
    cell.metric = "rate".into();
    cell
}

fn group(operation: Operation) -> &'static str {
    match operation {
        Operation::Read(_) | Operation::Write(_) => "READ and WRITE",
        Operation::SmallFiles => "small files",
        Operation::Fsync => "fsync",
        Operation::Empty => "queues",
        Operation::DaxMap | Operation::DaxUnmap => "mappings",
        Operation::DaxFirstRead | Operation::DaxHotRead => "reads through the window",
        _ => "metadata",
    }
}

fn fill(cell: &mut Cell, samples: &[Sample]) {
    cell.values = column(samples, |sample| sample.rate);
    for (name, get, _) in PARTS {
        for (repetition, sample) in samples.iter().enumerate() {
            let key = format!("{name}/{repetition}");
            cell.detail.insert(key, get(sample));
        }
        if let Some(middle) = median(&column(samples, get)) {
            cell.detail.insert(name.into(), middle);
        }
    }
    let calls = samples.iter().enumerate();
    let calls = calls.filter_map(|(n, sample)| Some((format!("{CALLS}/{n}"), sample.calls_us?)));
    cell.detail.extend(calls);
    let mut all = daxwindow_shared::latency::Latency::new();
    samples.iter().for_each(|sample| all.merge(&sample.latency));
    let percentile = |quantile: f64| (quantile, all.quantile_ns(quantile) as f64 / 1e3);
    cell.latency = (all.count() > 0).then(|| Latency {
        percentiles: QUANTILES.into_iter().map(percentile).collect(),
        count: all.count(),
    });
}

fn samples(cell: &Cell) -> Option<Vec<Sample>> {
    let one = |(repetition, rate): (usize, &f64)| {
        let mut sample = Sample {
            rate: *rate,
            calls_us: cell.detail.get(&format!("{CALLS}/{repetition}")).copied(),
            ..Sample::default()
        };
        for (name, _, set) in PARTS {
            set(
                &mut sample,
                *cell.detail.get(&format!("{name}/{repetition}"))?,
            );
        }
        Some(sample)
    };
    cell.values.iter().enumerate().map(one).collect()
}

/// What was measured, and why the rest was not: of our daemon and of peers
/// that should serve everything, and of those that do not.
#[derive(Default)]
pub(super) struct Results {
    pub outcomes: Vec<Outcome>,
    pub failures: Vec<(String, String)>,
    pub not_served: Vec<(String, String)>,
}

impl Results {
    /// Adds a contest.
    pub(super) fn add(&mut self, setting: &Setting, load: Load, held: &Held) {
        let contenders = setting.contenders(load);
        for (contender, held) in contenders.iter().zip(held) {
            let Err(error) = held else { continue };
            let name = format!("{} of {}", load.name(), contender.stack(false));
            match contender.dialect.is_partial() {
                true => self.not_served.push((name, error.clone())),
                false => self.failures.push((name, error.clone())),
            }
        }
        let outcome = Outcome::of(load, setting.processors(), &contenders, held);
        let Some(mut outcome) = outcome else { return };
        // The plan has it before all others.
        let mut empty = self.outcomes.iter();
        let like = |other: &&Outcome| {
            let Load { depth, queues, .. } = other.load;
            other.load.operation == Operation::Empty && (depth, queues) == (load.depth, load.queues)
        };
        if let Some(empty) = empty.find(like) {
            outcome.queue = empty.ours.iter().map(|s| QueueTime(s.cpu_us)).collect();
        }
        self.outcomes.push(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_cell_gives_back_the_samples_it_was_made_of() {
        let load = Load {
            operation: Operation::DaxMap,
            depth: 1,
            queues: 1,
        };
        let sample = |n: f64| {
            let mut latency = daxwindow_shared::latency::Latency::new();
            latency.record(Duration::from_micros(n as u64));
            Sample {
                rate: n,
                p50_us: n + 1.0,
                p99_us: n + 2.0,
                cpu_us: n + 3.0,
                front_end_us: n + 4.0,
                calls_us: Some(n + 5.0),
                latency,
            }
        };
        let ours = Contender::ours("x".into(), &[]);
        let mut cell = cell(load, &ours);
        assert_eq!(
            (cell.id.as_str(), cell.stack.as_str()),
            ("dax_map/d1/q1", "daxwindow dax=always")
        );
        fill(&mut cell, &[sample(10.0), sample(20.0)]);
        assert_eq!(cell.detail["p50_us"], 16.0);
        let latency = cell.latency.as_ref().expect("latency");
        assert_eq!((latency.count, latency.percentiles.len()), (2, 8));
        let back = samples(&cell).expect("complete");
        let numbers = |s: &Sample| (s.rate, s.p50_us, s.p99_us, s.cpu_us, s.front_end_us);
        assert_eq!(numbers(&back[0]), (10.0, 11.0, 12.0, 13.0, 14.0));
        assert_eq!(numbers(&back[1]), (20.0, 21.0, 22.0, 23.0, 24.0));
        let calls = |samples: &[Sample]| samples.iter().map(|s| s.calls_us).collect::<Vec<_>>();
        assert_eq!(calls(&back), [Some(15.0), Some(25.0)]);
        cell.detail.remove("calls_us/1");
        let back = samples(&cell).expect("as it was before there were any");
        assert_eq!(calls(&back), [Some(15.0), None]);
        cell.detail.remove("cpu_us/1");
        assert!(samples(&cell).is_none());
    }
}
