//! A load on all stacks, round by round: in each round every stack once, and
//! each round begins with another one. A round before the first is not counted.
//!
//! Law: the same index in the values of two stacks is the same round; a stack
//! of which one round failed has no value for that pass.

use std::collections::BTreeMap;

use anyhow::Result;

use super::output;
use super::plan::{FileKind, Load, Pass};
use super::scene::{Sample, Scene};
use super::stacks::Stack;
use crate::runs::{Better, Cell, Run};
use crate::stats::median;

/// What came of one cell.
#[derive(Default)]
struct Found {
    samples: Vec<Sample>,
    error: Option<String>,
}

/// The stacks in the order of one round.
fn order(stacks: &[Stack], round: usize) -> Vec<Stack> {
    let mut order = stacks.to_vec();
    if !order.is_empty() {
        order.rotate_left(round % stacks.len());
    }
    order
}

/// Measures what is not there yet and records it.
pub(super) fn measure(
    run: &mut Run,
    scene: &mut Scene,
    load: &Load,
    stacks: &[Stack],
    rounds: usize,
) -> Result<()> {
    if load.job.file != FileKind::Large {
        warm_up(scene, load, stacks);
    }
    let mut found: BTreeMap<(Stack, Pass), Found> = BTreeMap::new();
    for round in 0..rounds {
        for stack in order(stacks, round) {
            one_round(&mut found, scene, load, stack);
        }
    }
    for &stack in stacks {
        for &pass in &load.passes {
            let found = found.remove(&(stack, pass)).unwrap_or_default();
            run.record(cell(load, stack, pass, found))?;
        }
    }
    Ok(())
}

/// Once before the first round, for nobody to count: an emulator translates
/// code when it is first run, a daemon grows its tables, QEMU its threads. A
/// load that takes seconds does not need it. What fails here fails again
/// where it is told.
fn warm_up(scene: &mut Scene, load: &Load, stacks: &[Stack]) {
    for &stack in stacks {
        if let Err(error) = scene.pass(stack, load, Pass::First) {
            tracing::debug!("{} on {}: {error:#}", load.name(), stack.name());
        }
    }
}

fn one_round(
    found: &mut BTreeMap<(Stack, Pass), Found>,
    scene: &mut Scene,
    load: &Load,
    stack: Stack,
) {
    let mut broken: Option<String> = None;
    for &pass in &load.passes {
        let cell = found.entry((stack, pass)).or_default();
        if pass == Pass::Second && cell.error.is_none() {
            cell.error.clone_from(&broken);
        }
        if cell.error.is_some() {
            continue;
        }
        match scene.pass(stack, load, pass) {
            Ok(sample) => {
                cell.samples.push(sample);
                broken = None;
            }
            Err(error) => {
                let error = format!("{error:#}");
                broken = Some(format!("the pass before it failed: {error}"));
                cell.error = Some(error);
            }
        }
    }
}

/// Chart, name and words of a cell.
pub(super) fn labelled(load: &Load, stack: Stack, pass: Pass) -> Cell {
    let mut cell = Cell::new(load.id(pass), stack.name(), "MB/s", Better::Higher);
    cell.group = format!("{}, {}", load.job.title, pass.words());
    let jobs = match load.jobs {
        1 => String::new(),
        jobs => format!(", {jobs} jobs"),
    };
    cell.what = format!("{}, {}{jobs}, {}", load.job.title, load.block, pass.words());
    cell.metric = "throughput".into();
    cell
}

fn cell(load: &Load, stack: Stack, pass: Pass, found: Found) -> Cell {
    let mut cell = labelled(load, stack, pass);
    cell.error = found.error;
    let Some(last) = found.samples.last().filter(|_| cell.error.is_none()) else {
        let nothing = || "it was not measured".to_owned();
        cell.error.get_or_insert_with(nothing);
        return cell;
    };
    let outcomes = || found.samples.iter().map(|sample| &sample.outcome);
    cell.values = outcomes().map(|outcome| outcome.throughput()).collect();
    cell.latency = output::latency(outcomes());
    cell.proof = last.facts.numbers();
    let rates: Vec<f64> = outcomes().map(|outcome| outcome.rate()).collect();
    if let Some(rate) = median(&rates) {
        cell.detail.insert("operations_per_second".into(), rate);
    }
    let hot = found.samples.iter().all(|sample| sample.facts.was_hot());
    if pass == Pass::Second {
        cell.detail.insert("hot".into(), f64::from(u8::from(hot)));
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fio::jobs::shipped;
    use crate::fio::output::Outcome;
    use crate::fio::proof::Facts;

    #[test]
    fn every_stack_is_first_once() {
        let stacks = [Stack::DaxAlways, Stack::NineP, Stack::Blk];
        let firsts: Vec<_> = (0..3).map(|round| order(&stacks, round)[0]).collect();
        assert_eq!(firsts, stacks);
        assert_eq!(
            order(&stacks, 4),
            [Stack::NineP, Stack::Blk, Stack::DaxAlways]
        );
        assert!(order(&[], 3).is_empty());
    }

    fn load() -> Load {
        shipped().expect("all")[0].loads(true).remove(0)
    }

    #[test]
    fn a_cell_has_values_or_a_reason() {
        let sample = |seconds| Sample {
            outcome: Outcome {
                read_bytes: 1_000_000,
                operations: 10,
                seconds,
                histogram: [(1000, 10)].into(),
                ..Outcome::default()
            },
            facts: Facts::default(),
        };
        let found = |error: Option<&str>| Found {
            samples: vec![sample(1.0), sample(0.5)],
            error: error.map(str::to_owned),
        };
        let good = cell(&load(), Stack::NineP, Pass::Second, found(None));
        assert_eq!(good.values, [1.0, 2.0]);
        assert_eq!(good.latency.expect("samples").count, 20);
        assert_eq!(good.detail["hot"], 1.0);
        let bad = cell(&load(), Stack::NineP, Pass::First, found(Some("not cold")));
        assert!(bad.values.is_empty() && bad.error.as_deref() == Some("not cold"));
        let none = cell(&load(), Stack::NineP, Pass::First, Found::default());
        assert!(none.values.is_empty() && none.error.is_some());
    }

    #[test]
    fn names_are_stable() {
        let cell = labelled(&load(), Stack::DaxInode, Pass::First);
        assert_eq!(cell.id, "seq-read-psync/1m/j1/first");
        assert_eq!(
            cell.what,
            "Sequential read by read(2), 1m, first pass, guest cold"
        );
        assert_eq!(
            cell.group,
            "Sequential read by read(2), first pass, guest cold"
        );
    }
}
