//! Throughput and latency of mapped bytes: the guest's against the host's.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Access, File};
use daxwindow_shared::window::RANGE_BYTES;

use super::{Bench, Cell, interleaved, seconds};
use crate::attach::Attached;
use crate::buffer::Buffer;
use crate::daemon::{Dax, Share};
use crate::figures::Figure;
use crate::files::is_pattern;
use crate::raw::{Source, page_bytes};
use crate::stats::{Paired, Random};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// Ranges mapped ahead in the first pass, as in the library's users.
const PREFETCH_RANGES: u32 = daxwindow_guest::GuestOptions::DEFAULT_PREFETCH_RANGES;

/// A guest whose window holds the big file twice.
fn attach(bench: &Bench) -> Result<Attached> {
    let window = (2 * bench.bytes).next_multiple_of(RANGE_BYTES);
    let share = Share::readonly(&bench.directory, Dax::Always, window);
    Attached::start(&bench.binary, &share, PREFETCH_RANGES)
}

fn open(bench: &Bench, guest: &Attached) -> Result<File> {
    let file = guest
        .guest()
        .open(bench.big.name(), Access::Read)
        .context("open in the guest")?;
    ensure!(file.is_dax(), "DAX is not in use for the test file");
    Ok(file)
}

fn copy_all(source: Source<'_>, buffer: &mut [u8]) -> Result<()> {
    for at in (0..source.len()).step_by(buffer.len()) {
        let n = buffer.len().min(source.len() - at);
        source.copy(at, &mut buffer[..n]);
        black_box(&buffer);
    }
    Ok(())
}

fn read_all(file: &File, bytes: u64, buffer: &mut [u8]) -> Result<()> {
    for at in (0..bytes).step_by(buffer.len()) {
        let n = file.read_at(buffer, at).context("read_at")?;
        ensure!(n == buffer.len(), "read_at at {at}: {n} bytes");
        black_box(&buffer);
    }
    Ok(())
}

fn gigabytes_per_second(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

pub(super) fn hot_read_at(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let guest = attach(bench)?;
    let file = open(bench, &guest)?;
    let host = bench.big.map()?;
    let mut buffer = Buffer::like_malloc(CHUNK);
    copy_all(host.source(), &mut buffer)?;
    for at in (0..bench.bytes).step_by(CHUNK) {
        ensure!(
            file.read_at(&mut buffer, at)? == CHUNK,
            "short read at {at}"
        );
        ensure!(
            is_pattern(bench.big.seed, at, &buffer),
            "wrong bytes at {at}"
        );
    }
    let (mut pairs, mut aligned) = (Paired::default(), Paired::default());
    let mut page_aligned = Buffer::at(0, CHUNK);
    for repetition in 0..bench.repetitions {
        for (buffer, pairs) in [(&mut buffer, &mut pairs), (&mut page_aligned, &mut aligned)] {
            let mark = guest.mark()?;
            let buffer = std::cell::RefCell::new(buffer);
            let (window, mmap) = interleaved(
                repetition,
                || seconds(|| read_all(&file, bench.bytes, &mut buffer.borrow_mut())),
                || seconds(|| copy_all(host.source(), &mut buffer.borrow_mut())),
            )?;
            guest.prove_window(&mark, bench.bytes)?;
            pairs.push(
                gigabytes_per_second(bench.bytes, window),
                gigabytes_per_second(bench.bytes, mmap),
            );
        }
    }
    let ratio = aligned.ratio().map_or(0.0, |r| r.median);
    Ok(cell.paired(&pairs).with("ratio_page_aligned_buffer", ratio))
}

pub(super) fn hot_view_touch(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let guest = attach(bench)?;
    let file = open(bench, &guest)?;
    let view = file
        .map(0, bench.bytes, Access::Read)
        .context("make a view")?;
    let host = bench.big.map()?;
    let mut buffer = vec![0; CHUNK];
    // Everything mapped and in both page tables before the clock starts.
    copy_all(Source::view(&view), &mut buffer)?;
    copy_all(host.source(), &mut buffer)?;
    let order = Random::new(7).permutation(bench.bytes as usize / page_bytes());
    let mut pairs = Paired::default();
    for repetition in 0..bench.repetitions {
        let mark = guest.mark()?;
        let (window, mmap) = interleaved(
            repetition,
            || seconds(|| touch_all(Source::view(&view), &order)),
            || seconds(|| touch_all(host.source(), &order)),
        )?;
        guest.prove_window(&mark, bench.bytes)?;
        let nanoseconds = 1e9 / order.len() as f64;
        pairs.push(window * nanoseconds, mmap * nanoseconds);
    }
    Ok(cell.paired(&pairs))
}

fn touch_all(source: Source<'_>, pages: &[usize]) -> Result<()> {
    let page_bytes = page_bytes();
    let touch = |sum: u64, page: &usize| sum + u64::from(source.touch(page * page_bytes));
    black_box(pages.iter().fold(0, touch));
    Ok(())
}

pub(super) fn first_pass_view(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let mut buffer = vec![0; CHUNK];
    copy_all(bench.big.map()?.source(), &mut buffer)?;
    let (mut ours, mut theirs) = (Buffer::like_malloc(CHUNK), Buffer::like_malloc(CHUNK));
    let mut pairs = Paired::default();
    let mut faults = 0;
    for repetition in 0..bench.repetitions {
        // A fresh guest: nothing of the file is in its window.
        let guest = attach(bench)?;
        let file = open(bench, &guest)?;
        let mark = guest.mark()?;
        let (window, mmap) = interleaved(
            repetition,
            || {
                seconds(|| {
                    let view = file
                        .map(0, bench.bytes, Access::Read)
                        .context("make a view")?;
                    copy_all(Source::view(&view), &mut ours)
                })
            },
            || seconds(|| copy_all(bench.big.map()?.source(), &mut theirs)),
        )?;
        guest.prove_window(&mark, bench.bytes)?;
        let last = bench.bytes - CHUNK as u64;
        ensure!(
            is_pattern(bench.big.seed, last, &ours),
            "wrong bytes at {last}"
        );
        faults = guest.guest().stats().faults;
        pairs.push(
            gigabytes_per_second(bench.bytes, window),
            gigabytes_per_second(bench.bytes, mmap),
        );
    }
    Ok(cell.paired(&pairs).with("faults", faults as f64))
}
