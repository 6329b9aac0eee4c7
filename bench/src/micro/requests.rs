//! FUSE_READ with DAX off, against pread.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::session::{DmaBuf, Session};
use daxwindow_shared::latency::Latency;

use super::parts::{p50_micros, queue_round_trips};
use super::{Bench, Cell, interleaved, seconds};
use crate::attach;
use crate::daemon::{Daemon, Dax, Share};
use crate::figures::Figure;
use crate::files::is_pattern;
use crate::host_memory::bytes_read_by;
use crate::stats::{Paired, Random, median};

const ROOT: u64 = 1;
const MIB: usize = 1 << 20;

/// The big file, open in a session without a window.
struct Plain {
    session: Arc<Session>,
    nodeid: u64,
    fh: u64,
    daemon: Daemon,
}

impl Plain {
    fn open(bench: &Bench) -> Result<Plain> {
        use std::os::unix::ffi::OsStrExt;
        let share = Share::readonly(&bench.directory, Dax::Never, 0);
        let daemon = Daemon::start(&bench.binary, &share)?;
        let session = attach::session(&daemon, &share)?;
        ensure!(
            session.window().is_none(),
            "there is a window although DAX is off"
        );
        let name = bench.big.name().as_os_str().as_bytes();
        let nodeid = session
            .lookup(ROOT, name)
            .context("look the file up")?
            .nodeid;
        let fh = session.open(nodeid, 0).context("open the file")?.fh;
        Ok(Plain {
            session,
            nodeid,
            fh,
            daemon,
        })
    }

    fn read(&self, offset: u64, buffer: &mut DmaBuf, len: usize) -> Result<()> {
        let n = self
            .session
            .read(self.nodeid, self.fh, offset, buffer, 0, len)?;
        ensure!(
            n == len,
            "FUSE_READ at {offset}: {n} bytes instead of {len}"
        );
        Ok(())
    }

    /// Fails unless the daemon has read `bytes` since `before`.
    fn prove(&self, before: u64, bytes: u64) -> Result<()> {
        let by_daemon = bytes_read_by(self.daemon.pid())?.saturating_sub(before);
        ensure!(
            by_daemon >= bytes,
            "the daemon read {by_daemon} of {bytes} bytes"
        );
        Ok(())
    }

    fn check(&self, bench: &Bench, offset: u64, buffer: &mut DmaBuf, len: usize) -> Result<()> {
        let mut bytes = vec![0; len];
        self.read(offset, buffer, len)?;
        buffer.copy_to(0, &mut bytes);
        ensure!(
            is_pattern(bench.big.seed, offset, &bytes),
            "wrong bytes at {offset}"
        );
        Ok(())
    }
}

pub(super) fn fuse_read_1m(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let plain = Plain::open(bench)?;
    let file = bench.big.open()?;
    let mut dma = plain.session.alloc(MIB).context("guest memory")?;
    let mut buffer = vec![0; MIB];
    plain.check(bench, 0, &mut dma, MIB)?;
    let bytes = bench.bytes.min(256 << 20);
    let mut pairs = Paired::default();
    for repetition in 0..bench.repetitions {
        let before = bytes_read_by(plain.daemon.pid())?;
        let offsets = || (0..bytes).step_by(MIB);
        let (ours, pread) = interleaved(
            repetition,
            || seconds(|| offsets().try_for_each(|at| plain.read(at, &mut dma, MIB))),
            || seconds(|| offsets().try_for_each(|at| pread_exact(&file, at, &mut buffer))),
        )?;
        plain.prove(before, bytes)?;
        pairs.push(bytes as f64 / ours / 1e9, bytes as f64 / pread / 1e9);
    }
    Ok(cell.paired(&pairs))
}

pub(super) fn fuse_read_4k(bench: &Bench, cell: &Cell) -> Result<Figure> {
    const LEN: usize = 4096;
    let plain = Plain::open(bench)?;
    let file = bench.big.open()?;
    let mut dma = plain.session.alloc(LEN).context("guest memory")?;
    let mut buffer = vec![0; LEN];
    let samples = if bench.quick { 4_000 } else { 10_000 };
    let mut random = Random::new(5);
    let pages = bench.bytes / LEN as u64;
    let offsets: Vec<u64> = (0..samples)
        .map(|_| random.below(pages) * LEN as u64)
        .collect();
    plain.check(bench, offsets[0], &mut dma, LEN)?;
    let (mut pairs, mut preads, mut queues) = (Paired::default(), Vec::new(), Vec::new());
    for repetition in 0..bench.repetitions {
        let before = bytes_read_by(plain.daemon.pid())?;
        let (ours, base) = interleaved(
            repetition,
            || {
                Ok(p50_micros(&each(&offsets, |at| {
                    plain.read(at, &mut dma, LEN)
                })?))
            },
            || {
                let pread = p50_micros(&each(&offsets, |at| pread_exact(&file, at, &mut buffer))?);
                let queue = p50_micros(&queue_round_trips(samples)?);
                preads.push(pread);
                queues.push(queue);
                Ok(pread + queue)
            },
        )?;
        plain.prove(before, (samples * LEN) as u64)?;
        pairs.push(ours, base);
    }
    Ok(cell
        .paired(&pairs)
        .with("pread", median(&preads).unwrap_or_default())
        .with("queue", median(&queues).unwrap_or_default()))
}

fn each(offsets: &[u64], mut read: impl FnMut(u64) -> Result<()>) -> Result<Latency> {
    let mut latency = Latency::new();
    for at in offsets {
        let started = Instant::now();
        read(*at)?;
        latency.record(started.elapsed());
    }
    Ok(latency)
}

fn pread_exact(file: &std::fs::File, at: u64, buffer: &mut [u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(buffer, at).context("pread")?;
    std::hint::black_box(&buffer);
    Ok(())
}
