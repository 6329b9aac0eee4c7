//! One queue's ring, with its kicks and a count of what is in flight.
//!
//! A request is taken with the ring locked, handled with nothing locked, and
//! handed back with the ring locked again; who leads the queue does the last
//! and the first in one go. A [`Ticket`] is the right to hand a request back.
//! A [`Completion`] is a ticket that may travel to another thread, and hands
//! back at the latest when dropped. One that comes back after the wait for it
//! was given up is dropped, because the ring may belong to somebody else by
//! then.
//!
//! The guest is signalled once for several requests as long as more are
//! waiting in its ring, but not much later than for the first of them.
//!
//! Laws: the ring's memory is the VMM's, which may keep a thread that touches
//! it for ever, so who stops, resets or closes the ring waits for its lock no
//! longer than for a request; nothing is written to the VMM's descriptors with
//! the ring locked; a signal that was decided on counts as in flight until it
//! is sent, lest the guest miss it when the ring is stopped.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap,
};

use super::call::Call;
use super::flight::Flight;
use super::kicks::Kicks;

pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(super) type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// Requests handed back before the guest is told of the first, if it has more
/// in its ring.
const MAX_UNSIGNALLED: u32 = 4;
/// How long who has given up waits once more for the ring's lock: nobody has
/// it for long but a thread that the VMM's memory keeps.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// A queue's ring. Clones are the same ring.
#[derive(Clone)]
pub(crate) struct Ring(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) queue: Mutex<Queue>,
    pub(super) enabled: AtomicBool,
    pub(super) started: AtomicBool,
    pub(super) memory: Memory,
    kicks: Arc<Kicks>,
    /// Its number.
    index: usize,
    /// What they hear of the guest.
    pub(super) kick: Mutex<Option<File>>,
    call: ArcSwapOption<Call>,
    /// Requests taken and not yet handed back, and signals not yet sent.
    flight: Flight,
    /// Requests handed back of which the guest was not told. Changed with the
    /// ring locked.
    unsignalled: AtomicU32,
    /// Its client has gone: nothing is handed back any more.
    closed: AtomicBool,
}

/// The right to hand a request back.
#[derive(Debug)]
#[must_use = "the guest waits for its request"]
pub(crate) struct Ticket {
    epoch: u32,
    head: u16,
}

/// A request that is done, and the bytes written to it.
#[derive(Debug)]
#[must_use = "the guest waits for its request"]
pub(crate) struct Done {
    pub(super) ticket: Ticket,
    pub(super) used: u32,
}

/// A [`Ticket`] with its ring.
pub(crate) struct Completion {
    ring: Ring,
    done: Option<Done>,
}

impl Completion {
    /// Hands back with `used` bytes written.
    pub(crate) fn complete(mut self, used: u32) {
        if let Some(done) = &mut self.done {
            done.used = used;
        }
    }
}

impl Completion {
    /// Whether the guest still waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        let done = self.done.as_ref();
        done.is_some_and(|done| self.ring.awaits(&done.ticket))
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            self.ring.hand_back(done);
        }
    }
}

/// What taking from a ring came to.
pub(crate) enum Taken<'m> {
    /// A request.
    Request(Chain<'m>, Ticket),
    /// Nothing more is available, or the ring was stopped.
    Nothing,
    /// Nothing yet: the memory is not the guest's any more.
    Outdated,
    /// The ring is not what a guest that keeps to the rules would make it.
    Broken(Error),
}

/// A signal that was decided on, of this epoch.
#[must_use = "the guest waits for it"]
struct Signal(u32);

/// Sets the event index to one that the guest has just passed, and comes to
/// again after 65,535 requests (virtio 1.3, 2.7.10).
fn pass_event_index(queue: &Queue, memory: &GuestMemoryMmap) -> Result<(), Error> {
    let passed = queue.next_avail().wrapping_sub(1);
    let avail_event = 4 + 8 * u64::from(queue.size());
    let address = GuestAddress(queue.used_ring()).checked_add(avail_event);
    let address = address.ok_or(Error::AddressOverflow)?;
    let stored = memory.store(passed.to_le(), address, Ordering::Relaxed);
    stored.map_err(Error::GuestMemory)
}

