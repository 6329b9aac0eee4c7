//! Threads that read while mappings come and go.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::map::{Access, Mapping};
use crate::pattern::{self, Pattern, mixed};
use crate::{RANGE_BYTES, open};

const LONGEST_BYTES: u64 = 64 << 10;

/// Reads random places of the pattern files until time is up.
pub(crate) fn stress(folder: &Path, threads: u64, limit: Duration, store: bool) -> Result<()> {
    let files = pattern::files(folder)?;
    let deadline = Instant::now() + limit;
    let (places, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let one = |seed: u64| -> Result<()> {
        let mut random = Random(seed);
        while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
            let checked = one_place(&files, &mut random, store).inspect_err(|_| {
                stop.store(true, Ordering::Relaxed);
            })?;
            places.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(checked, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let one = &one;
        let running: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || one(n + 1)))
            .collect();
        running.into_iter().try_for_each(joined)
    })?;
    let (places, bytes) = (places.into_inner(), bytes.into_inner());
    println!("{places} places, {bytes} bytes, all right");
    Ok(())
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// One place, through a fresh mapping or by pread; opened anew each time, so
/// that the guest looks at the file as a new user would.
fn one_place(files: &[(PathBuf, u64)], random: &mut Random, store: bool) -> Result<u64> {
    let (path, size) = &files[random.below(files.len() as u64) as usize];
    let offset = random.below(*size);
    let len = (1 + random.below(LONGEST_BYTES)).min(size - offset);
    let pattern = Pattern::of(path);
    let (mapped, stores) = (random.below(2) == 0, store && random.below(4) == 0);
    let file = open(path, stores)?;
    let found = if mapped {
        let access = match stores {
            true => Access::LoadAndStore,
            false => Access::Load,
        };
        let mapping = Mapping::new(&file, offset, len as usize, access)
            .with_context(|| format!("map {}", path.display()))?;
        if stores {
            mapping.store_all(0, &pattern.bytes(offset, len as usize));
        }
        mapping.load_all(0, mapping.len())
    } else {
        let mut buffer = vec![0; len as usize];
        let what = || format!("{} at {offset:#x}", path.display());
        if stores {
            file.write_all_at(&pattern.bytes(offset, len as usize), offset)
                .with_context(what)?;
        }
        file.read_exact_at(&mut buffer, offset).with_context(what)?;
        buffer
    };
    pattern.check(path, offset, &found)?;
    Ok(len)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9);
        mixed(self.0) % limit.max(1)
    }
}

/// In each round another range of the file: readers go round in it, then a
/// writer stores into it. What a reader sees is the old byte or the new.
pub(crate) fn upgrade(path: &Path, threads: usize, rounds: u64) -> Result<()> {
    let file = open(path, true)?;
    let size = file.metadata()?.len();
    if size < rounds * RANGE_BYTES {
        bail!("{} has {size} bytes: too few", path.display());
    }
    let mut loads = 0;
    for round in 0..rounds {
        loads += upgrade_range(&file, path, round * RANGE_BYTES, threads)?;
    }
    println!("{rounds} ranges made writable under {loads} loads, all right");
    Ok(())
}

/// One byte in each page is looked at, and every second of those changed.
fn upgrade_range(file: &File, path: &Path, offset: u64, threads: usize) -> Result<u64> {
    const STEP: usize = 4096;
    let len = RANGE_BYTES as usize;
    let pattern = Pattern::of(path);
    let places: Vec<usize> = (0..len).step_by(STEP).map(|at| at + 17).collect();
    let old: Vec<u8> = (places.iter().map(|at| pattern.byte(offset + *at as u64))).collect();
    let is_new = |index: usize| index % 2 == 1;
    let (all_read_once, done) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let loads = AtomicU64::new(0);
    let look = |mapping: &Mapping, must_be_new: bool| -> Result<()> {
        for (index, (at, old)) in places.iter().zip(&old).enumerate() {
            let (found, new) = (mapping.load(*at), !old);
            let right = match (is_new(index), must_be_new) {
                (false, _) => found == *old,
                (true, true) => found == new,
                (true, false) => found == *old || found == new,
            };
            if !right {
                let at = offset + *at as u64;
                bail!("WRONG BYTE at {at:#x}: {found:#04x}, old {old:#04x}, new {new:#04x}");
            }
        }
        loads.fetch_add(places.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    let reader = || -> Result<()> {
        let first = Mapping::new(file, offset, len, Access::Load)
            .context("map for loads")
            .and_then(|mapping| look(&mapping, false).map(|()| mapping));
        all_read_once.wait();
        let mapping = first?;
        while !done.load(Ordering::Acquire) {
            look(&mapping, false)?;
        }
        look(&mapping, true)
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        all_read_once.wait();
        let written = Mapping::new(file, offset, len, Access::LoadAndStore).map(|mapping| {
            for (index, (at, old)) in places.iter().zip(&old).enumerate() {
                if is_new(index) {
                    mapping.store(*at, !old);
                }
            }
        });
        done.store(true, Ordering::Release);
        readers.into_iter().try_for_each(joined)?;
        written.context("map for stores")
    })?;
    Ok(loads.into_inner())
}
