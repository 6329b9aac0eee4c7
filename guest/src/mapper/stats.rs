//! What the mapper counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daxwindow_shared::latency::Latency;
use parking_lot::Mutex;

/// A total since connect.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations, from many threads.
#[derive(Debug, Default)]
pub(crate) struct Timer(Mutex<Latency>);

impl Timer {
    pub(crate) fn record(&self, sample: Duration) {
        self.0.lock().record(sample);
    }

    /// Records the time since `start`.
    pub(crate) fn stop(&self, start: Instant) {
        self.record(start.elapsed());
    }

    pub(crate) fn latency(&self) -> Latency {
        self.0.lock().clone()
    }
}

/// Counters of one mapper. Hits are not counted one by one on the hot path:
/// each thread adds to a counter on a cache line of its own.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) setups: Counter,
    pub(crate) setup_failures: Counter,
    pub(crate) removals: Counter,
    pub(crate) removal_failures: Counter,
    pub(crate) upgrades: Counter,
    pub(crate) reclaimed: Counter,
    pub(crate) prefetched: Counter,
    pub(crate) misses: Counter,
    pub(crate) by_request: Counter,
    pub(crate) faults: Counter,
    pub(crate) fault_failures: Counter,
    pub(crate) taken_back: Counter,
    pub(crate) hits: Striped,
    pub(crate) setup_latency: Timer,
    pub(crate) fault_latency: Timer,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

/// A counter that many threads raise at once.
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; 8]);

impl Striped {
    pub(crate) fn one(&self) {
        thread_local! {
            static STRIPE: usize = {
                static NEXT: AtomicU64 = AtomicU64::new(0);
                (NEXT.fetch_add(1, Ordering::Relaxed) % 8) as usize
            };
        }
        let stripe = STRIPE.with(|s| *s);
        if let Some(stripe) = self.0.get(stripe) {
            stripe.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|s| s.0.load(Ordering::Relaxed)).sum()
    }
}
