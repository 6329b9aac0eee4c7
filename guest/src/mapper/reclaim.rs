//! Giving ranges back: by use (CLOCK), in batches, in the background below a
//! low-water mark, and inline when no slot is free.
//!
//! Law: an alias is taken back before its slot is unmapped, and no lock is
//! held while that is done or while the back end answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::RemoveMappingOne;
use parking_lot::{Condvar, Mutex};

use super::slot::SlotState;
use super::{Core, Inode};
use crate::error::{Error, Result};

/// Most ranges in one REMOVEMAPPING; Linux sends up to 256.
const BATCH_MOST: usize = 64;
/// First and longest pause between tries to remove quarantined ranges.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The reclaimer's wake-up.
#[derive(Default)]
pub(super) struct WakeUp {
    pending: Mutex<bool>,
    woken: Condvar,
}

impl WakeUp {
    pub(super) fn wake(&self) {
        let mut pending = self.pending.lock();
        if !*pending {
            *pending = true;
            self.woken.notify_one();
        }
    }

    /// Waits for a wake-up, at most `limit` if there is one.
    fn wait(&self, limit: Option<Duration>) {
        let mut pending = self.pending.lock();
        if !*pending {
            match limit {
                Some(limit) => {
                    self.woken.wait_for(&mut pending, limit);
                }
                None => self.woken.wait(&mut pending),
            }
        }
        *pending = false;
    }
}

/// Starts the background reclaimer. Its wake-ups: the low-water mark was
/// passed, a slot was quarantined, a retry is due, the mapper ends.
pub(super) fn spawn(core: Arc<Core>) -> Result<JoinHandle<()>> {
    Builder::new()
        .name("dax-reclaim".into())
        .spawn(move || run(&core))
        .map_err(|source| Error::Local {
            operation: "starting the reclaimer",
            source,
        })
}

fn run(core: &Core) {
    let mut retry = None;
    loop {
        core.reclaimer.wait(retry.map(|(_, pause)| pause));
        if core.stopping.load(Ordering::SeqCst) {
            return;
        }
        core.refill();
        retry = core.retry_when_due(retry);
    }
}

impl Core {
    /// Reclaims until the low-water mark is reached or nothing cold is left.
    fn refill(&self) {
        loop {
            let free = self.pool.lock().free.len();
            // One batch more than needed, so that the next wake-up is not at once.
            let missing = match free < self.low_water {
                true => (self.low_water - free).saturating_add(self.low_water / 4),
                false => return,
            };
            let victims = self.pick(missing.min(BATCH_MOST), 1);
            if victims.is_empty() || self.give_back(&victims) == 0 {
                return;
            }
        }
    }

    /// Reclaims a small batch and keeps one slot of it for the caller.
    pub(super) fn reclaim_for_me(&self) -> Option<u32> {
        let batch = (self.slots.len() / 8).clamp(1, 16);
        // Two turns: the first may only clear reference marks.
        let victims = self.pick(batch, 2);
        if victims.is_empty() {
            return None;
        }
        self.give_back(&victims);
        self.pool.lock().free.take()
    }

    /// Reclaims a slot in state Reclaiming and keeps it for the caller.
    pub(super) fn reclaim_one(&self, victim: u32) -> Option<u32> {
        self.note_eviction();
        self.give_back(&[victim]);
        self.pool.lock().free.take()
    }

    fn note_eviction(&self) {
        self.pool.lock().evicted = true;
    }

    /// Turns the clock hand, at most `turns` times around, until `want` slots
    /// are in state Reclaiming.
    fn pick(&self, want: usize, turns: usize) -> Vec<u32> {
        let count = self.slots.len();
        let mut victims = Vec::with_capacity(want);
        let mut hand = self.hand.lock();
        for _ in 0..count.saturating_mul(turns) {
            if victims.len() >= want {
                break;
            }
            let number = *hand;
            *hand = (*hand + 1) % count;
            let slot = &self.slots[number];
            if slot.state() != SlotState::Live || slot.referenced.swap(false, Ordering::Relaxed) {
                continue;
            }
            if slot.begin_reclaim() {
                victims.push(number as u32);
            }
        }
        drop(hand);
        if !victims.is_empty() {
            self.note_eviction();
        }
        victims
    }

    /// Takes the aliases of Reclaiming slots back, has them unmapped and
    /// frees them. Returns how many were freed.
    fn give_back(&self, victims: &[u32]) -> usize {
        let mut freed = 0;
        for batch in victims.chunks(BATCH_MOST) {
            let ready: Vec<u32> = batch
                .iter()
                .copied()
                .filter(|&slot| self.take_aliases_back(slot))
                .collect();
            if ready.is_empty() {
                continue;
            }
            let result = self.remove(&ready);
            for slot in ready.iter().copied() {
                self.detach(slot, result.is_ok());
            }
            if result.is_ok() {
                freed += ready.len();
            }
        }
        freed
    }

