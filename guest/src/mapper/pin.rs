//! A range that stays where it is, and what may be done with it meanwhile.

use std::io;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use daxwindow_shared::window::WindowOffset;

use super::slot::Alias;
use super::{AliasHolder, Core};
use crate::window::{Area, Protection};

/// A range that stays mapped while this lives.
pub(crate) struct Pin<'a> {
    pub(super) core: &'a Core,
    pub(super) slot: u32,
    pub(super) writable: bool,
}

impl Pin<'_> {
    /// Copies out of the range from byte `at` of it; the error is the number
    /// of bytes copied before a page had no file behind it.
    pub(crate) fn copy_out(&self, at: u64, out: &mut [u8]) -> Result<(), usize> {
        self.check(at, out.len())?;
        self.core.window.copy_out(self.window_offset(at).0, out)
    }

    /// Copies into the range, which must have been acquired writable.
    pub(crate) fn copy_in(&self, at: u64, bytes: &[u8]) -> Result<(), usize> {
        self.check(at, bytes.len())?;
        if !self.writable {
            return Err(0);
        }
        self.core.window.copy_in(self.window_offset(at).0, bytes)
    }

    /// Shows the range also in `target` at `at`, for what `protection` says,
    /// until `holder` is asked to take it back.
    pub(crate) fn alias_into(
        &self,
        target: &Area,
        at: usize,
        protection: Protection,
        holder: Weak<dyn AliasHolder>,
        index: u64,
    ) -> io::Result<()> {
        self.note_alias(holder, index);
        let len = self.core.range_bytes() as usize;
        let from = self.window_offset(0);
        let window = &self.core.window;
        window.alias_into(target, at, from, len, protection)
    }

    pub(super) fn note_alias(&self, holder: Weak<dyn AliasHolder>, index: u64) {
        let mut content = self.core.slot(self.slot).content.lock();
        content.aliases.retain(|a| {
            a.holder.strong_count() > 0 && !(a.index == index && a.holder.ptr_eq(&holder))
        });
        content.aliases.push(Alias { holder, index });
    }

    /// Where byte `at` of the range is in the window.
    fn window_offset(&self, at: u64) -> WindowOffset {
        WindowOffset(self.core.window_offset(self.slot).0 + at)
    }

    fn check(&self, at: u64, len: usize) -> Result<(), usize> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.core.range_bytes() => Ok(()),
            _ => Err(0),
        }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let core = self.core;
        // SeqCst on both sides: either this sees the waiter, or the waiter's
        // scan sees the slot without pins.
        if core.slot(self.slot).unpin() && core.waiters.load(Ordering::SeqCst) > 0 {
            core.releases.fetch_add(1, Ordering::SeqCst);
            drop(core.pool.lock());
            core.freed.notify_one();
        }
    }
}
