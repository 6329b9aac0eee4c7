//! Whether a worker looks at its ring a moment longer before it sleeps.
//!
//! A guest that waits for each answer sends its next request within
//! microseconds, while putting a thread to sleep and waking it costs more than
//! that, and many times more where the processor itself has to be woken. So a
//! worker watches its empty ring for a short while, as long as that mostly
//! pays; where it does not, it is tried only now and then.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest look: about what waking an idle processor costs.
const LOOK: Duration = Duration::from_micros(30);
/// Looks at the ring between two looks at the clock.
const GLANCES: u32 = 16;
/// A success is worth this many failures.
const REWARD: u32 = 3;
const HIGHEST: u32 = 16;
/// With no score left, one emptied ring in this many is looked at.
const PROBE_EVERY: u32 = 64;

/// The record of one worker. Only that worker writes it.
#[derive(Debug, Default)]
pub(super) struct Patience {
    score: AtomicU32,
    emptied: AtomicU32,
}

impl Patience {
    /// Watches until `is_ready` answers true or it does not pay any more.
    /// True if it became ready.
    pub(super) fn watch(&self, mut is_ready: impl FnMut() -> bool) -> bool {
        let score = self.score.load(Relaxed);
        let emptied = self.emptied.load(Relaxed).wrapping_add(1);
        self.emptied.store(emptied, Relaxed);
        if score == 0 && !emptied.is_multiple_of(PROBE_EVERY) {
            return false;
        }
        let end = Instant::now() + LOOK;
        loop {
            for _ in 0..GLANCES {
                if is_ready() {
                    self.score.store((score + REWARD).min(HIGHEST), Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                self.score.store(score.saturating_sub(1), Relaxed);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(patience: &Patience, rounds: u32, ready: bool) -> u32 {
        let mut looked = 0;
        for _ in 0..rounds {
            let mut asked = false;
            let found = patience.watch(|| {
                asked = true;
                ready
            });
            assert_eq!(found, asked && ready);
            looked += u32::from(asked);
        }
        looked
    }

    #[test]
    fn a_guest_that_comes_at_once_is_watched_for_and_an_idle_one_is_not() {
        let patience = Patience::default();
        assert_eq!(looks(&patience, 2 * PROBE_EVERY, false), 2, "only tried");
        assert_eq!(looks(&patience, 2 * PROBE_EVERY, true), PROBE_EVERY + 1);
        let after = looks(&patience, 10 * PROBE_EVERY, false);
        assert!((HIGHEST..HIGHEST + 11).contains(&after), "{after}");
    }
}