    fn remove(&self, slots: &[u32]) -> Result<()> {
        let ranges: Vec<_> = slots
            .iter()
            .map(|&slot| RemoveMappingOne {
                moffset: self.window_offset(slot).0,
                len: self.range_bytes(),
            })
            .collect();
        let result = self.channel.remove(&ranges);
        match &result {
            Ok(()) => self.stats.removals.add(slots.len() as u64),
            Err(e) => {
                self.stats.removal_failures.add(slots.len() as u64);
                tracing::debug!("removing {} ranges: {e}", slots.len());
            }
        }
        result
    }

    /// Whether no alias of the slot is left. If one could not be taken back,
    /// the slot is Live again.
    fn take_aliases_back(&self, number: u32) -> bool {
        let slot = self.slot(number);
        let aliases = std::mem::take(&mut slot.content.lock().aliases);
        for (done, alias) in aliases.iter().enumerate() {
            let Some(holder) = alias.holder.upgrade() else {
                continue;
            };
            self.stats.taken_back.one();
            if let Err(e) = holder.take_back(alias.index) {
                tracing::warn!("taking an alias back: {e}");
                let rest = aliases.iter().skip(done).cloned();
                slot.content.lock().aliases.extend(rest);
                slot.referenced.store(true, Ordering::Relaxed);
                slot.revive();
                self.notify_changed(number);
                return false;
            }
        }
        true
    }

    /// Has views show the inode's ranges as the window has them now: the back
    /// end has mapped another file over them. Each is shown again when it is
    /// touched.
    pub(crate) fn show_again(&self, inode: &Inode) {
        let deadline = Instant::now() + self.options.timeout;
        for (_, found) in inode.ranges() {
            let slot = self.slot(found.slot);
            let is_shown = || {
                let used = slot.generation() == found.generation;
                used && !slot.content.lock().aliases.is_empty()
            };
            // A thread that has it pinned may be showing what was there before.
            let mut is_ours = false;
            while is_shown() && !is_ours && Instant::now() < deadline {
                is_ours = slot.begin_reclaim();
                if !is_ours {
                    std::thread::yield_now();
                }
            }
            if is_ours && self.take_aliases_back(found.slot) {
                slot.revive();
                self.notify_changed(found.slot);
            }
        }
    }

    /// Takes a slot that was being reclaimed from its inode.
    fn detach(&self, number: u32, removed: bool) {
        let owner = self.slot(number).content.lock().owner.take();
        if let Some((inode, index)) = owner {
            inode.remove(index);
        }
        if removed {
            self.stats.reclaimed.one();
        }
        let state = if removed {
            SlotState::Free
        } else {
            SlotState::Quarantined
        };
        self.release(number, state);
        self.notify_changed(number);
    }

    /// Removes quarantined ranges one by one, if there are any and the pause
    /// since the last try is over. Returns when to try again.
    fn retry_when_due(&self, last: Option<(Instant, Duration)>) -> Option<(Instant, Duration)> {
        if self.pool.lock().quarantined.is_empty() {
            return None;
        }
        match last {
            Some((since, pause)) if since.elapsed() < pause => return last,
            None => return Some((Instant::now(), RETRY.0)),
            Some(_) => {}
        }
        let tries = self.pool.lock().quarantined.len();
        for _ in 0..tries {
            let Some(slot) = self.pool.lock().quarantined.pop_front() else {
                break;
            };
            let state = match self.remove(&[slot]) {
                Ok(()) => SlotState::Free,
                Err(_) => SlotState::Quarantined,
            };
            let mut pool = self.pool.lock();
            match state {
                SlotState::Free => {
                    self.slot(slot).retire(SlotState::Free);
                    pool.free.put(slot);
                }
                _ => pool.quarantined.push_back(slot),
            }
            drop(pool);
            self.freed.notify_one();
        }
        let left = self.pool.lock().quarantined.len();
        let pause = last.map_or(RETRY.0, |(_, pause)| (pause * 2).min(RETRY.1));
        (left > 0).then(|| (Instant::now(), pause))
    }

    /// Lets nothing of `inodes` into the window any more and has their ranges
    /// unmapped; what is pinned is waited for. After this they may be
    /// forgotten.
    pub(crate) fn evict(&self, inodes: &[Arc<Inode>]) -> Result<()> {
        let deadline = Instant::now() + self.options.timeout;
        inodes.iter().for_each(|inode| inode.close());
        loop {
            let ranges: Vec<_> = inodes.iter().flat_map(|inode| inode.ranges()).collect();
            if ranges.is_empty() {
                return Ok(());
            }
            let idle: Vec<u32> = ranges
                .iter()
                .filter(|(_, r)| {
                    let slot = self.slot(r.slot);
                    slot.generation() == r.generation && slot.begin_reclaim()
                })
                .map(|(_, r)| r.slot)
                .collect();
            if !idle.is_empty() {
                self.give_back(&idle);
                continue;
            }
            if Instant::now() >= deadline {
                return Err(Error::TimedOut {
                    operation: "unmapping a closed file",
                    after: self.options.timeout,
                });
            }
            // Pinned or on its way: both are short.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
