//! How the front end sets a ring up.
//!
//! Law: the thread of the front end's messages waits for no other thread's
//! guest memory longer than [`PATIENCE`], and touches none by itself.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::bounded::within;
use super::ring::Ring;

/// How long a thread may be stuck in the memory of a ring before the ring is
/// set up without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the used ring: its flags, which come before its index.
const FLAGS_BYTES: u64 = 2;

impl Ring {
    /// Sets the queue up, unless a thread is stuck in its memory: the VMM has
    /// to take that back first.
    fn set_up<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        match self.0.queue.try_lock_for(PATIENCE) {
            Some(mut queue) => Some(change(&mut queue)),
            None => {
                tracing::warn!("a ring is not set up: a thread is stuck in its memory");
                None
            }
        }
    }

    /// Whether requests may be taken from it, as far as SET_VRING_ENABLE goes.
    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.0.enabled.store(enabled, Ordering::SeqCst);
        self.changed();
    }

    /// Whether it is between SET_VRING_KICK and GET_VRING_BASE.
    pub(crate) fn set_started(&self, started: bool) {
        self.0.started.store(started, Ordering::SeqCst);
        self.changed();
    }

    /// Starts it, if it has a kick descriptor and is not started.
    pub(crate) fn start_if_kicked(&self) {
        if self.0.kick.lock().is_some() && !self.0.started.load(Ordering::SeqCst) {
            self.set_started(true);
        }
    }

    /// Where its parts are, guest physical addresses; which used index the guest
    /// sees there is taken over.
    ///
    /// # Errors
    ///
    /// An address that is not aligned, or cannot be read.
    pub(crate) fn set_addresses(&self, table: u64, avail: u64, used: u64) -> Result<(), Error> {
        let set = self.set_up(|queue| {
            queue.try_set_desc_table_address(GuestAddress(table))?;
            queue.try_set_avail_ring_address(GuestAddress(avail))?;
            queue.try_set_used_ring_address(GuestAddress(used))
        });
        set.unwrap_or(Err(Error::QueueNotReady))
    }

    /// Goes on behind what the guest was shown as used: SET_VRING_BASE tells only
    /// of what was taken.
    ///
    /// # Errors
    ///
    /// When that cannot be read.
    pub(crate) fn follow_used_index(&self) -> Result<(), Error> {
        let index = self.used_index()?;
        self.set_up(|queue| queue.set_next_used(index));
        Ok(())
    }

    /// Read by a thread that may be left there.
    fn used_index(&self) -> Result<u16, Error> {
        let used = self.set_up(|queue| queue.used_ring());
        let at = used.and_then(|used| used.checked_add(FLAGS_BYTES));
        let at = GuestAddress(at.ok_or(Error::AddressOverflow)?);
        let memory = self.0.memory.clone();
        let read = within(PATIENCE, "used-index", move || {
            memory.memory().load::<u16>(at, Ordering::Acquire)
        });
        let index = read.ok_or(Error::QueueNotReady)?;
        index.map(u16::from_le).map_err(Error::GuestMemory)
    }

    /// Which request is taken next.
    pub(crate) fn next_avail(&self) -> u16 {
        self.set_up(|queue| queue.next_avail()).unwrap_or(0)
    }

    pub(crate) fn set_next_avail(&self, base: u16) {
        self.set_up(|queue| queue.set_next_avail(base));
    }

    /// As many descriptors.
    pub(crate) fn set_size(&self, descriptors: u16) {
        self.set_up(|queue| queue.set_size(descriptors));
    }

    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub(crate) fn set_event_idx(&self, enabled: bool) {
        self.set_up(|queue| queue.set_event_idx(enabled));
    }

    /// From now on this kick descriptor is watched, and no other.
    pub(crate) fn set_kick(&self, kick: Option<File>) {
        self.watch_kick(kick);
        self.changed();
    }
}
