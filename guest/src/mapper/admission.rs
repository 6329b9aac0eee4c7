//! Which ranges `read_at` and `write_at` map, and which they leave to
//! FUSE_READ and FUSE_WRITE.
//!
//! A mapping costs as much as some dozens of small requests, so only a range
//! that is used again is worth one. Laws:
//! - a range in the window is used, whatever it was mapped for;
//! - until something had to be evicted, a range is mapped at its first
//!   access; afterwards only while more is free than the reclaimer keeps for
//!   views and for what is mapped ahead;
//! - in a full window a range is mapped when its accesses by request have
//!   cost what a mapping costs (`WORTH_MAPPING`), and it evicts only a range
//!   that was not used during the second half of them. So ranges used alike
//!   do not evict each other, and all mappings together cost at most what
//!   the requests before them did;
//! - a sequential reader maps each range it enters, once: it reads all of it;
//! - an access waits for no slot and for no range that is on its way out.
//!
//! The filter has two entries for each slot of the window. An entry is held
//! by a range; each access to another range of the same entry takes from what
//! the holder has paid, until the entry is free. So the range that is missed
//! most holds it, and no list of recent ones has to be kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::slot::SlotState;
use super::{Core, Effort, Inode, Pin};
use crate::error::Result;

/// What a mapping, its removal and its page faults cost, in small requests.
const WORTH_MAPPING: u32 = 32;
const HALF: u32 = WORTH_MAPPING / 2;
/// Misses before a range is worth a mapping, at least.
const FEWEST_MISSES: u32 = 8;
/// Bytes whose copy costs as much as a request without them.
const BYTES_PER_REQUEST: usize = 128 << 10;
/// Slots looked at for one to evict: a miss costs the same in any window.
const LOOK_AT: usize = 64;
const LEAST_ENTRIES: usize = 64;

/// A range that was missed, and what that has cost.
#[derive(Debug, Default)]
struct Missed {
    /// Node and index; `None` in an entry never used.
    range: Option<(u64, u64)>,
    /// In small requests.
    paid: u32,
    /// The time at which half of a mapping was paid.
    since: u64,
}

/// The time: misses so far. Every hit reads it, so that nothing else may
/// share its cache line.
#[repr(align(128))]
struct Clock(AtomicU64);

/// The ranges missed lately.
pub(super) struct Admission {
    clock: Clock,
    entries: Box<[Mutex<Missed>]>,
    /// The slot at which the next search for one to evict starts.
    next: AtomicUsize,
}

impl Admission {
    /// For a window of `slots`.
    pub(super) fn new(slots: usize) -> Admission {
        let entries = (2 * slots).next_power_of_two().max(LEAST_ENTRIES);
        Admission {
            clock: Clock(AtomicU64::new(1)),
            entries: (0..entries).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The time, in misses.
    pub(super) fn now(&self) -> u64 {
        self.clock.0.load(Ordering::Relaxed)
    }

    /// Notes a miss of `bytes`. If the range has become worth a mapping:
    /// since when a range must be unused to be evicted for it.
    fn note_miss(&self, nodeid: u64, index: u64, bytes: usize) -> Option<u64> {
        let now = self.clock.0.fetch_add(1, Ordering::Relaxed) + 1;
        let requests = u32::try_from(1 + bytes / BYTES_PER_REQUEST).unwrap_or(u32::MAX);
        // A few accesses, however large, say little about the next.
        let cost = requests.min(WORTH_MAPPING / FEWEST_MISSES);
        let mut entry = self.entry(nodeid, index).lock();
        if entry.range != Some((nodeid, index)) {
            entry.paid = entry.paid.saturating_sub(cost);
            if entry.paid > 0 {
                return None;
            }
            entry.range = Some((nodeid, index));
        }
        if entry.paid < HALF {
            entry.since = now;
        }
        entry.paid += cost;
        if entry.paid < WORTH_MAPPING {
            return None;
        }
        // Should nothing be evicted for it, it pays again before it asks again.
        entry.paid = 0;
        Some(entry.since)
    }

    fn entry(&self, nodeid: u64, index: u64) -> &Mutex<Missed> {
        // Neighbours get different entries, whatever the nodes' numbers are.
        let spread = nodeid.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = spread.wrapping_add(index) as usize % self.entries.len();
        &self.entries[at]
    }
}

/// What may be evicted for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// What the reclaimer would take.
    Coldest,
    /// A range that was not used since this time.
    UnusedSince(u64),
}

impl Core {
    /// Pins range `index` of `inode` for an access to `bytes` of it if it is
    /// in the window or worth a place there; otherwise the access goes by
    /// request. `enters` says whether a sequential reader enters the range.
    pub(crate) fn acquire_if_worth(
        &self,
        inode: &Arc<Inode>,
        index: u64,
        writable: bool,
        bytes: usize,
        enters: impl FnOnce() -> bool,
    ) -> Result<Option<Pin<'_>>> {
        if let Some(pin) = self.acquire_live(inode, index, writable) {
            self.stats.hits.one();
            return Ok(Some(pin));
        }
        let pin = match self.worth(inode, index, bytes, enters) {
            Some(effort) => self.acquire_slowly(inode, index, writable, effort)?,
            None => None,
        };
        if pin.is_none() {
            self.stats.by_request.one();
        }
        Ok(pin)
    }

    fn worth(
        &self,
        inode: &Inode,
        index: u64,
        bytes: usize,
        enters: impl FnOnce() -> bool,
    ) -> Option<Effort> {
        // On its way in or out, or read-only and wanted writable.
        if inode.get(index).is_some() || self.has_spare() {
            return Some(Effort::Spare);
        }
        if enters() {
            return Some(Effort::Evict(Victim::Coldest));
        }
        let since = self.admission.note_miss(inode.nodeid(), index, bytes)?;
        Some(Effort::Evict(Victim::UnusedSince(since)))
    }

    /// Whether a new range takes the place of another.
    pub(crate) fn is_full(&self) -> bool {
        !self.has_spare()
    }

    fn has_spare(&self) -> bool {
        let pool = self.pool.lock();
        self.kept_free(&pool, Effort::Spare)
            .is_some_and(|kept| pool.free.len() > kept)
    }

    /// Evicts one range that was not used since `since`, if one is found
    /// soon, and takes its slot.
    pub(super) fn reclaim_unused(&self, since: u64) -> Option<u32> {
        let count = self.slots.len();
        let start = self.admission.next.fetch_add(LOOK_AT, Ordering::Relaxed);
        let look = (0..count.min(LOOK_AT)).map(|step| start.wrapping_add(step) % count);
        let victim = look.into_iter().find(|&number| {
            let slot = &self.slots[number];
            slot.state() == SlotState::Live && slot.used_at() < since && slot.begin_reclaim()
        })?;
        self.reclaim_one(victim as u32)
    }
}

#[cfg(test)]
#[path = "admission_test.rs"]
mod tests;
