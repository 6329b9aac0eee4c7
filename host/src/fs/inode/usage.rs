//! What nodes cost: memory and descriptors.

use std::sync::Arc;

use super::Inode;
use super::table::InodeTable;

/// Bytes that an entry of a hash table takes beyond itself.
const CONTROL_BYTES: usize = 1;

/// Bytes that an allocation takes beyond what was asked for, with a header
/// and rounding as glibc has them.
const CHUNK_BYTES: usize = 8;
const CHUNK_ALIGN: usize = 16;

/// What the inodes of one guest cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeUsage {
    /// Inodes known, the root aside.
    pub live: usize,
    /// Heap memory that they and the tables take, in bytes. Handles above 20
    /// bytes and descriptors are not in it.
    pub heap_bytes: usize,
    /// Descriptors held for as long as an inode is known.
    pub held_descriptors: usize,
    /// Descriptors kept because they were used not long ago.
    pub cached_descriptors: usize,
    /// Mounts that inodes are on; each with handles takes a descriptor.
    pub mounts: usize,
    /// Those of them where inodes are known by handle.
    pub mounts_by_handle: usize,
}

impl InodeTable {
    /// What the nodes cost.
    pub(in crate::fs) fn usage(&self) -> InodeUsage {
        let live = self.live();
        // An Arc puts two counters before what it holds.
        let node = size_of::<Inode>() + 2 * size_of::<usize>() + CHUNK_BYTES;
        let by_id = self.by_id.capacity() * (size_of::<(u64, Arc<Inode>)>() + CONTROL_BYTES);
        let by_key: usize = self
            .by_key
            .iter()
            .map(|shard| shard.read().capacity())
            .sum();
        let by_key = by_key * (size_of::<Arc<Inode>>() + CONTROL_BYTES);
        let (mounts, mounts_by_handle) = self.mounts().count();
        InodeUsage {
            live,
            // A table is at most seven eighths full, and has an eighth more
            // room than it says.
            heap_bytes: live * node.next_multiple_of(CHUNK_ALIGN) + (by_id + by_key) / 7 * 8,
            held_descriptors: self.descriptors().held(),
            cached_descriptors: self.descriptors().cached(),
            mounts,
            mounts_by_handle,
        }
    }
}
