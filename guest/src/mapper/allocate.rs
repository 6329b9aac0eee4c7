//! Where a slot for a new range comes from: the free ones, a reclaim of one's
//! own, a quarantined one, or another thread's when that is done with it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::free::FreeSlots;
use super::slot::SlotState;
use super::{Core, Effort, Victim};
use crate::error::{Error, Result};

#[derive(Default)]
pub(super) struct Pool {
    pub(super) free: FreeSlots,
    pub(super) quarantined: VecDeque<u32>,
    /// A range had to go for want of slots, and since then half of the slots
    /// were never free: what is free was made free for a thread that waits.
    pub(super) evicted: bool,
}

/// Counts a thread among those that wait for a slot.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Core {
    /// A free slot, and the state to put it back in should it not be used.
    pub(super) fn allocate(
        &self,
        effort: Effort,
        deadline: Instant,
    ) -> Result<Option<(u32, SlotState)>> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Disconnected);
        }
        if let Some(slot) = self.take_free(effort) {
            return Ok(Some((slot, SlotState::Free)));
        }
        match effort {
            Effort::Wait => self.allocate_waiting(deadline).map(Some),
            // What is evicted now is for threads that cannot do without.
            Effort::Evict(_) if self.waiters.load(Ordering::SeqCst) > 0 => Ok(None),
            Effort::Evict(victim) => {
                let slot = match victim {
                    Victim::Coldest => self.reclaim_for_me(),
                    Victim::UnusedSince(time) => self.reclaim_unused(time),
                };
                Ok(slot.map(|slot| (slot, SlotState::Free)))
            }
            Effort::Try | Effort::Speculate | Effort::Spare => Ok(None),
        }
    }

    pub(super) fn take_free(&self, effort: Effort) -> Option<u32> {
        let mut pool = self.pool.lock();
        let slot = match pool.free.len() > self.kept_free(&pool, effort)? {
            true => pool.free.take(),
            false => None,
        };
        // What can go by request as well has nothing reclaimed ahead.
        if !matches!(
            effort,
            Effort::Spare | Effort::Evict(Victim::UnusedSince(_))
        ) {
            self.wake_if_low(pool.free.len());
        }
        slot
    }

    /// Free slots that are not for this effort; `None` if none is.
    pub(super) fn kept_free(&self, pool: &Pool, effort: Effort) -> Option<usize> {
        let waited_for = self.waiters.load(Ordering::SeqCst) > 0;
        match effort {
            Effort::Wait => Some(0),
            _ if waited_for => None,
            Effort::Try | Effort::Evict(_) => Some(0),
            Effort::Speculate => Some(self.low_water / 4),
            Effort::Spare if pool.evicted => Some(self.low_water),
            Effort::Spare => Some(0),
        }
    }

    pub(super) fn wake_if_low(&self, free: usize) {
        if free < self.low_water {
            self.reclaimer.wake();
        }
    }

    pub(super) fn allocate_waiting(&self, deadline: Instant) -> Result<(u32, SlotState)> {
        let _waiting = Waiting::new(&self.waiters);
        loop {
            let seen = self.releases.load(Ordering::SeqCst);
            if let Some(slot) = self.take_free(Effort::Wait) {
                return Ok((slot, SlotState::Free));
            }
            if let Some(slot) = self.reclaim_for_me() {
                return Ok((slot, SlotState::Free));
            }
            let mut pool = self.pool.lock();
            if let Some(slot) = pool.quarantined.pop_front() {
                return Ok((slot, SlotState::Quarantined));
            }
            if !pool.free.is_empty() || self.releases.load(Ordering::SeqCst) != seen {
                continue;
            }
            if self.stopping.load(Ordering::SeqCst) {
                return Err(Error::Disconnected);
            }
            // Slots on their way in or out ring when they arrive; the bound
            // only covers a reclaim by another thread that came to nothing.
            let soon = deadline.min(Instant::now() + Duration::from_millis(20));
            let late = self.freed.wait_until(&mut pool, soon).timed_out();
            if late && Instant::now() >= deadline {
                return Err(Error::TimedOut {
                    operation: "waiting for a range of the window",
                    after: self.options.timeout,
                });
            }
        }
    }

    /// Ends the use of a slot that the caller owns.
    pub(super) fn release(&self, number: u32, state: SlotState) {
        let slot = self.slot(number);
        slot.content.lock().owner = None;
        slot.retire(state);
        let mut pool = self.pool.lock();
        match state {
            SlotState::Quarantined => pool.quarantined.push_back(number),
            _ => {
                pool.free.put(number);
                pool.evicted &= pool.free.len() < self.slots.len().div_ceil(2);
            }
        }
        drop(pool);
        self.freed.notify_one();
        if state == SlotState::Quarantined {
            self.reclaimer.wake();
        }
    }
}