impl Ring {
    /// The ring of the queue `index`, of at most `max_size` descriptors in
    /// `memory`, not started. Whoever is woken by `kicks` serves it.
    ///
    /// # Errors
    ///
    /// When the size is no ring's.
    pub(crate) fn new(
        index: usize,
        kicks: Arc<Kicks>,
        memory: Memory,
        max_size: u16,
    ) -> Result<Ring, Error> {
        let mut queue = Queue::new(max_size)?;
        // Whether it is started is known without its lock.
        queue.set_ready(true);
        Ok(Ring(Arc::new(Inner {
            queue: Mutex::new(queue),
            enabled: AtomicBool::new(false),
            started: AtomicBool::new(false),
            memory,
            kicks,
            index,
            kick: Mutex::new(None),
            call: ArcSwapOption::empty(),
            flight: Flight::default(),
            unsignalled: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        })))
    }

    pub(crate) fn locked(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock()
    }

    /// Hands back what is done, and takes the next request, if the ring is
    /// enabled and started.
    /// Unless `at_once`, the guest may be told a little later.
    pub(crate) fn turn<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        done: Option<Done>,
        at_once: bool,
    ) -> Taken<'m> {
        let (taken, signal) = {
            let mut queue = self.locked();
            // With the ring locked: memory that is replaced is not withdrawn yet.
            let current = self.0.memory.memory();
            if let Some(done) = done {
                self.put_back(&mut queue, &current, done);
            }
            let taken = match std::ptr::eq(&*current, memory) {
                true => self.take(&mut queue, memory),
                false => Taken::Outdated,
            };
            let more = matches!(taken, Taken::Request(..));
            let is_time =
                at_once || !more || self.0.unsignalled.load(Ordering::Relaxed) >= MAX_UNSIGNALLED;
            let signal = || self.signal_used(&mut queue, &current);
            (taken, is_time.then(signal).flatten())
        };
        self.send(signal);
        taken
    }

    fn take<'m>(&self, queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Taken<'m> {
        if !self.is_running() {
            return Taken::Nothing;
        }
        match queue.iter(memory).map(|mut available| available.next()) {
            Ok(Some(chain)) => {
                // With the ring locked: who stops it afterwards sees it.
                let ticket = Ticket {
                    epoch: self.0.flight.enter(),
                    head: chain.head_index(),
                };
                Taken::Request(chain, ticket)
            }
            Ok(None) => Taken::Nothing,
            Err(error) => Taken::Broken(error),
        }
    }

    /// Hands back one request and tells the guest.
    pub(super) fn hand_back(&self, done: Done) {
        if !self.awaits(&done.ticket) {
            return self.0.flight.leave(done.ticket.epoch);
        }
        let signal = {
            let mut queue = self.locked();
            let memory = self.0.memory.memory();
            self.put_back(&mut queue, &memory, done);
            self.signal_used(&mut queue, &memory)
        };
        self.send(signal);
    }

    /// Tells the guest of what it was not told.
    pub(super) fn signal_rest(&self) {
        if self.0.unsignalled.load(Ordering::Relaxed) > 0 {
            let signal = {
                let mut queue = self.locked();
                self.signal_used(&mut queue, &self.0.memory.memory())
            };
            self.send(signal);
        }
    }

    /// For a request that is answered by another thread.
    pub(crate) fn completion(&self, ticket: Ticket) -> Completion {
        Completion {
            ring: self.clone(),
            done: Some(Done { ticket, used: 0 }),
        }
    }

    /// Whether a request was not given up, nor its client gone.
    pub(super) fn awaits(&self, ticket: &Ticket) -> bool {
        self.0.flight.is_of(ticket.epoch) && !self.0.closed.load(Ordering::SeqCst)
    }

    fn put_back(&self, queue: &mut Queue, memory: &GuestMemoryMmap, done: Done) {
        let Done { ticket, used } = done;
        if !self.awaits(&ticket) {
            return self.0.flight.leave(ticket.epoch);
        }
        // Errors: the ring lies in memory that the VMM took away, or the
        // guest named a descriptor that does not exist. Nobody waits for it.
        match queue.add_used(memory, ticket.head, used) {
            Ok(()) => {
                let unsignalled = self.0.unsignalled.load(Ordering::Relaxed);
                self.0.unsignalled.store(unsignalled + 1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(head = ticket.head, %error, "cannot hand back a request");
            }
        }
        self.0.flight.leave(ticket.epoch);
    }

    /// With the ring locked; what it answers is sent with nothing locked.
    fn signal_used(&self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Option<Signal> {
        if self.0.unsignalled.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.0.unsignalled.store(0, Ordering::Relaxed);
        let wanted = queue.needs_notification(memory).unwrap_or(true);
        wanted.then(|| Signal(self.0.flight.enter()))
    }

    fn send(&self, signal: Option<Signal>) {
        let Some(Signal(epoch)) = signal else {
            return;
        };
        if let Some(call) = &*self.0.call.load()
            && let Err(error) = call.signal()
        {
            tracing::debug!(%error, "cannot signal the guest");
        }
        self.0.flight.leave(epoch);
    }

    /// Waits until nothing is in flight; at `deadline` gives up whatever still
    /// is and answers how many those were.
    pub(crate) fn drain(&self, deadline: Instant) -> u32 {
        while self.0.flight.has_landed_by(deadline) {
            // Who found the ring running before it was stopped lets go of it
            // before us, and its request is counted.
            match self.0.queue.try_lock_until(deadline) {
                Some(_) if self.0.flight.count() == 0 => return 0,
                Some(_) => {}
                None => break,
            }
        }
        self.give_up()
    }

    /// What is in flight is not waited for any more; how many those are, the
    /// thread counted that has the ring locked and cannot let go of it.
    pub(crate) fn give_up(&self) -> u32 {
        // Without the lock as well: its owner may be stuck in guest memory.
        let locked = self.0.queue.try_lock_for(LAST_WAIT);
        self.0.flight.give_up() + u32::from(locked.is_none())
    }

    /// Waits until nobody has the ring locked who may still use memory that
    /// was replaced.
    pub(super) fn pass(&self) {
        drop(self.0.queue.try_lock_for(LAST_WAIT));
    }

    /// Its client has gone.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.free_senders();
        self.changed();
    }

    /// Wakes threads that the VMM keeps in a signal.
    pub(crate) fn free_senders(&self) {
        if let Some(call) = &*self.0.call.load() {
            call.free();
        }
    }

    /// Requests taken and not yet handed back.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u32 {
        self.0.flight.count()
    }

    /// Whether a started ring holds requests. A broken one does: taking from
    /// it will tell.
    pub(crate) fn is_waiting(&self) -> bool {
        let queue = self.locked();
        self.is_running()
            && queue
                .avail_idx(&*self.0.memory.memory(), Ordering::Acquire)
                .map_or(true, |index| index.0 != queue.next_avail())
    }

    /// Whether it is enabled and started.
    pub(super) fn is_running(&self) -> bool {
        self.0.enabled.load(Ordering::SeqCst) && self.0.started.load(Ordering::SeqCst)
    }

    /// Its descriptors.
    pub(super) fn size(&self) -> usize {
        usize::from(self.locked().size())
    }

    /// Address and bytes of descriptor table, available and used ring.
    pub(super) fn parts(&self) -> [(u64, u32); 3] {
        let queue = self.locked();
        let size = u32::from(queue.size());
        [
            (queue.desc_table(), 16 * size),
            (queue.avail_ring(), 6 + 2 * size),
            (queue.used_ring(), 6 + 8 * size),
        ]
    }

    /// Lets the guest kick again. True if it has added requests meanwhile,
    /// which no kick will announce.
    pub(crate) fn enable_kicks(&self) -> Result<bool, Error> {
        let mut queue = self.locked();
        match self.is_running() {
            true => queue.enable_notification(&*self.0.memory.memory()),
            false => Ok(false),
        }
    }

    /// Asks the guest not to kick while a thread empties its ring. A thread that
    /// does not lead the queue calls [`enable_kicks`](Self::enable_kicks) afterwards.
    pub(crate) fn disable_kicks(&self) -> Result<(), Error> {
        let mut queue = self.locked();
        if !self.is_running() {
            return Ok(());
        }
        let memory = self.0.memory.memory();
        match queue.state().event_idx_enabled {
            // The library's call does nothing with event indexes.
            true => pass_event_index(&queue, &memory),
            false => queue.disable_notification(&*memory),
        }
    }

    /// Somebody should look whether there is something to do.
    pub(crate) fn changed(&self) {
        self.0.kicks.ring(self.0.index);
    }

    /// From now on this descriptor signals the guest, and no other.
    pub(crate) fn set_call(&self, call: Option<File>) {
        let call = call.and_then(|call| match Call::new(call) {
            Ok(call) => Some(Arc::new(call)),
            Err(error) => {
                tracing::warn!(%error, "a queue's guest cannot be signalled");
                None
            }
        });
        if let Some(old) = self.0.call.swap(call) {
            old.free();
        }
    }

    /// From now on this kick descriptor is watched, and no other.
    pub(super) fn watch_kick(&self, kick: Option<File>) {
        let mut heard = self.0.kick.lock();
        if let Some(old) = heard.take() {
            self.0.kicks.forget(old.as_fd());
        }
        if let Some(kick) = &kick
            && let Err(error) = self.0.kicks.watch(self.0.index, kick.as_fd())
        {
            tracing::warn!(%error, "a queue's kicks cannot be heard");
        }
        *heard = kick;
    }
}
