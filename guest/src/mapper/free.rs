//! The slots that are not in use, as a bit map, so that neighbours are found
//! together.

/// A set of slot numbers below a fixed bound.
#[derive(Debug, Default)]
pub(super) struct FreeSlots {
    words: Vec<u64>,
    len: usize,
    /// Word to look at first: where the last search ended.
    hint: usize,
}

impl FreeSlots {
    /// All slots below `count`.
    pub(super) fn all(count: u32) -> FreeSlots {
        let mut free = FreeSlots {
            words: vec![0; count.div_ceil(64) as usize],
            len: 0,
            hint: 0,
        };
        (0..count).for_each(|slot| free.put(slot));
        free
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a slot.
    pub(super) fn put(&mut self, slot: u32) {
        if let Some(word) = self.words.get_mut(slot as usize / 64) {
            let bit = 1 << (slot % 64);
            self.len += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Removes one slot.
    pub(super) fn take(&mut self) -> Option<u32> {
        let count = self.words.len();
        for step in 0..count {
            let at = (self.hint + step) % count;
            let word = self.words.get_mut(at)?;
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.len -= 1;
                self.hint = at;
                return Some(at as u32 * 64 + bit);
            }
        }
        None
    }

    /// Removes up to `most` neighbours: the first run that is long enough,
    /// otherwise the longest. Returns the first and how many.
    pub(super) fn take_run(&mut self, most: u32) -> Option<(u32, u32)> {
        let (mut best, mut start, mut run) = ((0, 0), 0, 0);
        let bound = self.words.len() as u32 * 64;
        for slot in 0..bound {
            if !self.contains(slot) {
                run = 0;
                continue;
            }
            start = if run == 0 { slot } else { start };
            run += 1;
            if run > best.1 {
                best = (start, run);
            }
            if run >= most {
                break;
            }
        }
        let (start, len) = best;
        (start..start + len).for_each(|slot| self.remove(slot));
        self.hint = start as usize / 64;
        (len > 0).then_some(best)
    }

    fn contains(&self, slot: u32) -> bool {
        let word = self.words.get(slot as usize / 64).copied();
        word.unwrap_or(0) & (1 << (slot % 64)) != 0
    }

    fn remove(&mut self, slot: u32) {
        if let Some(word) = self.words.get_mut(slot as usize / 64) {
            *word &= !(1 << (slot % 64));
            self.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_set_would(
            count in 1u32..200,
            steps in proptest::collection::vec((0u8..3, 1u32..20), 0..200),
        ) {
            let mut free = FreeSlots::all(count);
            let mut model: BTreeSet<u32> = (0..count).collect();
            let mut used: Vec<u32> = Vec::new();
            for (kind, n) in steps {
                match kind {
                    0 => {
                        let slot = free.take();
                        prop_assert_eq!(slot.is_some(), !model.is_empty());
                        used.extend(slot);
                        prop_assert!(slot.is_none_or(|slot| model.remove(&slot)));
                    }
                    1 => {
                        let longest = (0..count)
                            .map(|s| (s..count).take_while(|x| model.contains(x)).count())
                            .max()
                            .unwrap_or(0) as u32;
                        let run = free.take_run(n);
                        let (start, len) = run.unwrap_or((0, 0));
                        prop_assert_eq!(len, longest.min(n));
                        for slot in start..start + len {
                            prop_assert!(model.remove(&slot));
                            used.push(slot);
                        }
                    }
                    _ => {
                        let at = n as usize % used.len().max(1);
                        if at < used.len() {
                            let slot = used.swap_remove(at);
                            free.put(slot);
                            model.insert(slot);
                        }
                    }
                }
                prop_assert_eq!(free.len(), model.len());
            }
        }
    }
}
