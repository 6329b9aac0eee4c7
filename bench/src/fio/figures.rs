//! The figures with goals: DAX against the others, round by round.
//!
//! Law: both sides of a ratio are cells of this run, and a claim that the
//! other side is hot was proved for its cell.

use super::stacks::Stack;
use crate::figures::Goal;
use crate::runs::{Better, Cell, Run};
use crate::stats::Paired;

/// Against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    /// The mode of virtiofsd that is faster here.
    BestVirtiofsd,
    /// virtiofsd with the data in the guest's page cache.
    HotVirtiofsd,
    NineP,
    /// The same daemon without a window.
    NoWindow,
}

struct Spec {
    name: &'static str,
    ours: Stack,
    cell: &'static str,
    what: &'static str,
    against: Against,
    at_least: f64,
}

const SPECS: [Spec; 6] = [
    Spec {
        name: "seq-read-first",
        ours: Stack::DaxAlways,
        cell: "seq-read-psync/1m/j1/first",
        what: "sequential read(2) of 1 MiB, guest cold, DAX / virtiofsd at its best cache mode",
        against: Against::BestVirtiofsd,
        at_least: 3.5,
    },
    Spec {
        name: "rand-read-large",
        ours: Stack::DaxAlways,
        cell: "rand-read-mmap-large/4k/j1/first",
        what: "random 4 KiB of a mapping larger than the guest's memory, guest cold, \
               DAX / virtiofsd at its best cache mode",
        against: Against::BestVirtiofsd,
        at_least: 9.0,
    },
    Spec {
        name: "mmap-second",
        ours: Stack::DaxAlways,
        cell: "seq-read-mmap/64k/j1/second",
        what: "second pass over a mapping, DAX / virtiofsd hot in the guest's page cache",
        against: Against::HotVirtiofsd,
        at_least: 0.95,
    },
    Spec {
        name: "psync-second",
        ours: Stack::DaxAlways,
        cell: "seq-read-psync/1m/j1/second",
        what: "second pass by read(2) of 1 MiB, DAX / virtiofsd hot in the guest's page cache",
        against: Against::HotVirtiofsd,
        at_least: 0.9,
    },
    Spec {
        name: "seq-read-9p",
        ours: Stack::DaxAlways,
        cell: "seq-read-psync/1m/j1/first",
        what: "sequential read(2) of 1 MiB, guest cold, DAX / 9p",
        against: Against::NineP,
        at_least: 5.0,
    },
    Spec {
        name: "rand-read-pressure",
        ours: Stack::DaxQuarter,
        cell: "rand-read-psync-pressure/4k/j1/first",
        what: "random read(2) of 4 KiB of four times the window, guest cold, dax=inode / no DAX",
        against: Against::NoWindow,
        at_least: 1.0,
    },
];

/// The figures that this run has both sides of, as cells.
pub(super) fn figures(run: &Run) -> Vec<Cell> {
    SPECS.iter().filter_map(|spec| figure(run, spec)).collect()
}

/// None when a side was not asked for.
fn figure(run: &Run, spec: &Spec) -> Option<Cell> {
    let get = |stack: Stack| run.get(spec.cell, stack.name());
    let ours = get(spec.ours)?;
    let base = match spec.against {
        Against::NineP => get(Stack::NineP)?,
        Against::NoWindow => get(Stack::DaxNever)?,
        Against::BestVirtiofsd => best(get(Stack::VirtiofsdAuto), get(Stack::VirtiofsdAlways))?,
        Against::HotVirtiofsd => get(Stack::VirtiofsdAlways)?,
    };
    let stack = format!("{} / {}", ours.stack, base.stack);
    let mut cell = Cell::new(format!("figure/{}", spec.name), stack, "", Better::Higher);
    cell.group = "figures".into();
    cell.metric = "ratio".into();
    cell.what = spec.what.into();
    cell.goal = Some(Goal::AtLeast(spec.at_least));
    if let Some(side) = [ours, base].into_iter().find(|side| side.error.is_some()) {
        let why = side.error.clone().unwrap_or_default();
        cell.error = Some(format!("{}: {why}", side.stack));
        return Some(cell);
    }
    if spec.against == Against::HotVirtiofsd && base.detail.get("hot") != Some(&1.0) {
        cell.error = Some(format!("{} was not hot in the guest", base.stack));
        return Some(cell);
    }
    let mut pairs = Paired::default();
    for (ours, base) in ours.values.iter().zip(&base.values) {
        pairs.push(*ours, *base);
    }
    cell.values = ours
        .values
        .iter()
        .zip(&base.values)
        .map(|(o, b)| o / b)
        .collect();
    for (key, value) in [("ours_mb_s", pairs.value()), ("base_mb_s", pairs.base())] {
        if let Some(value) = value {
            cell.detail.insert(key.into(), value);
        }
    }
    Some(cell)
}

