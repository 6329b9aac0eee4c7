//! The ranges of this process in which guest memory is mapped, in a form that
//! a signal handler may read.
//!
//! Laws: reading takes no lock and allocates nothing; a slot that is being
//! changed is not seen at all; chunks are never given back.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// Ranges in one chunk; as many as a VMM may have regions.
const CHUNK: usize = 512;

/// Any number of ranges.
pub(super) struct Table {
    slots: [Slot; CHUNK],
    next: OnceLock<Box<Table>>,
}

/// One range, or none.
pub(super) struct Slot {
    /// Odd while the fields below change.
    version: AtomicUsize,
    /// Zero for none.
    start: AtomicUsize,
    end: AtomicUsize,
    page_bytes: AtomicUsize,
    /// A page of the range was replaced by zeros.
    pub(super) faulted: AtomicBool,
    /// Number of the flag to raise then.
    pub(super) flag: AtomicUsize,
}

/// A range of addresses and the size of the pages it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Whole pages.
    pub(super) range: Range<usize>,
    /// A power of two.
    pub(super) page_bytes: usize,
}

impl Watched {
    /// The page around `address`.
    pub(super) fn page(&self, address: usize) -> Range<usize> {
        let start = address & !(self.page_bytes - 1);
        start..start + self.page_bytes
    }
}

impl Table {
    pub(super) const fn new() -> Table {
        Table {
            slots: [const { Slot::new() }; CHUNK],
            next: OnceLock::new(),
        }
    }

    /// The range around `address`.
    pub(super) fn find(&self, address: usize) -> Option<(&Slot, Watched)> {
        let mut chunk = self;
        loop {
            let hit = chunk.slots.iter().find_map(|slot| {
                let watched = slot.read()?;
                watched.range.contains(&address).then_some((slot, watched))
            });
            if hit.is_some() {
                return hit;
            }
            chunk = chunk.next.get()?;
        }
    }

    /// Puts a range in a free slot. One caller at a time.
    pub(super) fn insert(&self, watched: &Watched, flag: usize) -> &Slot {
        let mut chunk = self;
        loop {
            if let Some(slot) = chunk.slots.iter().find(|slot| slot.is_free()) {
                // Nobody looks at it before there is a range.
                slot.flag.store(flag, Ordering::Relaxed);
                slot.write(watched);
                return slot;
            }
            chunk = chunk.next.get_or_init(|| Box::new(Table::new()));
        }
    }
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page_bytes: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
            flag: AtomicUsize::new(0),
        }
    }

    fn is_free(&self) -> bool {
        self.start.load(Ordering::Relaxed) == 0
    }

    /// Frees the slot. One caller at a time.
    pub(super) fn clear(&self) {
        self.write(&Watched {
            range: 0..0,
            page_bytes: 0,
        });
    }

    fn write(&self, watched: &Watched) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the fence in `read`: who sees a new field sees the odd
        // version, or the next even one.
        fence(Ordering::Release);
        self.start.store(watched.range.start, Ordering::Relaxed);
        self.end.store(watched.range.end, Ordering::Relaxed);
        self.page_bytes.store(watched.page_bytes, Ordering::Relaxed);
        self.faulted.store(false, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    fn read(&self) -> Option<Watched> {
        let before = self.version.load(Ordering::Acquire);
        let watched = Watched {
            range: self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed),
            page_bytes: self.page_bytes.load(Ordering::Relaxed),
        };
        // Pairs with the fence in `write`.
        fence(Ordering::Acquire);
        // A slot that changes is not the one of memory somebody touches.
        let steady = before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before;
        (steady && watched.page_bytes > 0).then_some(watched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(start: usize, pages: usize) -> Watched {
        Watched {
            range: start..start + pages * 4096,
            page_bytes: 4096,
        }
    }

    #[test]
    fn more_ranges_than_a_chunk_are_found_and_forgotten() {
        let table = Table::new();
        let at = |index: usize| 0x10_0000 * (index + 1);
        let slots: Vec<&Slot> = (0..3 * CHUNK)
            .map(|index| table.insert(&watched(at(index), 2), index))
            .collect();
        for (index, want) in slots.iter().enumerate() {
            for inside in [0, 8191] {
                let (slot, found) = table.find(at(index) + inside).expect("there");
                assert!(std::ptr::eq(slot, *want));
                assert_eq!(found, watched(at(index), 2));
            }
            assert!(table.find(at(index) + 8192).is_none());
            assert!(table.find(at(index) - 1).is_none());
        }
        for slot in &slots {
            slot.clear();
        }
        assert!((0..slots.len()).all(|index| table.find(at(index)).is_none()));
        assert!(table.find(0).is_none());
        let reused = table.insert(&watched(at(7), 1), 0);
        assert!(std::ptr::eq(reused, slots[0]));
    }

    #[test]
    fn pages_are_as_large_as_the_range_says() {
        let huge = Watched {
            range: 0x4000_0000..0x8000_0000,
            page_bytes: 2 << 20,
        };
        assert_eq!(huge.page(0x4000_0000 + 12345), 0x4000_0000..0x4020_0000);
        assert_eq!(watched(0x1000, 2).page(0x2fff), 0x2000..0x3000);
    }

    #[test]
    fn a_slot_is_seen_whole_or_not_at_all() {
        let table = Table::new();
        let slot = table.insert(&watched(0x1000, 1), 0);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while seen < 20_000 {
                    seen += 1;
                    if let Some(watched) = slot.read() {
                        let pages = watched.range.len() / 4096;
                        assert_eq!(watched.range.start, 0x1000 * pages, "{watched:?}");
                    }
                }
            });
            let mut pages = 1;
            while !reader.is_finished() {
                pages = pages % 7 + 1;
                slot.write(&watched(0x1000 * pages, pages));
            }
        });
        assert!(slot.read().is_some());
    }
}
