//! The figures that sum many loads up, with their goals.
//!
//! Law: a figure is there only if every load it is made of was measured.

use daxwindow_vm::peers::ALIOTH;

use super::contest::{Better, Field, Outcome};
use super::floor::Least;
use super::measure::Load;
use super::operations::Operation;
use crate::figures::{AT_BEST, Figure, Goal, WITH_QUEUE};
use crate::stats::Paired;

struct Sum {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    goal: Option<Goal>,
    field: Field,
    better: Better,
    /// The same number of a daemon that is nothing but its system calls.
    least: Option<fn(&Least) -> f64>,
    /// And of one with our queue.
    queued: Option<fn(&Least) -> Option<f64>>,
    takes: fn(&Load) -> bool,
}

impl Sum {
    const fn rate(name: &'static str, what: &'static str, takes: fn(&Load) -> bool) -> Sum {
        Sum {
            name,
            what,
            unit: "ops/s",
            goal: None,
            field: |sample| sample.rate,
            better: Better::Higher,
            least: Some(|least| 1e6 / least.time_us),
            queued: Some(|least| Some(1e6 / least.queued_us?)),
            takes,
        }
    }

    const fn time(
        name: &'static str,
        what: &'static str,
        field: Field,
        takes: fn(&Load) -> bool,
    ) -> Sum {
        Sum {
            unit: "us",
            field,
            better: Better::Lower,
            least: None,
            queued: None,
            ..Sum::rate(name, what, takes)
        }
    }

    const fn cpu(name: &'static str, what: &'static str, takes: fn(&Load) -> bool) -> Sum {
        Sum {
            least: Some(|least| least.calls_us),
            ..Sum::time(name, what, CPU, takes)
        }
    }

    const fn at_least(self, ratio: f64) -> Sum {
        Sum {
            goal: Some(Goal::AtLeast(ratio)),
            ..self
        }
    }

    const fn at_most(self, ratio: f64) -> Sum {
        Sum {
            goal: Some(Goal::AtMost(ratio)),
            ..self
        }
    }

    const fn of(self, unit: &'static str) -> Sum {
        Sum { unit, ..self }
    }
}

const CPU: Field = |sample| sample.cpu_us;
const P50: Field = |sample| sample.p50_us;
const P99: Field = |sample| sample.p99_us;

fn is_metadata(load: &Load, depth: usize, queues: usize) -> bool {
    load.operation.is_metadata() && (load.depth, load.queues) == (depth, queues)
}

fn is_4k(load: &Load, queues: usize) -> bool {
    is_data(load, 4 << 10) && (load.depth, load.queues) == (16, queues)
}

fn is_1m(load: &Load, queues: usize) -> bool {
    is_data(load, 1 << 20) && load.queues == queues
}

fn is_data(load: &Load, bytes: usize) -> bool {
    matches!(load.operation, Operation::Read(n) | Operation::Write(n) if n == bytes)
}

fn is_tree(load: &Load, depth: usize) -> bool {
    load.operation == Operation::SmallFiles && load.depth == depth
}

fn is_map(load: &Load) -> bool {
    load.operation == Operation::DaxMap
}

/// Against a daemon that serves all requests.
const SUMS: [Sum; 12] = [
    Sum::rate("metadata_d1", "metadata operations, depth 1", |l| {
        is_metadata(l, 1, 1)
    })
    .at_least(1.5),
    Sum::time(
        "metadata_p50_d1",
        "metadata operations, depth 1, p50",
        P50,
        |l| is_metadata(l, 1, 1),
    ),
    Sum::rate(
        "metadata_d16_q1",
        "metadata operations, depth 16, 1 queue",
        |l| is_metadata(l, 16, 1),
    ),
    Sum::rate(
        "metadata_d16_q2",
        "metadata operations, depth 16, 2 queues",
        |l| is_metadata(l, 16, 2),
    )
    .at_least(2.0),
    Sum::rate(
        "data_4k_d16_q1",
        "READ and WRITE 4 KiB, depth 16, 1 queue",
        |l| is_4k(l, 1),
    ),
    Sum::rate(
        "data_4k_d16_q2",
        "READ and WRITE 4 KiB, depth 16, 2 queues",
        |l| is_4k(l, 2),
    )
    .at_least(2.0),
    Sum::rate(
        "data_1m",
        "READ and WRITE 1 MiB, depths 1, 4, 16, 1 queue",
        |l| is_1m(l, 1),
    )
    .at_least(1.1),
    Sum::rate(
        "data_1m_q2",
        "READ and WRITE 1 MiB, depth 16, 2 queues",
        |l| is_1m(l, 2),
    )
    .at_least(1.1),
    Sum::cpu(
        "metadata_cpu_d1",
        "daemon CPU time per metadata operation, depth 1",
        |l| is_metadata(l, 1, 1),
    )
    .at_most(0.8),
    Sum::cpu(
        "metadata_cpu_d16_q2",
        "daemon CPU time per metadata operation, depth 16, 2 queues",
        |l| is_metadata(l, 16, 2),
    )
    .at_most(0.8),
    Sum::rate(
        "small_files_d1",
        "small-file read of a tree, depth 1",
        |l| is_tree(l, 1),
    )
    .of("files/s")
    .at_least(1.5),
    Sum::rate(
        "small_files_d16_q2",
        "small-file read of a tree, depth 16, 2 queues",
        |l| is_tree(l, 16),
    )
    .of("files/s")
    .at_least(1.5),
];

