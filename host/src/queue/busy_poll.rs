//! Whether a worker looks at its ring a moment longer before it sleeps.
//!
//! A guest that waits for each answer sends its next request within
//! microseconds, while putting a thread to sleep and waking it costs more than
//! that, and many times more where the processor itself has to be woken. So a
//! worker watches its empty ring for a short while, as long as that mostly
//! pays; where it does not, it is tried only now and then. After the first
//! moments it lets other threads run between two looks: a guest on the same
//! processors needs them to get to its next request. If these keep the
//! processor for longer than a look, it does not pay either. With one
//! processor a worker yields a few times at most: the guest cannot run
//! while the worker does.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest look: what a guest takes that maps a range, touches it and faults
/// in the next one.
const POLL: Duration = Duration::from_micros(200);
/// How long it takes the processor for itself.
const SPIN: Duration = Duration::from_micros(5);
/// Most yields of a poll on a machine with one processor. A guest that sends its
/// next request at once runs after the first yield; the kernel lets some twenty
/// pass before it runs other threads.
const YIELDS: u32 = 4;
/// A success is worth this many failures.
const REWARD: u32 = 3;
const HIGHEST: u32 = 16;
/// With no score left, one emptied ring in this many is looked at.
const PROBE_EVERY: u32 = 64;

/// The record of one worker. Only that worker writes it.
#[derive(Debug)]
pub(super) struct BusyPoll {
    spin: Duration,
    most_yields: u32,
    score: AtomicU32,
    emptied: AtomicU32,
}

impl Default for BusyPoll {
    fn default() -> Self {
        let (spin, most_yields) = match std::thread::available_parallelism() {
            Ok(processors) if processors.get() > 1 => (SPIN, u32::MAX),
            _ => (Duration::ZERO, YIELDS),
        };
        BusyPoll {
            spin,
            most_yields,
            score: AtomicU32::new(0),
            emptied: AtomicU32::new(0),
        }
    }
}

impl BusyPoll {
    /// Watches until `is_ready` answers true or it does not pay any more.
    /// True if it became ready.
    pub(super) fn poll(&self, mut is_ready: impl FnMut() -> bool) -> bool {
        let score = self.score.load(Relaxed);
        let emptied = self.emptied.load(Relaxed).wrapping_add(1);
        self.emptied.store(emptied, Relaxed);
        if score == 0 && !emptied.is_multiple_of(PROBE_EVERY) {
            return false;
        }
        let (began, mut yields) = (Instant::now(), 0);
        loop {
            let (ready, looked) = (is_ready(), began.elapsed());
            if ready {
                let score = match looked < POLL {
                    true => (score + REWARD).min(HIGHEST),
                    // The processor was somebody else's meanwhile: who sleeps
                    // is woken sooner.
                    false => score.saturating_sub(REWARD),
                };
                self.score.store(score, Relaxed);
                return true;
            }
            if looked >= POLL || yields >= self.most_yields {
                self.score.store(score.saturating_sub(1), Relaxed);
                return false;
            }
            if looked >= self.spin {
                yields += 1;
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(busy_poll: &BusyPoll, rounds: u32, ready: bool) -> u32 {
        let mut looked = 0;
        for _ in 0..rounds {
            let mut asked = false;
            let found = busy_poll.poll(|| {
                asked = true;
                ready
            });
            assert_eq!(found, asked && ready);
            looked += u32::from(asked);
        }
        looked
    }

    #[test]
    fn on_a_busy_processor_it_does_not_pay() {
        let busy_poll = BusyPoll::default();
        looks(&busy_poll, 2 * PROBE_EVERY, true);
        for _ in 0..HIGHEST {
            busy_poll.poll(|| {
                std::thread::sleep(POLL);
                true
            });
        }
        assert!(looks(&busy_poll, PROBE_EVERY, false) <= 1, "only tried");
    }

    #[test]
    fn a_guest_that_comes_at_once_is_watched_for_and_an_idle_one_is_not() {
        let busy_poll = BusyPoll::default();
        assert_eq!(looks(&busy_poll, 2 * PROBE_EVERY, false), 2, "only tried");
        assert_eq!(looks(&busy_poll, 2 * PROBE_EVERY, true), PROBE_EVERY + 1);
        let after = looks(&busy_poll, 10 * PROBE_EVERY, false);
        assert!((HIGHEST..HIGHEST + 11).contains(&after), "{after}");
    }
}
