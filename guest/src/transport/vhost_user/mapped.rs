//! Which bytes of the window are mapped: a set of disjoint ranges.
//!
//! Law: the set is what the address space holds, so a range can be unmapped
//! only if every byte of it was mapped.

use std::collections::BTreeMap;

use daxwindow_shared::window::WindowRange;

/// Disjoint ranges, by start.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    ends: BTreeMap<u64, u64>,
}

impl Mapped {
    /// Adds `range`; what it covers already is replaced.
    pub(super) fn insert(&mut self, range: WindowRange) {
        self.cut(range);
        self.ends.insert(range.start().0, range.end().0);
    }

    /// Takes `range` out.
    pub(super) fn remove(&mut self, range: WindowRange) {
        self.cut(range);
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

    /// Removes the bytes of `range`, keeping what sticks out on both sides.
    fn cut(&mut self, range: WindowRange) {
        let (from, to) = (range.start().0, range.end().0);
        let before = self.ends.range(..from).next_back().map(|(s, e)| (*s, *e));
        if let Some((start, end)) = before.filter(|(_, end)| *end > from) {
            self.ends.insert(start, from);
            if end > to {
                self.ends.insert(to, end);
            }
        }
        let inside: Vec<(u64, u64)> = self.ends.range(from..to).map(|(s, e)| (*s, *e)).collect();
        for (start, end) in inside {
            self.ends.remove(&start);
            if end > to {
                self.ends.insert(to, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 24;

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
            }
        }
    }
}
