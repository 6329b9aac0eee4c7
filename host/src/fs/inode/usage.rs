//! What nodes cost: memory and descriptors.

use super::Inode;
use super::table::InodeTable;

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
    /// Mounts that inodes are on; each with handles takes a descriptor, those
    /// below the share only while they are used.
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
        let by_key: usize = self
            .by_key
            .iter()
            .map(|shard| shard.read().heap_bytes())
            .sum();
        let (mounts, mounts_by_handle) = self.mounts().count();
        InodeUsage {
            live,
            heap_bytes: live * node.next_multiple_of(CHUNK_ALIGN)
                + self.by_id.heap_bytes()
                + by_key,
            held_descriptors: self.descriptors().held(),
            cached_descriptors: self.descriptors().cached(),
            mounts,
            mounts_by_handle,
        }
    }
}
