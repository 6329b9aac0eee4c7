//! The sweep over virtual machines, on one directory or with an overlay of it
//! each: one after the other reads its part.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use daxwindow_vm::AccelChoice;

use super::data::Data;
use super::machines::{Machines, WINDOW_BYTES, Wish};
use super::memory::{Usage, memory_files};
use super::point::{Kind, Point, Series, mib};
use super::stage::{Counters, Stack};
use crate::overlay::Overlay;

/// What a sweep needs.
pub(super) struct Sweep<'a> {
    pub daemon: &'a Path,
    pub data: &'a Data,
    pub accel: AccelChoice,
    pub series: Series,
    /// How many.
    pub count: usize,
    /// Guests of the pattern, which may be more.
    pub of: usize,
    pub seed: u64,
}

/// Brings up all guests, then has one after the other read its part and hands
/// over a point for each.
pub(super) fn sweep(sweep: &Sweep<'_>, mut point: impl FnMut(&Point) -> Result<()>) -> Result<()> {
    let overlays = sweep.overlays()?;
    let directory = || sweep.data.directory().to_path_buf();
    let directories: Vec<_> = match overlays.is_empty() {
        true => vec![directory()],
        false => overlays.iter().map(|o| o.path().to_path_buf()).collect(),
    };
    let mut machines = Machines::boot(&Wish {
        daemon: sweep.daemon,
        data: sweep.data,
        directories: &directories,
        accel: sweep.accel,
        stack: sweep.series.stack,
        count: sweep.count,
        window_bytes: WINDOW_BYTES,
    })?;
    sweep.data.forget()?;
    let mut so_far = Point::default();
    so_far.look(sweep.data, &machines)?;
    // What machines hold that have read nothing.
    let (idle, warm) = (so_far.total(), so_far.page_cache);
    for guest in 0..sweep.count {
        read(sweep, &mut machines, guest, &mut so_far)?;
        so_far.look(sweep.data, &machines)?;
        so_far.idle = idle - warm;
        point(&so_far)?;
    }
    machines.end()
}

impl Sweep<'_> {
    /// One for each guest, where guests have some.
    fn overlays(&self) -> Result<Vec<Overlay>> {
        let data = self.data.directory();
        let parent = data.parent().context("the files have no parent")?;
        let count = match self.series.kind {
            Kind::Overlays => self.count,
            Kind::Userspace | Kind::Vms => 0,
        };
        (0..count).map(|_| Overlay::over(data, parent)).collect()
    }
}

/// One guest reads, and the path is proved.
fn read(
    sweep: &Sweep<'_>,
    machines: &mut Machines,
    guest: usize,
    so_far: &mut Point,
) -> Result<()> {
    let part = sweep.series.part(sweep.data, sweep.of, guest, sweep.seed);
    let before = machines.stage.counters(guest)?;
    let free = machines.inside(guest)?;
    let told = machines.read(guest, &part, &[])?;
    let now = machines.stage.prove(guest, &before, told.bytes)?;
    let inside = machines.inside(guest)?;
    let cached = inside.cached.saturating_sub(free.cached);
    match sweep.series.stack {
        Stack::Dax => ensure!(
            cached <= told.bytes / 16 + (1 << 20),
            "the guest's page cache grew by {cached} bytes although it read through the window"
        ),
        Stack::Plain => ensure!(
            cached >= told.bytes / 10 * 9,
            "the guest's page cache grew only by {cached} bytes of {}",
            told.bytes
        ),
    }
    so_far.guests = guest + 1;
    so_far.read += told.bytes;
    so_far.add(&before, &now);
    so_far.inside = inside.detail();
    let grown = |name: &str, bytes| (name.to_owned(), mib(bytes));
    so_far.inside.extend([
        grown("guest_cached_growth_mib", cached),
        grown(
            "guest_used_growth_mib",
            free.free.saturating_sub(inside.free),
        ),
    ]);
    Ok(())
}

impl Point {
    /// Adds what a guest's reading has counted.
    fn add(&mut self, before: &Counters, now: &Counters) {
        self.counters.setups += now.setups - before.setups;
        self.counters.live_ranges += now.live_ranges;
        self.counters.live_bytes += now.live_bytes;
        self.counters.reads += now.reads - before.reads;
        self.counters.read_bytes += now.read_bytes - before.read_bytes;
    }

    /// Takes what the host holds now.
    fn look(&mut self, data: &Data, machines: &Machines) -> Result<()> {
        let (guests, daemon) = (machines.processes(), machines.stage.processes());
        let all: Vec<i32> = guests.iter().chain(&daemon).copied().collect();
        self.page_cache = data.cached();
        self.processes = Usage::of(&guests)?;
        self.guest_ram = memory_files(&all)?;
        self.daemon = Usage::of(&daemon)?;
        Ok(())
    }
}
