//! The least time that an operation can take with this front end on this
//! machine, whoever serves it.
//!
//! | file | owns |
//! | --- | --- |
//! | `calls` | the host's system calls that each operation needs |
//!
//! Law: a floor holds for every daemon that asks the host by these calls, so
//! it counts nothing that one could do without: no wake-up, no memory that
//! has to come from another processor, no work of the daemon's own.

mod calls;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daxwindow_vm::processes::own_time;

use super::measure::{Load, Times};
use super::share::Files;

/// Units between looks at the clock, so that these do not count.
const UNNOTICED: u64 = 64;

/// Processor time of the bare system calls for one unit of work, microseconds,
/// made in a loop by this thread; none for an operation of the window.
pub(super) fn calls_us(files: &Files, load: Load, times: Times, seed: u64) -> Result<Option<f64>> {
    let told = || format!("the system calls of {}", load.name());
    files.restore()?;
    let calls = calls::of(load.operation, files, load.depth, seed).with_context(told)?;
    let Some(mut calls) = calls else {
        return Ok(None);
    };
    let mut run = |time: Duration| -> Result<u64> {
        let end = Instant::now() + time;
        let mut units = 0;
        while Instant::now() < end {
            let pause = units + UNNOTICED;
            while units < pause {
                units += calls()?;
            }
        }
        Ok(units)
    };
    run(times.warm_up / 2).with_context(told)?;
    let before = own_time();
    let units = run(times.measure / 2).with_context(told)?;
    let taken = own_time().saturating_sub(before);
    Ok(Some(taken.as_secs_f64() * 1e6 / units as f64))
}

/// The least that one unit of a load takes, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Least {
    /// Of the daemon's processor time.
    pub calls_us: f64,
    /// Of time, by the clock on the wall.
    pub time_us: f64,
    /// The same of a daemon with our queue, which takes requests and hands
    /// them back as ours does and has no further work; none where the load
    /// about nothing was not measured.
    pub queued_us: Option<f64>,
}

/// What our daemon takes for one request about nothing, by load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct QueueTime(pub f64);

impl Least {
    /// For `load` on so many processors. The front end is one thread, so it
    /// takes its own time at least; and what it and the calls take together
    /// goes to as many processors as there are, and to no more than there are
    /// operations in flight, since each needs both, one after the other.
    pub(super) fn new(
        load: Load,
        processors: usize,
        calls_us: f64,
        queue: Option<QueueTime>,
        front_end_us: f64,
    ) -> Least {
        let at_a_time = processors.min(load.depth).max(1) as f64;
        let time_us = |daemon_us: f64| front_end_us.max((front_end_us + daemon_us) / at_a_time);
        let requests = load.operation.requests();
        Least {
            calls_us,
            time_us: time_us(calls_us),
            queued_us: queue.map(|queue| time_us(calls_us + requests * queue.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operations::Operation;
    use super::super::plan;
    use super::*;

    #[test]
    fn every_operation_of_the_plan_has_its_calls() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let files = Files::write(directory.path(), 300, 2 << 20, 0)?;
        let times = Times {
            warm_up: Duration::ZERO,
            measure: Duration::from_micros(1),
        };
        for load in plan::loads() {
            let time = calls_us(&files, load, times, 7)?;
            assert_eq!(time.is_none(), load.operation.needs_window());
            assert!(time.is_none_or(|us| us > 0.0), "{}", load.name());
        }
        files.restore()?;
        let work = directory.path().join("work/p00");
        let mut left: Vec<_> = std::fs::read_dir(work)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<_>>()?;
        left.sort();
        assert_eq!(left, ["a", "mode"], "all is as it was");
        Ok(())
    }

    #[test]
    fn a_floor_knows_what_goes_on_at_a_time() {
        let least = |depth, processors, calls, front_end| {
            let load = Load {
                operation: Operation::Getattr,
                depth,
                queues: 1,
            };
            let queue = Some(QueueTime(0.5));
            let least = Least::new(load, processors, calls, queue, front_end);
            (least.time_us, least.queued_us)
        };
        let serial = least(1, 8, 3.0, 1.0);
        assert_eq!(serial, (4.0, Some(4.5)), "one after the other");
        let shared = least(16, 2, 3.0, 1.0);
        assert_eq!(shared, (2.0, Some(2.25)), "both processors at work");
        let bound = least(16, 2, 1.0, 3.0);
        assert_eq!(bound, (3.0, Some(3.0)), "the front end is one thread");
        assert_eq!(least(16, 1, 3.0, 1.0), (4.0, Some(4.5)));
    }
}
