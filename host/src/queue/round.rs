//! What a thread does from when it takes the lead of its queue until it leaves
//! it: it empties the ring again and again while the guest comes at once, and
//! the rings of queues that are assigned to it in turn with it.
//!
//! Laws: whoever ends a round or is stuck in one leaves no queue without
//! somebody who serves it or will be woken; each ring has its turn after a
//! bounded number of another's requests.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use virtio_queue::Error;
use vm_memory::GuestAddressSpace;

use crate::fuse::{BlockedLock, Outcome, ReplyPort, RequestQueue};

use super::device_queue::{DeviceContext, DeviceQueue};
use super::handler::DeferredReply;
use super::leader::{Leader, Whose};
use super::lock_waits::LockWait;
use super::multi_queue::Shift;
use super::processors;
use super::ring::{Done, Taken, Ticket};

/// Requests of one ring until another has its turn.
const VISIT: u64 = 32;

/// Why a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// There was nothing more, or the lead was lost.
    Idle,
    /// A ring claims to have requests, and yields none to its leader.
    Broken,
}

/// One thread's round.
pub(super) struct Round {
    context: Arc<DeviceContext>,
    /// Its own queue first.
    leaders: Vec<Leader>,
    shift: Cell<Option<Shift>>,
}

impl Round {
    /// Takes the lead of a thread's own queue, if nobody has it.
    pub(super) fn of(queue: &Arc<DeviceQueue>) -> Option<Round> {
        let leader = Leader::of(queue, Whose::Own)?;
        Some(Round {
            context: Arc::clone(&queue.context),
            leaders: vec![leader],
            shift: Cell::new(None),
        })
    }

    /// Serves until the guest has nothing more for a while or the lead of the
    /// thread's own queue is lost.
    pub(super) fn serve(&mut self) -> Result<Ended, Error> {
        if !self.leaders[0].disable_kicks()? {
            return Ok(Ended::Idle);
        }
        let mut in_vain = 0;
        while in_vain < 2 {
            let taken = self.visit_all()?;
            if !self.leads_its_own() {
                return Ok(Ended::Idle);
            }
            match (taken, self.is_wanted()) {
                // A request may have come between the two looks: the next takes it.
                (0, true) => in_vain += 1,
                (0, false) => return Ok(Ended::Idle),
                (_, true) => in_vain = 0,
                (_, false) if !self.watch() => return Ok(Ended::Idle),
                (_, false) => in_vain = 0,
            }
        }
        Ok(Ended::Broken)
    }

    /// Leaves everything to others; false if the lead of the thread's own
    /// queue was lost before.
    pub(super) fn end(mut self) -> bool {
        self.leaders.truncate(1);
        self.end_shift();
        self.leaders[0].resign()
    }

    fn leads_its_own(&self) -> bool {
        self.leaders[0].is_leading()
    }

    /// Whether there is something to do.
    fn is_wanted(&self) -> bool {
        let is_waiting = |leader: &Leader| leader.is_leading() && leader.queue.ring().is_waiting();
        self.leaders.iter().any(is_waiting) || self.context.multi_queue.has_assigned()
    }

    fn watch(&self) -> bool {
        let busy_poll = &self.leaders[0].queue.busy_poll;
        processors::suffice() && busy_poll.poll(|| self.is_wanted())
    }

    fn visit_all(&mut self) -> Result<u64, Error> {
        self.take_over();
        let mut taken = self.visit(0)?;
        for at in 1..self.leaders.len() {
            if !self.leads_its_own() {
                break;
            }
            let assigned = &self.leaders[at];
            if !assigned.show() || !assigned.queue.ring().is_waiting() {
                continue;
            }
            match self.visit(at) {
                Ok(more) => taken += more,
                Err(error) => {
                    assigned.queue.complain(&error);
                    assigned.resign();
                }
            }
        }
        self.leaders[0].show();
        Ok(taken)
    }

    /// Takes over what was assigned, or gives back what is assigned, whichever
    /// pays.
    fn take_over(&mut self) {
        let multi_queue = &self.context.multi_queue;
        if !multi_queue.are_requests_short() {
            self.leaders.truncate(1);
            self.end_shift();
            return;
        }
        self.shift.set(multi_queue.renew(self.shift.take()));
        let mut own = true;
        self.leaders
            .retain(|leader| std::mem::take(&mut own) || leader.is_leading());
        for queue in multi_queue.take() {
            let Some(queue) = self.context.queue(queue) else {
                continue;
            };
            // Led: by ourselves, or by somebody who will find what there is.
            let Some(leader) = Leader::of(&queue, Whose::Assigned) else {
                continue;
            };
            match leader.disable_kicks() {
                Ok(true) => self.leaders.push(leader),
                Ok(false) => {}
                Err(error) => {
                    queue.complain(&error);
                    leader.resign();
                }
            }
        }
    }

