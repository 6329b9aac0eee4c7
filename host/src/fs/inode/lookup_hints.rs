//! What went on in a directory the last time: a guess at what is cheapest to
//! try first. Nothing but speed depends on it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The last name looked up in it was known already.
const FINDS_KNOWN: u8 = 1;
/// The last rename to a name in it took that from another.
const REPLACES: u8 = 2;

/// One directory's. One byte, since every node has it.
#[derive(Debug, Default)]
pub(in crate::fs) struct LookupHints(AtomicU8);

impl LookupHints {
    /// Whether a name looked up is likely to be known.
    pub(in crate::fs) fn finds_known(&self) -> bool {
        self.has(FINDS_KNOWN)
    }

    /// How the last lookup went.
    pub(in crate::fs) fn note_lookup(&self, known: bool) {
        self.note(FINDS_KNOWN, known);
    }

    /// Whether a rename is likely to replace something.
    pub(in crate::fs) fn replaces(&self) -> bool {
        self.has(REPLACES)
    }

    /// How the last rename went.
    pub(in crate::fs) fn note_rename(&self, replaced: bool) {
        self.note(REPLACES, replaced);
    }

    fn has(&self, habit: u8) -> bool {
        self.0.load(Relaxed) & habit != 0
    }

    /// Writes only what changes: many threads read it.
    fn note(&self, habit: u8, holds: bool) {
        match holds {
            _ if self.has(habit) == holds => {}
            true => _ = self.0.fetch_or(habit, Relaxed),
            false => _ = self.0.fetch_and(!habit, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_habit_says_nothing_of_the_other() {
        let hints = LookupHints::default();
        for (known, replaced) in [(true, false), (true, true), (false, true), (false, false)] {
            hints.note_lookup(known);
            hints.note_rename(replaced);
            assert_eq!((hints.finds_known(), hints.replaces()), (known, replaced));
        }
    }
}
