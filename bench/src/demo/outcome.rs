//! What the demo found, as figures and as tables.

use std::fmt::Write;

use anyhow::Result;
use daxwindow_guest::MapperStats;

use super::Demo;
use super::passes::Lap;
use super::select::{Candidate, Selection};
use crate::figures::table::{bytes, bytes_added, micros, short, table};
use crate::figures::{Figure, Report};
use crate::host_memory::ProcessMemory;
use crate::stats::Paired;

/// First and hot pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Laps {
    pub first: Lap,
    pub hot: Lap,
}

impl Laps {
    pub(super) fn add(&mut self, other: &Laps) {
        self.first.add(other.first);
        self.hot.add(other.hot);
    }
}

/// What a row of the memory table shows.
type Row<'a> = (&'static str, &'a dyn Fn(&Memory) -> u64);

/// One way of reading, and the host's mmap of the same files at that time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    pub laps: Laps,
    pub host: Laps,
}

/// Memory at one moment, bytes.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub when: &'static str,
    /// Page cache that holds the files.
    pub cached: u64,
    /// This process, which holds the guests.
    pub process: ProcessMemory,
    /// The daemons that serve views.
    pub daemons: Vec<ProcessMemory>,
}

impl Memory {
    pub(super) fn take(when: &'static str, cached: u64, daemons: &[i32]) -> Result<Memory> {
        Ok(Memory {
            when,
            cached,
            process: ProcessMemory::own()?,
            daemons: daemons
                .iter()
                .map(|pid| ProcessMemory::of_family(*pid))
                .collect::<Result<_>>()?,
        })
    }
}

/// The moment with most of the files mapped.
#[derive(Clone, Debug)]
pub(super) struct Peak {
    when: &'static str,
    pub memory: Option<Memory>,
}

impl Peak {
    pub(super) fn new(when: &'static str) -> Peak {
        Peak { when, memory: None }
    }

    /// Looks at memory now.
    pub(super) fn note(&mut self, cached: u64, daemons: &[i32]) -> Result<()> {
        let now = Memory::take(self.when, cached, daemons)?;
        let larger = |old: &Memory| now.process.mapped > old.process.mapped;
        if self.memory.as_ref().is_none_or(larger) {
            self.memory = Some(now);
        }
        Ok(())
    }
}

/// Everything the demo measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub view: Way,
    pub second: Way,
    pub read_at: Way,
    pub plain: Way,
    pub mapper: MapperStats,
    pub memory: Vec<Memory>,
    /// Files compared, each in each way.
    pub compared: u64,
    /// One line for each file that differs.
    pub differences: Vec<String>,
}

impl Outcome {
    /// Notes whether what was read one way is what the host reads.
    pub(super) fn check(
        &mut self,
        way: &str,
        file: &Candidate,
        found: blake3::Hash,
        expected: blake3::Hash,
    ) {
        self.compared += 1;
        if found != expected {
            self.differences.push(format!(
                "{}: bytes differ through {way}",
                file.path.display()
            ));
        }
    }

    fn ways(&self) -> [(&'static str, &'static str, Way); 5] {
        let mut host = Way::default();
        for way in [self.view, self.second, self.read_at, self.plain] {
            host.laps.add(&way.host);
            host.host.add(&way.host);
        }
        [
            ("view", "faulted view", self.view),
            ("second_view", "faulted view, second guest", self.second),
            ("read_at", "read_at through the window", self.read_at),
            ("fuse_read", "FUSE_READ, DAX off", self.plain),
            ("host_mmap", "memcpy from the host's own mmap", host),
        ]
    }

