//! One queue's ring: the framework's, with a doorbell and a count of what is
//! in flight.
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

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::doorbell::Doorbell;

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(super) type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;
type Guard<'a> = MutexGuard<'a, VringState<Memory>>;

/// Requests handed back before the guest is told of the first, if it has more
/// in its ring.
const MAX_UNTOLD: u32 = 4;

/// A queue's ring. Clones are the same ring.
#[derive(Clone)]
pub struct Ring(Arc<Inner>);

struct Inner {
    vring: VringMutex<Memory>,
    memory: Memory,
    bell: Doorbell,
    /// What the bell hears of the guest.
    kick: Mutex<Option<File>>,
    /// Requests taken and not yet handed back in the lower half; in the upper
    /// one the epoch, which is raised when requests are given up. Changed with
    /// the ring locked.
    flight: AtomicU64,
    /// Somebody waits for `idle`.
    draining: AtomicBool,
    idle: Condvar,
    /// Requests handed back of which the guest was not told. Changed with the
    /// ring locked.
    untold: AtomicU32,
}

/// The right to hand a request back.
#[derive(Debug)]
#[must_use = "the guest waits for its request"]
pub(super) struct Ticket {
    epoch: u32,
    head: u16,
}

/// A request that is done, and the bytes written to it.
#[derive(Debug)]
#[must_use = "the guest waits for its request"]
pub(super) struct Done {
    pub(super) ticket: Ticket,
    pub(super) used: u32,
}

/// A [`Ticket`] with its ring.
pub(super) struct Completion {
    ring: Ring,
    done: Option<Done>,
}

