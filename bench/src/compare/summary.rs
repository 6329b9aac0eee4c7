//! The figures that sum many loads up, with their goals.
//!
//! Law: a figure is there only if every load it is made of was measured.

use super::contest::{Better, Field, Outcome};
use super::measure::{Load, Sample};
use super::operations::Operation;
use crate::figures::{Figure, Goal};
use crate::stats::Paired;

struct Sum {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    goal: Option<Goal>,
    field: Field,
    better: Better,
    takes: fn(&Load) -> bool,
}

const RATE: Field = |sample: &Sample| sample.rate;
const CPU: Field = |sample: &Sample| sample.cpu_us;

fn is_metadata(load: &Load, depth: usize, queues: usize) -> bool {
    load.operation.is_metadata() && (load.depth, load.queues) == (depth, queues)
}

fn is_data(load: &Load, bytes: usize) -> bool {
    matches!(load.operation, Operation::Read(n) | Operation::Write(n) if n == bytes)
}

const SUMS: [Sum; 12] = [
    Sum {
        name: "metadata_d1",
        what: "metadata operations, depth 1",
        unit: "ops/s",
        goal: Some(Goal::AtLeast(1.5)),
        field: RATE,
        better: Better::Higher,
        takes: |load| is_metadata(load, 1, 1),
    },
    Sum {
        name: "metadata_p50_d1",
        what: "metadata operations, depth 1, p50",
        unit: "us",
        goal: None,
        field: |sample| sample.p50_us,
        better: Better::Lower,
        takes: |load| is_metadata(load, 1, 1),
    },
    Sum {
        name: "metadata_d16_q1",
        what: "metadata operations, depth 16, 1 queue",
        unit: "ops/s",
        goal: None,
        field: RATE,
        better: Better::Higher,
        takes: |load| is_metadata(load, 16, 1),
    },
    Sum {
        name: "metadata_d16_q2",
        what: "metadata operations, depth 16, 2 queues",
        unit: "ops/s",
        goal: Some(Goal::AtLeast(2.0)),
        field: RATE,
        better: Better::Higher,
        takes: |load| is_metadata(load, 16, 2),
    },
    Sum {
        name: "data_4k_d16_q1",
        what: "READ and WRITE 4 KiB, depth 16, 1 queue",
        unit: "ops/s",
        goal: None,
        field: RATE,
        better: Better::Higher,
        takes: |load| is_data(load, 4 << 10) && (load.depth, load.queues) == (16, 1),
    },
    Sum {
        name: "data_4k_d16_q2",
        what: "READ and WRITE 4 KiB, depth 16, 2 queues",
        unit: "ops/s",
        goal: Some(Goal::AtLeast(2.0)),
        field: RATE,
        better: Better::Higher,
        takes: |load| is_data(load, 4 << 10) && (load.depth, load.queues) == (16, 2),
    },
    Sum {
        name: "data_1m",
        what: "READ and WRITE 1 MiB, depths 1, 4, 16, 1 queue",
        unit: "ops/s",
        goal: Some(Goal::AtLeast(1.1)),
        field: RATE,
        better: Better::Higher,
        takes: |load| is_data(load, 1 << 20) && load.queues == 1,
    },
    Sum {
        name: "data_1m_q2",
        what: "READ and WRITE 1 MiB, depth 16, 2 queues",
        unit: "ops/s",
        goal: Some(Goal::AtLeast(1.1)),
        field: RATE,
        better: Better::Higher,
        takes: |load| is_data(load, 1 << 20) && load.queues == 2,
    },
    Sum {
        name: "metadata_cpu_d1",
        what: "daemon CPU time per metadata operation, depth 1",
        unit: "us",
        goal: Some(Goal::AtMost(0.8)),
        field: CPU,
        better: Better::Lower,
        takes: |load| is_metadata(load, 1, 1),
    },
    Sum {
        name: "metadata_cpu_d16_q2",
        what: "daemon CPU time per metadata operation, depth 16, 2 queues",
        unit: "us",
        goal: Some(Goal::AtMost(0.8)),
        field: CPU,
        better: Better::Lower,
        takes: |load| is_metadata(load, 16, 2),
    },
    Sum {
        name: "small_files_d1",
        what: "small-file read of a tree, depth 1",
        unit: "files/s",
        goal: Some(Goal::AtLeast(1.5)),
        field: RATE,
        better: Better::Higher,
        takes: |load| load.operation == Operation::SmallFiles && load.depth == 1,
    },
    Sum {
        name: "small_files_d16_q2",
        what: "small-file read of a tree, depth 16, 2 queues",
        unit: "files/s",
        goal: Some(Goal::AtLeast(1.5)),
        field: RATE,
        better: Better::Higher,
        takes: |load| load.operation == Operation::SmallFiles && load.depth == 16,
    },
];

/// The sums whose loads among `planned` were all measured.
pub(super) fn summary(planned: &[Load], outcomes: &[Outcome]) -> Vec<Figure> {
    let figure = |sum: &Sum| {
        let wanted: Vec<_> = planned.iter().filter(|load| (sum.takes)(load)).collect();
        let of = |load: &&Load| outcomes.iter().find(|outcome| outcome.load == **load);
        let parts: Option<Vec<_>> = wanted.iter().map(of).collect();
        let parts = parts.filter(|parts| !parts.is_empty())?;
        let pairs: Vec<_> = parts
            .iter()
            .map(|outcome| outcome.pairs(sum.field, sum.better))
            .collect();
        Some(Figure::paired(
            sum.name,
            sum.what,
            sum.unit,
            sum.goal,
            &geometric_means(&pairs),
        ))
    };
    SUMS.iter().filter_map(figure).collect()
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
        let figures = summary(&planned, &outcomes);
        let names: Vec<_> = figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["metadata_d1", "metadata_p50_d1", "metadata_cpu_d1"]);
        let ratio = figures[0].ratio.expect("a ratio");
        assert!((ratio - 4.0).abs() < 1e-9, "{ratio}");
        assert_eq!(figures[0].met, Some(true));
        assert!((figures[2].ratio.expect("a ratio") - 0.25).abs() < 1e-9);
        assert_eq!((figures[0].n, figures[2].met), (2, Some(true)));
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
        for sum in &SUMS {
            assert!(plan.iter().any(|load| (sum.takes)(load)), "{}", sum.name);
        }
    }
}