    /// The figures of `--json`.
    pub(super) fn figures(&self, selection: &Selection) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (name, what, way) in self.ways() {
            for (pass, lap, base) in [
                ("first_pass", way.laps.first, way.host.first),
                ("hot_pass", way.laps.hot, way.host.hot),
            ] {
                let mut pairs = Paired::default();
                pairs.push(lap.gigabytes_per_second(), base.gigabytes_per_second());
                let what = format!("{what}, {}", pass.replace('_', " "));
                let name = format!("demo_{name}_{pass}");
                figures.push(Figure::paired(&name, &what, "GB/s", None, &pairs));
            }
        }
        figures.extend(self.latencies());
        figures.extend(self.counts(selection));
        figures.extend(self.memory_figures());
        figures
    }

    fn latencies(&self) -> Vec<Figure> {
        let latencies = [
            ("setup", self.mapper.setup_latency),
            ("fault", self.mapper.fault_latency),
        ];
        let one = |(name, summary): (&str, daxwindow_shared::latency::Summary)| {
            let value = summary.p50_ns as f64 / 1e3;
            Figure::plain(
                &format!("demo_{name}_p50"),
                &format!("{name}, p50"),
                "us",
                value,
            )
            .with("p99", summary.p99_ns as f64 / 1e3)
            .with("p99.9", summary.p999_ns as f64 / 1e3)
            .with("count", summary.count as f64)
        };
        latencies.map(one).to_vec()
    }

    fn counts(&self, selection: &Selection) -> Vec<Figure> {
        let count = |name: &str, what: &str, n: u64| Figure::plain(name, what, "count", n as f64);
        vec![
            count("demo_mappings", "mappings made", self.mapper.setups),
            count("demo_files", "files read", selection.files.len() as u64)
                .with("symlinks_skipped", selection.symlinks as f64)
                .with("special_skipped", selection.special as f64)
                .with("unreadable_skipped", selection.unreadable as f64)
                .with("over_limit_skipped", selection.over_limit as f64),
            count("demo_comparisons", "file hashes compared", self.compared),
            count(
                "demo_differences",
                "files that differ",
                self.differences.len() as u64,
            ),
            Figure::plain(
                "demo_bytes",
                "bytes in the files",
                "B",
                selection.bytes as f64,
            ),
        ]
    }

    fn memory_figures(&self) -> Vec<Figure> {
        let one = |memory: &Memory| {
            let name = format!("demo_memory_{}", memory.when.replace(' ', "_"));
            let what = format!("page cache of the files, {}", memory.when);
            let daemons: u64 = memory.daemons.iter().map(ProcessMemory::private).sum();
            Figure::plain(&name, &what, "B", memory.cached as f64)
                .with("guests_own", memory.process.private() as f64)
                .with("guests_mapped", memory.process.mapped as f64)
                .with("daemons_own", daemons as f64)
        };
        self.memory.iter().map(one).collect()
    }

    /// The tables.
    pub(super) fn text(&self, demo: &Demo, report: &Report) -> String {
        let mut out = String::new();
        let selection = &demo.selection;
        let _ = writeln!(out, "{}", report.machine);
        let _ = write!(
            out,
            "{}: {} files, {}",
            demo.directory.display(),
            selection.files.len(),
            bytes(selection.bytes)
        );
        let left_out = selection.left_out();
        let _ = match left_out.is_empty() {
            true => writeln!(out),
            false => writeln!(out, " (left out: {left_out})"),
        };
        let _ = writeln!(out, "{}", self.speed_table());
        let _ = writeln!(out, "{}", self.mapping_table());
        let _ = writeln!(out, "{}", self.memory_table());
        let _ = writeln!(out, "{}", self.verdict(selection));
        out
    }

    fn speed_table(&self) -> comfy_table::Table {
        let headings = ["read through", "first pass", "ratio", "hot pass", "ratio"];
        let mut out = table(&headings);
        for (_, what, Way { laps, host }) in self.ways() {
            let mut row = vec![what.to_string()];
            for (lap, base) in [(laps.first, host.first), (laps.hot, host.hot)] {
                let speed = lap.gigabytes_per_second();
                row.push(format!("{} GB/s", short(speed)));
                row.push(format!("{:.3}", speed / base.gigabytes_per_second()));
            }
            out.add_row(row);
        }
        out
    }

    fn mapping_table(&self) -> comfy_table::Table {
        let mut out = table(&["first guest", "count", "p50", "p99", "p99.9"]);
        for (what, count, s) in [
            (
                "mappings set up",
                self.mapper.setups,
                self.mapper.setup_latency,
            ),
            (
                "faults in views",
                self.mapper.faults,
                self.mapper.fault_latency,
            ),
        ] {
            out.add_row(vec![
                what.to_string(),
                count.to_string(),
                micros(s.p50_ns),
                micros(s.p99_ns),
                micros(s.p999_ns),
            ]);
        }
        out
    }

    fn memory_table(&self) -> comfy_table::Table {
        let mut headings = vec!["memory"];
        headings.extend(self.memory.iter().map(|m| m.when));
        headings.push("second guest added");
        let mut out = table(&headings);
        let daemon = |at: usize| move |m: &Memory| m.daemons.get(at).map_or(0, |d| d.private());
        let rows: [Row<'_>; 5] = [
            ("page cache of the files (host, once for all)", &|m| {
                m.cached
            }),
            ("guests: own memory and page tables", &|m| {
                m.process.private()
            }),
            ("guests: page cache mapped (not their own)", &|m| {
                m.process.mapped
            }),
            ("first daemon: own memory", &daemon(0)),
            ("second daemon: own memory", &daemon(1)),
        ];
        for (what, number) in rows {
            let mut row = vec![what.to_string()];
            let numbers: Vec<u64> = self.memory.iter().map(number).collect();
            row.extend(numbers.iter().map(|n| bytes(*n)));
            row.push(match numbers.as_slice() {
                [.., first, second] => bytes_added(*first, *second),
                _ => "-".into(),
            });
            out.add_row(row);
        }
        out
    }

    fn verdict(&self, selection: &Selection) -> String {
        match self.differences.len() {
            0 => format!(
                "every byte is right: {} hashes of {} files agree with the host. DAX was in use: \
                 the daemons read no file themselves, but for FUSE_READ",
                self.compared,
                selection.files.len(),
            ),
            n => format!("WRONG: {n} of {} comparisons differ", self.compared),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome() -> Outcome {
        let lap = |ms| Lap {
            bytes: 1_000_000,
            time: Duration::from_millis(ms),
        };
        let way = |first, hot| Way {
            laps: Laps {
                first: lap(first),
                hot: lap(hot),
            },
            host: Laps {
                first: lap(1),
                hot: lap(1),
            },
        };
        Outcome {
            view: way(2, 1),
            second: way(2, 1),
            read_at: way(2, 1),
            plain: way(4, 4),
            ..Outcome::default()
        }
    }

    #[test]
    fn ratios_are_to_the_host_mmap_of_the_same_pass() {
        let figures = outcome().figures(&Selection::default());
        let ratio = |name: &str| {
            figures
                .iter()
                .find(|f| f.name == name)
                .and_then(|f| f.ratio)
        };
        assert_eq!(ratio("demo_view_first_pass"), Some(0.5));
        assert_eq!(ratio("demo_view_hot_pass"), Some(1.0));
        assert_eq!(ratio("demo_fuse_read_hot_pass"), Some(0.25));
        assert_eq!(ratio("demo_host_mmap_first_pass"), Some(1.0));
    }

    #[test]
    fn a_difference_is_named_and_fails() {
        let mut outcome = outcome();
        let file = Candidate {
            path: "a/b".into(),
            len: 1,
        };
        outcome.check("view", &file, blake3::hash(b"x"), blake3::hash(b"x"));
        assert!(
            outcome
                .verdict(&Selection::default())
                .contains("every byte is right")
        );
        outcome.check("view", &file, blake3::hash(b"x"), blake3::hash(b"y"));
        assert_eq!(outcome.differences, ["a/b: bytes differ through view"]);
        assert!(
            outcome
                .verdict(&Selection::default())
                .starts_with("WRONG: 1 of 2")
        );
    }
}
