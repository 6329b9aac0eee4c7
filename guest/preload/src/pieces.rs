//! Which ranges of a window show files, 2 MiB each.
//!
//! Laws: changed only under the lock of the window's space, in the step in
//! which the mapping changes; a range that is said to show nothing shows
//! nothing.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use daxwindow_front_end::area::SpaceGuard;
use daxwindow_shared::window::RANGE_BYTES;

use crate::preamble::LARGEST_BYTES;

/// What a range shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Shown {
    Nothing,
    /// One part of one file, whose pages follow each other.
    OnePart,
    /// Other things, some of them files, perhaps.
    Mixed,
}

pub(crate) const RANGE: usize = RANGE_BYTES as usize;
const MOST: usize = (LARGEST_BYTES / RANGE_BYTES) as usize;

/// All zero where nothing is shown, so that it costs memory only where a
/// window is.
pub(crate) struct Pieces {
    ranges: [AtomicU8; MOST],
    /// Those that show something.
    count: AtomicUsize,
}

impl Pieces {
    pub(crate) const fn none() -> Pieces {
        Pieces {
            ranges: [const { AtomicU8::new(Shown::Nothing as u8) }; MOST],
            count: AtomicUsize::new(0),
        }
    }

    /// Number of ranges that show files.
    pub(crate) fn count(&self, _: &SpaceGuard<'_>) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// What the range shows in which byte `at` is.
    pub(crate) fn shown(&self, _: &SpaceGuard<'_>, at: usize) -> Shown {
        let range = self.ranges.get(at / RANGE);
        match range.map(|range| range.load(Ordering::Relaxed)) {
            Some(n) if n == Shown::OnePart as u8 => Shown::OnePart,
            Some(n) if n == Shown::Mixed as u8 => Shown::Mixed,
            _ => Shown::Nothing,
        }
    }

    /// A file is at `at..at + len` now, or nothing.
    pub(crate) fn replaced(&self, space: &SpaceGuard<'_>, at: usize, len: usize, by_file: bool) {
        let end = at.saturating_add(len);
        for range in at / RANGE..end.div_ceil(RANGE) {
            let (start, range_end) = (range * RANGE, (range + 1) * RANGE);
            let is_whole = at <= start && end >= range_end;
            let shown = match (is_whole, by_file) {
                (true, true) => Shown::OnePart,
                (true, false) => Shown::Nothing,
                (false, true) => Shown::Mixed,
                (false, false) if self.shown(space, start) == Shown::Nothing => Shown::Nothing,
                (false, false) => Shown::Mixed,
            };
            self.set(range, shown);
        }
    }

    /// Nothing is shown any more in the first `bytes`.
    pub(crate) fn clear(&self, _: &SpaceGuard<'_>, bytes: usize) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        (0..bytes.div_ceil(RANGE)).for_each(|range| self.set(range, Shown::Nothing));
    }

    fn set(&self, range: usize, shown: Shown) {
        let Some(place) = self.ranges.get(range) else {
            return;
        };
        let is_new = place.swap(shown as u8, Ordering::Relaxed) == Shown::Nothing as u8;
        match (is_new, shown == Shown::Nothing) {
            (true, false) => self.count.fetch_add(1, Ordering::Relaxed),
            (false, true) => self.count.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
    }
}
