//! What idle guests cost the daemon that serves them: one daemon, N sockets,
//! N guests of the guest library, each after INIT and a little traffic; then
//! the daemon's own memory, its threads and its descriptors.
//!
//! Law: memory is what the kernel counts as the process's own (`Anonymous` of
//! `smaps_rollup`, and page tables), never address space.

mod idle;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::daemon;
use crate::figures::table::table;

use idle::{Cost, measure};

/// Most that one idle guest may cost, in bytes.
const GOAL_BYTES: f64 = 1048576.0;

/// Measures what each further idle guest costs one daemon.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of guests, the least first
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
    /// Whether a guest costs at most 1 MiB.
    met: bool,
}

/// Runs it; true if the goal is met.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let ascending = args.counts.windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(
        args.counts.len() >= 2 && args.counts[0] > 0 && ascending,
        "--counts takes two numbers of guests at least, in ascending order"
    );
    let costs: Vec<Cost> = args
        .counts
        .iter()
        .map(|count| measure(&binary, *count, args.request_queues))
        .collect::<Result<_>>()?;
    let report = Report::of(args.request_queues, costs);
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(report.met)
}

impl Report {
    /// `costs` has two entries at least.
    fn of(request_queues: usize, costs: Vec<Cost>) -> Report {
        let slope = |of: fn(&Cost) -> u64| match (costs.first(), costs.last()) {
            (Some(least), Some(most)) => {
                (of(most) as f64 - of(least) as f64) / (most.guests as f64 - least.guests as f64)
            }
            _ => f64::NAN,
        };
        let bytes_per_guest = slope(|cost| cost.own_bytes + cost.page_table_bytes);
        Report {
            request_queues,
            bytes_per_guest,
            threads_per_guest: slope(|cost| cost.threads),
            descriptors_per_guest: slope(|cost| cost.descriptors),
            bytes_left_per_guest: slope(|cost| cost.own_bytes_after),
            met: bytes_per_guest <= GOAL_BYTES,
            costs,
        }
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
            "each further guest ({} request queues): {:.0} KiB, {:.1} threads, {:.1} descriptors; \
             {:.0} KiB stay with its share when it has gone; goal: at most 1024 KiB, {}",
            self.request_queues,
            self.bytes_per_guest / 1024.0,
            self.threads_per_guest,
            self.descriptors_per_guest,
            self.bytes_left_per_guest / 1024.0,
            if self.met { "met" } else { "MISSED" },
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

    #[test]
    fn the_slope_is_what_each_further_guest_adds() {
        let report = Report::of(1, vec![cost(1, 1 << 20), cost(9, 3 << 20)]);
        assert_eq!(report.bytes_per_guest, f64::from(1 << 18));
        assert_eq!(report.threads_per_guest, 5.0);
        assert!(report.met);
        let report = Report::of(1, vec![cost(1, 0), cost(2, (1 << 20) + 1)]);
        assert!(!report.met);
    }

    #[test]
    fn a_few_guests_are_measured() -> Result<()> {
        let binary = daemon::find(None)?;
        let (one, four) = (measure(&binary, 1, 1)?, measure(&binary, 4, 1)?);
        assert!(four.threads > one.threads && four.descriptors > one.descriptors);
        let report = Report::of(1, vec![one, four]);
        assert!(report.met, "{} bytes a guest", report.bytes_per_guest);
        Ok(())
    }
}
