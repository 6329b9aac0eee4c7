//! Counters that are always on: per request kind the number, the failures and
//! a histogram of the time from descriptor to reply.
//!
//! Each thread counts in one of a few shards of its own, so that request
//! queues do not fight for a cache line; a report adds the shards up. All
//! accesses are `Relaxed`: a number read while requests run is a snapshot and
//! orders nothing.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use daxwindow_shared::fuse::Opcode;

const SHARDS: usize = 8;
/// One slot for each opcode number known, and slot 0 for all others.
const SLOTS: usize = 64;
/// A power of two of nanoseconds is split in this many steps.
const STEPS: usize = 1 << STEP_BITS;
const STEP_BITS: u32 = 2;
/// From 2^8 ns up to 2^36, a minute; what is shorter or longer counts as that.
const BUCKETS: usize = (36 - FIRST_POWER) * STEPS;
const FIRST_POWER: usize = 8;

/// Counters of all request kinds.
#[derive(Debug)]
pub struct Counters {
    shards: [OnceLock<Box<Shard>>; SHARDS],
    malformed: AtomicU64,
    unanswerable: AtomicU64,
    unresolved: AtomicU64,
    vanished: AtomicU64,
}

/// Aligned so that no two shards share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    slots: [OnceLock<Box<Slot>>; SLOTS],
}

impl Shard {
    fn new() -> Box<Shard> {
        Box::new(Shard {
            slots: [const { OnceLock::new() }; SLOTS],
        })
    }
}

#[derive(Debug)]
struct Slot {
    errors: AtomicU64,
    total_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Slot {
    fn new() -> Box<Self> {
        Box::new(Slot {
            errors: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        })
    }
}

/// What was counted of one request kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpReport {
    /// The request, or `None` for all numbers unknown to this daemon.
    pub opcode: Option<Opcode>,
    /// Requests handled.
    pub count: u64,
    /// Of these, answered with an error (a name not found is one).
    pub errors: u64,
    /// Arithmetic mean of the time taken.
    pub mean_ns: u64,
    /// Median, to 25 %, rounded up.
    pub p50_ns: u64,
    /// 99th percentile, to 25 %, rounded up.
    pub p99_ns: u64,
}

/// Everything counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Request kinds that occurred, by opcode.
    pub ops: Vec<OpReport>,
    /// Chains refused before a request could be read from them.
    pub malformed: u64,
    /// Requests without room for even an error reply.
    pub unanswerable: u64,
    /// Requests with a buffer that is not in guest memory.
    pub unresolved: u64,
    /// Pages of guest memory that were gone when they were touched.
    pub vanished: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Counters {
    /// All zero.
    pub fn new() -> Self {
        Counters {
            shards: [const { OnceLock::new() }; SHARDS],
            malformed: AtomicU64::new(0),
            unanswerable: AtomicU64::new(0),
            unresolved: AtomicU64::new(0),
            vanished: AtomicU64::new(0),
        }
    }

    /// Counts one request.
    pub fn record(&self, opcode: Option<Opcode>, taken: Duration, failed: bool) {
        let index = opcode.map_or(0, |opcode| opcode as usize).min(SLOTS - 1);
        let shard = self.shards[shard_of_thread()].get_or_init(Shard::new);
        let slot = shard.slots[index].get_or_init(Slot::new);
        let ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        slot.buckets[bucket(ns)].fetch_add(1, Relaxed);
        slot.total_ns.fetch_add(ns, Relaxed);
        if failed {
            slot.errors.fetch_add(1, Relaxed);
        }
    }

    /// Counts a chain that held no readable request.
    pub fn record_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    /// Counts a request that could not be answered.
    pub fn record_unanswerable(&self) {
        self.unanswerable.fetch_add(1, Relaxed);
    }

    /// Counts a request with a buffer that is not in guest memory.
    pub fn record_unresolved(&self) {
        self.unresolved.fetch_add(1, Relaxed);
    }

    /// Counts pages of guest memory that were gone when they were touched.
    pub fn record_vanished(&self, pages: u64) {
        self.vanished.fetch_add(pages, Relaxed);
    }

    /// Adds the shards up.
    pub fn report(&self) -> Report {
        let strangers = std::iter::once(None);
        let known = Opcode::ALL.iter().copied().map(Some);
        Report {
            ops: strangers
                .chain(known)
                .filter_map(|op| self.op(op))
                .collect(),
            malformed: self.malformed.load(Relaxed),
            unanswerable: self.unanswerable.load(Relaxed),
            unresolved: self.unresolved.load(Relaxed),
            vanished: self.vanished.load(Relaxed),
        }
    }

    fn op(&self, opcode: Option<Opcode>) -> Option<OpReport> {
        let index = opcode.map_or(0, |opcode| opcode as usize);
        let (mut errors, mut total_ns, mut buckets) = (0u64, 0u64, [0u64; BUCKETS]);
        let shards = self.shards.iter().filter_map(OnceLock::get);
        for slot in shards.filter_map(|shard| shard.slots[index].get()) {
            errors += slot.errors.load(Relaxed);
            total_ns = total_ns.wrapping_add(slot.total_ns.load(Relaxed));
            for (sum, bucket) in buckets.iter_mut().zip(&slot.buckets) {
                *sum += bucket.load(Relaxed);
            }
        }
        let count: u64 = buckets.iter().sum();
        (count > 0).then(|| OpReport {
            opcode,
            count,
            errors,
            mean_ns: total_ns / count,
            p50_ns: quantile(&buckets, count, 500),
            p99_ns: quantile(&buckets, count, 990),
        })
    }
}

