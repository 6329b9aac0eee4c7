//! Sharded maps from ids that a counter gives out.

use parking_lot::RwLock;

use super::slots::Slots;

pub(super) const SHARDS: usize = 64;

/// A map from ids, each put in once.
#[derive(Debug)]
pub(in crate::fs) struct IdMap<V>(Slots<(u64, V)>);

impl<V> IdMap<V> {
    pub(in crate::fs) fn get(&self, id: u64) -> Option<&V> {
        let (_, value) = self.0.run(spread(id)).find(|(known, _)| *known == id)?;
        Some(value)
    }

    /// The id has not been there before.
    pub(in crate::fs) fn insert(&mut self, id: u64, value: V) {
        self.0
            .insert(spread(id), (id, value), |(id, _)| spread(*id));
    }

    pub(in crate::fs) fn remove(&mut self, id: u64) -> Option<V> {
        let is_it = |(known, _): &(u64, V)| *known == id;
        let (_, value) = self.0.remove(spread(id), is_it, |(id, _)| spread(*id))?;
        Some(value)
    }
}

/// Spreads ids, which are ours and need no defence against chosen keys.
fn spread(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// `SHARDS` locked maps, chosen by the low bits of the id.
#[derive(Debug)]
pub(in crate::fs) struct IdShards<V>(Box<[RwLock<IdMap<V>>]>);

impl<V> IdShards<V> {
    pub(in crate::fs) fn new() -> Self {
        let shard = |number| RwLock::new(IdMap(Slots::new(number)));
        IdShards((0..SHARDS).map(shard).collect())
    }

    pub(in crate::fs) fn of(&self, id: u64) -> &RwLock<IdMap<V>> {
        // The remainder is below the number of shards.
        &self.0[(id % self.0.len() as u64) as usize]
    }

    /// Empties every shard; the values are dropped with no shard locked.
    pub(in crate::fs) fn clear(&self) {
        for shard in &self.0 {
            let taken = shard.write().0.take();
            drop(taken);
        }
    }

    /// Bytes that the maps take.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.iter().map(|shard| shard.read().0.heap_bytes()).sum()
    }
}
