//! Which bytes of the window are mapped: a set of disjoint ranges.
//!
//! Laws: the set is what the address space holds, so a range can be unmapped
//! only if every byte of it was mapped; how many mappings it takes is known
//! without counting.

use std::collections::BTreeMap;

use daxwindow_shared::window::WindowRange;

/// Disjoint ranges, by start.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    ends: BTreeMap<u64, u64>,
    /// Pieces that begin where another one ends.
    joints: usize,
}

/// Most mappings that one change adds: a piece inside another one leaves two.
const MOST_ADDED: usize = 2;

impl Mapped {
    /// Adds `range`; what it covers already is replaced.
    pub(super) fn insert(&mut self, range: WindowRange) {
        self.cut(range);
        self.put(range.start().0, range.end().0);
    }

    /// Takes `range` out.
    pub(super) fn remove(&mut self, range: WindowRange) {
        self.cut(range);
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) {
        *self = Mapped::default();
    }

    /// Whether every byte of `range` is mapped.
    pub(super) fn covers(&self, range: WindowRange) -> bool {
        let mut reached = range.start().0;
        let first = self.ends.range(..=reached).next_back();
        let rest = self.ends.range(reached.saturating_add(1)..range.end().0);
        for (&start, &end) in first.into_iter().chain(rest) {
            if start > reached || end <= reached {
                return false;
            }
            reached = end;
            if reached >= range.end().0 {
                return true;
            }
        }
        false
    }

    /// Number of separate pieces.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no more mappings than `most`, pieces and what lies
    /// around them, whatever is changed next.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let behind = self.ends.len().saturating_sub(self.joints);
        // And one before the first piece.
        1 + self.ends.len() + behind + MOST_ADDED <= most
    }

    /// Whether mapping `range` only replaces whole pieces.
    pub(super) fn replaces(&self, range: WindowRange) -> bool {
        self.covers(range) && !self.splits(range)
    }

    /// Whether `range` begins or ends inside a piece.
    pub(super) fn splits(&self, range: WindowRange) -> bool {
        let inside = |at: u64| {
            let before = self.ends.range(..at).next_back();
            before.is_some_and(|(_, end)| *end > at)
        };
        inside(range.start().0) || inside(range.end().0)
    }

    /// Removes the bytes of `range`, keeping what sticks out on both sides.
    fn cut(&mut self, range: WindowRange) {
        let (from, to) = (range.start().0, range.end().0);
        let before = self.ends.range(..from).next_back().map(|(s, e)| (*s, *e));
        let before = before.filter(|(_, end)| *end > from);
        let inside = self.ends.range(from..to).map(|(s, e)| (*s, *e));
        let cut: Vec<(u64, u64)> = before.into_iter().chain(inside).collect();
        for (start, end) in cut {
            self.take(start, end);
            if start < from {
                self.put(start, from);
            }
            if end > to {
                self.put(to, end);
            }
        }
    }

    fn put(&mut self, start: u64, end: u64) {
        self.joints += self.neighbours(start, end);
        self.ends.insert(start, end);
    }

    fn take(&mut self, start: u64, end: u64) {
        self.ends.remove(&start);
        self.joints -= self.neighbours(start, end);
    }

    /// Pieces that touch `start..end`.
    fn neighbours(&self, start: u64, end: u64) -> usize {
        let before = self.ends.range(..start).next_back();
        let before = before.is_some_and(|(_, end)| *end == start);
        usize::from(before) + usize::from(self.ends.contains_key(&end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 24;

    /// Pieces, and gaps behind them.
    fn mappings(mapped: &Mapped) -> usize {
        let touches = |end: &&u64| mapped.ends.contains_key(end);
        let joints = mapped.ends.values().filter(touches).count();
        mapped.ends.len() * 2 - joints
    }

    #[test]
    fn only_what_leaves_the_number_of_pieces_alone_replaces() {
        let range = |at, pages| WindowRange::new(at * PAGE, pages * PAGE, PAGES * PAGE, PAGE);
        let range = |at, pages| range(at, pages).expect("inside");
        let mut mapped = Mapped::default();
        mapped.insert(range(0, 4));
        mapped.insert(range(4, 2));
        assert!(mapped.replaces(range(0, 4)) && mapped.replaces(range(0, 6)));
        assert!(!mapped.replaces(range(0, 3)) && !mapped.replaces(range(6, 2)));
        assert!(mapped.splits(range(1, 3)) && mapped.splits(range(0, 5)));
        assert!(!mapped.splits(range(4, 8)));
    }

    proptest! {
        #[test]
        fn agrees_with_one_flag_per_page(
            steps in proptest::collection::vec((0u8..3, 0..PAGES, 1..=PAGES), 1..120),
        ) {
            let mut mapped = Mapped::default();
            let mut pages = [false; PAGES as usize];
            for (what, start, len) in steps {
                let len = len.min(PAGES - start);
                let range = WindowRange::new(start * PAGE, len * PAGE, PAGES * PAGE, PAGE)
                    .expect("inside");
                let flags = &mut pages[start as usize..(start + len) as usize];
                match what {
                    0 => { mapped.insert(range); flags.fill(true); }
                    1 => { mapped.remove(range); flags.fill(false); }
                    _ => {}
                }
                prop_assert_eq!(mapped.covers(range), flags.iter().all(|f| *f));
                let count = mappings(&mapped);
                prop_assert!(mapped.has_room(count + 3) && !mapped.has_room(count + 2));
            }
        }
    }
}
