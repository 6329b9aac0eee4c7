//! A hash table that finds what it has at the first place in memory that it
//! looks at, mostly, and has little room to spare.
//!
//! Open addressing with linear probing; a large one grows by a quarter, and
//! what is taken out leaves no trace. Of many tables that fill up together each
//! grows at a time of its own: what the last has left in the heap is filled
//! before the next one leaves more. Hashes come from outside, and have to be
//! the same each time, with their high bits well mixed.

/// Slots of the smallest table.
const FEWEST: usize = 8;

/// Tables below this double, since room is cheaper than moving what they have,
/// and are not worth making smaller.
const SMALL: usize = 1024;

/// Tables from here on grow each at a time of its own.
const MIDDLING: usize = 64;

/// Such times.
const PHASES: usize = 64;

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Box<[Option<T>]>,
    used: usize,
    phase: usize,
}

impl<T> Slots<T> {
    /// An empty table that grows at the time `phase`, of `PHASES`.
    pub(super) fn new(phase: usize) -> Slots<T> {
        Slots {
            slots: Box::default(),
            used: 0,
            phase: phase % PHASES,
        }
    }

    /// An empty table in the place of this one, which is returned.
    pub(super) fn take(&mut self) -> Slots<T> {
        let phase = self.phase;
        std::mem::replace(self, Slots::new(phase))
    }

    /// Bytes that the table takes.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val::<[Option<T>]>(&self.slots)
    }

    /// Everything with this hash, and some with others.
    pub(super) fn run(&self, hash: u64) -> impl Iterator<Item = &T> {
        let (front, back) = self.slots.split_at(self.home(hash));
        back.iter().chain(front).map_while(Option::as_ref)
    }

    pub(super) fn insert(&mut self, hash: u64, value: T, hash_of: impl Fn(&T) -> u64) {
        // At most two thirds full: a search ends soon.
        if (self.used + 1) * 3 > self.slots.len() * 2 {
            self.resize(self.more(), &hash_of);
        }
        self.put(hash, value);
        self.used += 1;
    }

    /// Takes one out, and gives memory back when little is left.
    pub(super) fn remove(
        &mut self,
        hash: u64,
        is_it: impl Fn(&T) -> bool,
        hash_of: impl Fn(&T) -> u64,
    ) -> Option<T> {
        let mut hole = self.home(hash);
        while !is_it(self.slots.get(hole)?.as_ref()?) {
            hole = self.after(hole);
        }
        let gone = self.slots[hole].take();
        self.used -= 1;
        // Whatever was pushed past the hole moves up, or it would not be found.
        let mut next = self.after(hole);
        while let Some(value) = &self.slots[next] {
            let home = self.home(hash_of(value));
            if self.way(home, next) >= self.way(hole, next) {
                self.slots.swap(hole, next);
                hole = next;
            }
            next = self.after(next);
        }
        if self.slots.len() > SMALL && self.used < self.slots.len() / 8 {
            self.resize(self.used * 2 + FEWEST, &hash_of);
        }
        gone
    }

    /// How many slots to have next.
    fn more(&self) -> usize {
        match self.slots.len() {
            0 => FEWEST,
            len if len < MIDDLING && len * 2 >= MIDDLING => len * 2 + len * self.phase / PHASES,
            len if len < SMALL => len * 2,
            len => len + len / 4,
        }
    }

    /// `slots` are more than are used.
    fn resize(&mut self, slots: usize, hash_of: impl Fn(&T) -> u64) {
        let empty = (0..slots).map(|_| None).collect();
        let before = std::mem::replace(&mut self.slots, empty);
        for value in before.into_iter().flatten() {
            self.put(hash_of(&value), value);
        }
    }

    /// There is an empty slot.
    fn put(&mut self, hash: u64, value: T) {
        let mut at = self.home(hash);
        while self.slots[at].is_some() {
            at = self.after(at);
        }
        self.slots[at] = Some(value);
    }

    /// The slot at which a search begins: below the number of slots, if there
    /// are any.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, slot: usize) -> usize {
        let next = slot + 1;
        if next < self.slots.len() { next } else { 0 }
    }

    /// Steps from one slot to another.
    fn way(&self, from: usize, to: usize) -> usize {
        if from <= to {
            to - from
        } else {
            self.slots.len() - from + to
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few homes, with the last slots among them: long runs, and some that go
    /// round.
    fn crowded(value: &u64) -> u64 {
        u64::MAX - (value % 5) * (u64::MAX / 5)
    }

    fn spread(value: &u64) -> u64 {
        value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn an_empty_table_has_nothing_and_takes_nothing() {
        let mut slots = Slots::<u64>::new(0);
        assert_eq!(slots.heap_bytes(), 0);
        assert_eq!(slots.run(3).count(), 0);
        assert_eq!(slots.remove(3, |_| true, crowded), None);
    }

    #[test]
    fn tables_that_fill_up_together_grow_one_by_one() {
        let filled = |phase| {
            let mut slots = Slots::new(phase);
            (0..10_000).for_each(|value| slots.insert(spread(&value), value, spread));
            slots.heap_bytes()
        };
        let sizes: BTreeSet<_> = (0..PHASES).map(filled).collect();
        assert!(sizes.len() > 8, "{sizes:?}");
    }

    #[test]
    fn memory_follows_what_is_in_it() {
        let mut slots = Slots::new(PHASES - 1);
        let slot = size_of::<Option<u64>>();
        let all = 1..=20_000;
        for value in all.clone() {
            slots.insert(spread(&value), value, spread);
            let most = match value as usize {
                few if few < SMALL => few * 5 + FEWEST,
                many => many * 2,
            };
            assert!(slots.heap_bytes() <= most * slot, "{value}");
        }
        for value in all {
            let gone = slots.remove(spread(&value), |it| *it == value, spread);
            assert_eq!(gone, Some(value));
        }
        assert!(slots.heap_bytes() <= SMALL * slot);
    }

    proptest! {
        #[test]
        fn what_was_put_in_is_found_until_it_is_taken_out(
            steps in prop::collection::vec((any::<bool>(), 0..40u64), 0..400)
        ) {
            let mut slots = Slots::new(0);
            let mut model = Vec::new();
            for (adds, value) in steps {
                if adds {
                    slots.insert(crowded(&value), value, crowded);
                    model.push(value);
                    continue;
                }
                let gone = slots.remove(crowded(&value), |it| *it == value, crowded);
                let at = model.iter().position(|it| *it == value);
                prop_assert_eq!(gone, at.map(|at| model.swap_remove(at)));
            }
            for value in 0..40 {
                let found = slots.run(crowded(&value)).filter(|it| **it == value);
                let known = model.iter().filter(|it| **it == value);
                prop_assert_eq!(found.count(), known.count());
            }
        }
    }
}
