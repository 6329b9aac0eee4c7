//! One thread that serves several queues of a device.
//!
//! Where every queue has a processor, each is served by a thread of its own.
//! Where processors are few and requests short, threads that take turns on a
//! processor cost more than they bring. Then a thread that is woken for a queue
//! while another one serves assigns the queue to that one, which serves it as
//! well until its shift ends.
//!
//! Laws: a queue that is assigned is served, or a thread is woken for it,
//! whatever becomes of the shift; a thread that serves several queues is found
//! stuck as soon as any leader.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use super::processors;

/// If two of three requests take less, they are served by one thread.
const SHORT_NS: u32 = 6_000;
/// If one of three takes more, they are served by one for each queue.
const LONG_NS: u32 = 9_000;

/// Which thread serves more than one queue of a device.
#[derive(Debug, Default)]
pub(crate) struct MultiQueue {
    /// The shift under way; 0 for none.
    shift: AtomicU64,
    shifts: AtomicU64,
    /// One bit for each queue that was assigned and not taken over yet.
    assigned: AtomicU64,
    /// Two of three requests take less. Not an average: now and then one waits
    /// for a processor, which says nothing about requests.
    typical_ns: AtomicU32,
    has_long: AtomicBool,
}

/// A thread's time with several queues.
#[derive(Debug)]
pub(super) struct Shift(u64);

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

impl MultiQueue {
    /// Begins a shift, if none is under way.
    pub(super) fn begin(&self) -> Option<Shift> {
        if self.shift.load(Relaxed) != 0 {
            return None;
        }
        let shift = self.shifts.fetch_add(1, Relaxed) + 1;
        self.shift
            .compare_exchange(0, shift, SeqCst, SeqCst)
            .ok()
            .map(|_| Shift(shift))
    }

    /// Goes on with a shift, or begins one if it was deposed or had none.
    pub(super) fn renew(&self, shift: Option<Shift>) -> Option<Shift> {
        match shift {
            Some(shift) if self.shift.load(Relaxed) == shift.0 => Some(shift),
            _ => self.begin(),
        }
    }

    /// Ends a shift. Returns the queues for which threads must be woken.
    pub(super) fn end(&self, shift: Shift) -> Queues {
        let ended = self
            .shift
            .compare_exchange(shift.0, 0, SeqCst, SeqCst)
            .is_ok();
        match ended {
            true => self.take(),
            false => Queues(0),
        }
    }

    /// Ends the shift of a thread that is stuck. Returns the queues for which
    /// threads must be woken.
    pub(super) fn depose(&self) -> Queues {
        self.shift.store(0, SeqCst);
        self.take()
    }

    /// The queues assigned since the last time.
    pub(super) fn take(&self) -> Queues {
        if self.has_assigned() {
            Queues(self.assigned.swap(0, SeqCst))
        } else {
            Queues(0)
        }
    }

    /// Whether there are any.
    pub(super) fn has_assigned(&self) -> bool {
        self.assigned.load(SeqCst) != 0
    }

    /// Leaves a queue to the thread whose shift it is; false if there is none, or
    /// each queue had better be served by a thread of its own.
    pub(super) fn assign(&self, queue: usize) -> bool {
        !processors::have_room() && self.are_requests_short() && self.offer(queue)
    }

    fn offer(&self, queue: usize) -> bool {
        let shift = self.shift.load(SeqCst);
        if shift == 0 || queue >= u64::BITS as usize {
            return false;
        }
        let bit = 1 << queue;
        self.assigned.fetch_or(bit, SeqCst);
        // SeqCst: the thread that ends its shift sees the bit, or its end is seen here.
        // If the bit has gone, somebody saw to it.
        self.shift.load(SeqCst) == shift || self.assigned.fetch_and(!bit, SeqCst) & bit == 0
    }

    /// Whether requests are short enough.
    pub(super) fn are_requests_short(&self) -> bool {
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

    fn assigned(multi_queue: &MultiQueue) -> Vec<usize> {
        multi_queue.take().collect()
    }

    #[test]
    fn there_is_one_shift_and_what_is_left_to_it_is_handed_on() {
        let multi_queue = MultiQueue::default();
        assert!(!multi_queue.offer(1), "no shift");
        let shift = multi_queue.begin().expect("no shift");
        assert!(multi_queue.begin().is_none() && !multi_queue.offer(64));
        assert!(multi_queue.offer(1));
        assert!(multi_queue.offer(63));
        assert_eq!(assigned(&multi_queue), [1, 63]);
        assert!(multi_queue.offer(2));
        assert_eq!(multi_queue.end(shift).collect::<Vec<_>>(), [2]);
        assert_eq!(multi_queue.shift.load(SeqCst), 0);
    }

    #[test]
    fn who_was_deposed_ends_nobody_elses_stint() {
        let multi_queue = MultiQueue::default();
        let stuck = multi_queue.begin().expect("no shift");
        assert!(multi_queue.offer(3));
        assert_eq!(multi_queue.depose().collect::<Vec<_>>(), [3]);
        let next = multi_queue.begin().expect("deposed");
        assert!(multi_queue.offer(4));
        assert_eq!(multi_queue.end(stuck), Queues(0));
        assert!(multi_queue.begin().is_none(), "the next shift goes on");
        assert_eq!(multi_queue.end(next).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn a_queue_is_seen_to_or_taken_back_when_the_shift_ends_meanwhile() {
        let multi_queue = MultiQueue::default();
        let seen = std::sync::atomic::AtomicU64::new(0);
        let mut left = 0;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                for _ in 0..20_000 {
                    let Some(shift) = multi_queue.begin() else {
                        continue;
                    };
                    let count = multi_queue.take().count() + multi_queue.end(shift).count();
                    seen.fetch_add(count as u64, SeqCst);
                }
            });
            while !worker.is_finished() {
                if multi_queue.offer(0) {
                    left += 1;
                    while multi_queue.has_assigned() && !worker.is_finished() {
                        std::hint::spin_loop();
                    }
                }
            }
        });
        assert_eq!(seen.load(SeqCst), left);
    }

    #[test]
    fn long_requests_have_threads_of_their_own() {
        let multi_queue = MultiQueue::default();
        let note = |ns, times| (0..times).for_each(|_| multi_queue.note(Duration::from_nanos(ns)));
        note(2_000, 500);
        assert!(multi_queue.are_requests_short());
        note(30_000, 500);
        assert!(!multi_queue.are_requests_short());
        note(7_000, 500);
        assert!(
            !multi_queue.are_requests_short(),
            "between the two it stays as it is"
        );
        note(2_000, 500);
        assert!(multi_queue.are_requests_short());
        note(3_000_000_000, 20);
        assert!(multi_queue.are_requests_short(), "a few say little");
        (0..500).for_each(|_| {
            [2_000, 30_000, 30_000]
                .map(|ns| note(ns, 1))
                .into_iter()
                .collect()
        });
        assert!(
            !multi_queue.are_requests_short(),
            "most of the time goes there"
        );
    }
}
