//! Adaptive busy polling: a wait on the processor before one in the kernel, for
//! requests that are usually done soon.
//!
//! Waking a processor that has gone idle costs far more than most requests
//! take, above all in a virtual machine. So a thread that is the only one to
//! wait on its queue polls for the completion, for twice the time that requests
//! have lately taken, those slept for included. If they take longer than the
//! limit, it does not poll at all. A poll may keep the
//! daemon from the processor that the two share, since the kernel runs a thread
//! that yields again: then each request takes as long as the poll. So twice as
//! many requests as the last time sleep at once after each poll that found
//! nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a polling thread spins before it yields between two polls: the
/// daemon may be waiting for this very processor.
const SPIN_ONLY: Duration = Duration::from_micros(5);

/// At most `2^MOST_IN_VAIN - 1` requests sleep at once between two polls.
const MOST_IN_VAIN: u32 = 6;

/// [`SPIN_ONLY`], or zero if there is only one processor.
fn spin_only() -> Duration {
    match std::thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => SPIN_ONLY,
        _ => Duration::ZERO,
    }
}

/// What a thread does between two polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollMode {
    /// It spins for the first microseconds: most replies need one thread of the
    /// daemon, which runs on another processor.
    Spin,
    /// It yields: the reply takes several threads in turn. The processor stays
    /// awake, which makes each switch cheap.
    Yield,
}

/// How long to poll; shared by all that wait on one queue.
pub(super) struct BusyPoll {
    max_ns: u32,
    spin_only: Duration,
    /// Moving average of what requests took.
    typical_ns: AtomicU32,
    /// Polls that found nothing since the last one that found a reply.
    in_vain: AtomicU32,
    /// Requests that sleep at once until a thread polls again.
    asleep: AtomicU32,
}

impl BusyPoll {
    /// Polls for `limit` at most; zero never polls.
    pub(super) fn new(limit: Duration) -> BusyPoll {
        let max_ns = u32::try_from(limit.as_nanos()).unwrap_or(u32::MAX);
        BusyPoll {
            max_ns,
            spin_only: spin_only(),
            typical_ns: AtomicU32::new(max_ns / 2),
            in_vain: AtomicU32::new(0),
            asleep: AtomicU32::new(0),
        }
    }

    /// Polls `ready` for as long as that is likely to pay; whether it was.
    pub(super) fn poll_until(&self, mode: PollMode, ready: impl Fn() -> bool) -> bool {
        let limit = self.limit(mode);
        if limit.is_zero() || self.sleeps_at_once() {
            return false;
        }
        let began = Instant::now();
        loop {
            if ready() {
                self.in_vain.store(0, Ordering::Relaxed);
                return true;
            }
            let elapsed = began.elapsed();
            if elapsed >= limit {
                let in_vain = self.in_vain.load(Ordering::Relaxed).min(MOST_IN_VAIN);
                self.asleep.store((1 << in_vain) - 1, Ordering::Relaxed);
                self.in_vain.store(in_vain + 1, Ordering::Relaxed);
                return false;
            }
            if mode == PollMode::Yield || elapsed >= self.spin_only {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Whether this request sleeps at once, because the last polls found nothing.
    fn sleeps_at_once(&self) -> bool {
        let asleep = self.asleep.load(Ordering::Relaxed);
        // Losing the update of another thread does no harm.
        self.asleep
            .store(asleep.saturating_sub(1), Ordering::Relaxed);
        asleep > 0
    }

    fn limit(&self, mode: PollMode) -> Duration {
        let typical = self.typical_ns.load(Ordering::Relaxed);
        let ns = match mode {
            PollMode::Yield => self.max_ns,
            PollMode::Spin if typical > self.max_ns => 0,
            PollMode::Spin => typical.saturating_mul(2).min(self.max_ns),
        };
        Duration::from_nanos(ns.into())
    }

    /// Records how long a request took.
    pub(super) fn record(&self, mode: PollMode, took: Duration) {
        if mode == PollMode::Yield {
            return;
        }
        let took = i64::from(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        let typical = i64::from(self.typical_ns.load(Ordering::Relaxed));
        // Losing the update of another thread does no harm.
        let next = typical + (took - typical) / 8;
        self.typical_ns
            .store(u32::try_from(next).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_that_keeps_the_daemon_from_its_processor_is_given_up() {
        let poll = BusyPoll::new(Duration::from_micros(200));
        let mut polled = 0;
        for _ in 0..640 {
            let asked = std::cell::Cell::new(false);
            let ready = || {
                asked.set(true);
                false
            };
            assert!(!poll.poll_until(PollMode::Yield, ready));
            polled += usize::from(asked.get());
        }
        assert!((8..=20).contains(&polled), "{polled} of 640");
        // The poll that finds a reply is followed by others.
        while !poll.poll_until(PollMode::Yield, || true) {}
        assert!((0..100).all(|_| poll.poll_until(PollMode::Yield, || true)));
    }

    #[test]
    fn the_limit_follows_what_requests_take() {
        let poll = BusyPoll::new(Duration::from_micros(200));
        (0..100).for_each(|_| poll.record(PollMode::Spin, Duration::from_millis(5)));
        assert!(
            !poll.poll_until(PollMode::Spin, || true),
            "slow requests are slept for"
        );
        (0..100).for_each(|_| poll.record(PollMode::Spin, Duration::from_micros(3)));
        assert!(poll.poll_until(PollMode::Spin, || true));
        let start = Instant::now();
        assert!(!poll.poll_until(PollMode::Spin, || false));
        assert!(start.elapsed() < Duration::from_millis(50));
        assert!(!BusyPoll::new(Duration::ZERO).poll_until(PollMode::Spin, || true));
    }
}
