//! The table of one queue's requests: slots, completions, and the threads that
//! wait for them.
//!
//! A *slot* is a request's header, small arguments and small reply in guest
//! memory, and its state. No thread of its own takes completions. Of the
//! threads that wait on a table one is the *leader*: it sleeps on the queue's
//! call, takes completions for all *followers*, and promotes one of them when
//! its own request is done. So a lone request costs one kick and one wake-up.
//!
//! Laws:
//! - A slot, and every buffer its chain names, stays taken until the device
//!   gives the chain back or is reset; a request that ends before that, with
//!   the connection or the queue, leaves an orphan until then.
//! - Whenever threads wait and none of them leads, one was promoted.
//! - Lock order: gate, election, slot; the queue's own lock is never held
//!   while one of these is taken.
//! - The gate is held shared while a chain is queued and while completions
//!   are handed out, so that a device reset, which holds it alone, sees each
//!   slot either in flight in the old rings or not at all.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockWriteGuard};

use super::busy_poll::{BusyPoll, PollMode};
#[cfg(any(test, feature = "test-utils"))]
use crate::transport::RawDescriptor;
use crate::transport::memory::Lent;
use crate::transport::{
    Chain, Completion, DmaBuf, GuestAddr, Segment, SubmitError, Transport, Wake,
};

/// Bytes of a slot.
pub(super) const SLOT_BYTES: usize = 4096;
/// Bytes at its start for header and arguments; the reply has the rest.
pub(super) const REQUEST_BYTES: usize = 3072;
/// Bytes for the reply.
pub(super) const REPLY_BYTES: usize = SLOT_BYTES - REQUEST_BYTES;

/// How long a thread without a slot sleeps before it takes completions itself.
const SLOT_WAIT: Duration = Duration::from_millis(5);
/// Completions taken under one lock.
const BATCH: usize = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The device used the chain.
    Used {
        /// Bytes it says it wrote.
        written: u32,
        /// It says it wrote more than there was room for.
        overrun: bool,
    },
    /// The device is gone.
    Disconnected,
    /// The device was reset.
    Reset,
    /// The device broke the queue.
    Broken(&'static str),
}

/// Why a request was not started, or not waited for to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    TimedOut,
    Disconnected,
    TooLong,
    Broken(&'static str),
}

enum Phase {
    Free,
    InFlight,
    Done(Outcome),
    /// Given up by its caller; freed, with the buffers, when the device is done.
    Orphan(Vec<Lent>),
}

struct RequestSlot {
    phase: Mutex<RequestState>,
    wake: Condvar,
}

struct RequestState {
    phase: Phase,
    /// Its thread has to lead.
    promoted: bool,
}

/// Whether a thread leads, and the slots of those that follow.
#[derive(Default)]
struct Election {
    leader: bool,
    followers: Vec<u32>,
}

/// The requests of one queue.
pub(super) struct RequestTable {
    queue: usize,
    slots: Box<[RequestSlot]>,
    memory: DmaBuf,
    free: Mutex<Vec<u32>>,
    freed: Condvar,
    election: Mutex<Election>,
    gate: RwLock<()>,
    busy_poll: BusyPoll,
}

impl RequestTable {
    /// `None` when guest memory is too small.
    pub(super) fn new(
        transport: &dyn Transport,
        queue: usize,
        busy_poll: Duration,
    ) -> Option<RequestTable> {
        let count = transport.depth();
        let state = || RequestState {
            phase: Phase::Free,
            promoted: false,
        };
        Some(RequestTable {
            queue,
            memory: transport.memory().alloc(count.checked_mul(SLOT_BYTES)?)?,
            slots: (0..count)
                .map(|_| RequestSlot {
                    phase: Mutex::new(state()),
                    wake: Condvar::new(),
                })
                .collect(),
            free: Mutex::new((0..count as u32).rev().collect()),
            freed: Condvar::new(),
            election: Mutex::new(Election::default()),
            gate: RwLock::new(()),
            busy_poll: BusyPoll::new(busy_poll),
        })
    }

    /// Where a slot's request starts.
    pub(super) fn request_addr(&self, slot: u32) -> GuestAddr {
        self.memory.addr().plus(u64::from(slot) * SLOT_BYTES as u64)
    }

    /// Where its reply starts.
    pub(super) fn reply_addr(&self, slot: u32) -> GuestAddr {
        self.request_addr(slot).plus(REQUEST_BYTES as u64)
    }

    /// Takes a slot, waiting for one until `deadline`.
    pub(super) fn acquire(
        &self,
        transport: &dyn Transport,
        deadline: Instant,
    ) -> Result<u32, Halt> {
        loop {
            if let Some(slot) = self.free.lock().pop() {
                return Ok(slot);
            }
            self.make_room(transport, deadline)?;
        }
    }

