//! Far more data than window: four threads read at random from a gigabyte
//! through eight ranges. Every byte is checked, and so is the window: by the
//! mapper's own count and by what the kernel says is mapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::file::{Access, File, Guest};
use daxwindow_shared::window::RANGE_BYTES;

use super::{Bench, Cell};
use crate::attach::Attached;
use crate::daemon::{Dax, Share};
use crate::figures::Figure;
use crate::files::{TestFile, is_pattern};
use crate::host_memory::mapped_below;
use crate::stats::{Paired, Random};

const WINDOW_BYTES: u64 = 16 << 20;
const WINDOW_RANGES: u64 = WINDOW_BYTES / RANGE_BYTES;
const THREADS: u64 = 4;
const FILES: u64 = 16;
const READ_BYTES: u64 = 4096;

struct Target {
    file: File,
    seed: u64,
    len: u64,
}

pub(super) fn pressure(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let directory = bench.directory.join("pressure");
    std::fs::create_dir_all(&directory)?;
    let len = bench.bytes / FILES;
    let write = |i| TestFile::write(&directory.join(format!("f{i}")), len, 100 + i);
    let files: Vec<TestFile> = (0..FILES).map(write).collect::<Result<_>>()?;
    let reads = if bench.quick { 2_000 } else { 3_000 };
    let (mut pairs, mut speeds, mut stats) = (Paired::default(), Vec::new(), Default::default());
    for repetition in 0..bench.repetitions {
        let share = Share::readonly(&directory, Dax::Always, WINDOW_BYTES);
        let guest = Attached::start(&bench.binary, &share, 0)?;
        let mark = guest.mark()?;
        let (peak, seconds) = one_repetition(&guest, &files, &directory, reads, repetition as u64)?;
        guest.prove_window(&mark, THREADS * reads * READ_BYTES)?;
        speeds.push((THREADS * reads) as f64 / seconds);
        pairs.push(peak as f64, WINDOW_RANGES as f64);
        stats = guest.guest().stats();
    }
    let _ = std::fs::remove_dir_all(&directory);
    let mut figure = cell.paired(&pairs);
    figure
        .detail
        .insert("most_live_ranges".into(), figure.value.unwrap_or_default());
    figure.value = crate::stats::median(&speeds);
    figure.base = None;
    figure.spread = crate::stats::series(&speeds).map(|s| s.spread);
    Ok(figure
        .with("mappings", stats.setups as f64)
        .with("reclaimed", stats.reclaimed as f64)
        .with("setup_p50_us", stats.setup_latency.p50_ns as f64 / 1e3))
}

/// Most ranges seen live, and the seconds all reads took.
fn one_repetition(
    guest: &Attached,
    files: &[TestFile],
    directory: &std::path::Path,
    reads: u64,
    seed: u64,
) -> Result<(u64, f64)> {
    let open = |f: &TestFile| -> Result<Target> {
        let file = guest
            .guest()
            .open(f.name(), Access::Read)
            .context("open in the guest")?;
        ensure!(file.is_dax(), "DAX is not in use for {}", f.path.display());
        Ok(Target {
            file,
            seed: f.seed,
            len: f.len,
        })
    };
    let targets = files.iter().map(open).collect::<Result<Vec<_>>>()?;
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample_live(guest.guest(), directory, &stop));
        let started = Instant::now();
        let start = |thread| {
            let targets = &targets;
            scope.spawn(move || read_randomly(targets, reads, seed * THREADS + thread))
        };
        let readers: Vec<_> = (0..THREADS).map(start).collect();
        let mut all_right = Ok(());
        for reader in readers {
            let one = reader
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a reader panicked"));
            all_right = all_right.and(one);
        }
        let seconds = started.elapsed().as_secs_f64();
        // Pairs with the sampler's load; it only has to see it soon.
        stop.store(true, Ordering::Relaxed);
        let peak = sampler
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the sampler panicked"));
        all_right?;
        Ok((peak?, seconds))
    })
}

fn read_randomly(targets: &[Target], reads: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut buffer = vec![0; READ_BYTES as usize];
    for _ in 0..reads {
        let target = &targets[random.below(targets.len() as u64) as usize];
        let at = random.below(target.len / READ_BYTES) * READ_BYTES;
        let n = target.file.read_at(&mut buffer, at).context("read_at")?;
        ensure!(n == buffer.len(), "read_at at {at}: {n} bytes");
        ensure!(is_pattern(target.seed, at, &buffer), "wrong bytes at {at}");
    }
    Ok(())
}

/// The larger of what the mapper says and what the kernel says, in ranges.
fn sample_live(guest: &Guest, directory: &std::path::Path, stop: &AtomicBool) -> Result<u64> {
    let mut peak = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let by_kernel = mapped_below(directory)?.div_ceil(RANGE_BYTES);
        peak = peak.max(guest.stats().live).max(by_kernel);
        if last {
            return Ok(peak);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
