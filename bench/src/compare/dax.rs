//! The window's operations: ranges mapped and unmapped, a file read through
//! the window for the first time and again.
//!
//! They are not of the pipeline's kind, since the daemon asks the front end
//! back before it answers: a SETUPMAPPING is answered when the front end has
//! the range in its address space, its mmap included.
//!
//! Law: maps count only if the front end made as many of them; bytes read
//! count only if the daemon has not read them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Access, File, Guest, GuestOptions, Session};
use daxwindow_shared::fuse::{ROOT_ID, RemoveMappingOne};
use daxwindow_shared::latency::Latency;
use daxwindow_shared::window::{FileOffset, RANGE_BYTES, WindowOffset};
use daxwindow_vm::processes::cpu_time;

use super::contender::Running;
use super::driver::Driven;
use super::measure::{Measured, Times};
use super::operations::Operation;
use super::share::{DAX_FILE, DAX_SEED, Files};
use super::usage::bytes_read;
use crate::files::is_pattern;
use crate::stats::Random;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Bytes of window for the file and as much again.
pub(super) fn window_bytes(files: &Files) -> u64 {
    2 * files.dax_bytes
}

/// Measures one of the window's operations.
pub(super) fn measure(
    running: &mut Running,
    files: &Files,
    operation: Operation,
    times: Times,
    seed: u64,
) -> Result<Measured> {
    match operation {
        Operation::DaxMap | Operation::DaxUnmap => map(running, files, operation, times, seed),
        _ => read(running, files, operation, times),
    }
}

/// What adds up over the passes.
#[derive(Default)]
struct Total {
    units: u64,
    elapsed: Duration,
    cpu: Duration,
    latency: Latency,
}

impl Total {
    fn done(self) -> Measured {
        Measured {
            cpu: self.cpu,
            driven: Driven {
                units: self.units,
                elapsed: self.elapsed,
                latency: self.latency,
                front_end: Duration::ZERO,
            },
        }
    }

    /// Does `work` for each of `order`, on the clock.
    fn pass(
        &mut self,
        pid: i32,
        order: &[u64],
        mut work: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let cpu = cpu_time(pid)?;
        let began = Instant::now();
        let mut last = began;
        for &range in order {
            work(range)?;
            let now = Instant::now();
            self.latency.record(now - last);
            last = now;
        }
        self.elapsed += last - began;
        self.cpu += cpu_time(pid)?.saturating_sub(cpu);
        self.units += order.len() as u64;
        Ok(())
    }
}

/// Maps all ranges of the file into the window in random order, each to a
/// random place, and unmaps them, one request each.
fn map(
    running: &mut Running,
    files: &Files,
    operation: Operation,
    times: Times,
    seed: u64,
) -> Result<Measured> {
    let session = running.session()?;
    let pid = running.daemon.pid();
    let node = session.lookup(ROOT_ID, DAX_FILE.as_bytes())?.nodeid;
    // Some daemons map only what is open.
    let fh = session.open(node, libc::O_RDWR as u32).context("open")?.fh;
    let mut random = Random::new(seed);
    let ranges = files.dax_bytes / RANGE_BYTES;
    let slots = session.window().map_or(0, |w| w.bytes()) / RANGE_BYTES;
    ensure!(slots >= ranges, "a window of {slots} ranges is too small");
    let began = Instant::now();
    let mut measured = None;
    let mut maps = Total::default();
    let mut unmaps = Total::default();
    while measured.is_none_or(|began: Instant| began.elapsed() < times.measure) {
        if measured.is_none() && began.elapsed() >= times.warm_up {
            (maps, unmaps) = (Total::default(), Total::default());
            measured = Some(Instant::now());
        }
        let order = shuffled(&mut random, ranges);
        let places = shuffled(&mut random, slots);
        let place = |range: u64| places[range as usize] * RANGE_BYTES;
        let before = server_maps(session);
        maps.pass(pid, &order, |range| {
            let at = range * RANGE_BYTES;
            let mapped = session.setup_mapping(
                node,
                FileOffset(at),
                WindowOffset(place(range)),
                RANGE_BYTES,
                false,
            );
            mapped.with_context(|| format!("SETUPMAPPING of range {range}"))
        })?;
        let made = server_maps(session) - before;
        ensure!(
            made == ranges,
            "the front end made {made} maps, not {ranges}"
        );
        unmaps.pass(pid, &order, |range| {
            let one = RemoveMappingOne {
                moffset: place(range),
                len: RANGE_BYTES,
            };
            let removed = session.remove_mapping(&[one]);
            removed.with_context(|| format!("REMOVEMAPPING of range {range}"))
        })?;
        let live = session.device().map_or(0, |d| d.server_stats().live);
        ensure!(live == 0, "{live} ranges are still mapped");
    }
    session.release(node, fh)?;
    Ok(match operation {
        Operation::DaxMap => maps.done(),
        _ => unmaps.done(),
    })
}

fn shuffled(random: &mut Random, count: u64) -> Vec<u64> {
    let order = random.permutation(count as usize).into_iter();
    order.map(|index| index as u64).collect()
}

fn server_maps(session: &Session) -> u64 {
    session.device().map_or(0, |d| d.server_stats().maps)
}

/// Reads the file through the window: once from a fresh connection, or over
/// and over.
fn read(
    running: &mut Running,
    files: &Files,
    operation: Operation,
    times: Times,
) -> Result<Measured> {
    // What is mapped, and known to the mapper, goes with the connection.
    running.reconnect()?;
    let options = GuestOptions::new(running.options().clone());
    let guest = Guest::over(running.session()?.clone(), &options)?;
    let file = guest.open(DAX_FILE, Access::Read).context("open")?;
    ensure!(file.is_dax(), "DAX is not in use for the file");
    let pid = running.daemon.pid();
    let mut buffer = vec![0; CHUNK];
    let chunks: Vec<u64> = (0..files.dax_bytes).step_by(CHUNK).collect();
    // The buffer's pages are there before the clock starts.
    buffer.fill(1);
    let read_before = bytes_read(pid)?;
    let mut total = Total::default();
    total.pass(pid, &chunks, |at| read_chunk(&file, at, &mut buffer))?;
    for &at in &chunks {
        read_chunk(&file, at, &mut buffer)?;
        ensure!(is_pattern(DAX_SEED, at, &buffer), "wrong bytes at {at}");
    }
    if operation == Operation::DaxHotRead {
        total = Total::default();
        let began = Instant::now();
        while began.elapsed() < times.measure {
            total.pass(pid, &chunks, |at| read_chunk(&file, at, &mut buffer))?;
        }
    }
    let by_daemon = bytes_read(pid)?.saturating_sub(read_before);
    let stats = guest.stats();
    ensure!(
        stats.setups > 0 && by_daemon < files.dax_bytes / 4,
        "DAX was not in use: {} maps, and the daemon read {by_daemon} bytes",
        stats.setups
    );
    total.units = total.units * CHUNK as u64 / 1_000_000;
    Ok(total.done())
}

fn read_chunk(file: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    let n = file.read_at(buffer, at).context("read_at")?;
    ensure!(n == buffer.len(), "read_at at {at}: {n} bytes");
    black_box(buffer);
    Ok(())
}
