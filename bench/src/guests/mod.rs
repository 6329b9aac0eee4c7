//! What idle guests cost the daemon that serves them: one daemon, N sockets,
//! N guests of the guest library, each after INIT and a little traffic; then
//! the daemon's own memory, its threads and its descriptors.
//!
//! Law: memory is what the kernel counts as the process's own (`Anonymous` of
//! `smaps_rollup`, and page tables), never address space.

mod idle;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::daemon;
use crate::figures::table::table;
use crate::stats::median;

use idle::{Cost, Crowd};

/// Most that one idle guest may cost, in bytes.
const GOAL_BYTES: f64 = 131072.0;
/// Threads, with the one that waits for the next guest.
const GOAL_THREADS: f64 = 3.0;
/// Descriptors.
const GOAL_DESCRIPTORS: f64 = 16.0;
/// Most that the 99th percentile of a busy guest's requests may grow by all the
/// idle ones.
const GOAL_P99: f64 = 1.1;
/// Requests of a busy guest in one round, and rounds with each daemon in turn.
const REQUESTS: usize = 20_000;
const ROUNDS: usize = 15;

/// Measures what each further idle guest costs one daemon.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of guests, the least first; one number is compared with one guest
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    counts: Vec<usize>,

    /// Request queues of each guest
    #[arg(long, default_value_t = 1)]
    request_queues: usize,

    /// The daemon; the one beside this program if not given
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// One JSON object in place of the table
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    /// Request queues of each guest.
    request_queues: usize,
    /// By number of guests.
    costs: Vec<Cost>,
    /// Bytes that each further guest adds, from the least to the most.
    bytes_per_guest: f64,
    /// Threads that it adds.
    threads_per_guest: f64,
    /// Descriptors that it adds.
    descriptors_per_guest: f64,
    /// Bytes per guest that stay when all have gone.
    bytes_left_per_guest: f64,
    /// 99th percentile of the requests of a busy guest, microseconds: with the
    /// fewest others, with the most, and the median of the ratios of rounds.
    busy_p99_us: [f64; 2],
    busy_p99_ratio: f64,
    /// Whether all goals are.
    met: bool,
}

/// Runs it; true if the goal is met.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let mut counts = args.counts.clone();
    if counts.len() == 1 {
        counts.insert(0, 1);
    }
    ensure!(
        counts[0] > 0 && counts.windows(2).all(|pair| pair[0] < pair[1]),
        "--counts takes numbers of guests in ascending order; one alone is of two at least"
    );
    let (costs, busy) = measure(&binary, &counts, args.request_queues)?;
    let report = Report::of(args.request_queues, costs, busy);
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(report.met)
}

/// The times of a busy guest, by rounds: among the fewest, and the most.
type Busy = Vec<[Duration; 2]>;

/// Each number of guests by itself; the least and the most at the same time, for
/// the sake of the busy guest.
fn measure(binary: &Path, counts: &[usize], request_queues: usize) -> Result<(Vec<Cost>, Busy)> {
    let attach = |guests: usize| {
        let crowd = Crowd::attach(binary, guests, request_queues)?;
        let idle = crowd.rest()?;
        Ok::<_, anyhow::Error>((crowd, idle))
    };
    let (&[least, ref between @ .., most], mut costs) = (counts, Vec::new()) else {
        anyhow::bail!("two numbers of guests at least");
    };
    let (few, few_idle) = attach(least)?;
    for guests in between {
        let (crowd, idle) = attach(*guests)?;
        costs.push(crowd.leave(&idle)?);
    }
    let (many, many_idle) = attach(most)?;
    let mut busy = Vec::with_capacity(ROUNDS);
    for round in 0..=ROUNDS {
        let times = [few.p99_of_first(REQUESTS)?, many.p99_of_first(REQUESTS)?];
        // The first one is for caches.
        if round > 0 {
            busy.push(times);
        }
    }
    costs.insert(0, few.leave(&few_idle)?);
    costs.push(many.leave(&many_idle)?);
    Ok((costs, busy))
}

