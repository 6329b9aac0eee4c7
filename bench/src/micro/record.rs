//! Figures as cells on disk: the ratio with its goal, and its two sides.

use anyhow::{Result, ensure};

use super::{Args, Bench, Cell as Measured};
use crate::daemon;
use crate::figures::{Figure, Goal};
use crate::machine::Machine;
use crate::runs::{Better, Cell, Header, Run};

/// What ours is called in charts, and what it is measured against.
const OURS: &str = "daxwindow";
const BASE: &str = "the denominator";

/// Begins or goes on with a run where `--out` says; none without it.
pub(super) fn open(args: &Args, bench: &Bench, cells: usize) -> Result<Option<Run>> {
    let Some(directory) = &args.out else {
        ensure!(!args.fresh, "--fresh without --out has nothing to drop");
        return Ok(None);
    };
    let mut header = Header::new("micro", Machine::detect(&bench.directory));
    header.option("bytes", bench.bytes);
    header.option("repetitions", bench.repetitions);
    header.option("quick", bench.quick);
    header.version("daxwindowd", daemon::version(&bench.binary));
    header.version("daxwindow-bench", env!("CARGO_PKG_VERSION"));
    let mut run = Run::open(directory, header, args.fresh)?;
    run.plan(cells);
    Ok(Some(run))
}

/// Whether the figure was measured by an earlier run.
pub(super) fn has(run: &Run, cell: &Measured) -> bool {
    run.has(cell.name, OURS)
}

/// Writes a figure. The ratio comes last: what has it has the sides too.
pub(super) fn record(run: &mut Run, figure: &Figure, goal: Goal) -> Result<()> {
    for cell in sides(figure) {
        run.record_part(cell)?;
    }
    run.record(ratio(figure, goal))
}

fn ratio(figure: &Figure, goal: Goal) -> Cell {
    let better = match goal {
        Goal::AtLeast(_) => Better::Higher,
        Goal::AtMost(_) => Better::Lower,
    };
    let mut cell = Cell::new(&figure.name, OURS, "", better);
    cell.group = "figures".into();
    cell.what = figure.what.clone();
    cell.metric = "ratio".into();
    cell.goal = Some(goal);
    cell.detail = figure.detail.clone();
    cell.values = figure.pairs.ratios();
    if let Some(error) = &figure.error {
        cell.values.clear();
        cell.error = Some(error.clone());
    }
    cell
}

/// Both sides in their own unit; only ours where the other is a plain number.
fn sides(figure: &Figure) -> Vec<Cell> {
    let better = match figure.unit {
        "us" | "ns" => Better::Lower,
        _ => Better::Higher,
    };
    let side = |stack: &str, values: Vec<f64>| {
        let mut cell = Cell::new(format!("{}/sides", figure.name), stack, figure.unit, better);
        cell.group = "both sides of each ratio".into();
        cell.what = figure.what.clone();
        cell.metric = match better {
            Better::Lower => "time".into(),
            Better::Higher => "rate".into(),
        };
        cell.values = values;
        cell
    };
    match (figure.value, figure.base) {
        (Some(_), Some(_)) => vec![
            side(OURS, figure.pairs.numerators().to_vec()),
            side(BASE, figure.pairs.denominators().to_vec()),
        ],
        (Some(value), None) => vec![side(OURS, vec![value])],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Paired;

    #[test]
    fn a_figure_becomes_its_ratio_and_its_sides() {
        let mut pairs = Paired::default();
        pairs.push(9.0, 10.0);
        pairs.push(10.0, 10.0);
        let goal = Goal::AtLeast(0.9);
        let figure = Figure::paired("hot", "copy / memcpy", "GB/s", Some(goal), &pairs);
        let place = tempfile::tempdir().expect("directory");
        let header = Header::new("micro", Machine::default());
        let mut run = Run::open(place.path(), header, false).expect("opens");
        record(&mut run, &figure, goal).expect("recorded");
        let found: Vec<_> = run
            .cells()
            .iter()
            .map(|c| (&*c.stack, &c.values[..]))
            .collect();
        let wanted: [(&str, &[f64]); 3] = [
            (OURS, &[9.0, 10.0]),
            (BASE, &[10.0, 10.0]),
            (OURS, &[0.9, 1.0]),
        ];
        assert_eq!(found, wanted);
        assert!(run.has("hot", OURS));
        assert_eq!(run.get("hot", OURS).and_then(Cell::met), Some(true));
        let failed = Figure::failed("cold", "x", "us", Some(goal), "broke");
        record(&mut run, &failed, goal).expect("recorded");
        assert!(!run.has("cold", OURS) && run.cells().len() == 4);
    }
}
