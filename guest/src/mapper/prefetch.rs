//! Mapping ahead of sequential readers.
//!
//! Owns the worker that does it and the two detectors that decide when: one
//! for reads at offsets, one for faults of a view. Law: mapping ahead takes
//! only slots that are free, so it never evicts what is in use.

use std::ops::Range;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::Mutex;

use super::{Core, Inode};
use crate::error::{Error, Result};

/// Something to do ahead of use.
type Job = Box<dyn FnOnce(&Core) + Send>;

/// Jobs waiting at most; more are dropped, since late is useless.
const QUEUE: usize = 64;

/// The worker thread that maps ahead.
pub(crate) struct Ahead {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Ahead {
    pub(super) fn spawn(core: Arc<Core>) -> Result<Ahead> {
        let (jobs, inbox) = bounded::<Job>(QUEUE);
        // Wake-ups: a job; the channel's end.
        let thread = Builder::new()
            .name("dax-ahead".into())
            .spawn(move || inbox.iter().for_each(|job| job(&core)))
            .map_err(|source| Error::Local {
                operation: "starting the prefetcher",
                source,
            })?;
        Ok(Ahead {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has `job` done soon; false if there is too much to do already.
    pub(crate) fn submit(&self, job: impl FnOnce(&Core) + Send + 'static) -> bool {
        match &*self.jobs.lock() {
            Some(jobs) => match jobs.try_send(Box::new(job)) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            },
            None => false,
        }
    }

    /// Has `ranges` of `inode` mapped, and their page tables filled as far as
    /// the file reaches.
    pub(crate) fn map(&self, inode: &Arc<Inode>, ranges: Range<u64>) -> bool {
        let inode = Arc::clone(inode);
        self.submit(move |core| core.map_ahead(&inode, ranges))
    }

    pub(super) fn stop(&self) {
        self.jobs.lock().take();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Core {
    /// Maps what is absent of `ranges`, as far as the file and the free slots
    /// reach.
    fn map_ahead(&self, inode: &Arc<Inode>, ranges: Range<u64>) {
        let end = ranges.end.min(inode.size().div_ceil(self.range_bytes()));
        let mut next = ranges.start;
        while next < end && !self.is_stopping() {
            if inode.get(next).is_some() {
                next += 1;
                continue;
            }
            let Ok(run) = self.map_run(inode, next..end, false) else {
                return;
            };
            if run.len() == 0 {
                return;
            }
            self.stats.prefetched.add(run.len() as u64);
            let bytes = bytes_in_ranges(next, run.len() as u64, self.range_bytes(), inode.size());
            // A file that shrank meanwhile is met by the reader.
            let _ = run.populate(bytes);
            next += run.len() as u64;
        }
    }

    /// Whether the mapper is coming to its end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// How many bytes of `count` ranges from `first` a file of `size` bytes fills,
/// rounded up to pages.
pub(crate) fn bytes_in_ranges(first: u64, count: u64, range_bytes: u64, size: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    let start = first.saturating_mul(range_bytes);
    let most = count.saturating_mul(range_bytes);
    let bytes = size.saturating_sub(start).min(most);
    bytes.checked_next_multiple_of(page).unwrap_or(most)
}

/// Reads in order after which they are no accident.
const NO_ACCIDENT: u32 = 4;

/// Detects sequential reads at offsets.
#[derive(Debug, Default)]
pub(crate) struct ReadPattern {
    next: u64,
    streak: u32,
    ahead_end: u64,
}

impl ReadPattern {
    /// Whether a read at `offset` follows the last one; the first follows none.
    pub(crate) fn is_next(&self, offset: u64) -> bool {
        self.streak > 0 && offset == self.next
    }

    /// A read of `len` bytes at `offset`: the ranges to map ahead, if any, at
    /// most `depth` beyond the one just read. Where the window `is_full`, two
    /// reads at random that happen to be neighbours evict nothing.
    pub(crate) fn on_read(
        &mut self,
        offset: u64,
        len: u64,
        range_bytes: u64,
        depth: u64,
        is_full: impl FnOnce() -> bool,
    ) -> Option<Range<u64>> {
        let sequential = offset == self.next;
        self.next = offset.saturating_add(len);
        if !sequential {
            self.streak = 1;
            self.ahead_end = 0;
            return None;
        }
        self.streak = self.streak.saturating_add(1);
        let current = self.next.saturating_sub(1) / range_bytes;
        // Asks again when half of what was asked for is used up.
        let left = self.ahead_end.saturating_sub(current + 1);
        if self.streak < 2 || depth == 0 || left > depth / 2 {
            return None;
        }
        if self.streak < NO_ACCIDENT && is_full() {
            return None;
        }
        let start = self.ahead_end.max(current + 1);
        let end = (current + 1).saturating_add(depth);
        self.ahead_end = end;
        (start < end).then_some(start..end)
    }
}

/// Detects sequential faults of a view, by range number. Of each batch mapped
/// ahead the first range, the marker, is left to fault, cheaply: that fault
/// asks for the next batch while the rest of this one is being read.
#[derive(Debug, Default)]
pub(crate) struct FaultPattern {
    last: Option<u64>,
    marker: Option<u64>,
    ahead_end: u64,
    batch: u64,
}

/// What to do ahead of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// To be mapped into the window.
    pub(crate) ranges: Range<u64>,
    /// Of these, the one not to be shown in the view.
    pub(crate) marker: u64,
}

/// What the fault says about the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// In order; perhaps there is something to do ahead.
    Sequential(Option<Batch>),
    /// Anywhere: what is being done ahead is no use.
    Random,
}

impl FaultPattern {
    /// A fault in range `index`; at most `depth` ranges are mapped ahead.
    pub(crate) fn on_fault(&mut self, index: u64, depth: u64) -> Reading {
        let last = self.last.replace(index);
        if depth == 0 {
            return Reading::Random;
        }
        let expected = self
            .marker
            .is_some_and(|m| m <= index && index < self.ahead_end);
        let before_marker = self.marker.is_some_and(|m| index < m && Some(index) > last);
        let starts = match last {
            None => index == 0,
            Some(last) => last.checked_add(1) == Some(index),
        };
        if expected {
            self.batch = (self.batch * 2).min(depth);
            Reading::Sequential(Some(self.extend(self.ahead_end)))
        } else if before_marker || last == Some(index) {
            Reading::Sequential(None)
        } else if starts {
            self.batch = depth.min(2);
            Reading::Sequential(Some(self.extend(index.saturating_add(1))))
        } else {
            self.marker = None;
            self.ahead_end = 0;
            Reading::Random
        }
    }

    fn extend(&mut self, from: u64) -> Batch {
        self.marker = Some(from);
        self.ahead_end = from.saturating_add(self.batch);
        Batch {
            ranges: from..self.ahead_end,
            marker: from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: u64 = 2 << 20;

    #[test]
    fn reads_in_order_are_met_ahead() {
        let mut pattern = ReadPattern::default();
        let mut read = |offset, len, depth| pattern.on_read(offset, len, R, depth, || false);
        assert_eq!(read(0, R / 2, 4), None);
        assert_eq!(read(R / 2, R / 2, 4), Some(1..5));
        assert_eq!(read(R, R, 4), None);
        assert_eq!(read(2 * R, R, 4), Some(5..7));
        assert_eq!(read(0, R, 4), None);
        assert_eq!(read(R, R, 4), Some(2..6));
        assert_eq!(read(2 * R, R, 0), None);
    }

    #[test]
    fn two_neighbours_are_not_yet_an_order_where_the_window_is_full() {
        let mut pattern = ReadPattern::default();
        let mut read = |offset| {
            let next = pattern.is_next(offset);
            (next, pattern.on_read(offset, R / 2, R, 4, || true))
        };
        assert_eq!(read(0), (false, None));
        assert_eq!(read(R / 2), (true, None));
        assert_eq!(read(R), (true, None));
        assert_eq!(read(3 * R / 2), (true, Some(2..6)));
        assert_eq!(read(9 * R), (false, None));
    }

    #[test]
    fn faults_in_order_leave_a_marker() {
        let mut pattern = FaultPattern::default();
        let batch = |ranges: Range<u64>| {
            let marker = ranges.start;
            Reading::Sequential(Some(Batch { ranges, marker }))
        };
        assert_eq!(pattern.on_fault(0, 8), batch(1..3));
        assert_eq!(pattern.on_fault(1, 8), batch(3..7));
        assert_eq!(pattern.on_fault(2, 8), Reading::Sequential(None));
        assert_eq!(pattern.on_fault(3, 8), batch(7..15));
        assert_eq!(pattern.on_fault(100, 8), Reading::Random);
        assert_eq!(pattern.on_fault(50, 8), Reading::Random);
        assert_eq!(pattern.on_fault(51, 8), batch(52..54));
        assert_eq!(pattern.on_fault(52, 0), Reading::Random);
    }

    #[test]
    fn the_last_range_is_counted_in_pages() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(bytes_in_ranges(0, 1, R, 0), 0);
        assert_eq!(bytes_in_ranges(0, 4, R, 1), page);
        assert_eq!(bytes_in_ranges(1, 1, R, R), 0);
        assert_eq!(bytes_in_ranges(1, 2, R, 9 * R), 2 * R);
        assert_eq!(bytes_in_ranges(1, 2, R, 2 * R + 1), R + page);
        assert_eq!(bytes_in_ranges(u64::MAX, 1, R, u64::MAX), 0);
    }
}
