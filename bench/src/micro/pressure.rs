//! Far more data than window: a gigabyte read through eight ranges, against
//! the same by FUSE_READ. What is read is checked, and so is the window: by
//! the mapper's own count and by what the kernel says is mapped.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Access, File, Guest, GuestOptions};
use daxwindow_shared::window::RANGE_BYTES;
use daxwindow_vm::processes::cpu_time;

use super::{Bench, Cell, interleaved};
use crate::attach::Attached;
use crate::daemon::{Dax, Share};
use crate::figures::Figure;
use crate::files::{TestFile, is_pattern};
use crate::host_memory::mapped_below;
use crate::stats::{Paired, Random, median};

const WINDOW_BYTES: u64 = 16 << 20;
const WINDOW_RANGES: u64 = WINDOW_BYTES / RANGE_BYTES;
const FILES: u64 = 16;
const CHECKED_BYTES: usize = 4096;

struct Target {
    file: File,
    seed: u64,
    len: u64,
}

/// Who reads what.
#[derive(Clone, Copy)]
struct Load {
    threads: u64,
    /// By each thread.
    reads: u64,
    read_bytes: u64,
    order: Order,
}

#[derive(Clone, Copy)]
enum Order {
    Random,
    /// Each thread its own files, from their start to their end.
    Sequential,
}

impl Load {
    fn bytes(&self) -> u64 {
        self.threads * self.reads * self.read_bytes
    }
}

/// Four threads read 4 KiB at random.
pub(super) fn random(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let load = Load {
        threads: 4,
        reads: if bench.quick { 10_000 } else { 20_000 },
        read_bytes: 4096,
        order: Order::Random,
    };
    measure(bench, cell, load, 1.0)
}

/// One thread reads 1 MiB after another.
pub(super) fn sequential(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let read_bytes = 1 << 20;
    let load = Load {
        threads: 1,
        reads: bench.bytes / read_bytes,
        read_bytes,
        order: Order::Sequential,
    };
    measure(bench, cell, load, read_bytes as f64 / 1e9)
}

/// Measures a load through the window and by FUSE_READ in turn, in units of
/// `unit` reads.
fn measure(bench: &Bench, cell: &Cell, load: Load, unit: f64) -> Result<Figure> {
    let directory = bench.directory.join("pressure");
    std::fs::create_dir_all(&directory)?;
    let len = bench.bytes / FILES;
    let write = |i| TestFile::write(&directory.join(format!("f{i}")), len, 100 + i);
    let files: Vec<TestFile> = (0..FILES).map(write).collect::<Result<_>>()?;
    let never = Share::readonly(&directory, Dax::Never, 0);
    let requests = Attached::start(&bench.binary, &never, GuestOptions::DEFAULT_PREFETCH_RANGES)?;
    let plain = open(&requests, &files)?;
    let mut pairs = Paired::default();
    let (mut window_cpu, mut requests_cpu) = (Vec::new(), Vec::new());
    let (mut peak, mut stats) = (0, Default::default());
    for repetition in 0..bench.repetitions {
        let share = Share::readonly(&directory, Dax::Always, WINDOW_BYTES);
        let guest = Attached::start(&bench.binary, &share, GuestOptions::DEFAULT_PREFETCH_RANGES)?;
        let targets = open(&guest, &files)?;
        ensure!(
            targets.iter().all(|t| t.file.is_dax()),
            "DAX is not in use for the files"
        );
        let seed = repetition as u64;
        let peak = RefCell::new(&mut peak);
        let (window, without) = interleaved(
            repetition,
            || {
                let mark = guest.mark()?;
                let before = spent()?;
                let (live, seconds) = sampled(&guest, &directory, || all(&targets, load, seed))?;
                window_cpu.push(load.cpu_us(before)?);
                guest.prove_counted(&mark, load.bytes(), load.read_bytes)?;
                let mut peak = peak.borrow_mut();
                **peak = live.max(**peak);
                Ok(seconds)
            },
            || {
                let mark = requests.mark()?;
                let before = spent()?;
                let seconds = all(&plain, load, seed)?;
                requests_cpu.push(load.cpu_us(before)?);
                requests.prove_requests(&mark, load.bytes())?;
                Ok(seconds)
            },
        )?;
        let speed = |seconds: f64| (load.threads * load.reads) as f64 * unit / seconds;
        pairs.push(speed(window), speed(without));
        stats = guest.guest().stats();
    }
    let _ = std::fs::remove_dir_all(&directory);
    ensure!(
        peak <= WINDOW_RANGES,
        "{peak} ranges were live in a window of {WINDOW_RANGES}"
    );
    Ok(cell
        .paired(&pairs)
        .with("cpu_us", median(&window_cpu).unwrap_or_default())
        .with(
            "cpu_us_by_fuse_read",
            median(&requests_cpu).unwrap_or_default(),
        )
        .with("most_live_ranges", peak as f64)
        .with("mappings", stats.setups as f64)
        .with("hits", stats.hits as f64)
        .with("by_request", stats.by_request as f64)
        .with("setup_p50_us", stats.setup_latency.p50_ns as f64 / 1e3))
}