/// The faster of two; a failed one only if there is no other.
pub(super) fn best<'a>(one: Option<&'a Cell>, other: Option<&'a Cell>) -> Option<&'a Cell> {
    let speed = |cell: &&Cell| cell.series().map_or(-1.0, |series| series.median);
    let both = [one, other].into_iter().flatten();
    both.max_by(|a, b| speed(a).total_cmp(&speed(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fio::plan::loads;
    use crate::machine::Machine;
    use crate::runs::Header;

    fn measured(id: &str, stack: Stack, values: &[f64], hot: f64) -> Cell {
        let mut cell = Cell::new(id, stack.name(), "MB/s", Better::Higher);
        cell.values = values.to_vec();
        cell.detail.insert("hot".into(), hot);
        cell
    }

    fn run(folder: &tempfile::TempDir, cells: Vec<Cell>) -> Run {
        let header = Header::new("fio", Machine::default());
        let mut run = Run::open(folder.path(), header, true).expect("opened");
        for cell in cells {
            run.record(cell).expect("recorded");
        }
        run
    }

    #[test]
    fn ratios_are_of_rounds_and_against_the_faster_mode() {
        let folder = tempfile::tempdir().expect("directory");
        let id = "seq-read-psync/1m/j1/first";
        let cells = vec![
            measured(id, Stack::DaxAlways, &[360.0, 36.0, 360.0], 0.0),
            measured(id, Stack::VirtiofsdAuto, &[50.0, 5.0, 50.0], 0.0),
            measured(id, Stack::VirtiofsdAlways, &[100.0, 10.0, 100.0], 0.0),
            measured(id, Stack::NineP, &[30.0, 3.0, 30.0], 0.0),
        ];
        let run = run(&folder, cells);
        let figures = figures(&run);
        let of = |name: &str| figures.iter().find(|f| f.id == format!("figure/{name}"));
        let first = of("seq-read-first").expect("both sides");
        assert_eq!(first.values, [3.6, 3.6, 3.6]);
        assert!(first.stack.ends_with("virtiofsd cache=always"));
        assert_eq!(first.met(), Some(true));
        assert_eq!(of("seq-read-9p").expect("both").values, [12.0; 3]);
        assert!(of("mmap-second").is_none(), "nothing of it was measured");
    }

    #[test]
    fn a_side_that_failed_or_was_not_hot_is_a_failed_figure() {
        let folder = tempfile::tempdir().expect("directory");
        let id = "seq-read-mmap/64k/j1/second";
        let cells = vec![
            measured(id, Stack::DaxAlways, &[9.0], 1.0),
            measured(id, Stack::VirtiofsdAlways, &[9.0], 0.0),
        ];
        let first = run(&folder, cells);
        let error = figures(&first)[0].error.clone().expect("refused");
        assert!(error.contains("not hot"), "{error}");
        drop(first);
        let mut broken = measured(id, Stack::DaxAlways, &[], 1.0);
        broken.error = Some("1 FUSE_READ".into());
        let cells = vec![broken, measured(id, Stack::VirtiofsdAlways, &[9.0], 1.0)];
        let second = run(&folder, cells);
        let error = figures(&second)[0].error.clone().expect("refused");
        assert!(
            error.contains("dax=always") && error.contains("FUSE_READ"),
            "{error}"
        );
    }

    #[test]
    fn the_quick_set_has_the_cells_of_all_figures() {
        let quick = loads(true, &[], &[]).expect("some");
        for spec in &SPECS {
            let has = |load: &super::super::plan::Load| {
                load.passes.iter().any(|&pass| load.id(pass) == spec.cell)
            };
            assert!(quick.iter().any(has), "{}", spec.cell);
        }
    }
}
