//! `O_PATH` descriptors of nodes: a bounded cache for those known by handle,
//! and a budget for those that nothing but a descriptor keeps.
//!
//! The cache is a CLOCK per shard. A node remembers where its descriptor was
//! put, as a ticket; a ticket whose place has been given to another is void,
//! so eviction need not find the node. What a request uses it holds itself:
//! eviction closes a descriptor only after the last request is done with it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::budget::{Budget, Unit};

const SHARDS: usize = 16;

/// Largest number of places in a shard: a ticket has 16 bits for the place
/// and 48 for how often it has been given away, which never comes round.
const MAX_PLACES: usize = 1 << 16;

/// Where a node's descriptor was put; 0 for nowhere.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicU64);

/// Descriptors of the nodes of one guest.
#[derive(Debug)]
pub(in crate::fs) struct Descriptors {
    shards: Box<[Mutex<Ring>]>,
    /// Places in a shard.
    places: usize,
    /// Descriptors in the cache.
    cached: AtomicUsize,
    held: Arc<Budget>,
    /// Of both kinds together.
    total: usize,
}

#[derive(Debug, Default)]
struct Ring {
    places: Vec<Place>,
    free: Vec<u16>,
    hand: usize,
}

#[derive(Debug, Default)]
struct Place {
    /// Times this place was given away.
    turn: u64,
    used: bool,
    /// Number of the mount.
    mount: u16,
    fd: Option<Arc<OwnedFd>>,
}

impl Descriptors {
    /// At most `total` descriptors, `cached` of them in the cache, which gives
    /// way to those that are held.
    pub(super) fn new(cached: usize, total: usize) -> Arc<Descriptors> {
        Arc::new(Descriptors {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            places: (cached / SHARDS).min(MAX_PLACES),
            cached: AtomicUsize::new(0),
            held: Budget::new(total),
            total,
        })
    }

    /// The right to hold one descriptor for as long as a node lives.
    pub(super) fn hold(&self) -> Option<Unit> {
        let unit = self.held.take_one()?;
        if self.held() + self.cached() > self.total {
            let start = self.held();
            let evict = |at: usize| {
                let mut ring = self.shards.get((start + at) % SHARDS)?.lock();
                let (place, fd) = ring.evict()?;
                ring.free.push(place);
                Some(fd)
            };
            // Closed with no lock held.
            let gone = (0..SHARDS).find_map(evict);
            self.uncount(gone.iter().len());
        }
        Some(unit)
    }

    fn uncount(&self, gone: usize) {
        self.cached.fetch_sub(gone, Ordering::Relaxed);
    }

    /// Whether no more may be held.
    pub(super) fn is_spent(&self) -> bool {
        self.held.is_spent()
    }

    /// Descriptors held for good.
    pub(super) fn held(&self) -> usize {
        self.held.used()
    }

    /// Descriptors in the cache.
    pub(super) fn cached(&self) -> usize {
        self.cached.load(Ordering::Relaxed)
    }

    fn shard(&self, id: u64) -> &Mutex<Ring> {
        // The remainder is below the number of shards.
        &self.shards[(id % SHARDS as u64) as usize]
    }

    /// The descriptor of node `id`, if it is still there.
    pub(super) fn get(&self, id: u64, ticket: &Ticket) -> Option<Arc<OwnedFd>> {
        let (place, turn) = parts(ticket.0.load(Ordering::Relaxed))?;
        let mut ring = self.shard(id).lock();
        let place = ring.places.get_mut(place)?;
        if place.turn != turn {
            return None;
        }
        place.used = true;
        place.fd.clone()
    }

    /// Puts in a descriptor of node `id`, on the mount of this number, in the
    /// place of one that was not used for long.
    pub(super) fn put(&self, (id, mount): (u64, u16), ticket: &Ticket, fd: &Arc<OwnedFd>) {
        if self.places == 0 {
            return;
        }
        // Counted first, so that two who come together do not pass the limit.
        let before = self.cached.fetch_add(1, Ordering::Relaxed);
        let has_room = self.held() + before < self.total;
        let most = if has_room { self.places } else { 0 };
        let (number, evicted) = self.shard(id).lock().put(most, mount, fd);
        if number == 0 || evicted.is_some() {
            self.uncount(1);
        }
        // Closed with no lock held.
        drop(evicted);
        let before = ticket.0.swap(number, Ordering::Relaxed);
        // Two requests may have opened it at once.
        self.take_out(id, before);
    }

    /// Takes out the descriptor of node `id`, to be closed or held.
    pub(super) fn remove(&self, id: u64, ticket: &Ticket) -> Option<Arc<OwnedFd>> {
        let number = ticket.0.swap(0, Ordering::Relaxed);
        self.take_out(id, number)
    }

