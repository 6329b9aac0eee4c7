//! One slot of the window and the word that rules it.
//!
//! The word holds, from the top: a generation (32 bits), the state (3 bits),
//! whether the mapping is writable (1 bit), and the number of pins (28 bits).
//! Laws: only Free and Quarantined slots are taken by an allocation; a slot
//! leaves Live for Reclaiming only while its pins are zero, and pins are only
//! taken in Live and Upgrading, both decided by compare-and-swap on the whole
//! word, so that a pinned slot cannot be reclaimed and a reclaimed slot
//! cannot be pinned. The generation grows with each use, so a stale
//! [`SlotRef`] pins nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::inode::Inode;
use crate::error::Error;

const PIN: u64 = 1;
const PINS_MASK: u64 = (1 << 28) - 1;
const WRITABLE: u64 = 1 << 28;
const STATE_SHIFT: u32 = 29;
const STATE_MASK: u64 = 7 << STATE_SHIFT;
const GENERATION_SHIFT: u32 = 32;

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum SlotState {
    /// In the free list, or owned by the thread that took it from there.
    Free = 0,
    /// A SETUPMAPPING is on its way.
    Mapping = 1,
    /// Mapped; may be pinned.
    Live = 2,
    /// Mapped read-only, and a writable mapping is on its way; may be pinned.
    Upgrading = 3,
    /// Being given back; may not be pinned.
    Reclaiming = 4,
    /// A removal failed: the back end may still have it mapped.
    Quarantined = 5,
}

impl SlotState {
    fn from_word(word: u64) -> SlotState {
        match (word & STATE_MASK) >> STATE_SHIFT {
            1 => SlotState::Mapping,
            2 => SlotState::Live,
            3 => SlotState::Upgrading,
            4 => SlotState::Reclaiming,
            5 => SlotState::Quarantined,
            _ => SlotState::Free,
        }
    }

    fn bits(self) -> u64 {
        (self as u64) << STATE_SHIFT
    }
}

/// Names one use of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotRef {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Result of trying to pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinOutcome {
    /// Pinned; whether the mapping is writable.
    Pinned { writable: bool },
    /// On its way in or out; wait for it.
    Busy,
    /// The slot is used for something else by now.
    Stale,
}

/// What shows a slot's memory elsewhere, and can stop doing so.
pub(crate) trait AliasHolder: Send + Sync {
    /// Stops showing range `index`; when this returns no access goes there.
    /// May block; called without locks.
    fn take_back(&self, index: u64) -> std::io::Result<()>;
}

/// Where a slot's memory is shown besides the window.
#[derive(Clone)]
pub(super) struct Alias {
    pub(super) holder: Weak<dyn AliasHolder>,
    pub(super) index: u64,
}

/// What is mapped, and where else it is shown.
#[derive(Default)]
pub(super) struct Content {
    pub(super) owner: Option<(Arc<Inode>, u64)>,
    pub(super) aliases: Vec<Alias>,
    /// Why the mapping of a generation failed, for the threads that waited for it.
    pub(super) failure: Option<(u32, Error)>,
}

/// A slot: `range_bytes` of the window.
#[derive(Default)]
pub(super) struct Slot {
    word: AtomicU64,
    /// Set at each lookup, cleared by the clock hand.
    pub(super) referenced: AtomicBool,
    /// When it was last pinned, in the time of `admission`.
    used: AtomicU64,
    pub(super) content: Mutex<Content>,
}

impl Slot {
    fn load(&self) -> u64 {
        self.word.load(Ordering::SeqCst)
    }

