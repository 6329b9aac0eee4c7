//! A ring as the framework sees it: it watches no kicks for us and has no
//! workers, but sets rings up.
//!
//! Law: the framework's message thread waits for no other thread's guest
//! memory longer than [`PATIENCE`], and touches none by itself.

use std::fs::File;
use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost_user_backend::{VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::bounded::within;
use super::ring::{Memory, Ring};

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
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Ring, Error> {
        Ring::create(memory, max_queue_size)
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.vring.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.vring.get_mut()
    }

    /// Called by the framework's workers, of which there are none; as are
    /// those of notifications.
    fn add_used(&self, _desc_index: u16, _len: u32) -> Result<(), Error> {
        Err(Error::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        Err(Error::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), Error> {
        Err(Error::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        Err(Error::QueueNotReady)
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.vring.set_enabled(enabled);
        self.0.enabled.store(enabled, Ordering::SeqCst);
        self.changed();
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        let set = self.set_up(|queue| {
            queue.try_set_desc_table_address(GuestAddress(table))?;
            queue.try_set_avail_ring_address(GuestAddress(available))?;
            queue.try_set_used_ring_address(GuestAddress(used))
        });
        set.unwrap_or(Err(Error::QueueNotReady))
    }

    fn queue_next_avail(&self) -> u16 {
        self.set_up(|queue| queue.next_avail()).unwrap_or(0)
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.set_up(|queue| queue.set_next_avail(base));
    }

    fn set_queue_next_used(&self, index: u16) {
        self.set_up(|queue| queue.set_next_used(index));
    }

    /// Read by a thread that may be left there.
    fn queue_used_idx(&self) -> Result<u16, Error> {
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

    fn set_queue_size(&self, descriptors: u16) {
        self.set_up(|queue| queue.set_size(descriptors));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.set_up(|queue| queue.set_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.vring.set_queue_ready(ready);
        self.0.started.store(ready, Ordering::SeqCst);
        self.changed();
    }

    /// The framework keeps a duplicate: it asks whether there is one.
    fn set_kick(&self, kick: Option<File>) {
        let duplicate = kick.as_ref().map(File::try_clone).transpose();
        match duplicate {
            Ok(duplicate) => {
                self.hear(kick);
                self.0.vring.set_kick(duplicate);
            }
            Err(error) => {
                tracing::warn!(%error, "a queue's kicks cannot be heard");
                self.hear(None);
                self.0.vring.set_kick(kick);
            }
        }
        self.changed();
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.is_running())
    }

    fn set_call(&self, call: Option<File>) {
        self.signal_by(call);
    }

    fn set_err(&self, error: Option<File>) {
        self.0.vring.set_err(error);
    }
}