/// The shard in which this thread counts.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Relaxed) % SHARDS);
    SHARD.with(|shard| *shard)
}

/// Bucket of a duration: its highest bit and the two bits below that.
fn bucket(ns: u64) -> usize {
    let ns = ns.max(1 << FIRST_POWER);
    let power = ns.ilog2();
    let step = (ns >> (power - STEP_BITS)) as usize % STEPS;
    ((power as usize - FIRST_POWER) * STEPS + step).min(BUCKETS - 1)
}

/// Upper end of a bucket.
fn bucket_end_ns(bucket: usize) -> u64 {
    let (power, step) = (FIRST_POWER + bucket / STEPS, (bucket % STEPS) as u64);
    let base = 1u64 << power;
    base + base * (step + 1) / STEPS as u64
}

fn quantile(buckets: &[u64; BUCKETS], count: u64, per_mille: u64) -> u64 {
    let rank = (count.saturating_mul(per_mille)).div_ceil(1000);
    let mut seen = 0;
    for (index, n) in buckets.iter().enumerate() {
        seen += n;
        if seen >= rank {
            return bucket_end_ns(index);
        }
    }
    bucket_end_ns(BUCKETS - 1)
}

impl fmt::Display for Report {
    /// One line per request kind, times in microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests: u64 = self.ops.iter().map(|op| op.count).sum();
        write!(
            f,
            "{requests} requests, {} malformed, {} unanswerable, {} unresolved, {} pages vanished",
            self.malformed, self.unanswerable, self.unresolved, self.vanished
        )?;
        for op in &self.ops {
            let name = op
                .opcode
                .map_or("unknown".to_owned(), |opcode| format!("{opcode:?}"));
            write!(
                f,
                "\n  {name:<14} {:>10}  errors {:>8}  mean {:>8.1} us  p50 {:>8.1} us  p99 {:>8.1} us",
                op.count,
                op.errors,
                us(op.mean_ns),
                us(op.p50_ns),
                us(op.p99_ns)
            )?;
        }
        Ok(())
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_lies_below_the_end_of_its_bucket(ns in 1u64 << 8..1 << 35) {
            let end = bucket_end_ns(bucket(ns));
            prop_assert!(ns <= end && end <= ns + ns / 3, "{ns} {end}");
        }
    }

    #[test]
    fn shards_of_many_threads_add_up() {
        let counters = Counters::new();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for i in 0..50 {
                        counters.record(Some(Opcode::Read), Duration::from_micros(10), i == 0);
                    }
                    counters.record(None, Duration::MAX, true);
                });
            }
        });
        let report = counters.report();
        assert_eq!(report.ops.len(), 2);
        assert_eq!(report.ops[0].opcode, None);
        let read = &report.ops[1];
        assert_eq!((read.count, read.errors, read.mean_ns), (1000, 20, 10_000));
        assert!((10_000..13_000).contains(&read.p50_ns), "{read:?}");
        assert!(report.to_string().contains("Read"), "{report}");
    }

    #[test]
    fn every_opcode_has_a_slot() {
        assert!(Opcode::ALL.iter().all(|opcode| (*opcode as usize) < SLOTS));
    }
}