    fn take_out(&self, id: u64, number: u64) -> Option<Arc<OwnedFd>> {
        let (at, turn) = parts(number)?;
        let mut ring = self.shard(id).lock();
        let place = ring.places.get_mut(at).filter(|place| place.turn == turn)?;
        let fd = place.fd.take()?;
        place.used = false;
        ring.free.push(at as u16);
        self.uncount(1);
        Some(fd)
    }

    /// Closes half of what is cached, when the process runs out.
    pub(super) fn shed(&self) {
        for shard in &self.shards {
            let mut ring = shard.lock();
            let live = ring.places.len() - ring.free.len();
            let gone: Vec<_> = (0..live / 2).filter_map(|_| ring.evict()).collect();
            self.close(ring, gone);
        }
    }

    /// Closes what is of nodes on the mount of this number.
    pub(super) fn remove_of(&self, mount: u16) {
        self.remove_if(|place| place.mount == mount);
    }

    /// Closes all that is cached.
    pub(in crate::fs) fn empty(&self) {
        self.remove_if(|_| true);
    }

    fn remove_if(&self, is_wanted: impl Fn(&Place) -> bool) {
        for shard in &self.shards {
            let mut ring = shard.lock();
            let places = (0u16..).zip(&mut ring.places);
            let wanted = places.filter(|(_, place)| is_wanted(place));
            let gone = wanted.filter_map(|(at, place)| Some((at, place.fd.take()?)));
            let gone = gone.collect();
            self.close(ring, gone);
        }
    }

    /// Closes what was taken out of `ring`, with no lock held.
    fn close(&self, mut ring: MutexGuard<'_, Ring>, gone: Vec<(u16, Arc<OwnedFd>)>) {
        ring.free.extend(gone.iter().map(|(at, _)| *at));
        drop(ring);
        self.uncount(gone.len());
    }
}

impl Ring {
    /// The ticket's number, and what had to go. With `most` places, or in the
    /// place of another.
    fn put(&mut self, most: usize, mount: u16, fd: &Arc<OwnedFd>) -> (u64, Option<Arc<OwnedFd>>) {
        let mut evicted = None;
        let free = if most > 0 { self.free.pop() } else { None };
        let at = if let Some(free) = free {
            usize::from(free)
        } else if self.places.len() < most {
            self.places.push(Place::default());
            self.places.len() - 1
        } else if let Some((at, fd)) = self.evict() {
            evicted = Some(fd);
            usize::from(at)
        } else {
            // No place at all.
            return (0, None);
        };
        let Some(place) = self.places.get_mut(at) else {
            return (0, evicted);
        };
        place.turn += 1;
        place.used = false;
        place.mount = mount;
        place.fd = Some(Arc::clone(fd));
        (place.turn << 16 | at as u64, evicted)
    }

    /// Empties a place that was not used since the hand last passed. All may
    /// be in use, so the second round takes what it finds.
    fn evict(&mut self) -> Option<(u16, Arc<OwnedFd>)> {
        for _ in 0..=2 * self.places.len() {
            let at = self.hand;
            self.hand = if at + 1 < self.places.len() {
                at + 1
            } else {
                0
            };
            let place = self.places.get_mut(at)?;
            if std::mem::take(&mut place.used) {
                continue;
            }
            if let Some(fd) = place.fd.take() {
                return Some((at as u16, fd));
            }
        }
        None
    }
}

