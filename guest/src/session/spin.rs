//! A wait on the processor before one in the kernel, for requests that are
//! usually done soon.
//!
//! Waking a processor that has gone idle costs far more than most requests
//! take, above all in a virtual machine. So who waits alone looks for the
//! completion himself for twice the time requests have lately taken, slept
//! ones included; if they take longer than the most allowed, not at all.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a spinning caller keeps the processor for himself: the daemon may
/// be waiting for this very one.
const ALONE: Duration = Duration::from_micros(5);

/// [`ALONE`], unless there is but one processor to share.
fn alone() -> Duration {
    match std::thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => ALONE,
        _ => Duration::ZERO,
    }
}

/// What to do between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Nothing, for the first moments: most answers need one thread of the
    /// daemon's, which is at it on another processor.
    Spinning,
    /// Let other threads run: the answer takes several in turn. The processor
    /// stays awake, which makes each turn cheap.
    Yielding,
}

/// How long to look; shared by the leaders of one lane.
pub(super) struct Spin {
    most_ns: u32,
    alone: Duration,
    /// Moving average of what requests took.
    typical_ns: AtomicU32,
}

impl Spin {
    /// Looks for `most` at most; zero never looks.
    pub(super) fn new(most: Duration) -> Spin {
        let most_ns = u32::try_from(most.as_nanos()).unwrap_or(u32::MAX);
        Spin {
            most_ns,
            alone: alone(),
            typical_ns: AtomicU32::new(most_ns / 2),
        }
    }

    /// Looks at `ready` for as long as it is likely to pay.
    pub(super) fn until(&self, watch: Watch, ready: impl Fn() -> bool) -> bool {
        let patience = self.patience(watch);
        if patience.is_zero() {
            return false;
        }
        let began = Instant::now();
        loop {
            if ready() {
                return true;
            }
            let looked = began.elapsed();
            if looked >= patience {
                return false;
            }
            if watch == Watch::Yielding || looked >= self.alone {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn patience(&self, watch: Watch) -> Duration {
        let typical = self.typical_ns.load(Ordering::Relaxed);
        let ns = match watch {
            Watch::Yielding => self.most_ns,
            Watch::Spinning if typical > self.most_ns => 0,
            Watch::Spinning => typical.saturating_mul(2).min(self.most_ns),
        };
        Duration::from_nanos(ns.into())
    }

    /// Takes note of what a request took.
    pub(super) fn learn(&self, watch: Watch, took: Duration) {
        if watch == Watch::Yielding {
            return;
        }
        let took = i64::from(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        let typical = i64::from(self.typical_ns.load(Ordering::Relaxed));
        // A lost update of another leader does no harm.
        let next = typical + (took - typical) / 8;
        self.typical_ns
            .store(u32::try_from(next).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_requests_take() {
        let spin = Spin::new(Duration::from_micros(200));
        (0..100).for_each(|_| spin.learn(Watch::Spinning, Duration::from_millis(5)));
        assert!(
            !spin.until(Watch::Spinning, || true),
            "slow requests are slept for"
        );
        (0..100).for_each(|_| spin.learn(Watch::Spinning, Duration::from_micros(3)));
        assert!(spin.until(Watch::Spinning, || true));
        let start = Instant::now();
        assert!(!spin.until(Watch::Spinning, || false));
        assert!(start.elapsed() < Duration::from_millis(50));
        assert!(!Spin::new(Duration::ZERO).until(Watch::Spinning, || true));
    }
}