impl Completion {
    /// Hands back with `used` bytes written.
    pub(super) fn complete(mut self, used: u32) {
        if let Some(done) = &mut self.done {
            done.used = used;
        }
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
pub(super) enum Taken<'m> {
    /// A request.
    Request(Chain<'m>, Ticket),
    /// Nothing more is available, or the ring was stopped.
    Nothing,
    /// The ring is not what a guest that keeps to the rules would make it.
    Broken(Error),
}

thread_local! {
    /// The rings that this thread's framework makes, see [`Ring::made_by`].
    static MADE: RefCell<Option<Vec<Ring>>> = const { RefCell::new(None) };
}

fn is_running(vring: &VringState<Memory>) -> bool {
    vring.is_enabled() && vring.get_queue().ready()
}

impl Ring {
    /// Runs `make`, and answers the rings that it made as well: the framework
    /// makes them by itself and shows them to nobody.
    pub(super) fn made_by<T>(make: impl FnOnce() -> T) -> (T, Vec<Ring>) {
        MADE.set(Some(Vec::new()));
        let made = make();
        (made, MADE.take().unwrap_or_default())
    }

    fn locked(&self) -> Guard<'_> {
        self.0.vring.get_mut()
    }

    /// What its threads sleep on.
    pub(super) fn bell(&self) -> &Doorbell {
        &self.0.bell
    }

    /// Hands back what is done, and takes the next request, if the ring is
    /// enabled and started.
    /// Unless `at_once`, the guest may be told a little later.
    pub(super) fn turn<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        done: Option<Done>,
        at_once: bool,
    ) -> Taken<'m> {
        let mut vring = self.locked();
        if let Some(done) = done {
            self.put_back(&mut vring, memory, done);
        }
        let next = match is_running(&vring) {
            true => match vring.get_queue_mut().iter(memory) {
                Ok(mut available) => Ok(available.next()),
                Err(error) => Err(error),
            },
            false => Ok(None),
        };
        let taken = match next {
            Ok(Some(chain)) => {
                // Under the ring's lock: who stops the ring afterwards sees it.
                let ticket = Ticket {
                    epoch: self.enter(),
                    head: chain.head_index(),
                };
                Taken::Request(chain, ticket)
            }
            Ok(None) => Taken::Nothing,
            Err(error) => Taken::Broken(error),
        };
        let more = matches!(taken, Taken::Request(..));
        if at_once || !more || self.0.untold.load(Ordering::Relaxed) >= MAX_UNTOLD {
            self.tell(&mut vring, memory);
        }
        taken
    }

    /// Hands back one request and tells the guest.
    pub(super) fn hand_back(&self, done: Done) {
        let memory = self.0.memory.memory();
        let mut vring = self.locked();
        self.put_back(&mut vring, &memory, done);
        self.tell(&mut vring, &memory);
    }

    /// Tells the guest of what it was not told.
    pub(super) fn tell_rest(&self) {
        if self.0.untold.load(Ordering::Relaxed) > 0 {
            let memory = self.0.memory.memory();
            self.tell(&mut self.locked(), &memory);
        }
    }

    /// For a request that is answered by another thread.
    pub(super) fn completion(&self, ticket: Ticket) -> Completion {
        Completion {
            ring: self.clone(),
            done: Some(Done { ticket, used: 0 }),
        }
    }

    fn enter(&self) -> u32 {
        let flight = self.0.flight.load(Ordering::Relaxed);
        self.0.flight.store(flight + 1, Ordering::Relaxed);
        (flight >> 32) as u32
    }

    fn put_back(&self, vring: &mut Guard<'_>, memory: &GuestMemoryMmap, done: Done) {
        let Done { ticket, used } = done;
        let flight = self.0.flight.load(Ordering::Relaxed);
        let in_flight = flight as u32;
        if (flight >> 32) as u32 != ticket.epoch || in_flight == 0 {
            return;
        }
        self.0.flight.store(flight - 1, Ordering::Relaxed);
        if in_flight == 1 && self.0.draining.load(Ordering::Relaxed) {
            self.0.idle.notify_all();
        }
        // Errors: the ring lies in memory that the VMM took away, or the
        // guest named a descriptor that does not exist. Nobody to tell.
        match vring.get_queue_mut().add_used(memory, ticket.head, used) {
            Ok(()) => {
                let untold = self.0.untold.load(Ordering::Relaxed);
                self.0.untold.store(untold + 1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(head = ticket.head, %error, "cannot hand back a request");
            }
        }
    }

    fn tell(&self, vring: &mut Guard<'_>, memory: &GuestMemoryMmap) {
        if self.0.untold.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.0.untold.store(0, Ordering::Relaxed);
        let wanted = vring.get_queue_mut().needs_notification(memory);
        if wanted.unwrap_or(true)
            && let Err(error) = vring.signal_used_queue()
        {
            tracing::debug!(%error, "cannot signal the guest");
        }
    }

    /// Waits until nothing is in flight; after `patience` gives up whatever
    /// still is and answers how many those were.
    pub(super) fn drain(&self, patience: Duration) -> u32 {
        let deadline = Instant::now() + patience;
        let mut vring = self.locked();
        loop {
            let flight = self.0.flight.load(Ordering::Relaxed);
            let in_flight = flight as u32;
            let left = deadline.saturating_duration_since(Instant::now());
            if in_flight == 0 || left.is_zero() {
                self.0.draining.store(false, Ordering::Relaxed);
                if in_flight > 0 {
                    let epoch = (flight >> 32).wrapping_add(1) & u64::from(u32::MAX);
                    self.0.flight.store(epoch << 32, Ordering::Relaxed);
                }
                return in_flight;
            }
            self.0.draining.store(true, Ordering::Relaxed);
            vring = match self.0.idle.wait_timeout(vring, left) {
                Ok((vring, _)) => vring,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Requests taken and not yet handed back.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> u32 {
        let _vring = self.locked();
        self.0.flight.load(Ordering::Relaxed) as u32
    }

    /// Whether a started ring holds requests. A broken one does: taking from
    /// it will tell.
    pub(super) fn is_waiting(&self) -> bool {
        let vring = self.locked();
        let queue = vring.get_queue();
        is_running(&vring)
            && queue
                .avail_idx(&*self.0.memory.memory(), Ordering::Acquire)
                .map_or(true, |index| index.0 != queue.next_avail())
    }

    /// Whether it is enabled and started.
    pub(super) fn is_running(&self) -> bool {
        is_running(&self.locked())
    }

    /// Its descriptors.
    pub(super) fn size(&self) -> usize {
        usize::from(self.locked().get_queue().size())
    }

    /// Address and bytes of descriptor table, available and used ring.
    pub(super) fn parts(&self) -> [(u64, u32); 3] {
        let vring = self.locked();
        let queue = vring.get_queue();
        let size = u32::from(queue.size());
        [
            (queue.desc_table(), 16 * size),
            (queue.avail_ring(), 6 + 2 * size),
            (queue.used_ring(), 6 + 8 * size),
        ]
    }

    /// Lets the guest kick again. True if it has added requests meanwhile,
    /// which no kick will announce.
    pub(super) fn listen(&self) -> Result<bool, Error> {
        let mut vring = self.locked();
        match is_running(&vring) {
            true => vring.enable_notification(),
            false => Ok(false),
        }
    }

    /// Asks the guest not to kick while its ring is being emptied.
    pub(super) fn hush(&self) -> Result<(), Error> {
        let mut vring = self.locked();
        match is_running(&vring) {
            true => vring.disable_notification(),
            false => Ok(()),
        }
    }

    /// Somebody should look whether there is something to do.
    fn changed(&self) {
        self.0.bell.ring();
    }

    /// From now on this kick descriptor is heard, and no other.
    fn hear(&self, kick: Option<File>) {
        let mut heard = self.0.kick.lock();
        if let Some(old) = heard.take() {
            self.0.bell.forget(old.as_fd());
        }
        if let Some(kick) = &kick
            && let Err(error) = self.0.bell.watch(kick.as_fd())
        {
            tracing::warn!(%error, "a queue's kicks cannot be heard");
        }
        *heard = kick;
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = Guard<'a>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = Guard<'a>;
}

/// What the framework sees. It watches no kicks for us and has no workers.
impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Ring, Error> {
        let ring = Ring(Arc::new(Inner {
            vring: VringMutex::new(memory.clone(), max_queue_size)?,
            memory,
            // The trait has no better name for it.
            bell: Doorbell::new().map_err(|_| Error::QueueNotReady)?,
            kick: Mutex::new(None),
            flight: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            idle: Condvar::new(),
            untold: AtomicU32::new(0),
        }));
        MADE.with_borrow_mut(|made| made.iter_mut().for_each(|made| made.push(ring.clone())));
        Ok(ring)
    }

    fn get_ref(&self) -> Guard<'_> {
        self.0.vring.get_ref()
    }

    fn get_mut(&self) -> Guard<'_> {
        self.locked()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.vring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.vring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.vring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.vring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.vring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.vring.set_enabled(enabled);
        self.changed();
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        self.0.vring.set_queue_info(table, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.vring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.vring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.vring.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.vring.queue_used_idx()
    }

    fn set_queue_size(&self, descriptors: u16) {
        self.0.vring.set_queue_size(descriptors);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.vring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.vring.set_queue_ready(ready);
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
        Ok(self.0.vring.get_ref().is_enabled())
    }

    fn set_call(&self, call: Option<File>) {
        self.0.vring.set_call(call);
    }

    fn set_err(&self, error: Option<File>) {
        self.0.vring.set_err(error);
    }
}