/// Against a daemon with a window.
const WINDOW_SUMS: [Sum; 6] = [
    Sum::time(
        "dax_map_p50",
        "mapping of 2 MiB, the front end's mmap included, p50",
        P50,
        is_map,
    )
    .at_most(1.0),
    Sum::time("dax_map_p99", "the same, p99", P99, is_map),
    Sum::time("dax_map_cpu", "daemon CPU time per mapping", CPU, is_map),
    Sum::time("dax_unmap_p50", "removal of a mapping, p50", P50, |l| {
        l.operation == Operation::DaxUnmap
    }),
    Sum::rate("dax_first_read", "first read through the window", |l| {
        l.operation == Operation::DaxFirstRead
    })
    .of("MB/s"),
    Sum::rate("dax_hot_read", "hot read through the window", |l| {
        l.operation == Operation::DaxHotRead
    })
    .of("MB/s"),
];

/// The sums, each against each rival, whose loads among `planned` were all
/// measured.
pub(super) fn summary(planned: &[Load], outcomes: &[Outcome]) -> Vec<Summed> {
    let mut rivals: Vec<&str> = Vec::new();
    for rival in outcomes.iter().flat_map(|o| &o.rivals) {
        if !rivals.contains(&rival.name.as_str()) {
            rivals.push(&rival.name);
        }
    }
    let against = |rival: &&str| {
        let all = SUMS.iter().map(|sum| (sum, true));
        let windows = WINDOW_SUMS.iter().map(|sum| (sum, false));
        let summed = |(sum, of_requests)| {
            let mut summed = summed(sum, rival, planned, outcomes)?;
            if of_requests && *rival == ALIOTH {
                // The goals are about daemons that serve everything.
                summed.goal = None;
                summed.name = format!("{rival}_{}", sum.name);
            }
            Some(summed)
        };
        all.chain(windows).filter_map(summed).collect::<Vec<_>>()
    };
    rivals.iter().flat_map(against).collect()
}

/// A sum against one rival.
pub(super) struct Summed {
    pub name: String,
    pub what: &'static str,
    pub unit: &'static str,
    pub goal: Option<Goal>,
    pub better: Better,
    pub rival: String,
    pub pairs: Paired,
    /// The ratio that no daemon can better here, where it is known.
    pub at_best: Option<f64>,
    /// And no daemon with our queue.
    pub with_queue: Option<f64>,
}

impl Summed {
    /// As a figure.
    pub(super) fn figure(&self) -> Figure {
        let what = format!("{}, against {}", self.what, self.rival);
        let figure = Figure::paired(&self.name, &what, self.unit, self.goal, &self.pairs);
        let bounds = [(AT_BEST, self.at_best), (WITH_QUEUE, self.with_queue)];
        bounds
            .into_iter()
            .fold(figure, |figure, (name, ratio)| match ratio {
                Some(ratio) => figure.with(name, ratio),
                None => figure,
            })
    }
}

fn summed(sum: &Sum, rival: &str, planned: &[Load], outcomes: &[Outcome]) -> Option<Summed> {
    let wanted = planned.iter().filter(|load| (sum.takes)(load));
    let against = |load: &Load| {
        let outcome = outcomes.iter().find(|outcome| outcome.load == *load)?;
        let rival = outcome.rivals.iter().find(|r| r.name == rival)?;
        Some((outcome, outcome.pairs(rival, sum.field, sum.better)))
    };
    let against: Vec<(&Outcome, Paired)> = wanted.map(against).collect::<Option<_>>()?;
    let bound = |of: &dyn Fn(&Least) -> Option<f64>| -> Option<f64> {
        let floors = against
            .iter()
            .map(|(outcome, pairs)| with_least(&outcome.least()?, pairs, of));
        let floors: Vec<Paired> = floors.collect::<Option<_>>()?;
        Some(geometric_means(&floors).ratio()?.median)
    };
    let at_best = sum.least.and_then(|of| bound(&|least| Some(of(least))));
    let with_queue = sum.queued.and_then(|of| bound(&of));
    let parts: Vec<Paired> = against.into_iter().map(|(_, pairs)| pairs).collect();
    if parts.is_empty() {
        return None;
    }
    Some(Summed {
        name: sum.name.into(),
        what: sum.what,
        unit: sum.unit,
        goal: sum.goal,
        better: sum.better,
        rival: rival.into(),
        pairs: geometric_means(&parts),
        at_best,
        with_queue,
    })
}

