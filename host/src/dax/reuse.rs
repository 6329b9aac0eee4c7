//! Which files a window that is too small does no good.
//!
//! A guest that reads a file larger than its window at random has a range
//! mapped for each few kilobytes: three requests where one READ would do. That
//! is told by the order of its SETUPMAPPINGs: ranges that follow each other are
//! read whole, others are not, and a file of which each range was mapped more
//! than twice in no order is better read without the window.

use std::collections::HashMap;

/// Files that are remembered; with more, all are forgotten and found out again.
const MOST_FILES: usize = 1024;
/// Mappings out of order before a file is judged, however small it is.
const LEAST: u64 = 256;
/// Times that each range of a file is mapped out of order before it is judged.
const TIMES: u64 = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Behind the last range mapped, in ranges.
    next: u64,
    /// Mappings out of order, less those in order.
    jumps: u64,
}

/// How files are mapped, by node id.
#[derive(Debug, Default)]
pub(super) struct Reuse(HashMap<u64, Seen>);

impl Reuse {
    /// A range of a file of `file_ranges` is mapped that was not. Answers
    /// whether the file is better off without the window.
    pub(super) fn note(&mut self, nodeid: u64, range: u64, file_ranges: u64) -> bool {
        if self.0.len() >= MOST_FILES && !self.0.contains_key(&nodeid) {
            self.0.clear();
        }
        let seen = self.0.entry(nodeid).or_insert(Seen {
            next: range,
            jumps: 0,
        });
        seen.jumps = match range == seen.next {
            true => seen.jumps.saturating_sub(1),
            false => seen.jumps + 1,
        };
        seen.next = range + 1;
        let is_wasted = seen.jumps > file_ranges.saturating_mul(TIMES).max(LEAST);
        if is_wasted {
            self.0.remove(&nodeid);
        }
        is_wasted
    }

    /// The session ends.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mappings until the file is judged, if it is.
    fn judged(orders: impl Iterator<Item = u64>, ranges: u64) -> Option<usize> {
        let mut reuse = Reuse::default();
        let mut orders = orders.enumerate();
        orders.find_map(|(done, range)| reuse.note(1, range, ranges).then_some(done))
    }

    #[test]
    fn a_file_read_at_random_through_a_small_window_is_found() {
        // A step that is coprime to the number of ranges.
        let random = |ranges: u64| (0..).map(move |i| i * 37 % ranges).take(10_000);
        assert_eq!(judged(random(64), 64), Some(LEAST as usize + 1));
        assert_eq!(judged(random(1024), 1024), Some(2049));
        assert_eq!(judged(random(8192), 8192), None, "twice each is not yet");
    }

    #[test]
    fn a_file_read_in_order_or_once_is_left_alone() {
        let passes = (0..20_000).map(|i| i % 512);
        assert_eq!(judged(passes, 512), None);
        let once = (0..8192).map(|i| i * 37 % 8192);
        assert_eq!(judged(once, 8192), None);
        // Two streams, each in order, take turns.
        let mut reuse = Reuse::default();
        let streams = (0..4096u64).map(|i| i / 2 + (i % 2) * 2048);
        let wasted = streams.map(|range| reuse.note(1, range, 4096));
        assert!(!wasted.fold(false, |any, one| any | one));
    }

    #[test]
    fn no_number_of_files_takes_memory() {
        let mut reuse = Reuse::default();
        for nodeid in 0..10 * MOST_FILES as u64 {
            reuse.note(nodeid, 0, 1);
        }
        assert!(reuse.0.len() <= MOST_FILES);
    }
}
