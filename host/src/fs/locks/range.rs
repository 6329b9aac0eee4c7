//! Byte ranges, and which of them one owner holds.

use rustix::io::Errno;

/// Bytes of a file, both ends included, as the wire has them. An end at
/// [`LockRange::LAST`] is the end of the file, wherever that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LockRange {
    start: u64,
    end: u64,
}

/// What a lock keeps others from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockKind {
    /// Writing.
    Read,
    /// Reading and writing.
    Write,
}

impl LockRange {
    /// The last byte a file can have.
    pub(super) const LAST: u64 = i64::MAX as u64;
    /// The whole file.
    pub(super) const ALL: LockRange = LockRange {
        start: 0,
        end: LockRange::LAST,
    };

    /// `EINVAL` for a range that is none.
    pub(super) fn new(start: u64, end: u64) -> Result<LockRange, Errno> {
        if start > end || end > LockRange::LAST {
            return Err(Errno::INVAL);
        }
        Ok(LockRange { start, end })
    }

    pub(super) fn start(self) -> u64 {
        self.start
    }

    pub(super) fn end(self) -> u64 {
        self.end
    }

    /// What is left of it before and behind `other`.
    fn without(self, other: LockRange) -> [Option<LockRange>; 2] {
        if self.end < other.start || other.end < self.start {
            return [Some(self), None];
        }
        let before = (self.start < other.start).then(|| LockRange {
            start: self.start,
            end: other.start - 1,
        });
        let behind = (self.end > other.end).then(|| LockRange {
            start: other.end + 1,
            end: self.end,
        });
        [before, behind]
    }
}

/// The ranges one owner holds, in order, none touching another of its kind:
/// what the kernel keeps for that owner, record by record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held(Vec<(LockRange, LockKind)>);

impl Held {
    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is held of one byte.
    pub(super) fn at(&self, offset: u64) -> Option<LockKind> {
        let holds = |range: &LockRange| (range.start..=range.end).contains(&offset);
        let found = self.0.iter().find(|(range, _)| holds(range));
        found.map(|(_, kind)| *kind)
    }

    /// Locks `range`, or with `None` unlocks it.
    pub(super) fn set(&mut self, range: LockRange, kind: Option<LockKind>) {
        let mut kept: Vec<_> = Vec::with_capacity(self.0.len() + 2);
        for (held, held_kind) in self.0.drain(..) {
            let left = held.without(range).into_iter().flatten();
            kept.extend(left.map(|piece| (piece, held_kind)));
        }
        if let Some(kind) = kind {
            let at = kept.partition_point(|(held, _)| held.start < range.start);
            kept.insert(at, (range, kind));
        }
        for (range, kind) in kept {
            match self.0.last_mut() {
                Some((last, last_kind)) if *last_kind == kind && last.end + 1 == range.start => {
                    last.end = range.end;
                }
                _ => self.0.push((range, kind)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> LockRange {
        LockRange::new(start, end).unwrap()
    }

    #[test]
    fn a_range_has_an_end_that_a_file_can_have() {
        assert_eq!(LockRange::new(1, 0), Err(Errno::INVAL));
        assert_eq!(LockRange::new(0, u64::MAX), Err(Errno::INVAL));
        assert_eq!(LockRange::new(0, LockRange::LAST), Ok(LockRange::ALL));
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let mut held = Held::default();
        held.set(LockRange::ALL, Some(LockKind::Write));
        held.set(range(10, 19), None);
        assert_eq!(held.len(), 2);
        assert_eq!(held.at(9), Some(LockKind::Write));
        assert_eq!(held.at(10), None);
        assert_eq!(held.at(LockRange::LAST), Some(LockKind::Write));
        held.set(range(10, 19), Some(LockKind::Write));
        assert_eq!(held.len(), 1, "one again");
        held.set(LockRange::ALL, None);
        assert!(held.is_empty());
    }

    fn any_kind() -> impl Strategy<Value = Option<LockKind>> {
        prop_oneof![
            Just(None),
            Just(Some(LockKind::Read)),
            Just(Some(LockKind::Write))
        ]
    }

    proptest! {
        #[test]
        fn each_byte_has_the_kind_that_was_set_last(
            steps in proptest::collection::vec((0..40u64, 0..40u64, any_kind()), 0..40)
        ) {
            let mut held = Held::default();
            let mut bytes = [None; 40];
            for (a, b, kind) in steps {
                held.set(range(a.min(b), a.max(b)), kind);
                bytes[a.min(b) as usize..=a.max(b) as usize].fill(kind);
            }
            for (offset, kind) in bytes.iter().enumerate() {
                prop_assert_eq!(held.at(offset as u64), *kind);
            }
            let mut runs = 0;
            for (i, kind) in bytes.iter().enumerate() {
                let new = i == 0 || bytes[i - 1] != *kind;
                runs += usize::from(kind.is_some() && new);
            }
            prop_assert_eq!(held.len(), runs);
        }
    }
}
