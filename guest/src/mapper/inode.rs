//! Which ranges of one inode are in the window.
//!
//! Law: the lock is held for a look-up, an insertion or a removal, never
//! across a request, an allocation or a wait.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::slot::SlotRef;

/// Spreads small consecutive numbers; they need no protection from collisions
/// made on purpose, since they come from our own caller.
#[derive(Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}

#[derive(Default)]
struct Table {
    slots: HashMap<u64, SlotRef, BuildHasherDefault<IndexHasher>>,
    /// Nothing new may be mapped: the inode is being forgotten.
    closed: bool,
}

/// The mapper's side of an inode.
pub(crate) struct Inode {
    nodeid: u64,
    /// Bytes of the file when last heard of; a hint for what to do ahead.
    size: AtomicU64,
    table: RwLock<Table>,
}

/// Why a range was not entered.
pub(super) enum NotInserted {
    /// Another thread was faster.
    Present,
    /// The inode is being forgotten.
    Closed,
}

impl Inode {
    pub(crate) fn new(nodeid: u64) -> Inode {
        Inode {
            nodeid,
            size: AtomicU64::new(0),
            table: RwLock::default(),
        }
    }

    /// The node id that the back end knows.
    pub(crate) fn nodeid(&self) -> u64 {
        self.nodeid
    }

    /// Bytes of the file when last heard of.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Notes the size of the file.
    pub(crate) fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }

    /// Notes that the file has at least this size.
    pub(crate) fn raise_size(&self, bytes: u64) {
        self.size.fetch_max(bytes, Ordering::Relaxed);
    }

    pub(super) fn get(&self, index: u64) -> Option<SlotRef> {
        self.table.read().slots.get(&index).copied()
    }

    pub(super) fn insert(&self, index: u64, slot: SlotRef) -> Result<(), NotInserted> {
        let mut table = self.table.write();
        if table.closed {
            return Err(NotInserted::Closed);
        }
        if table.slots.contains_key(&index) {
            return Err(NotInserted::Present);
        }
        table.slots.insert(index, slot);
        Ok(())
    }

    pub(super) fn remove(&self, index: u64) {
        self.table.write().slots.remove(&index);
    }

    /// Lets nothing new in.
    pub(super) fn close(&self) {
        self.table.write().closed = true;
    }

    /// What is in the window or on its way in or out.
    pub(super) fn ranges(&self) -> Vec<(u64, SlotRef)> {
        let table = self.table.read();
        table.slots.iter().map(|(&i, &s)| (i, s)).collect()
    }

    /// Number of ranges in the window or on their way.
    pub(crate) fn live(&self) -> usize {
        self.table.read().slots.len()
    }
}
