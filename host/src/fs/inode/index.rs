//! A shard of the index by identity: all that finding a known node asks for
//! stands in one entry, and the entries in one table, since a lookup among a
//! million nodes does little but wait for memory, once for each place that it
//! has to look at. Two entries fill a line of the processor's cache.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::dax_once::DaxOnce;
use super::identity::BirthTime;
use super::slots::Slots;

/// An inode's number, and where it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct InodeKey {
    pub(super) ino: u64,
    /// The number of its mount and device among those of this guest.
    pub(super) mount: u16,
}

/// What is known of a node at a glance.
#[derive(Debug)]
#[repr(align(32))]
pub(super) struct Entry {
    ino: u64,
    birth: BirthTime,
    id: NonZeroU64,
    /// Zero for a node that is dying, `UNCOUNTED` for one that stays.
    lookups: AtomicU32,
    mount: u16,
    /// Seen alive when its time of birth was stable.
    stable: AtomicBool,
    /// What the node has been decided to be, as soon as it is known here.
    pub(super) dax: DaxOnce,
}

/// Lookups that are too many to count: nobody knows then which FORGET is the
/// last, so the node stays until the session ends. A guest that asks for one
/// name a million times a second gets there in more than an hour.
const UNCOUNTED: u32 = u32::MAX;

impl Entry {
    /// Of a node that has been looked up once.
    pub(super) fn new(
        id: NonZeroU64,
        inode_key: InodeKey,
        birth: BirthTime,
        stable: bool,
        dax: DaxOnce,
    ) -> Entry {
        Entry {
            ino: inode_key.ino,
            birth,
            id,
            lookups: AtomicU32::new(1),
            mount: inode_key.mount,
            stable: AtomicBool::new(stable),
            dax,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(super) fn birth(&self) -> BirthTime {
        self.birth
    }

    pub(super) fn is_stable(&self) -> bool {
        self.stable.load(Ordering::Relaxed)
    }

    pub(super) fn settle(&self) {
        self.stable.store(true, Ordering::Relaxed);
    }

    /// Counts one more lookup, unless the node is dying.
    pub(super) fn retain(&self) -> bool {
        self.lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n > 0).then(|| n.saturating_add(1))
            })
            .is_ok()
    }

    /// Takes back `count` lookups; true for the one call that took the last.
    pub(super) fn release(&self, count: u64) -> bool {
        let count = u32::try_from(count).unwrap_or(UNCOUNTED);
        self.lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n > 0 && n < UNCOUNTED).then(|| n.saturating_sub(count))
            })
            .is_ok_and(|before| before <= count)
    }

    fn inode_key(&self) -> InodeKey {
        InodeKey {
            ino: self.ino,
            mount: self.mount,
        }
    }
}

/// Entries by key; a key may have several.
#[derive(Debug)]
pub(super) struct Index(Slots<Entry>);

impl Index {
    /// The shard with this number, empty.
    pub(super) fn new(shard: usize) -> Index {
        Index(Slots::new(shard))
    }

    /// An empty one in the place of this one, which is returned.
    pub(super) fn take(&mut self) -> Index {
        Index(self.0.take())
    }

    /// Bytes that the table takes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.heap_bytes()
    }

    /// The entries of a key.
    pub(super) fn at(&self, hash: u64, inode_key: InodeKey) -> impl Iterator<Item = &Entry> {
        self.0
            .run(hash)
            .filter(move |entry| entry.inode_key() == inode_key)
    }

    pub(super) fn insert(&mut self, hash: u64, entry: Entry, hash_of: impl Fn(&InodeKey) -> u64) {
        self.0
            .insert(hash, entry, |entry| hash_of(&entry.inode_key()));
    }

    /// Takes out the entry of node `id`.
    pub(super) fn remove(
        &mut self,
        hash: u64,
        id: u64,
        hash_of: impl Fn(&InodeKey) -> u64,
    ) -> Option<Entry> {
        let is_it = |entry: &Entry| entry.id() == id;
        self.0
            .remove(hash, is_it, |entry| hash_of(&entry.inode_key()))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    fn entry(id: u64, ino: u64) -> Entry {
        let inode_key = InodeKey { ino, mount: 1 };
        let dax = DaxOnce::new(FileType::RegularFile);
        let id = NonZeroU64::new(id).expect("an id");
        Entry::new(id, inode_key, BirthTime::UNKNOWN, false, dax)
    }

    #[test]
    fn an_entry_takes_half_a_cache_line_and_an_empty_slot_no_more() {
        assert_eq!(size_of::<Option<Entry>>(), 32);
        assert_eq!(align_of::<Option<Entry>>(), 32);
    }

    #[test]
    fn entries_of_a_spot_are_found_and_no_others() {
        let mut index = Index::new(0);
        // All at one place of the table.
        let hash = |_: &InodeKey| 0;
        for (id, ino) in [(2, 10), (3, 11), (4, 10)] {
            index.insert(0, entry(id, ino), hash);
        }
        let inode_key = entry(9, 10).inode_key();
        let ids =
            |index: &Index, inode_key| index.at(0, inode_key).map(Entry::id).collect::<Vec<_>>();
        assert_eq!(ids(&index, inode_key), [2, 4]);
        assert_eq!(
            ids(
                &index,
                InodeKey {
                    mount: 2,
                    ..inode_key
                }
            ),
            [0; 0]
        );
        assert_eq!(index.remove(0, 2, hash).map(|entry| entry.id()), Some(2));
        assert_eq!(ids(&index, inode_key), [4]);
    }

    #[test]
    fn the_last_lookup_is_taken_once_and_none_comes_after_it() {
        let entry = entry(2, 1);
        assert!(entry.retain());
        assert!(!entry.release(1));
        assert!(entry.release(5));
        assert!(!entry.retain());
        assert!(!entry.release(1));
    }

    #[test]
    fn a_node_looked_up_too_often_to_count_stays() {
        let entry = entry(2, 1);
        entry.lookups.store(UNCOUNTED - 2, Ordering::Relaxed);
        assert!(entry.retain());
        assert!(!entry.release(1));
        assert!(entry.retain() && entry.retain());
        for count in [1, u64::from(UNCOUNTED), u64::MAX] {
            assert!(!entry.release(count), "{count}");
            assert!(entry.retain());
        }
    }
}
