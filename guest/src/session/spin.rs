//! A wait on the processor before one in the kernel, for requests that are
//! usually done soon.
//!
//! Waking a processor that has gone idle costs far more than most requests
//! take, above all in a virtual machine. So who waits alone looks for the
//! completion himself for twice the time requests have lately taken, slept
//! ones included; if they take longer than the most allowed, not at all.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long to look; shared by the leaders of one lane.
pub(super) struct Spin {
    most_ns: u32,
    /// Moving average of what requests took.
    typical_ns: AtomicU32,
}

impl Spin {
    /// Looks for `most` at most; zero never looks.
    pub(super) fn new(most: Duration) -> Spin {
        let most_ns = u32::try_from(most.as_nanos()).unwrap_or(u32::MAX);
        Spin {
            most_ns,
            typical_ns: AtomicU32::new(most_ns / 2),
        }
    }

    /// Looks at `ready` for as long as it is likely to pay.
    pub(super) fn until(&self, ready: impl Fn() -> bool) -> bool {
        let typical = self.typical_ns.load(Ordering::Relaxed);
        if self.most_ns == 0 || typical > self.most_ns {
            return false;
        }
        let patience = typical.saturating_mul(2).min(self.most_ns);
        let end = Instant::now() + Duration::from_nanos(patience.into());
        loop {
            for _ in 0..32 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return false;
            }
        }
    }

    /// Takes note of what a request took.
    pub(super) fn learn(&self, took: Duration) {
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
        (0..100).for_each(|_| spin.learn(Duration::from_millis(5)));
        assert!(!spin.until(|| true), "slow requests are slept for");
        (0..100).for_each(|_| spin.learn(Duration::from_micros(3)));
        assert!(spin.until(|| true));
        let start = Instant::now();
        assert!(!spin.until(|| false));
        assert!(start.elapsed() < Duration::from_millis(50));
        assert!(!Spin::new(Duration::ZERO).until(|| true));
    }
}