    fn end_shift(&self) {
        if let Some(shift) = self.shift.take() {
            self.context.wake(self.context.multi_queue.end(shift));
        }
    }

    /// Serves what is in one ring.
    fn visit(&self, at: usize) -> Result<u64, Error> {
        let (context, leader) = (&self.context, &self.leaders[at]);
        let (queue, handler) = (&leader.queue, &context.handler);
        let visit = Visit {
            round: self,
            at,
            ticket: Cell::default(),
            memory: Cell::default(),
        };
        let (mut taken, mut done, mut last) = (0, None, 0);
        let mut clock = Instant::now();
        let result = loop {
            if queue.is_closing() || (taken >= VISIT && self.others_wait()) {
                break Ok(());
            }
            let memory = handler.memory_after(&mut last);
            // A signal may be late only if another thread can send it instead.
            let at_once = !context.workers.may_leave();
            let (chain, ticket) = match queue.ring().turn(&memory, done.take(), at_once) {
                Taken::Request(chain, ticket) => (chain, ticket),
                Taken::Nothing => break Ok(()),
                Taken::Outdated => continue,
                Taken::Broken(error) => break Err(error),
            };
            taken += 1;
            let began = clock;
            visit.ticket.set(Some(ticket));
            visit.memory.set(last);
            let outcome = handler.handle(&memory, chain, &visit, &mut clock);
            done = visit.done(outcome);
            handler.settle();
            context
                .multi_queue
                .note(clock.saturating_duration_since(began));
            if !leader.goes_on(began) {
                break Ok(());
            }
        };
        if let Some(done) = done {
            queue.ring().hand_back(done);
            handler.settle();
        }
        drop(handler.memory_after(&mut last));
        queue.tally.served(taken);
        if at > 0 {
            queue.tally.served_beside(taken);
        }
        result.map(|()| taken)
    }

    fn others_wait(&self) -> bool {
        self.leaders.len() > 1 || self.context.multi_queue.has_assigned()
    }
}

/// A round at one of its queues.
struct Visit<'r> {
    round: &'r Round,
    at: usize,
    /// Of the request under way, unless another thread answers it.
    ticket: Cell<Option<Ticket>>,
    /// Where the guest's memory was when it was taken.
    memory: Cell<usize>,
}

impl Visit<'_> {
    /// What there is to hand back of a request that was handled.
    fn done(&self, outcome: Outcome) -> Option<Done> {
        let ticket = self.ticket.take()?;
        match outcome {
            Outcome::Reply(used) => Some(Done { ticket, used }),
            Outcome::Deferred => None,
        }
    }

    fn queue(&self) -> &Arc<DeviceQueue> {
        &self.round.leaders[self.at].queue
    }
}

impl RequestQueue for Visit<'_> {
    /// Gives up all leads, where there is anybody to take them.
    fn takes_long(&self) {
        let leaders = &self.round.leaders;
        self.round.end_shift();
        for (at, leader) in leaders.iter().enumerate() {
            if at == self.at {
                leader.give_way();
            } else {
                leader.hand_over_if_possible();
            }
        }
    }

    fn defer(&self, reply_at: Option<u64>) -> Result<Box<dyn ReplyPort>, Errno> {
        let reply_at = reply_at.ok_or(Errno::INVAL)?;
        let ticket = self.ticket.take().ok_or(Errno::IO)?;
        Ok(Box::new(DeferredReply {
            handler: Arc::clone(&self.round.context.handler),
            reply_at,
            completion: self.queue().ring().completion(ticket),
        }))
    }

    fn wait_for_lock(&self, lock: BlockedLock) {
        let (queue, lock_waits) = (self.queue(), &self.round.context.lock_waits);
        lock_waits.add(LockWait {
            queue: queue.index,
            ring_size: queue.ring().size(),
            lock,
        });
        // Who stops a ring marks it and then cancels: it has found this request,
        // or here is its mark.
        if !queue.ring().is_running() {
            lock_waits.cancel(Some(queue.index));
        }
    }

    fn has_lost_memory(&self) -> bool {
        let now = self.round.context.handler.memory.memory();
        std::ptr::from_ref(&*now).addr() != self.memory.get()
    }
}
