//! What a ring has in flight, and since when that counts.
//!
//! One word: the lower half counts, the upper one is the *epoch*, which is
//! raised when what is in flight is given up. What was entered in an epoch that
//! is over changes nothing any more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// One ring's.
#[derive(Debug, Default)]
pub(super) struct Flight {
    word: AtomicU64,
    /// A thread waits for `landed`.
    is_awaited: AtomicBool,
    waiting: Mutex<()>,
    /// Nothing is in flight.
    landed: Condvar,
}

const fn epoch(word: u64) -> u32 {
    (word >> 32) as u32
}

const fn count(word: u64) -> u32 {
    word as u32
}

impl Flight {
    /// One more; in which epoch.
    pub(super) fn enter(&self) -> u32 {
        epoch(self.word.fetch_add(1, SeqCst))
    }

    /// What was entered in this epoch is over, unless it was given up.
    pub(super) fn leave(&self, entered: u32) {
        let is_in_flight = |word: u64| epoch(word) == entered && count(word) > 0;
        let one_less = |word: u64| is_in_flight(word).then(|| word - 1);
        let before = self.word.fetch_update(SeqCst, SeqCst, one_less);
        // SeqCst: here the wait is seen, or who waits sees that it is over.
        if before.is_ok_and(|before| count(before) == 1) && self.is_awaited.load(SeqCst) {
            let _waiting = self.waiting.lock();
            self.landed.notify_all();
        }
    }

    /// Whether this is the epoch of now.
    pub(super) fn is_of(&self, entered: u32) -> bool {
        epoch(self.word.load(SeqCst)) == entered
    }

    /// How many are in flight.
    pub(super) fn count(&self) -> u32 {
        count(self.word.load(SeqCst))
    }

    /// Waits until nothing is in flight; false if that takes too long. One
    /// thread at a time.
    pub(super) fn has_landed_by(&self, deadline: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        self.is_awaited.store(true, SeqCst);
        let mut in_time = true;
        while self.count() > 0 && in_time {
            in_time = !self.landed.wait_until(&mut waiting, deadline).timed_out();
        }
        self.is_awaited.store(false, SeqCst);
        self.count() == 0
    }

    /// Raises the epoch, and answers how many were in flight.
    pub(super) fn give_up(&self) -> u32 {
        let next_epoch = |word: u64| Some(u64::from(epoch(word).wrapping_add(1)) << 32);
        let before = self.word.fetch_update(SeqCst, SeqCst, next_epoch);
        before.map_or(0, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_given_up_is_not_counted_when_it_comes_back() {
        let flight = Flight::default();
        let (late, punctual) = (flight.enter(), flight.enter());
        flight.leave(punctual);
        assert!(!flight.has_landed_by(Instant::now()));
        assert_eq!((flight.give_up(), flight.count()), (1, 0));
        assert!(!flight.is_of(late));
        let next = flight.enter();
        flight.leave(late);
        assert_eq!(flight.count(), 1);
        flight.leave(next);
        flight.leave(next);
        assert!(flight.has_landed_by(Instant::now()), "and never below zero");
        flight.word.store(u64::from(u32::MAX) << 32, SeqCst);
        assert_eq!((flight.give_up(), flight.enter()), (0, 0), "epochs wrap");
    }

    #[test]
    fn who_waits_hears_of_the_last_one() {
        let flight = &Flight::default();
        for _ in 0..200 {
            let entered = [flight.enter(), flight.enter()];
            std::thread::scope(|scope| {
                for entered in entered {
                    scope.spawn(move || flight.leave(entered));
                }
                let deadline = Instant::now() + Duration::from_secs(60);
                assert!(flight.has_landed_by(deadline));
            });
        }
    }
}