impl Report {
    /// `costs` has two entries at least.
    fn of(request_queues: usize, costs: Vec<Cost>, busy: Busy) -> Report {
        let slope = |of: fn(&Cost) -> u64| match (costs.first(), costs.last()) {
            (Some(least), Some(most)) => {
                (of(most) as f64 - of(least) as f64) / (most.guests as f64 - least.guests as f64)
            }
            _ => f64::NAN,
        };
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let median = |values: Vec<f64>| median(&values).unwrap_or(f64::NAN);
        let side = |at: usize| median(busy.iter().map(|times| us(times[at])).collect());
        let ratio = |times: &[Duration; 2]| us(times[1]) / us(times[0]);
        let mut report = Report {
            request_queues,
            bytes_per_guest: slope(|cost| cost.own_bytes + cost.page_table_bytes),
            threads_per_guest: slope(|cost| cost.threads),
            descriptors_per_guest: slope(|cost| cost.descriptors),
            bytes_left_per_guest: slope(|cost| cost.own_bytes_after),
            busy_p99_us: [side(0), side(1)],
            busy_p99_ratio: median(busy.iter().map(ratio).collect()),
            met: false,
            costs,
        };
        report.met = report.goals().iter().all(|(_, value, most)| value <= most);
        report
    }

    /// What each goal is of, the value, and the most that it may be.
    fn goals(&self) -> [(&'static str, f64, f64); 4] {
        [
            ("KiB", self.bytes_per_guest / 1024.0, GOAL_BYTES / 1024.0),
            ("threads", self.threads_per_guest, GOAL_THREADS),
            ("descriptors", self.descriptors_per_guest, GOAL_DESCRIPTORS),
            (
                "p99 of a busy guest among the most / among the fewest",
                self.busy_p99_ratio,
                GOAL_P99,
            ),
        ]
    }

    fn print(&self) {
        let mut rows = table(&[
            "guests",
            "own KiB, no guest",
            "own KiB, idle",
            "page tables KiB",
            "threads",
            "descriptors",
            "own KiB, after",
        ]);
        for cost in &self.costs {
            rows.add_row(
                [
                    cost.guests as u64,
                    cost.own_bytes_before >> 10,
                    cost.own_bytes >> 10,
                    cost.page_table_bytes >> 10,
                    cost.threads,
                    cost.descriptors,
                    cost.own_bytes_after >> 10,
                ]
                .map(|number| number.to_string()),
            );
        }
        println!("{rows}");
        println!(
            "each further idle guest ({} request queues), and one that is busy (GETATTR, p99 \
             {:.1} us among the fewest, {:.1} us among the most):",
            self.request_queues, self.busy_p99_us[0], self.busy_p99_us[1],
        );
        for (what, value, most) in self.goals() {
            let met = if value <= most { "met" } else { "MISSED" };
            println!("  {value:.2} {what}; goal: at most {most}, {met}");
        }
        println!(
            "  {:.0} KiB stay with its share when it has gone",
            self.bytes_left_per_guest / 1024.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(guests: usize, own_bytes: u64) -> Cost {
        Cost {
            guests,
            own_bytes,
            threads: 4 + 5 * guests as u64,
            ..Cost::default()
        }
    }

    const ROUND: [Duration; 2] = [Duration::from_micros(20), Duration::from_micros(21)];

    #[test]
    fn the_slope_is_what_each_further_guest_adds() {
        let report = Report::of(1, vec![cost(1, 1 << 20), cost(9, 3 << 20)], vec![ROUND]);
        assert_eq!(report.bytes_per_guest, f64::from(1 << 18));
        assert_eq!(report.threads_per_guest, 5.0);
        assert_eq!(report.busy_p99_ratio, 1.05);
        assert!(!report.met, "5 threads");
        let within = |own_bytes| Cost {
            threads: 3,
            ..cost(2, own_bytes)
        };
        let none = Cost {
            threads: 0,
            ..cost(1, 0)
        };
        assert!(Report::of(1, vec![none, within(1 << 17)], vec![ROUND]).met);
        assert!(!Report::of(1, vec![none, within((1 << 17) + 1)], vec![ROUND]).met);
        let slow = [ROUND[0], 2 * ROUND[0]];
        assert!(!Report::of(1, vec![none, within(0)], vec![slow]).met);
    }

    #[test]
    fn a_few_guests_are_measured() -> Result<()> {
        let binary = daemon::find(None)?;
        let (costs, busy) = measure(&binary, &[1, 4], 1)?;
        assert!(costs[1].threads > costs[0].threads);
        assert!(costs[1].descriptors > costs[0].descriptors);
        let report = Report::of(1, costs, busy);
        let (threads, descriptors) = (report.threads_per_guest, report.descriptors_per_guest);
        assert!(threads <= GOAL_THREADS, "{threads} threads a guest");
        assert!(
            descriptors <= GOAL_DESCRIPTORS,
            "{descriptors} descriptors a guest"
        );
        Ok(())
    }
}
