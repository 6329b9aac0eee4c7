//! The driver's side of a split virtqueue (virtio 1.3, section 2.7).
//!
//! Owns the three rings in guest memory and, outside it, a private record of
//! every chain in flight. Law: what the device writes (used index, ids,
//! lengths, flags) decides nothing about memory; free lists and chain lengths
//! come from the private record only.
//!
//! Orderings, in one place. The device's side is another process, so each
//! pairs with the device's own barrier:
//! - avail index: `Release` store after descriptors and ring entry are
//!   written; pairs with the device's acquire load of it.
//! - used index: `Acquire` load before used elements and buffers are read;
//!   pairs with the device's release store.
//! - kick: publish avail index, full fence, read the device's `avail_event`.
//!   The device writes `avail_event`, full fence, re-reads the avail index.
//!   One of the two must see the other.
//! - call: write `used_event`, full fence, re-read the used index. The device
//!   writes the used index, full fence, reads `used_event`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(any(test, feature = "test-utils"))]
use super::RawDescriptor;
use super::{Chain, Completion, DmaBuf, GuestAddr, GuestMemory, Segment, SubmitError};

pub(super) const F_NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const F_WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const F_INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Descriptors in one indirect table.
const TABLE_ENTRIES: u16 = 8;

/// An entry of the descriptor table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct UsedElement {
    pub(super) id: u32,
    pub(super) len: u32,
}
const _: () = assert!(size_of::<UsedElement>() == 8);

/// Where the parts of a queue lie in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Descriptor table, 16 bytes an entry.
    pub(crate) descriptors: GuestAddr,
    /// Driver area.
    pub(crate) avail: GuestAddr,
    /// Device area.
    pub(crate) used: GuestAddr,
    tables: GuestAddr,
    bytes: u64,
}

impl Layout {
    fn new(base: GuestAddr, size: u16) -> Layout {
        let size = u64::from(size);
        let avail = base.plus(16 * size);
        // flags, idx, ring, used_event
        let used = GuestAddr((avail.0 + 6 + 2 * size).next_multiple_of(64));
        // flags, idx, ring, avail_event
        let tables = GuestAddr((used.0 + 6 + 8 * size).next_multiple_of(64));
        let end = tables.plus(size * u64::from(TABLE_ENTRIES) * 16);
        Layout {
            descriptors: base,
            avail,
            used,
            tables,
            bytes: end.0 - base.0,
        }
    }

    pub(super) fn avail_idx(&self) -> GuestAddr {
        self.avail.plus(2)
    }

    pub(super) fn used_idx(&self) -> GuestAddr {
        self.used.plus(2)
    }

    pub(super) fn used_event(&self, size: u16) -> GuestAddr {
        self.avail.plus(4 + 2 * u64::from(size))
    }

    pub(super) fn avail_event(&self, size: u16) -> GuestAddr {
        self.used.plus(4 + 8 * u64::from(size))
    }
}

/// What was negotiated for the queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueFeatures {
    /// `VIRTIO_F_EVENT_IDX`.
    pub(crate) event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub(crate) indirect: bool,
}

/// The private record of a chain in flight, kept at its head's index.
#[derive(Clone, Copy, Default)]
struct QueuedChain {
    token: u32,
    /// Ring descriptors it holds; zero when the index heads no chain.
    descriptors: u16,
    writable_bytes: u64,
}

/// The driver's side of one queue.
pub(crate) struct SplitQueue {
    memory: Arc<GuestMemory>,
    rings: DmaBuf,
    layout: Layout,
    size: u16,
    features: QueueFeatures,
    /// Links of the free list and of chains in flight.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    flights: Vec<QueuedChain>,
    in_flight: u16,
    avail_idx: u16,
    last_used: u16,
    broken: Option<&'static str>,
}

