//! One measurement on one stack.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::figures::Goal;
use crate::stats::{Series, series};

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Throughput, requests a second.
    Higher,
    /// Time, memory.
    Lower,
}

/// Percentiles of all repetitions together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Quantile (0 to 1) and microseconds, ascending.
    pub percentiles: Vec<(f64, f64)>,
    /// Samples.
    pub count: u64,
}

/// What was measured, repetition by repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// Stable within the study: `seq-read/psync/1M/j1/first`.
    pub id: String,
    /// What ran: `daxwindow dax=always`, `virtiofsd cache=auto`, `9p`.
    pub stack: String,
    /// The chart it belongs to.
    pub group: String,
    /// In words.
    pub what: String,
    /// What the values are: `throughput`.
    pub metric: String,
    /// Of the values: `MB/s`.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// One a repetition, in order; the same index is the same round on all
    /// stacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
    /// Of single operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Counters that prove which way the bytes went.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proof: BTreeMap<String, f64>,
    /// Side results, and where on a line it lies: `guests`, `live_ranges`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, f64>,
    /// Bound of a summed figure; its values are the ratios.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Why there are no values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Cell {
    /// A cell without values yet; group, what and metric are to be filled in.
    pub(crate) fn new(
        id: impl Into<String>,
        stack: impl Into<String>,
        unit: impl Into<String>,
        better: Better,
    ) -> Cell {
        Cell {
            id: id.into(),
            stack: stack.into(),
            group: String::new(),
            what: String::new(),
            metric: String::new(),
            unit: unit.into(),
            better,
            values: Vec::new(),
            latency: None,
            proof: BTreeMap::new(),
            detail: BTreeMap::new(),
            goal: None,
            error: None,
        }
    }

    /// Median and spread; none for a failed cell.
    pub(crate) fn series(&self) -> Option<Series> {
        match self.error {
            Some(_) => None,
            None => series(&self.values),
        }
    }

    /// Whether the goal is kept; none without a goal or a value.
    pub(crate) fn met(&self) -> Option<bool> {
        let goal = self.goal?;
        Some(goal.met(self.series()?.median))
    }

    /// Keeps the laws: a failed cell has no values, one that did not fail
    /// has only numbers.
    pub(super) fn check(&self) -> Result<(), String> {
        let named = |what: &str| Err(format!("cell {} on {}: {what}", self.id, self.stack));
        if self.error.is_some() && !self.values.is_empty() {
            return named("both failed and with values");
        }
        if self.error.is_none() && self.values.is_empty() {
            return named("no value and no reason");
        }
        let latency = self.latency.iter().flat_map(|l| &l.percentiles);
        let side = self.proof.values().chain(self.detail.values()).copied();
        let mut all = (self.values.iter().copied())
            .chain(side)
            .chain(latency.flat_map(|&(quantile, us)| [quantile, us]));
        match all.all(f64::is_finite) {
            true => Ok(()),
            false => named("a value is not a number"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_comes_back_as_it_was() {
        let mut cell = Cell::new("a/b", "9p", "MB/s", Better::Higher);
        cell.values = vec![1.5, 2.5];
        cell.goal = Some(Goal::AtLeast(2.0));
        cell.latency = Some(Latency {
            percentiles: vec![(0.5, 10.0), (0.99, 20.0)],
            count: 7,
        });
        cell.proof.insert("fuse_reads".into(), 0.0);
        let text = serde_json::to_string(&cell).expect("JSON");
        let back: Cell = serde_json::from_str(&text).expect("parses");
        assert_eq!(back, cell);
        assert_eq!((back.met(), back.check()), (Some(true), Ok(())));
    }

    #[test]
    fn values_and_errors_exclude_each_other() {
        let mut cell = Cell::new("a", "b", "s", Better::Lower);
        assert!(cell.check().expect_err("nothing").contains("no value"));
        cell.values = vec![f64::NAN];
        assert!(cell.check().expect_err("NaN").contains("not a number"));
        cell.values = vec![1.0];
        cell.error = Some("broke".into());
        assert!(cell.check().expect_err("both").contains("both failed"));
        assert_eq!((cell.series(), cell.met()), (None, None));
    }
}
