//! What the window did, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use daxwindow_shared::latency::{Latency, Summary};
use parking_lot::Mutex;

use super::map_error::MapError;
use super::no_dax::NoDax;

/// Totals since the guest connected, and what is live now.
#[derive(Clone, Debug, Default)]
pub struct DaxStats {
    /// Extents mapped now.
    pub live_ranges: u64,
    /// Bytes mapped now.
    pub live_bytes: u64,
    /// Inodes with mapped extents now.
    pub live_inodes: u64,
    /// SETUPMAPPING requests that succeeded.
    pub setups: u64,
    /// Of those, requests for what was mapped already.
    pub setup_hits: u64,
    /// Read-only ranges made writable.
    pub upgrades: u64,
    /// Ranges mapped over other ranges.
    pub replacements: u64,
    /// Ranges mapped again because the file behind them became another.
    pub renewals: u64,
    /// Runs of ranges unmapped by REMOVEMAPPING, a message each.
    pub removals: u64,
    /// REMOVEMAPPING ranges where nothing was mapped.
    pub removals_of_nothing: u64,
    /// Unmaps that the front end refused or did not answer.
    pub failed_removals: u64,
    /// Refused setups by reason, in the order of [`MapError::REASONS`].
    pub refusals: [u64; MapError::REASONS.len()],
    /// Files that were given DAX when they became known.
    pub files_with_dax: u64,
    /// Files that were not, by reason, in the order of [`NoDax::REASONS`].
    pub files_without_dax: [u64; NoDax::REASONS.len()],
    /// Latency of successful setups.
    pub setup_latency: Summary,
    /// Latency of removals, a request each.
    pub removal_latency: Summary,
    /// Nanoseconds and number of setups up to them, as
    /// [`Latency::buckets`] has it.
    pub setup_buckets: Vec<(u64, u64)>,
    /// The same of removals.
    pub removal_buckets: Vec<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) setups: AtomicU64,
    pub(super) setup_hits: AtomicU64,
    pub(super) upgrades: AtomicU64,
    pub(super) replacements: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) removals: AtomicU64,
    pub(super) removals_of_nothing: AtomicU64,
    pub(super) failed_removals: AtomicU64,
    refusals: [AtomicU64; MapError::REASONS.len()],
    files_with_dax: AtomicU64,
    files_without_dax: [AtomicU64; NoDax::REASONS.len()],
    setup_latency: Lazy,
    removal_latency: Lazy,
}

/// A histogram of two digits, some 10 KiB, that takes no memory before there is
/// something to record: most shares of a process may never map anything.
#[derive(Default)]
struct Lazy(Mutex<Option<Box<Latency>>>);

impl Lazy {
    fn record(&self, took: Duration) {
        let mut histogram = self.0.lock();
        let histogram = histogram.get_or_insert_with(|| Box::new(Latency::coarse()));
        histogram.record(took);
    }

    fn read(&self) -> (Summary, Vec<(u64, u64)>) {
        match &*self.0.lock() {
            Some(histogram) => (histogram.summary(), histogram.buckets()),
            None => Default::default(),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub(super) fn setup_done(&self, took: Duration) {
        count(&self.setups);
        self.setup_latency.record(took);
    }

    pub(super) fn refused(&self, error: &MapError) {
        if let Some(counter) = self.refusals.get(error.reason()) {
            count(counter);
        }
    }

    pub(super) fn decided(&self, decision: Result<(), NoDax>) {
        match decision {
            Ok(()) => count(&self.files_with_dax),
            Err(why) => {
                if let Some(counter) = self.files_without_dax.get(why.reason()) {
                    count(counter);
                }
            }
        }
    }

    pub(super) fn removal_done(&self, took: Duration) {
        self.removal_latency.record(took);
    }

    pub(super) fn read(&self) -> DaxStats {
        let (setup_latency, setup_buckets) = self.setup_latency.read();
        let (removal_latency, removal_buckets) = self.removal_latency.read();
        DaxStats {
            setups: self.setups.load(Relaxed),
            setup_hits: self.setup_hits.load(Relaxed),
            upgrades: self.upgrades.load(Relaxed),
            replacements: self.replacements.load(Relaxed),
            renewals: self.renewals.load(Relaxed),
            removals: self.removals.load(Relaxed),
            removals_of_nothing: self.removals_of_nothing.load(Relaxed),
            failed_removals: self.failed_removals.load(Relaxed),
            refusals: std::array::from_fn(|i| self.refusals[i].load(Relaxed)),
            files_with_dax: self.files_with_dax.load(Relaxed),
            files_without_dax: std::array::from_fn(|i| self.files_without_dax[i].load(Relaxed)),
            setup_latency,
            removal_latency,
            setup_buckets,
            removal_buckets,
            ..Default::default()
        }
    }
}