impl SplitQueue {
    /// Allocates a queue of `size` entries, a power of two, and zeroes it.
    /// `None` when guest memory is too small.
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        features: QueueFeatures,
    ) -> Option<SplitQueue> {
        let bytes = Layout::new(GuestAddr(0), size).bytes;
        let rings = memory.alloc(usize::try_from(bytes).ok()?)?;
        let mut queue = SplitQueue {
            memory: Arc::clone(memory),
            layout: Layout::new(rings.addr(), size),
            rings,
            size,
            features,
            next: Vec::new(),
            free_head: 0,
            free: size,
            flights: Vec::new(),
            in_flight: 0,
            avail_idx: 0,
            last_used: 0,
            broken: None,
        };
        queue.reset();
        Some(queue)
    }

    /// Empties the queue, in the same place; for a device that was reset and
    /// no longer looks at it.
    pub(crate) fn reset(&mut self) {
        self.memory
            .write(self.rings.addr(), &vec![0; self.rings.len()]);
        self.next = (1..=self.size).collect();
        self.flights = vec![QueuedChain::default(); usize::from(self.size)];
        (self.free_head, self.free, self.in_flight) = (0, self.size, 0);
        (self.avail_idx, self.last_used) = (0, 0);
        self.broken = None;
        self.disarm();
    }

    /// Where the rings are.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory it is in.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Its number of entries.
    #[cfg(test)]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Queues `chain`; returns whether the device wants a kick.
    pub(crate) fn push(&mut self, chain: Chain<'_>, token: u32) -> Result<bool, SubmitError> {
        self.check()?;
        let count = chain.readable.len() + chain.writable.len();
        let indirect = self.features.indirect && count <= usize::from(TABLE_ENTRIES);
        if count == 0 || (count > usize::from(self.size) && !indirect) {
            return Err(SubmitError::TooLong);
        }
        // Direct chains are one read less for the device; indirect ones save
        // ring entries. So be direct until the ring is half full.
        let crowded = self.free < self.size / 2 || count > usize::from(self.free);
        if indirect && crowded && count > 1 && self.free > 0 {
            return Ok(self.push_indirect(chain, count as u16, token));
        }
        if count > usize::from(self.free) {
            return Err(SubmitError::Full);
        }
        Ok(self.push_direct(chain, count as u16, token))
    }

    fn push_direct(&mut self, chain: Chain<'_>, count: u16, token: u32) -> bool {
        let head = self.free_head;
        let mut index = head;
        for (position, (segment, write)) in segments(chain).enumerate() {
            let next = self.next[usize::from(index)];
            let last = position + 1 == usize::from(count);
            let link = (!last).then_some(next);
            self.put(
                self.layout.descriptors,
                index,
                descriptor(segment, write, link),
            );
            index = next;
        }
        self.take(head, index, count, writable_bytes(chain), token)
    }

    fn push_indirect(&mut self, chain: Chain<'_>, count: u16, token: u32) -> bool {
        let head = self.free_head;
        let table_bytes = u64::from(TABLE_ENTRIES) * 16;
        let table = self.layout.tables.plus(u64::from(head) * table_bytes);
        for (position, (segment, write)) in (0u16..).zip(segments(chain)) {
            let link = (position + 1 < count).then_some(position + 1);
            self.put(table, position, descriptor(segment, write, link));
        }
        let len = u32::from(count) * 16;
        let whole = Descriptor {
            addr: table.0,
            len,
            flags: F_INDIRECT,
            next: 0,
        };
        self.put(self.layout.descriptors, head, whole);
        let after = self.next[usize::from(head)];
        self.take(head, after, 1, writable_bytes(chain), token)
    }

    /// Queues descriptors as they are, for tests of the device.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn push_raw(
        &mut self,
        descriptors: &[RawDescriptor],
        token: u32,
    ) -> Result<bool, SubmitError> {
        self.check()?;
        if descriptors.is_empty() || descriptors.len() > usize::from(self.size) {
            return Err(SubmitError::TooLong);
        }
        if descriptors.len() > usize::from(self.free) {
            return Err(SubmitError::Full);
        }
        let indexes: Vec<u16> = std::iter::successors(Some(self.free_head), |&index| {
            self.next.get(usize::from(index)).copied()
        })
        .take(descriptors.len() + 1)
        .collect();
        let mut writable_bytes = 0;
        for (raw, &index) in descriptors.iter().zip(&indexes) {
            let next = indexes[..descriptors.len()].get(usize::from(raw.next));
            let next = next.copied().unwrap_or(raw.next);
            let RawDescriptor {
                addr, len, flags, ..
            } = *raw;
            self.put(
                self.layout.descriptors,
                index,
                Descriptor {
                    addr,
                    len,
                    flags,
                    next,
                },
            );
            writable_bytes += u64::from(len);
        }
        let after = indexes[descriptors.len()];
        Ok(self.take(
            self.free_head,
            after,
            descriptors.len() as u16,
            writable_bytes,
            token,
        ))
    }

    /// Records the chain, publishes it, says whether to kick.
    fn take(&mut self, head: u16, after: u16, count: u16, writable: u64, token: u32) -> bool {
        self.flights[usize::from(head)] = QueuedChain {
            token,
            descriptors: count,
            writable_bytes: writable,
        };
        self.free_head = after;
        self.free -= count;
        self.in_flight += 1;
        let slot = u64::from(self.avail_idx % self.size);
        // Relaxed: published by the index below.
        let entry = self.memory.word(self.layout.avail.plus(4 + 2 * slot));
        entry.store(head, Ordering::Relaxed);
        let old = self.avail_idx;
        self.avail_idx = old.wrapping_add(1);
        let index = self.memory.word(self.layout.avail_idx());
        index.store(self.avail_idx, Ordering::Release);
        // See the module's head: index first, then the device's wish.
        fence(Ordering::SeqCst);
        self.device_wants_kick(old)
    }

    fn device_wants_kick(&self, old: u16) -> bool {
        if self.features.event_idx {
            let event = self.memory.word(self.layout.avail_event(self.size));
            crossed(event.load(Ordering::Relaxed), self.avail_idx, old)
        } else {
            let flags = self.memory.word(self.layout.used);
            u32::from(flags.load(Ordering::Relaxed)) & VRING_USED_F_NO_NOTIFY == 0
        }
    }

    /// Takes the next completion, or `None` if there is none. Elements that
    /// name no chain in flight are skipped.
    pub(crate) fn pop(&mut self) -> Result<Option<Completion>, SubmitError> {
        loop {
            self.check()?;
            let index = self
                .memory
                .word(self.layout.used_idx())
                .load(Ordering::Acquire);
            let pending = index.wrapping_sub(self.last_used);
            if pending == 0 {
                return Ok(None);
            }
            if pending > self.size {
                self.broken = Some("the used index ran ahead of the ring");
                continue;
            }
            let slot = u64::from(self.last_used % self.size);
            let element: UsedElement = self.memory.load(self.layout.used.plus(4 + 8 * slot));
            self.last_used = self.last_used.wrapping_add(1);
            match self.retire(element) {
                Some(completion) => return Ok(Some(completion)),
                None => tracing::warn!(id = element.id, "the device used a chain not in flight"),
            }
        }
    }

    fn retire(&mut self, element: UsedElement) -> Option<Completion> {
        let head = u16::try_from(element.id).ok()?;
        let flight = std::mem::take(self.flights.get_mut(usize::from(head))?);
        if flight.descriptors == 0 {
            return None;
        }
        let mut tail = head;
        for _ in 1..flight.descriptors {
            tail = self.next[usize::from(tail)];
        }
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = head;
        self.free += flight.descriptors;
        self.in_flight -= 1;
        let overrun = u64::from(element.len) > flight.writable_bytes;
        Some(Completion {
            token: flight.token,
            written: element.len,
            overrun,
        })
    }

    /// Asks for a signal at the next completion. Returns false if one is there
    /// already, and then the caller must not sleep.
    pub(crate) fn arm(&mut self) -> bool {
        if self.features.event_idx {
            let event = self.memory.word(self.layout.used_event(self.size));
            event.store(self.last_used, Ordering::Relaxed);
        } else {
            self.memory
                .word(self.layout.avail)
                .store(0, Ordering::Relaxed);
        }
        // See the module's head: the wish first, then the index.
        fence(Ordering::SeqCst);
        self.memory
            .word(self.layout.used_idx())
            .load(Ordering::Acquire)
            == self.last_used
    }

    /// Takes the wish back. With `EVENT_IDX` it lapses by itself.
    pub(crate) fn disarm(&mut self) {
        if !self.features.event_idx {
            let flags = VRING_AVAIL_F_NO_INTERRUPT as u16;
            self.memory
                .word(self.layout.avail)
                .store(flags, Ordering::Relaxed);
        }
    }

    /// The used index as the device last wrote it.
    pub(crate) fn used_idx_addr(&self) -> GuestAddr {
        self.layout.used_idx()
    }

    /// How far completions were taken.
    pub(crate) fn last_used(&self) -> u16 {
        self.last_used
    }

    /// Chains the device holds.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    fn check(&self) -> Result<(), SubmitError> {
        self.broken
            .map_or(Ok(()), |why| Err(SubmitError::Broken(why)))
    }

    fn put(&self, table: GuestAddr, index: u16, descriptor: Descriptor) {
        self.memory
            .store(table.plus(16 * u64::from(index)), &descriptor);
    }
}

