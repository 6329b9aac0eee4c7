//! One queue's way from available to used.
//!
//! A request is taken with the ring locked, handled with nothing locked, and
//! handed back with the ring locked again. A [`Completion`] owns all that the
//! handing back needs, so it may travel to another thread. A [`Gate`] counts
//! the requests between the two, so that a stopping queue can be waited for;
//! one that comes back after the wait was given up is dropped, because the
//! ring may belong to somebody else by then.
//!
//! Lock order: ring, then gate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::atomic::GuestMemoryLoadGuard;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(super) type MemoryGuard = GuestMemoryLoadGuard<GuestMemoryMmap>;
pub(super) type Vring = VringMutex<Memory>;
pub(super) type Chain = DescriptorChain<MemoryGuard>;

/// Counts the requests taken from a ring and not yet handed back.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    in_flight: u32,
    /// Raised when requests in flight are given up.
    epoch: u64,
}

impl Gate {
    fn enter(&self) -> u64 {
        let mut state = self.state.lock();
        state.in_flight += 1;
        state.epoch
    }

    /// Runs `hand_back` unless the request was given up.
    fn leave(&self, epoch: u64, hand_back: impl FnOnce()) {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return;
        }
        hand_back();
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.in_flight == 0 {
            self.idle.notify_all();
        }
    }

    /// Waits until nothing is in flight; after `patience` gives up whatever
    /// still is and answers how many those were.
    pub(super) fn drain(&self, patience: Duration) -> u32 {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.in_flight > 0 {
            if self.idle.wait_until(&mut state, deadline).timed_out() && state.in_flight > 0 {
                state.epoch += 1;
                return std::mem::take(&mut state.in_flight);
            }
        }
        0
    }
}

/// Hands a request's descriptors back to the guest, at the latest when
/// dropped.
pub(super) struct Completion {
    vring: Vring,
    gate: Arc<Gate>,
    epoch: u64,
    head: u16,
    used: u32,
}

impl Completion {
    /// Hands back with `used` bytes written.
    pub(super) fn complete(mut self, used: u32) {
        self.used = used;
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let mut ring = self.vring.get_mut();
        self.gate.leave(self.epoch, || {
            // Errors: the ring lies in memory that the VMM took away, or the
            // guest named a descriptor that does not exist. Nobody to tell.
            if let Err(error) = ring.add_used(self.head, self.used) {
                tracing::debug!(head = self.head, %error, "cannot hand back a request");
                return;
            }
            if ring.needs_notification().unwrap_or(true)
                && let Err(error) = ring.signal_used_queue()
            {
                tracing::debug!(%error, "cannot signal the guest");
            }
        });
    }
}

/// What taking from a ring came to.
pub(super) enum Taken {
    /// A request.
    Request(Chain, Completion),
    /// Nothing more is available, or the ring was stopped.
    Nothing,
    /// The ring is not what a guest that keeps to the rules would make it.
    Broken(Error),
}

/// Takes the next request off the ring, if it is enabled and started.
pub(super) fn take(vring: &Vring, memory: &Memory, gate: &Arc<Gate>) -> Taken {
    let mut ring = vring.get_mut();
    if !ring.is_enabled() || !ring.get_queue().ready() {
        return Taken::Nothing;
    }
    let next = match ring.get_queue_mut().iter(memory.memory()) {
        Ok(mut available) => available.next(),
        Err(error) => return Taken::Broken(error),
    };
    match next {
        None => Taken::Nothing,
        Some(chain) => {
            // Under the ring's lock: who stops the ring afterwards sees it.
            let completion = Completion {
                vring: vring.clone(),
                gate: gate.clone(),
                epoch: gate.enter(),
                head: chain.head_index(),
                used: 0,
            };
            Taken::Request(chain, completion)
        }
    }
}

/// Whether a started ring holds requests. A broken one does: taking from it
/// will tell.
pub(super) fn is_waiting(vring: &Vring, memory: &Memory) -> bool {
    let ring = vring.get_ref();
    let queue = ring.get_queue();
    ring.is_enabled()
        && queue.ready()
        && queue
            .avail_idx(&*memory.memory(), Ordering::Acquire)
            .map_or(true, |index| index.0 != queue.next_avail())
}

/// Whether a ring is enabled and started.
pub(super) fn is_running(vring: &Vring) -> bool {
    let ring = vring.get_ref();
    ring.is_enabled() && ring.get_queue().ready()
}

/// Descriptors of a ring.
pub(super) fn size(vring: &Vring) -> usize {
    usize::from(vring.get_ref().get_queue().size())
}

/// Address and bytes of descriptor table, available and used ring.
pub(super) fn rings(vring: &Vring) -> [(u64, u32); 3] {
    let ring = vring.get_ref();
    let queue = ring.get_queue();
    let size = u32::from(queue.size());
    [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ]
}

/// Lets the guest kick again. True if it has added requests meanwhile, which
/// no kick will announce.
pub(super) fn listen(vring: &Vring) -> Result<bool, Error> {
    let mut ring = vring.get_mut();
    if !ring.is_enabled() || !ring.get_queue().ready() {
        return Ok(false);
    }
    ring.enable_notification()
}

/// Asks the guest not to kick while its ring is being emptied.
pub(super) fn hush(vring: &Vring) -> Result<(), Error> {
    let mut ring = vring.get_mut();
    if !ring.is_enabled() || !ring.get_queue().ready() {
        return Ok(());
    }
    ring.disable_notification()
}