    /// Waits a little for any completion.
    fn make_room(&self, transport: &dyn Transport, deadline: Instant) -> Result<(), Halt> {
        if self.reap(transport).map_err(Halt::Broken)? {
            return Ok(());
        }
        if !transport.is_connected() {
            return Err(Halt::Disconnected);
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Halt::TimedOut);
        }
        let until = deadline.min(now + SLOT_WAIT);
        let mut free = self.free.lock();
        if free.is_empty() {
            self.freed.wait_until(&mut free, until);
        }
        Ok(())
    }

    /// Puts a slot back that no chain in flight uses.
    pub(super) fn release(&self, slot: u32) {
        self.free.lock().push(slot);
        self.freed.notify_one();
    }

    /// Sends a chain under `slot`, waiting for room in the ring.
    pub(super) fn send(
        &self,
        transport: &dyn Transport,
        slot: u32,
        chain: Chain<'_>,
        deadline: Instant,
    ) -> Result<(), Halt> {
        self.send_with(transport, slot, deadline, || {
            transport.submit(self.queue, chain, slot)
        })
    }

    /// Sends descriptors as they are.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn send_raw(
        &self,
        transport: &dyn Transport,
        slot: u32,
        descriptors: &[RawDescriptor],
        deadline: Instant,
    ) -> Result<(), Halt> {
        let submit = || transport.submit_raw(self.queue, descriptors, slot);
        self.send_with(transport, slot, deadline, submit)
    }

    fn send_with(
        &self,
        transport: &dyn Transport,
        slot: u32,
        deadline: Instant,
        submit: impl Fn() -> Result<(), SubmitError>,
    ) -> Result<(), Halt> {
        let halt = loop {
            match self.try_send(slot, &submit) {
                Ok(()) => return Ok(()),
                Err(SubmitError::Full) => match self.make_room(transport, deadline) {
                    Ok(()) => {}
                    Err(halt) => break halt,
                },
                Err(SubmitError::TooLong) => break Halt::TooLong,
                Err(SubmitError::Disconnected) => break Halt::Disconnected,
                Err(SubmitError::Broken(why)) => break Halt::Broken(why),
            }
        };
        self.release(slot);
        Err(halt)
    }

    fn try_send(
        &self,
        slot: u32,
        submit: impl Fn() -> Result<(), SubmitError>,
    ) -> Result<(), SubmitError> {
        let _gate = self.gate.read();
        let state = &self.slots[slot as usize].phase;
        // Before the device can see it: the completion may come at once.
        state.lock().phase = Phase::InFlight;
        let sent = submit();
        if sent.is_err() {
            state.lock().phase = Phase::Free;
        }
        sent
    }

    /// Waits for the device to use the slot's chain, polling first. After an error the request is still in flight.
    pub(super) fn wait(
        &self,
        transport: &dyn Transport,
        slot: u32,
        mode: PollMode,
        deadline: Instant,
    ) -> Result<Outcome, Halt> {
        loop {
            if let Some(outcome) = self.outcome(slot) {
                return Ok(outcome);
            }
            let result = if self.join(slot) {
                let led = self.lead(transport, slot, mode, deadline);
                self.leave(slot, true);
                led
            } else {
                let followed = self.follow(slot, deadline);
                self.leave(slot, false);
                followed
            };
            result?;
        }
    }

    /// Starts to wait, as leader if there is none; whether it is.
    fn join(&self, slot: u32) -> bool {
        let mut election = self.election.lock();
        if election.leader {
            election.followers.push(slot);
            return false;
        }
        election.leader = true;
        true
    }

    /// Stops waiting; if no thread leads then, promotes a follower.
    fn leave(&self, slot: u32, led: bool) {
        let mut election = self.election.lock();
        if led {
            election.leader = false;
        } else if let Some(at) = election.followers.iter().position(|&s| s == slot) {
            election.followers.swap_remove(at);
        }
        let successor = if election.leader {
            None
        } else {
            election.followers.pop()
        };
        drop(election);
        if let Some(successor) = successor {
            let successor = &self.slots[successor as usize];
            successor.phase.lock().promoted = true;
            successor.wake.notify_one();
        }
    }

    /// Takes completions for all until the request of `slot` is done.
    fn lead(
        &self,
        transport: &dyn Transport,
        slot: u32,
        mode: PollMode,
        deadline: Instant,
    ) -> Result<(), Halt> {
        let began = Instant::now();
        loop {
            // That the queue is broken is then the request's outcome.
            let _ = self.reap(transport);
            if self.is_done(slot) {
                self.busy_poll.record(mode, began.elapsed());
                return Ok(());
            }
            if self.is_alone()
                && self
                    .busy_poll
                    .poll_until(mode, || transport.has_used(self.queue))
            {
                continue;
            }
            match transport.wait(self.queue, deadline) {
                Wake::Used => {}
                Wake::TimedOut => return Err(Halt::TimedOut),
                Wake::Disconnected => {
                    // Answers from before the end still count.
                    let _ = self.reap(transport);
                    self.fail_all(Outcome::Disconnected);
                    return Ok(());
                }
            }
        }
    }

    /// Whether no other thread waits. If one does, the processor has better
    /// things to do than to poll.
    fn is_alone(&self) -> bool {
        self.election.lock().followers.is_empty()
    }

    /// Sleeps until the request of `slot` is done or its thread is promoted.
    fn follow(&self, slot: u32, deadline: Instant) -> Result<(), Halt> {
        let place = &self.slots[slot as usize];
        let mut state = place.phase.lock();
        while !matches!(state.phase, Phase::Done(_)) && !state.promoted {
            if place.wake.wait_until(&mut state, deadline).timed_out() {
                let done = matches!(state.phase, Phase::Done(_)) || state.promoted;
                state.promoted = false;
                return if done { Ok(()) } else { Err(Halt::TimedOut) };
            }
        }
        state.promoted = false;
        Ok(())
    }

    /// Takes all completions there are; returns whether there were any. On a
    /// queue that the device broke nothing is in flight afterwards.
    pub(super) fn reap(&self, transport: &dyn Transport) -> Result<bool, &'static str> {
        let nothing = Completion {
            token: 0,
            written: 0,
            overrun: false,
        };
        let mut batch = [nothing; BATCH];
        let mut any = false;
        loop {
            let gate = self.gate.read();
            match transport.reap(self.queue, &mut batch) {
                Ok(0) => return Ok(any),
                Ok(count) => {
                    any = true;
                    batch[..count].iter().for_each(|done| self.complete(done));
                }
                Err(SubmitError::Broken(why)) => {
                    self.fail_all(Outcome::Broken(why));
                    return Err(why);
                }
                Err(_) => return Ok(any),
            }
            drop(gate);
        }
    }

    fn complete(&self, done: &Completion) {
        // Tokens are ours, not the device's.
        let Some(slot) = self.slots.get(done.token as usize) else {
            return;
        };
        let outcome = Outcome::Used {
            written: done.written,
            overrun: done.overrun,
        };
        self.finish(done.token, slot, outcome);
    }

    fn finish(&self, index: u32, slot: &RequestSlot, outcome: Outcome) {
        let mut state = slot.phase.lock();
        match std::mem::replace(&mut state.phase, Phase::Done(outcome)) {
            Phase::InFlight => {
                drop(state);
                slot.wake.notify_one();
            }
            Phase::Orphan(held) => {
                state.phase = Phase::Free;
                drop(state);
                drop(held);
                self.release(index);
            }
            // Not collected yet: the device has nothing of it any more.
            Phase::Done(Outcome::Disconnected | Outcome::Broken(_))
                if outcome == Outcome::Reset => {}
            // Nothing in flight here: as it was.
            other => state.phase = other,
        }
    }

    /// Ends every request in flight, because the device never will.
    fn fail_all(&self, outcome: Outcome) {
        for (index, slot) in (0u32..).zip(&self.slots) {
            let orphan = matches!(slot.phase.lock().phase, Phase::Orphan(_));
            // A device that is only cut off may still write; one that was
            // reset does not.
            if !orphan || outcome == Outcome::Reset {
                self.finish(index, slot, outcome);
            }
        }
    }

    /// Lets no chain in or out, for the time of a device reset.
    pub(super) fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    /// Fails what was in flight before a reset. The table must be closed.
    pub(super) fn reset(&self) {
        self.fail_all(Outcome::Reset);
    }

    pub(super) fn is_done(&self, slot: u32) -> bool {
        matches!(self.slots[slot as usize].phase.lock().phase, Phase::Done(_))
    }

    fn outcome(&self, slot: u32) -> Option<Outcome> {
        match self.slots[slot as usize].phase.lock().phase {
            Phase::Done(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Ends the use of a slot. If the device may still have its chain, the
    /// slot and `buffers` are held back until it is done, or reset, or the
    /// table is dropped.
    pub(super) fn retire(&self, slot: u32, buffers: impl IntoIterator<Item = Lent>) {
        let mut state = self.slots[slot as usize].phase.lock();
        state.promoted = false;
        match state.phase {
            Phase::InFlight | Phase::Done(Outcome::Disconnected | Outcome::Broken(_)) => {
                state.phase = Phase::Orphan(buffers.into_iter().collect());
            }
            Phase::Done(_) => {
                state.phase = Phase::Free;
                drop(state);
                self.release(slot);
            }
            Phase::Free | Phase::Orphan(_) => {}
        }
    }

    /// Slots not in use.
    #[cfg(test)]
    pub(super) fn free_slots(&self) -> usize {
        self.free.lock().len()
    }
}

/// A segment of `len` bytes at `addr`.
pub(super) fn segment(addr: GuestAddr, len: usize) -> Segment {
    Segment {
        addr,
        len: u32::try_from(len).unwrap_or(u32::MAX),
    }
}