/// Whether an index moving from `old` to `new` passed `event` (virtio 1.3,
/// section 2.7.10).
pub(super) fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn segments(chain: Chain<'_>) -> impl Iterator<Item = (Segment, bool)> {
    let readable = chain.readable.iter().map(|s| (*s, false));
    readable.chain(chain.writable.iter().map(|s| (*s, true)))
}

fn writable_bytes(chain: Chain<'_>) -> u64 {
    chain.writable.iter().map(|s| u64::from(s.len)).sum()
}

fn descriptor(segment: Segment, write: bool, link: Option<u16>) -> Descriptor {
    let flags = if write { F_WRITE } else { 0 } | if link.is_some() { F_NEXT } else { 0 };
    Descriptor {
        addr: segment.addr.0,
        len: segment.len,
        flags,
        next: link.unwrap_or(0),
    }
}

/// Where a reader without the queue's lock looks for completions.
pub(crate) struct UsedWatch {
    memory: Arc<GuestMemory>,
    used_idx: GuestAddr,
    seen: AtomicU16,
}

impl UsedWatch {
    /// A watch on `queue`.
    pub(crate) fn new(queue: &SplitQueue) -> UsedWatch {
        UsedWatch {
            memory: Arc::clone(&queue.memory),
            used_idx: queue.used_idx_addr(),
            seen: AtomicU16::new(queue.last_used()),
        }
    }

    /// Remembers how far `queue` was reaped.
    pub(crate) fn update(&self, queue: &SplitQueue) {
        self.seen.store(queue.last_used(), Ordering::Relaxed);
    }

    /// Whether completions are waiting. A hint: the queue itself decides.
    pub(crate) fn has_used(&self) -> bool {
        let index = self.memory.word(self.used_idx).load(Ordering::Relaxed);
        index != self.seen.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "split_queue_test.rs"]
mod tests;
