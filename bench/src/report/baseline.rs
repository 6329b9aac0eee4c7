//! What changed since an earlier report, beyond the noise.
//!
//! A change counts if the ranges of the repetitions do not overlap and the
//! medians are at least 5 % apart; where either side has a single repetition
//! there is no range to speak of, and 20 % are asked for.

use super::chart::Range;
use crate::runs::{Better, Cell, Study};

const LEAST: f64 = 0.05;
const LEAST_OF_ONE: f64 = 0.20;

/// How a cell changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Worse,
    Better,
    /// Within the noise.
    Same,
}

/// A cell that was measured both times.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub study: String,
    pub what: String,
    pub stack: String,
    pub unit: String,
    pub then: Range,
    pub now: Range,
    pub verdict: Verdict,
}

impl Change {
    /// New over old.
    pub(super) fn ratio(&self) -> f64 {
        self.now.median / self.then.median
    }
}

/// Everything that is to be said about the two.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// Worse first, then better, then the rest.
    pub changes: Vec<Change>,
    /// In what the runs differ besides.
    pub conditions: Vec<String>,
    /// Measured only then, or only now, or failed on one side.
    pub alone: Vec<String>,
}

impl Comparison {
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.changes.iter().filter(|c| c.verdict == verdict).count()
    }
}

/// Compares cell by cell.
pub(super) fn compare(then: &[Study], now: &[Study]) -> Comparison {
    let mut found = Comparison::default();
    for study in now {
        let name = &study.header.study;
        let Some(old) = then.iter().find(|s| s.header.study == *name) else {
            found.alone.push(format!("{name}: the whole study is new"));
            continue;
        };
        let differences = study.header.differences(&old.header);
        let told = differences.iter().map(|d| format!("{name}: {d}"));
        found.conditions.extend(told);
        for cell in &study.cells {
            let same = |c: &&Cell| c.id == cell.id && c.stack == cell.stack && c.unit == cell.unit;
            let before = old.cells.iter().find(same);
            match before.map(|b| change(name, b, cell)) {
                Some(Some(change)) => found.changes.push(change),
                Some(None) => found
                    .alone
                    .push(format!("{}: failed then or now", full(name, cell))),
                None => found.alone.push(format!("{}: new", full(name, cell))),
            }
        }
        let gone = |c: &&Cell| {
            !study
                .cells
                .iter()
                .any(|n| n.id == c.id && n.stack == c.stack)
        };
        let gone = old.cells.iter().filter(gone);
        found
            .alone
            .extend(gone.map(|c| format!("{}: not measured now", full(name, c))));
    }
    let whole = then.iter().map(|s| &s.header.study);
    let gone = whole.filter(|name| !now.iter().any(|s| s.header.study == **name));
    found
        .alone
        .extend(gone.map(|name| format!("{name}: the whole study was not measured now")));
    let far = |c: &Change| (c.ratio().ln().abs() * -1e6) as i64;
    found.changes.sort_by_key(|c| (c.verdict, far(c)));
    found
}

fn full(study: &str, cell: &Cell) -> String {
    format!("{study}: {} on {}", cell.id, cell.stack)
}

fn change(study: &str, then: &Cell, now: &Cell) -> Option<Change> {
    let range = |c: &Cell| c.series().and_then(|_| Range::of(&c.values));
    let (old, new) = (range(then)?, range(now)?);
    Some(Change {
        study: study.to_owned(),
        what: match now.what.is_empty() {
            true => now.id.clone(),
            false => now.what.clone(),
        },
        stack: now.stack.clone(),
        unit: now.unit.clone(),
        then: old,
        now: new,
        verdict: verdict(old, new, now.better),
    })
}

fn verdict(then: Range, now: Range, better: Better) -> Verdict {
    let least = match then.n.min(now.n) {
        0 | 1 => LEAST_OF_ONE,
        _ => LEAST,
    };
    let apart = now.low > then.high || now.high < then.low;
    let far = (now.median - then.median).abs() >= least * then.median.abs();
    match (apart && far, (now.median > then.median), better) {
        (false, ..) => Verdict::Same,
        (true, true, Better::Higher) | (true, false, Better::Lower) => Verdict::Better,
        _ => Verdict::Worse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Header;

    fn study(cells: &[(&str, &[f64])]) -> Study {
        let cell = |&(id, values): &(&str, &[f64])| {
            let mut cell = Cell::new(id, "daxwindow", "MB/s", Better::Higher);
            cell.values = values.to_vec();
            cell
        };
        let header = Header {
            study: "fio".into(),
            ..Header::default()
        };
        Study {
            header,
            cells: cells.iter().map(cell).collect(),
        }
    }

    #[test]
    fn a_change_is_beyond_the_noise_only_when_ranges_part() {
        let r = |values: &[f64]| Range::of(values).expect("values");
        let of = |then: &[f64], now: &[f64], better| verdict(r(then), r(now), better);
        let old = [100.0, 110.0, 105.0];
        assert_eq!(
            of(&old, &[109.0, 130.0, 125.0], Better::Higher),
            Verdict::Same
        );
        assert_eq!(
            of(&old, &[120.0, 130.0, 125.0], Better::Higher),
            Verdict::Better
        );
        assert_eq!(
            of(&old, &[120.0, 130.0, 125.0], Better::Lower),
            Verdict::Worse
        );
        assert_eq!(
            of(&old, &[80.0, 90.0, 85.0], Better::Higher),
            Verdict::Worse
        );
        // Apart, but by less than 5 %.
        assert_eq!(
            of(&[100.0, 100.1], &[101.0, 101.1], Better::Higher),
            Verdict::Same
        );
        // One repetition has no range.
        assert_eq!(of(&[100.0], &[110.0], Better::Higher), Verdict::Same);
        assert_eq!(of(&[100.0], &[125.0], Better::Higher), Verdict::Better);
    }

    #[test]
    fn what_is_new_gone_or_under_other_conditions_is_said() {
        let then = study(&[
            ("kept", &[1.0, 1.1]),
            ("slower", &[9.0, 9.1]),
            ("gone", &[1.0]),
        ]);
        let mut now = study(&[
            ("kept", &[1.0, 1.1]),
            ("slower", &[4.0, 4.1]),
            ("new", &[1.0]),
        ]);
        now.header.accel = "kvm".into();
        let mut other = study(&[]);
        other.header.study = "density".into();
        let found = compare(&[then], &[now, other]);
        let verdicts: Vec<_> = found
            .changes
            .iter()
            .map(|c| (&*c.what, c.verdict))
            .collect();
        assert_eq!(
            verdicts,
            [("slower", Verdict::Worse), ("kept", Verdict::Same)]
        );
        assert_eq!(found.conditions, ["fio: accel was \"\", is \"kvm\""]);
        assert_eq!(
            found.alone,
            [
                "fio: new on daxwindow: new",
                "fio: gone on daxwindow: not measured now",
                "density: the whole study is new"
            ]
        );
        assert_eq!(found.count(Verdict::Worse), 1);
    }
}