/// Place and turn of a ticket's number.
fn parts(number: u64) -> Option<(usize, u64)> {
    (number != 0).then_some(((number & 0xffff) as usize, number >> 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn fd() -> Arc<OwnedFd> {
        Arc::new(File::open("/").unwrap().into())
    }

    #[test]
    fn the_cache_keeps_what_is_used_and_never_more_than_it_may() {
        let cache = Descriptors::new(SHARDS * 4, 1000);
        let nodes: Vec<(u64, Ticket, Arc<OwnedFd>)> = (0..40)
            .map(|n| (n * SHARDS as u64, Ticket::default(), fd()))
            .collect();
        for (id, ticket, fd) in &nodes {
            cache.put((*id, 0), ticket, fd);
            assert!(cache.cached() <= 4);
            // The first is used between any two others.
            let first = &nodes[0];
            let found = cache.get(first.0, &first.1);
            assert!(Arc::ptr_eq(&found.unwrap(), &first.2), "node {id}");
        }
        let found: Vec<_> = nodes.iter().filter_map(|n| cache.get(n.0, &n.1)).collect();
        assert_eq!(found.len(), 4);
        for (id, ticket, fd) in &nodes {
            if let Some(found) = cache.get(*id, ticket) {
                assert!(Arc::ptr_eq(&found, fd), "only its own");
            }
        }
        let evicted = nodes.iter().find(|n| cache.get(n.0, &n.1).is_none());
        let evicted = evicted.unwrap();
        assert_eq!(Arc::strong_count(&evicted.2), 1, "closed");
        drop(found);
        for (id, ticket, fd) in &nodes {
            cache.remove(*id, ticket);
            assert_eq!(Arc::strong_count(fd), 1);
        }
        assert_eq!(cache.cached(), 0);
    }

    #[test]
    fn a_second_descriptor_of_a_node_takes_the_place_of_the_first() {
        let cache = Descriptors::new(SHARDS * 4, 1000);
        let (ticket, first, second) = (Ticket::default(), fd(), fd());
        cache.put((1, 0), &ticket, &first);
        cache.put((1, 0), &ticket, &second);
        assert_eq!((cache.cached(), Arc::strong_count(&first)), (1, 1));
        assert!(Arc::ptr_eq(&cache.get(1, &ticket).unwrap(), &second));
        cache.remove(1, &ticket);
        assert!(cache.get(1, &ticket).is_none());
    }

    #[test]
    fn shedding_halves_and_no_places_is_no_cache() {
        let cache = Descriptors::new(SHARDS * 8, 1000);
        let nodes: Vec<_> = (0..8).map(|_| (Ticket::default(), fd())).collect();
        for (ticket, fd) in &nodes {
            cache.put((0, 0), ticket, fd);
        }
        cache.shed();
        assert_eq!(cache.cached(), 4);
        for (ticket, fd) in &nodes {
            cache.put((0, 0), ticket, fd);
        }
        assert_eq!(cache.cached(), 8);
        let none = Descriptors::new(SHARDS - 1, 1);
        let (ticket, fd) = (Ticket::default(), fd());
        none.put((0, 0), &ticket, &fd);
        assert!(none.get(0, &ticket).is_none());
        let held = none.hold().unwrap();
        assert!(none.is_spent() && none.hold().is_none());
        drop(held);
        assert_eq!(none.held(), 0);
    }

    #[test]
    fn the_cache_gives_way_to_what_is_held() {
        let both = Descriptors::new(SHARDS * 8, 6);
        let nodes: Vec<_> = (0..9).map(|_| (Ticket::default(), fd())).collect();
        for (id, (ticket, fd)) in (0..).zip(&nodes) {
            both.put((id, 0), ticket, fd);
        }
        assert_eq!(both.cached(), 6);
        let held: Vec<_> = (0..4).map(|_| both.hold().unwrap()).collect();
        assert_eq!((both.held(), both.cached()), (4, 2));
        let open = nodes.iter().filter(|n| Arc::strong_count(&n.1) > 1);
        assert_eq!(open.count(), 2);
        for (id, (ticket, fd)) in (0..).zip(&nodes) {
            both.put((id, 0), ticket, fd);
            assert_eq!(both.cached(), 2);
        }
        let more: Vec<_> = (0..2).map(|_| both.hold().unwrap()).collect();
        assert_eq!((both.held(), both.cached()), (6, 0));
        assert!(both.hold().is_none());
        drop((held, more));
        both.put((0, 0), &nodes[0].0, &nodes[0].1);
        assert_eq!((both.held(), both.cached()), (0, 1));
    }

    #[test]
    fn what_is_on_one_mount_is_closed_and_nothing_else() {
        let cache = Descriptors::new(SHARDS * 8, 1000);
        let nodes: Vec<_> = (0..40).map(|_| (Ticket::default(), fd())).collect();
        for (id, (ticket, fd)) in (0..).zip(&nodes) {
            cache.put((id, (id % 3) as u16), ticket, fd);
        }
        cache.remove_of(1);
        assert_eq!(cache.cached(), 27);
        for (id, (ticket, fd)) in (0..).zip(&nodes) {
            let found = cache.get(id, ticket);
            assert_eq!(found.is_some(), id % 3 != 1, "node {id}");
            drop(found);
            assert_eq!(Arc::strong_count(fd), 1 + usize::from(id % 3 != 1));
        }
        // Their places are free for others.
        for (id, (ticket, fd)) in (0..).zip(&nodes) {
            cache.put((id, 1), ticket, fd);
        }
        assert_eq!(cache.cached(), 40);
        cache.remove_of(1);
        assert_eq!(cache.cached(), 0);
    }
}
