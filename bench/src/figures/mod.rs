//! Figures, and the one JSON object every subcommand prints.
//!
//! Law: a figure that failed carries its reason and no value; a figure
//! without a failure carries a value.

pub(crate) mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Versions};
use crate::stats::Paired;

/// What details call the ratio that nobody can better.
pub(crate) const AT_BEST: &str = "at_best";
/// And with our queue.
pub(crate) const WITH_QUEUE: &str = "at_best_with_our_queue";

/// The bound a ratio has to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The ratio is at least this.
    AtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
}

impl Goal {
    /// Whether the ratio keeps it.
    pub(crate) fn met(self, ratio: f64) -> bool {
        match self {
            Goal::AtLeast(bound) => ratio >= bound,
            Goal::AtMost(bound) => ratio <= bound,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::AtLeast(bound) => write!(f, ">= {bound}"),
            Goal::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Goal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (way, bound) = text.split_once(' ').unwrap_or_default();
        let goal = match (way, bound.parse()) {
            (">=", Ok(bound)) => Some(Goal::AtLeast(bound)),
            ("<=", Ok(bound)) => Some(Goal::AtMost(bound)),
            _ => None,
        };
        goal.ok_or_else(|| serde::de::Error::custom(format!("no goal: {text:?}")))
    }
}

/// One measured number with what it is compared to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// Stable identifier.
    pub name: String,
    /// Median; absent when the figure failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Unit of `value` and `base`.
    pub unit: &'static str,
    /// Value over its denominator, median of paired repetitions.
    pub ratio: Option<f64>,
    /// Bound of the ratio.
    pub goal: Option<Goal>,
    /// Whether the goal is kept; absent without a goal or a value.
    pub met: Option<bool>,
    /// Repetitions.
    pub n: usize,
    /// (max - min) / median over the repetitions.
    pub spread: Option<f64>,
    /// Median of the denominator, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<f64>,
    /// What the number is, in words.
    pub what: String,
    /// Parts and side results.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, f64>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The repetitions that the ratio is of.
    #[serde(skip)]
    pub pairs: Paired,
}

impl Figure {
    /// A figure from paired repetitions.
    pub(crate) fn paired(
        name: &str,
        what: &str,
        unit: &'static str,
        goal: Option<Goal>,
        pairs: &Paired,
    ) -> Figure {
        let Some((value, ratio)) = pairs.value().zip(pairs.ratio()) else {
            return Figure::failed(name, what, unit, goal, "no usable repetition");
        };
        Figure {
            ratio: Some(ratio.median),
            met: goal.map(|g| g.met(ratio.median)),
            n: ratio.n,
            spread: Some(ratio.spread),
            base: pairs.base(),
            value: Some(value),
            pairs: pairs.clone(),
            ..Figure::empty(name, what, unit, goal)
        }
    }

    /// A single number without a denominator.
    pub(crate) fn plain(name: &str, what: &str, unit: &'static str, value: f64) -> Figure {
        Figure {
            value: Some(value),
            n: 1,
            ..Figure::empty(name, what, unit, None)
        }
    }

    /// A figure that could not be measured.
    pub(crate) fn failed(
        name: &str,
        what: &str,
        unit: &'static str,
        goal: Option<Goal>,
        error: impl std::fmt::Display,
    ) -> Figure {
        Figure {
            error: Some(error.to_string()),
            ..Figure::empty(name, what, unit, goal)
        }
    }

    /// Adds a part or a side result.
    pub(crate) fn with(mut self, key: &str, value: f64) -> Figure {
        self.detail.insert(key.to_string(), value);
        self
    }

    fn empty(name: &str, what: &str, unit: &'static str, goal: Option<Goal>) -> Figure {
        Figure {
            name: name.to_string(),
            what: what.to_string(),
            unit,
            goal,
            value: None,
            ratio: None,
            met: None,
            n: 0,
            spread: None,
            base: None,
            detail: BTreeMap::new(),
            error: None,
            pairs: Paired::default(),
        }
    }
}

/// The object `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Subcommand.
    pub command: &'static str,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub versions: Versions,
    /// Commit of this binary.
    pub commit: &'static str,
}

impl Report {
    /// Whether any figure failed.
    pub(crate) fn has_failures(&self) -> bool {
        self.figures.iter().any(|f| f.error.is_some())
    }

    /// The object as text.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: Vec<Figure>) -> serde_json::Value {
        let report = Report {
            command: "micro",
            figures,
            machine: Machine::default(),
            versions: Versions::default(),
            commit: "abc",
        };
        serde_json::from_str(&report.to_json().expect("serialises")).expect("parses")
    }

    #[test]
    fn a_figure_has_the_agreed_keys() {
        let mut pairs = Paired::default();
        pairs.push(9.6, 10.0);
        pairs.push(9.8, 10.0);
        let goal = Some(Goal::AtLeast(0.95));
        let json = report(vec![Figure::paired("hot", "copy", "GB/s", goal, &pairs)]);
        let figure = &json["figures"][0];
        for key in [
            "name", "value", "unit", "ratio", "goal", "met", "n", "spread",
        ] {
            assert!(figure.get(key).is_some_and(|v| !v.is_null()), "{key}");
        }
        assert_eq!(figure["met"], true);
        assert_eq!(figure["goal"], ">= 0.95");
        assert_eq!(figure["n"], 2);
        for key in ["machine", "versions", "commit"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_failed_figure_has_no_value() {
        let goal = Some(Goal::AtMost(1.5));
        let failed = Figure::failed("cold", "cold range", "us", goal, "the daemon died");
        let json = report(vec![failed]);
        let figure = json["figures"][0].as_object().expect("object");
        assert!(!figure.contains_key("value"));
        assert_eq!(figure["error"], "the daemon died");
        assert!(figure["met"].is_null());
        let empty = Figure::paired("x", "x", "s", None, &Paired::default());
        assert!(empty.value.is_none() && empty.error.is_some());
    }

    #[test]
    fn goals_have_a_direction() {
        assert!(Goal::AtMost(1.05).met(1.05) && !Goal::AtMost(1.05).met(1.06));
        assert!(Goal::AtLeast(0.95).met(0.95) && !Goal::AtLeast(0.95).met(0.94));
    }
}
