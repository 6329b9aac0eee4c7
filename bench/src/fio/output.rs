//! What fio says: its JSON, with the histogram of completion latencies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::runs::Latency;

/// Quantiles that a cell keeps.
const QUANTILES: [f64; 9] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];

/// One run of fio, its jobs together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub version: String,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub operations: u64,
    /// Of the direction that took longer.
    pub seconds: f64,
    /// Nanoseconds of an operation, and how many took that.
    pub histogram: BTreeMap<u64, u64>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "fio version")]
    version: String,
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    jobname: String,
    #[serde(default)]
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    io_bytes: u64,
    total_ios: u64,
    /// Milliseconds.
    runtime: u64,
    clat_ns: Clat,
}

#[derive(Deserialize)]
struct Clat {
    #[serde(default)]
    bins: BTreeMap<u64, u64>,
}

impl Outcome {
    /// Reads the JSON of `--output-format=json+`; fio may have said something
    /// before it.
    pub(super) fn parse(text: &str) -> Result<Outcome> {
        let start = text.find('{').context("fio wrote no JSON")?;
        let mut documents = serde_json::Deserializer::from_str(&text[start..]).into_iter();
        let document: Document = documents
            .next()
            .context("fio wrote no JSON")?
            .context("fio's JSON")?;
        let mut outcome = Outcome {
            version: document.version,
            ..Outcome::default()
        };
        let mut milliseconds = 0;
        for job in &document.jobs {
            if job.error != 0 {
                bail!("fio's job {} failed with error {}", job.jobname, job.error);
            }
            for direction in [&job.read, &job.write] {
                outcome.operations += direction.total_ios;
                milliseconds = milliseconds.max(direction.runtime);
                for (&ns, &n) in &direction.clat_ns.bins {
                    *outcome.histogram.entry(ns).or_default() += n;
                }
            }
            outcome.read_bytes += job.read.io_bytes;
            outcome.write_bytes += job.write.io_bytes;
        }
        outcome.seconds = milliseconds as f64 / 1e3;
        ensure!(outcome.operations > 0, "fio did nothing");
        ensure!(milliseconds > 0, "fio took less than its clock can tell");
        Ok(outcome)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.read_bytes + self.write_bytes
    }

    /// Megabytes a second.
    pub(super) fn throughput(&self) -> f64 {
        self.bytes() as f64 / 1e6 / self.seconds
    }

    /// Operations a second.
    pub(super) fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
}

/// Percentiles of all these runs together. fio's own bins are as fine as 1.6 %,
/// so nothing is lost by taking them as they are.
pub(super) fn latency<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Option<Latency> {
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    for outcome in outcomes {
        for (&ns, &n) in &outcome.histogram {
            *all.entry(ns).or_default() += n;
        }
    }
    let count: u64 = all.values().sum();
    if count == 0 {
        return None;
    }
    let mut percentiles = Vec::new();
    for quantile in QUANTILES {
        let rank = ((count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let bin = all.iter().find(|(_, n)| {
            seen += **n;
            seen >= rank
        });
        if let Some((ns, _)) = bin {
            percentiles.push((quantile, *ns as f64 / 1e3));
        }
    }
    Some(Latency { percentiles, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(error: i64, reads: u64) -> String {
        format!(
            r#"fio: a note
{{"fio version": "fio-3.39", "jobs": [
 {{"jobname": "a", "error": {error},
  "read": {{"io_bytes": {}, "total_ios": {reads}, "runtime": 250, "bw_bytes": 1,
   "clat_ns": {{"min": 1, "bins": {{"1000": 90, "2000": 9, "50000": 1}}}}}},
  "write": {{"io_bytes": 4096, "total_ios": 1, "runtime": 500, "clat_ns": {{"N": 0}}}}}}
]}}"#,
            reads * 4096
        )
    }

    #[test]
    fn both_directions_count_and_the_longer_one_is_the_time() {
        let outcome = Outcome::parse(&document(0, 100)).expect("parses");
        assert_eq!(outcome.version, "fio-3.39");
        assert_eq!((outcome.read_bytes, outcome.write_bytes), (409_600, 4096));
        assert_eq!(outcome.operations, 101);
        assert!((outcome.throughput() - 413_696.0 / 1e6 / 0.5).abs() < 1e-9);
        assert!((outcome.rate() - 202.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_of_all_runs() {
        let one = Outcome::parse(&document(0, 100)).expect("parses");
        let latency = latency([&one, &one].into_iter()).expect("samples");
        assert_eq!(latency.count, 200);
        let at = |q: f64| {
            latency
                .percentiles
                .iter()
                .find(|p| p.0 == q)
                .expect("kept")
                .1
        };
        assert_eq!((at(0.5), at(0.99), at(0.999)), (1.0, 2.0, 50.0));
        assert!(latency.percentiles.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(super::latency([&Outcome::default()].into_iter()), None);
    }

    #[test]
    fn failures_and_nonsense_are_errors() {
        let failed = Outcome::parse(&document(5, 100)).expect_err("failed");
        assert!(failed.to_string().contains("error 5"), "{failed}");
        for text in ["", "no JSON", "{\"jobs\": []}", "{"] {
            assert!(Outcome::parse(text).is_err(), "{text}");
        }
        let nothing = r#"{"fio version": "x", "jobs": []}"#;
        let error = Outcome::parse(nothing).expect_err("nothing").to_string();
        assert!(error.contains("did nothing"), "{error}");
    }
}
