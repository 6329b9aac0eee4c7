//! What a server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Maps done.
    pub maps: u64,
    /// Unmaps done.
    pub unmaps: u64,
    /// Messages answered with an error.
    pub refusals: u64,
    /// Separate mapped pieces of the window now.
    pub live: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) maps: AtomicU64,
    pub(super) unmaps: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) live: AtomicU64,
}

impl Counters {
    pub(super) fn stats(&self) -> ServerStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            maps: load(&self.maps),
            unmaps: load(&self.unmaps),
            refusals: load(&self.refusals),
            live: load(&self.live),
        }
    }
}
