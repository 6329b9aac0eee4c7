//! Neighbouring ranges mapped by one request.
//!
//! A sequential reader gets several ranges ahead; if neighbouring slots are
//! free, one SETUPMAPPING maps them all. Afterwards each is a range like any
//! other: reclaimed, upgraded and removed alone.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use daxwindow_shared::window::FileOffset;

use super::inode::NotInserted;
use super::slot::{SlotRef, SlotState};
use super::{AliasHolder, Core, Effort, Inode, Pin};
use crate::error::{Error, Result};
use crate::window::{Area, Protection};

/// Most ranges in one request.
const RUN_MOST: u32 = 16;

/// Neighbouring ranges of a file, pinned, in neighbouring slots.
pub(crate) struct Run<'a> {
    core: &'a Core,
    pins: Vec<Pin<'a>>,
}

impl Core {
    /// Maps the first of `ranges`, and as many behind it as are absent and
    /// find room side by side. Takes only slots that are free; empty if there
    /// is none, or if the first range is present already.
    pub(crate) fn map_run(
        &self,
        inode: &Arc<Inode>,
        ranges: Range<u64>,
        writable: bool,
    ) -> Result<Run<'_>> {
        let absent = ranges
            .clone()
            .take(RUN_MOST as usize)
            .take_while(|&index| inode.get(index).is_none())
            .count() as u32;
        let mut run = Run {
            core: self,
            pins: Vec::new(),
        };
        let file_offset = ranges.start.checked_mul(self.range_bytes()).map(FileOffset);
        let (Some(file_offset), Some((slot, count))) = (file_offset, self.take_free_run(absent))
        else {
            return Ok(run);
        };
        let (entries, error) = self.enter_run(inode, ranges.start, slot, count);
        if entries.is_empty() {
            return error.map_or(Ok(run), Err);
        }
        let count = entries.len() as u32;
        let result = self.setup(slot, count, inode, file_offset, writable);
        for (entry, index) in entries.iter().zip(ranges) {
            match &result {
                Ok(()) => {
                    self.slot(entry.slot).publish(writable);
                    self.notify_changed(entry.slot);
                    run.pins.push(self.pin(entry.slot, writable));
                }
                Err(error) => self.abandon(*entry, inode, index, SlotState::Free, error),
            }
        }
        if matches!(result, Err(Error::Remote { .. })) && count > 1 {
            self.one_by_one.store(true, Ordering::Relaxed);
        }
        result.map(|()| run)
    }

    fn take_free_run(&self, most: u32) -> Option<(u32, u32)> {
        let mut pool = self.pool.lock();
        let kept = self.kept_free(&pool, Effort::Speculate)?;
        let spare = u32::try_from(pool.free.len().saturating_sub(kept)).ok()?;
        let one_by_one = self.one_by_one.load(Ordering::Relaxed);
        let most = most.min(spare).min(if one_by_one { 1 } else { RUN_MOST });
        let run = match most {
            0 => None,
            most => pool.free.take_run(most),
        };
        self.wake_if_low(pool.free.len());
        run
    }

    /// Enters slots as being mapped, until another thread was faster; gives
    /// the rest back.
    fn enter_run(
        &self,
        inode: &Arc<Inode>,
        first: u64,
        slot: u32,
        count: u32,
    ) -> (Vec<SlotRef>, Option<Error>) {
        let mut entries = Vec::with_capacity(count as usize);
        for number in slot..slot + count {
            let index = first + entries.len() as u64;
            let entry = SlotRef {
                slot: number,
                generation: self.slot(number).begin_mapping(),
            };
            self.slot(number).content.lock().owner = Some((Arc::clone(inode), index));
            self.slot(number).referenced.store(true, Ordering::Relaxed);
            if let Err(why) = inode.insert(index, entry) {
                (number..slot + count).for_each(|rest| self.release(rest, SlotState::Free));
                let closed = matches!(why, NotInserted::Closed);
                let error = closed.then(|| Error::Invalid("the file is closed".into()));
                return (entries, error);
            }
            entries.push(entry);
        }
        (entries, None)
    }
}

impl Run<'_> {
    /// How many ranges.
    pub(crate) fn len(&self) -> usize {
        self.pins.len()
    }

    /// Fills the window's page tables for the first `bytes` of the run.
    pub(crate) fn populate(&self, bytes: u64) -> io::Result<()> {
        let Some(first) = self.pins.first() else {
            return Ok(());
        };
        let bytes = bytes.min(self.len() as u64 * self.core.range_bytes());
        let at = self.core.window_offset(first.slot);
        self.core.window.populate(at, bytes)
    }

    /// Shows the ranges from the `skip`-th on also in `target` at `at`, for
    /// what `protection` says, the first of them as `index` of `holder`.
    pub(crate) fn alias_into(
        &self,
        skip: usize,
        target: &Area,
        at: usize,
        protection: Protection,
        holder: &Weak<dyn AliasHolder>,
        index: u64,
    ) -> io::Result<()> {
        let shown = self.pins.get(skip..).unwrap_or_default();
        let Some(first) = shown.first() else {
            return Ok(());
        };
        for (pin, index) in shown.iter().zip(index..) {
            pin.note_alias(Weak::clone(holder), index);
        }
        let len = shown.len() * self.core.range_bytes() as usize;
        let from = self.core.window_offset(first.slot);
        let window = &self.core.window;
        window.alias_into(target, at, from, len, protection)
    }
}
