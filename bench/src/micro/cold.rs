//! A cold range: from the fault to the first byte, against the sum of what
//! cannot be left out.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::Access;
use daxwindow_shared::latency::Latency;
use daxwindow_shared::window::RANGE_BYTES;

use super::parts::{
    aliasing_faults, p50_micros, queue_round_trips, range_mmaps, socket_round_trips,
};
use super::{Bench, Cell};
use crate::attach::Attached;
use crate::daemon::{Dax, Share};
use crate::figures::Figure;
use crate::raw::Source;
use crate::stats::{Paired, Random, median};

/// Medians of the parts, in microseconds, one entry a repetition.
#[derive(Default)]
struct Parts {
    fault_and_alias: Vec<f64>,
    queue: Vec<f64>,
    socket: Vec<f64>,
    mmap: Vec<f64>,
}

impl Parts {
    /// Measures each once more; returns their sum.
    fn measure(&mut self, bench: &Bench, order: &[usize]) -> Result<f64> {
        let file = bench.big.open()?;
        let samples = order.len();
        let parts = [
            (&mut self.fault_and_alias, aliasing_faults(&file, order)?),
            (&mut self.queue, queue_round_trips(samples)?),
            (&mut self.socket, socket_round_trips(samples)?),
            (&mut self.mmap, range_mmaps(&file, samples)?),
        ];
        let mut sum = 0.0;
        for (list, latency) in parts {
            let p50 = p50_micros(&latency);
            list.push(p50);
            sum += p50;
        }
        Ok(sum)
    }
}

pub(super) fn cold_range(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let order = Random::new(11).permutation((bench.bytes / RANGE_BYTES) as usize);
    let (mut parts, mut pairs, mut all) = (Parts::default(), Paired::default(), Latency::new());
    for repetition in 0..bench.repetitions {
        let mut cold = Latency::new();
        let (p50, sum) = super::interleaved(
            repetition,
            || {
                cold = touch_cold_ranges(bench, &order)?;
                Ok(p50_micros(&cold))
            },
            || parts.measure(bench, &order),
        )?;
        pairs.push(p50, sum);
        all.merge(&cold);
    }
    let mut figure = cell
        .paired(&pairs)
        .with("p99", all.summary().p99_ns as f64 / 1e3);
    for (name, list) in [
        ("fault+alias", &parts.fault_and_alias),
        ("queue", &parts.queue),
        ("socket", &parts.socket),
        ("mmap", &parts.mmap),
    ] {
        figure = figure.with(name, median(list).unwrap_or_default());
    }
    Ok(figure)
}

/// One touch in each range of a fresh guest that maps nothing ahead.
fn touch_cold_ranges(bench: &Bench, order: &[usize]) -> Result<Latency> {
    let window = (2 * bench.bytes).next_multiple_of(RANGE_BYTES);
    let share = Share::readonly(&bench.directory, Dax::Always, window);
    let guest = Attached::start(&bench.binary, &share, 0)?;
    let file = guest
        .guest()
        .open(bench.big.name(), Access::Read)
        .context("open in the guest")?;
    let view = file
        .map(0, bench.bytes, Access::Read)
        .context("make a view")?;
    let mark = guest.mark()?;
    let mut latency = Latency::new();
    for range in order {
        let started = Instant::now();
        std::hint::black_box(Source::view(&view).touch(range * RANGE_BYTES as usize));
        latency.record(started.elapsed());
    }
    guest.prove_window(&mark, bench.bytes)?;
    let setups = guest.guest().stats().setups;
    ensure!(
        setups >= order.len() as u64,
        "only {setups} mappings for {} cold ranges",
        order.len()
    );
    Ok(latency)
}