/// Processor time of guest and daemons so far: those are children of ours.
fn spent() -> Result<Duration> {
    cpu_time(std::process::id() as i32)
}

impl Load {
    /// Microseconds of processor time for each read since `before`.
    fn cpu_us(&self, before: Duration) -> Result<f64> {
        let spent = spent()?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e6 / (self.threads * self.reads) as f64)
    }
}

fn open(guest: &Attached, files: &[TestFile]) -> Result<Vec<Target>> {
    let open = |f: &TestFile| -> Result<Target> {
        let file = guest
            .guest()
            .open(f.name(), Access::Read)
            .context("open in the guest")?;
        Ok(Target {
            file,
            seed: f.seed,
            len: f.len,
        })
    };
    files.iter().map(open).collect()
}

/// The seconds that all threads took.
fn all(targets: &[Target], load: Load, seed: u64) -> Result<f64> {
    std::thread::scope(|scope| {
        let started = Instant::now();
        let start = |thread| {
            scope.spawn(move || match load.order {
                Order::Random => read_randomly(targets, load, seed * load.threads + thread),
                Order::Sequential => read_in_order(targets, load, thread),
            })
        };
        let readers: Vec<_> = (0..load.threads).map(start).collect();
        let mut all_right = Ok(());
        for reader in readers {
            let one = reader
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a reader panicked"));
            all_right = all_right.and(one);
        }
        all_right.map(|()| started.elapsed().as_secs_f64())
    })
}

/// Most ranges seen live meanwhile, and what `work` returned.
fn sampled(
    guest: &Attached,
    directory: &Path,
    work: impl FnOnce() -> Result<f64>,
) -> Result<(u64, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample_live(guest.guest(), directory, &stop));
        let seconds = work();
        // Pairs with the sampler's load; it only has to see it soon.
        stop.store(true, Ordering::Relaxed);
        let peak = sampler
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the sampler panicked"));
        Ok((peak?, seconds?))
    })
}

fn read_randomly(targets: &[Target], load: Load, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut buffer = vec![0; load.read_bytes as usize];
    for _ in 0..load.reads {
        let target = &targets[random.below(targets.len() as u64) as usize];
        let at = random.below(target.len / load.read_bytes) * load.read_bytes;
        target.read(&mut buffer, at)?;
    }
    Ok(())
}

fn read_in_order(targets: &[Target], load: Load, thread: u64) -> Result<()> {
    let mut buffer = vec![0; load.read_bytes as usize];
    let own = targets.iter().skip(thread as usize);
    let places = own.step_by(load.threads as usize).flat_map(|target| {
        let offsets = (0..target.len).step_by(load.read_bytes as usize);
        offsets.map(move |at| (target, at))
    });
    for (target, at) in places.take(load.reads as usize) {
        target.read(&mut buffer, at)?;
    }
    Ok(())
}

impl Target {
    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let n = self.file.read_at(buffer, at).context("read_at")?;
        ensure!(n == buffer.len(), "read_at at {at}: {n} bytes");
        // Of a large read both ends: to check all would take longer than to read.
        let tail = n.saturating_sub(CHECKED_BYTES);
        for start in [0, tail] {
            let bytes = &buffer[start..n.min(start + CHECKED_BYTES)];
            let offset = at + start as u64;
            ensure!(is_pattern(self.seed, offset, bytes), "wrong bytes at {at}");
            if tail == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// The larger of what the mapper says and what the kernel says, in ranges.
fn sample_live(guest: &Guest, directory: &Path, stop: &AtomicBool) -> Result<u64> {
    let mut peak = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let by_kernel = mapped_below(directory)?.div_ceil(RANGE_BYTES);
        peak = peak.max(guest.stats().live).max(by_kernel);
        if last {
            return Ok(peak);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
