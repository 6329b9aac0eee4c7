//! What came out, in words: the figures with goals, and what failed.

use super::chart::{Range, round};
use crate::figures::{AT_BEST, Goal};
use crate::runs::{Cell, Study};

/// A figure with a goal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub what: String,
    pub study: String,
    pub stack: String,
    pub accel: String,
    pub goal: Goal,
    /// The ratio that nobody can better on this machine, where it is known.
    pub at_best: Option<f64>,
    /// Or why there is none.
    pub ratio: Result<Range, String>,
}

impl Figure {
    pub(super) fn met(&self) -> Option<bool> {
        let ratio = self.ratio.as_ref().ok()?;
        Some(self.goal.met(ratio.median))
    }

    /// "at least 2.5".
    pub(super) fn goal_words(&self) -> String {
        match self.goal {
            Goal::AtLeast(bound) => format!("at least {}", round(bound)),
            Goal::AtMost(bound) => format!("at most {}", round(bound)),
        }
    }
}

/// All figures with goals.
pub(super) fn figures(studies: &[Study]) -> Vec<Figure> {
    let of = |study: &Study, cell: &Cell| {
        let why = || cell.error.clone().unwrap_or_else(|| "no value".into());
        let range = cell.series().and_then(|_| Range::of(&cell.values));
        Some(Figure {
            what: match cell.what.is_empty() {
                true => cell.id.clone(),
                false => cell.what.clone(),
            },
            study: study.header.study.clone(),
            stack: cell.stack.clone(),
            accel: study.header.accel.clone(),
            goal: cell.goal?,
            at_best: cell.detail.get(AT_BEST).copied(),
            ratio: range.ok_or_else(why),
        })
    };
    let all = studies
        .iter()
        .flat_map(|s| s.cells.iter().map(move |c| (s, c)));
    all.filter_map(|(s, c)| of(s, c)).collect()
}

/// Cells without values: where, and why.
pub(super) fn failures(studies: &[Study]) -> Vec<(&Study, &Cell, &str)> {
    let all = studies
        .iter()
        .flat_map(|s| s.cells.iter().map(move |c| (s, c)));
    all.filter_map(|(s, c)| Some((s, c, c.error.as_deref()?)))
        .collect()
}

/// The whole in a sentence or two.
pub(super) fn headline(figures: &[Figure], failed: usize) -> String {
    let count = |met| figures.iter().filter(|f| f.met() == met).count();
    let (met, missed) = (count(Some(true)), count(Some(false)));
    let mut words = match figures.len() {
        0 => "No figure with a goal was measured.".to_owned(),
        all => format!("{met} of {all} figures with a goal reach it, {missed} miss it."),
    };
    let nameless = count(None);
    if nameless > 0 {
        words += &format!(" {nameless} could not be measured.");
    }
    if failed > 0 {
        let (cells, verb) = if failed == 1 {
            ("cell", "has")
        } else {
            ("cells", "have")
        };
        words += &format!(" {failed} {cells} {verb} failed; the reasons are below.");
    }
    words
}

/// What an accelerator means for the numbers, for a reader who does not know.
pub(super) fn accel_words(accel: &str) -> &'static str {
    match accel {
        "kvm" => "guests ran on the processor itself (kvm)",
        "tcg" => {
            "guests ran under emulation (tcg): code in the guest is many times slower than on \
             hardware, so ratios tell more than rates, and memory is as it is anywhere"
        }
        _ => "no virtual machine: the guest end ran in a process of the host",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::{Better, Header};

    fn study(values: &[&[f64]]) -> Study {
        let cell = |(n, values): (usize, &&[f64])| {
            let mut cell = Cell::new(format!("c{n}"), "daxwindow", "ratio", Better::Higher);
            cell.goal = Some(Goal::AtLeast(2.5));
            cell.values = values.to_vec();
            cell.detail.insert(AT_BEST.into(), 4.0);
            if values.is_empty() {
                cell.error = Some("the guest hung".into());
            }
            cell
        };
        Study {
            header: Header::default(),
            cells: values.iter().enumerate().map(cell).collect(),
        }
    }

    #[test]
    fn met_missed_and_failed_are_counted() {
        let studies = [study(&[&[3.0, 3.1, 2.0], &[1.0], &[]])];
        let figures = figures(&studies);
        let met: Vec<_> = figures.iter().map(Figure::met).collect();
        assert_eq!(met, [Some(true), Some(false), None]);
        assert_eq!(figures[0].goal_words(), "at least 2.5");
        assert_eq!(figures[0].at_best, Some(4.0));
        assert_eq!(failures(&studies).len(), 1);
        assert_eq!(
            headline(&figures, 1),
            "1 of 3 figures with a goal reach it, 1 miss it. 1 could not be measured. \
             1 cell has failed; the reasons are below."
        );
        assert!(headline(&[], 0).starts_with("No figure"));
    }
}