    pub(super) fn used_at(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn note_use(&self, now: u64) {
        // Does not write to a line that others read unless it has to.
        if self.used_at() != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn state(&self) -> SlotState {
        SlotState::from_word(self.load())
    }

    pub(super) fn generation(&self) -> u32 {
        (self.load() >> GENERATION_SHIFT) as u32
    }

    /// Whether the use named by `generation` is still being changed.
    pub(super) fn is_busy(&self, generation: u32) -> bool {
        let word = self.load();
        (word >> GENERATION_SHIFT) as u32 == generation
            && matches!(
                SlotState::from_word(word),
                SlotState::Mapping | SlotState::Reclaiming
            )
    }

    /// Whether the use named by `generation` is still being mapped.
    pub(super) fn is_mapping(&self, generation: u32) -> bool {
        let word = self.load();
        (word >> GENERATION_SHIFT) as u32 == generation
            && SlotState::from_word(word) == SlotState::Mapping
    }

    /// Whether an upgrade of this use is under way.
    pub(super) fn is_upgrading(&self, generation: u32) -> bool {
        let word = self.load();
        (word >> GENERATION_SHIFT) as u32 == generation
            && SlotState::from_word(word) == SlotState::Upgrading
    }

    /// The owner of a Free or Quarantined slot starts a new use of it.
    pub(super) fn begin_mapping(&self) -> u32 {
        let generation = self.generation().wrapping_add(1);
        self.put(generation, SlotState::Mapping, 0);
        generation
    }

    /// The mapping is there: Live, with one pin for the thread that made it.
    pub(super) fn publish(&self, writable: bool) {
        let writable = if writable { WRITABLE } else { 0 };
        self.put(self.generation(), SlotState::Live, PIN | writable);
    }

    /// Ends a use whose owner is the caller (Mapping or Reclaiming).
    pub(super) fn retire(&self, state: SlotState) {
        self.put(self.generation().wrapping_add(1), state, 0);
    }

    /// Gives up a reclaim: Live again.
    pub(super) fn revive(&self) {
        let word = self.load();
        let generation = (word >> GENERATION_SHIFT) as u32;
        self.put(generation, SlotState::Live, word & WRITABLE);
    }

    fn put(&self, generation: u32, state: SlotState, low: u64) {
        let word = u64::from(generation) << GENERATION_SHIFT | state.bits() | low;
        self.word.store(word, Ordering::SeqCst);
    }

    /// Pins the use named by `generation`, if it can be.
    pub(super) fn try_pin(&self, generation: u32) -> PinOutcome {
        let mut word = self.load();
        loop {
            if (word >> GENERATION_SHIFT) as u32 != generation {
                return PinOutcome::Stale;
            }
            if !matches!(
                SlotState::from_word(word),
                SlotState::Live | SlotState::Upgrading
            ) {
                return PinOutcome::Busy;
            }
            // 2^28 pins would need as many threads.
            match self.word.compare_exchange_weak(
                word,
                word + PIN,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => {
                    if !self.referenced.load(Ordering::Relaxed) {
                        self.referenced.store(true, Ordering::Relaxed);
                    }
                    return PinOutcome::Pinned {
                        writable: word & WRITABLE != 0,
                    };
                }
                Err(now) => word = now,
            }
        }
    }

    /// Drops a pin; true if it was the last.
    pub(super) fn unpin(&self) -> bool {
        let before = self.word.fetch_sub(PIN, Ordering::SeqCst);
        before & PINS_MASK == PIN
    }

    /// The holder of a pin starts an upgrade. False if another did, or it is
    /// writable by now.
    pub(super) fn begin_upgrade(&self) -> bool {
        self.change(|word| {
            let ready = SlotState::from_word(word) == SlotState::Live && word & WRITABLE == 0;
            ready.then_some(word & !STATE_MASK | SlotState::Upgrading.bits())
        })
    }

    /// Ends an upgrade; pins taken meanwhile are kept.
    pub(super) fn end_upgrade(&self, writable: bool) {
        let bit = if writable { WRITABLE } else { 0 };
        self.change(|word| Some(word & !STATE_MASK | SlotState::Live.bits() | bit));
    }

    pub(super) fn is_writable(&self) -> bool {
        self.load() & WRITABLE != 0
    }

    /// Starts to give the slot back, if it is Live and not pinned.
    pub(super) fn begin_reclaim(&self) -> bool {
        self.change(|word| {
            let idle = SlotState::from_word(word) == SlotState::Live && word & PINS_MASK == 0;
            idle.then_some(word & !STATE_MASK | SlotState::Reclaiming.bits())
        })
    }

    fn change(&self, next: impl Fn(u64) -> Option<u64>) -> bool {
        self.word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_slot_is_not_reclaimed_and_a_stale_ref_pins_nothing() {
        let slot = Slot::default();
        let generation = slot.begin_mapping();
        assert_eq!(slot.try_pin(generation), PinOutcome::Busy);
        slot.publish(false);
        assert!(!slot.begin_reclaim());
        let pinned = PinOutcome::Pinned { writable: false };
        assert_eq!(slot.try_pin(generation), pinned);
        assert!(!slot.unpin());
        assert!(slot.unpin());
        assert!(slot.begin_reclaim());
        assert_eq!(slot.try_pin(generation), PinOutcome::Busy);
        assert!(slot.is_busy(generation));
        slot.retire(SlotState::Free);
        assert_eq!(slot.try_pin(generation), PinOutcome::Stale);
        assert_eq!(slot.state(), SlotState::Free);
    }

    #[test]
    fn pins_survive_an_upgrade() {
        let slot = Slot::default();
        let generation = slot.begin_mapping();
        slot.publish(false);
        assert!(slot.begin_upgrade());
        assert!(!slot.begin_upgrade());
        assert!(matches!(
            slot.try_pin(generation),
            PinOutcome::Pinned { writable: false }
        ));
        slot.end_upgrade(true);
        assert!(slot.is_writable());
        assert!(!slot.begin_upgrade());
        assert!(!slot.unpin());
        assert!(slot.unpin());
        assert!(slot.begin_reclaim());
        slot.revive();
        assert!(slot.is_writable());
        assert_eq!(slot.state(), SlotState::Live);
    }
}
