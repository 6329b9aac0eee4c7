//! Whether one thread minds several queues of a device.
//!
//! Where every queue has a processor, each is served by a thread of its own.
//! Where processors are few and requests short, threads that take turns on a
//! processor cost more than they bring; then a queue's thread that is woken
//! finds somebody serving already, the *minder*, and entrusts its queue to it.
//! The minder serves it from then on, until it has nothing more to do.
//!
//! Laws: what is entrusted is served or its thread is woken, whatever becomes
//! of the minder; who minds is free to be stuck no longer than any leader (the
//! detector deposes it as both).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use super::processors;

/// If two of three requests take less, they are served by one thread.
const SHORT_NS: u32 = 6_000;
/// If one of three takes more, they are served by one for each queue.
const LONG_NS: u32 = 9_000;

/// Who minds the queues of one device.
#[derive(Debug, Default)]
pub(super) struct Minding {
    /// Whose stint it is; 0 for nobody's.
    minder: AtomicU64,
    stints: AtomicU64,
    /// One bit for each queue that was entrusted and not taken over yet.
    entrusted: AtomicU64,
    /// Two of three requests take less. Not an average: now and then one waits
    /// for a processor, which says nothing about requests.
    typical_ns: AtomicU32,
    has_long: AtomicBool,
}

/// The minder's.
#[derive(Debug)]
pub(super) struct Stint(u64);

/// Queues, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues(u64);

impl Iterator for Queues {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let queue = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (queue < u64::BITS).then_some(queue as usize)
    }
}

impl Minding {
    /// Minds from now on, if nobody does.
    pub(super) fn begin(&self) -> Option<Stint> {
        if self.minder.load(Relaxed) != 0 {
            return None;
        }
        let stint = self.stints.fetch_add(1, Relaxed) + 1;
        self.minder
            .compare_exchange(0, stint, SeqCst, SeqCst)
            .ok()
            .map(|_| Stint(stint))
    }

    /// Goes on with a stint, or begins one if it was deposed or had none.
    pub(super) fn renew(&self, stint: Option<Stint>) -> Option<Stint> {
        match stint {
            Some(stint) if self.minder.load(Relaxed) == stint.0 => Some(stint),
            _ => self.begin(),
        }
    }

    /// Minds no more. Whoever is answered has to be woken.
    pub(super) fn end(&self, stint: Stint) -> Queues {
        let ended = self
            .minder
            .compare_exchange(stint.0, 0, SeqCst, SeqCst)
            .is_ok();
        match ended {
            true => self.take(),
            false => Queues(0),
        }
    }

    /// The minder is stuck. Whoever is answered has to be woken.
    pub(super) fn depose(&self) -> Queues {
        self.minder.store(0, SeqCst);
        self.take()
    }

    /// The queues entrusted since the last time.
    pub(super) fn take(&self) -> Queues {
        if self.has_entrusted() {
            Queues(self.entrusted.swap(0, SeqCst))
        } else {
            Queues(0)
        }
    }

    /// Whether there are any.
    pub(super) fn has_entrusted(&self) -> bool {
        self.entrusted.load(SeqCst) != 0
    }

    /// Leaves a queue to the minder; false if there is none, or each had
    /// better be served by a thread of its own.
    pub(super) fn entrust(&self, queue: usize) -> bool {
        !processors::have_room() && self.pays() && self.offer(queue)
    }

    fn offer(&self, queue: usize) -> bool {
        let minder = self.minder.load(SeqCst);
        if minder == 0 || queue >= u64::BITS as usize {
            return false;
        }
        let bit = 1 << queue;
        self.entrusted.fetch_or(bit, SeqCst);
        // SeqCst: the minder that ends sees the bit, or its end is seen here.
        // If the bit has gone, somebody saw to it.
        self.minder.load(SeqCst) == minder || self.entrusted.fetch_and(!bit, SeqCst) & bit == 0
    }

    /// Whether requests are short enough.
    pub(super) fn pays(&self) -> bool {
        !self.has_long.load(Relaxed)
    }

    /// A request took so long. A lost update of another thread does no harm.
    pub(super) fn note(&self, took: Duration) {
        let typical = self.typical_ns.load(Relaxed);
        let step = typical / 64 + 1;
        let next = match took.as_nanos() > u128::from(typical) {
            true => typical.saturating_add(2 * step),
            false => typical.saturating_sub(step),
        };
        self.typical_ns.store(next, Relaxed);
        let has_long = self.has_long.load(Relaxed);
        let changes = match has_long {
            true => next < SHORT_NS,
            false => next > LONG_NS,
        };
        if changes {
            self.has_long.store(!has_long, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrusted(minding: &Minding) -> Vec<usize> {
        minding.take().collect()
    }

    #[test]
    fn there_is_one_minder_and_what_is_left_to_it_is_handed_on() {
        let minding = Minding::default();
        assert!(!minding.offer(1), "nobody minds");
        let stint = minding.begin().expect("nobody minds");
        assert!(minding.begin().is_none() && !minding.offer(64));
        assert!(minding.offer(1));
        assert!(minding.offer(63));
        assert_eq!(entrusted(&minding), [1, 63]);
        assert!(minding.offer(2));
        assert_eq!(minding.end(stint).collect::<Vec<_>>(), [2]);
        assert_eq!(minding.minder.load(SeqCst), 0);
    }

    #[test]
    fn who_was_deposed_ends_nobody_elses_stint() {
        let minding = Minding::default();
        let stuck = minding.begin().expect("nobody minds");
        assert!(minding.offer(3));
        assert_eq!(minding.depose().collect::<Vec<_>>(), [3]);
        let next = minding.begin().expect("deposed");
        assert!(minding.offer(4));
        assert_eq!(minding.end(stuck), Queues(0));
        assert!(minding.begin().is_none(), "the next one minds still");
        assert_eq!(minding.end(next).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn a_queue_is_seen_to_or_taken_back_when_the_minder_ends_meanwhile() {
        let minding = Minding::default();
        let seen = std::sync::atomic::AtomicU64::new(0);
        let mut left = 0;
        std::thread::scope(|scope| {
            let minder = scope.spawn(|| {
                for _ in 0..20_000 {
                    let Some(stint) = minding.begin() else {
                        continue;
                    };
                    let count = minding.take().count() + minding.end(stint).count();
                    seen.fetch_add(count as u64, SeqCst);
                }
            });
            while !minder.is_finished() {
                if minding.offer(0) {
                    left += 1;
                    while minding.has_entrusted() && !minder.is_finished() {
                        std::hint::spin_loop();
                    }
                }
            }
        });
        assert_eq!(seen.load(SeqCst), left);
    }

    #[test]
    fn long_requests_have_threads_of_their_own() {
        let minding = Minding::default();
        let note = |ns, times| (0..times).for_each(|_| minding.note(Duration::from_nanos(ns)));
        note(2_000, 500);
        assert!(minding.pays());
        note(30_000, 500);
        assert!(!minding.pays());
        note(7_000, 500);
        assert!(!minding.pays(), "between the two it stays as it is");
        note(2_000, 500);
        assert!(minding.pays());
        note(3_000_000_000, 20);
        assert!(minding.pays(), "a few say little");
        (0..500).for_each(|_| {
            [2_000, 30_000, 30_000]
                .map(|ns| note(ns, 1))
                .into_iter()
                .collect()
        });
        assert!(!minding.pays(), "most of the time goes there");
    }
}
