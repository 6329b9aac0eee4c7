//! Whether a mapping costs more when many are live: through the whole path
//! (mapper, request, ledger, front end, kernel) in a window of 16 GiB.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::Access;
use daxwindow_shared::latency::Latency;
use daxwindow_shared::window::RANGE_BYTES;

use super::parts::p50_micros;
use super::{Bench, Cell};
use crate::attach::Attached;
use crate::daemon::{Dax, Share};
use crate::figures::Figure;
use crate::files::{TestFile, mark};
use crate::stats::Paired;

/// Twice what gets mapped, so that no reclaim starts.
const WINDOW_BYTES: u64 = 16 << 30;
const FEW: u64 = 16;
const MANY: u64 = 4096;
const SAMPLES: u64 = 128;

pub(super) fn mapping_growth(bench: &Bench, cell: &Cell) -> Result<Figure> {
    let directory = bench.directory.join("growth");
    std::fs::create_dir_all(&directory)?;
    TestFile::sparse(&directory.join("sparse"), MANY + SAMPLES, RANGE_BYTES)?;
    let mut pairs = Paired::default();
    for _ in 0..bench.repetitions {
        let (few, many) = one_repetition(bench, &directory)?;
        pairs.push(many, few);
    }
    let _ = std::fs::remove_dir_all(&directory);
    Ok(cell.paired(&pairs))
}

/// Median microseconds of a cold one-byte read with few and with many live.
fn one_repetition(bench: &Bench, directory: &Path) -> Result<(f64, f64)> {
    let share = Share::readonly(directory, Dax::Always, WINDOW_BYTES);
    let guest = Attached::start(&bench.binary, &share, 0)?;
    let file = guest
        .guest()
        .open("sparse", Access::Read)
        .context("open in the guest")?;
    let since = guest.mark()?;
    let (mut few, mut many) = (Latency::new(), Latency::new());
    let mut byte = [0];
    for range in 0..MANY + SAMPLES {
        let started = Instant::now();
        let n = file
            .read_at(&mut byte, range * RANGE_BYTES)
            .context("read_at")?;
        let took = started.elapsed();
        ensure!(
            n == 1 && byte[0] == mark(range),
            "wrong byte at range {range}"
        );
        match range {
            FEW.. if range < FEW + SAMPLES => few.record(took),
            MANY.. => many.record(took),
            _ => {}
        }
    }
    guest.prove_window(&since, MANY + SAMPLES)?;
    let live = guest.guest().stats().live;
    ensure!(live >= MANY, "only {live} ranges are live");
    Ok((p50_micros(&few), p50_micros(&many)))
}