/// The pairs with a daemon in our place that does the least.
pub(super) fn with_least(
    least: &[Least],
    pairs: &Paired,
    of: impl Fn(&Least) -> Option<f64>,
) -> Option<Paired> {
    let mut bounds = Paired::default();
    for (least, theirs) in least.iter().zip(pairs.denominators()) {
        bounds.push(of(least)?, *theirs);
    }
    Some(bounds)
}

/// Repetition by repetition the geometric means over all figures.
fn geometric_means(figures: &[Paired]) -> Paired {
    let repetitions = figures.iter().map(Paired::len).min().unwrap_or(0);
    let mut means = Paired::default();
    for repetition in 0..repetitions {
        let pairs = figures.iter().filter_map(|f| f.get(repetition));
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.unzip();
        means.push(geometric_mean(&ours), geometric_mean(&theirs));
    }
    means
}

fn geometric_mean(values: &[f64]) -> f64 {
    let logarithms: f64 = values.iter().map(|value| value.ln()).sum();
    (logarithms / values.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::super::contest::tests::outcome;
    use super::*;

    fn load(operation: Operation, depth: usize, queues: usize) -> Load {
        Load {
            operation,
            depth,
            queues,
        }
    }

    #[test]
    fn a_sum_is_the_geometric_mean_of_its_loads() {
        let planned = [
            load(Operation::Getattr, 1, 1),
            load(Operation::LookupHot, 1, 1),
            load(Operation::Fsync, 1, 1),
        ];
        let outcomes = [
            outcome(planned[0], &[80.0, 40.0], &[&[10.0, 5.0]]),
            outcome(planned[1], &[20.0, 10.0], &[&[10.0, 5.0]]),
            outcome(planned[2], &[1.0, 1.0], &[&[100.0, 100.0]]),
        ];
        let figures: Vec<_> = summary(&planned, &outcomes)
            .iter()
            .map(Summed::figure)
            .collect();
        let names: Vec<_> = figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["metadata_d1", "metadata_p50_d1", "metadata_cpu_d1"]);
        let ratio = figures[0].ratio.expect("a ratio");
        assert!((ratio - 4.0).abs() < 1e-9, "{ratio}");
        assert_eq!(figures[0].met, Some(true));
        assert!((figures[2].ratio.expect("a ratio") - 0.25).abs() < 1e-9);
        // 2 us a unit, against 100,000 and 200,000 us.
        let at_best = figures[0].detail[AT_BEST];
        assert!((at_best / 75_000.0 - 1.0).abs() < 1e-9, "{at_best}");
        // 2.25 us.
        let with_queue = figures[0].detail[WITH_QUEUE];
        assert!((with_queue * 2.25 / 150_000.0 - 1.0).abs() < 1e-9);
        assert!(figures[2].detail[AT_BEST] < 1e-4);
        assert!(!figures[2].detail.contains_key(WITH_QUEUE));
        assert!(figures[1].detail.is_empty(), "latency has none");
        assert_eq!((figures[0].n, figures[2].met), (2, Some(true)));
    }

    #[test]
    fn goals_about_requests_are_not_for_a_daemon_that_serves_some() {
        let planned = [
            load(Operation::SmallFiles, 1, 1),
            load(Operation::DaxMap, 1, 1),
        ];
        let mut outcomes = [
            outcome(planned[0], &[80.0], &[&[10.0]]),
            outcome(planned[1], &[20.0], &[&[10.0]]),
        ];
        for outcome in &mut outcomes {
            outcome.rivals[0].name = ALIOTH.into();
        }
        let sums = summary(&planned, &outcomes);
        let of = |name: &str| sums.iter().find(|sum| sum.name == name).expect("there");
        assert_eq!(of("alioth_small_files_d1").goal, None);
        assert_eq!(of("dax_map_p50").goal, Some(Goal::AtMost(1.0)));
        assert_eq!(of("dax_map_p50").figure().met, Some(true));
    }

    #[test]
    fn a_sum_with_a_load_missing_is_no_figure() {
        let planned = [
            load(Operation::Getattr, 1, 1),
            load(Operation::LookupHot, 1, 1),
        ];
        let outcomes = [outcome(planned[0], &[1.0], &[&[1.0]])];
        assert!(summary(&planned, &outcomes).is_empty());
    }

    #[test]
    fn every_sum_has_loads_in_the_plan() {
        let plan = super::super::plan::loads();
        for sum in SUMS.iter().chain(&WINDOW_SUMS) {
            assert!(plan.iter().any(|load| (sum.takes)(load)), "{}", sum.name);
        }
    }
}
