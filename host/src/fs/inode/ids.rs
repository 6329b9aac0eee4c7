//! Sharded maps from ids that a counter gives out.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::RwLock;

pub(super) const SHARDS: usize = 64;

/// Maps below this are not worth making smaller.
const SMALL: usize = 1024;

/// Spreads node ids, which are ours and need no defence against chosen keys.
#[derive(Debug, Default)]
pub(in crate::fs) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A map from ids given out by a counter.
pub(in crate::fs) type IdMap<V> = HashMap<u64, V, BuildHasherDefault<IdHasher>>;

/// `SHARDS` locked maps, chosen by the low bits of the id.
#[derive(Debug)]
pub(in crate::fs) struct IdShards<V>(Box<[RwLock<IdMap<V>>]>);

impl<V> IdShards<V> {
    pub(in crate::fs) fn new() -> Self {
        IdShards((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    pub(in crate::fs) fn of(&self, id: u64) -> &RwLock<IdMap<V>> {
        // The remainder is below the number of shards.
        &self.0[(id % self.0.len() as u64) as usize]
    }

    /// Takes one out and gives memory back when little is left.
    pub(in crate::fs) fn remove(&self, id: u64) -> Option<V> {
        let mut map = self.of(id).write();
        let gone = map.remove(&id);
        if is_sparse(map.len(), map.capacity()) {
            let keep = map.len() * 2;
            map.shrink_to(keep);
        }
        gone
    }

    /// Empties every shard; the values are dropped with no shard locked.
    pub(in crate::fs) fn clear(&self) {
        for shard in &self.0 {
            let taken = std::mem::take(&mut *shard.write());
            drop(taken);
        }
    }

    /// Entries for which there is room.
    pub(super) fn capacity(&self) -> usize {
        self.0.iter().map(|shard| shard.read().capacity()).sum()
    }
}

/// Whether a map has far more room than it needs.
pub(super) fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > SMALL && len < capacity / 8
}
