//! One queue and the threads that serve it.
//!
//! One thread *leads*: it empties the ring and serves what it takes right
//! there, so that a request costs no hand-over. If it is stuck in a request,
//! the watchman deposes it and wakes or starts a *stand-in*, which leads from
//! then on; a request that is known to take long gives up the lead by itself
//! first. Who comes back from such a request hands it back and sleeps with the
//! others on the queue's doorbell, where the last to fall asleep is the first
//! to be woken. A stand-in that is not needed for a while ends.
//!
//! Laws: while a request is under way somebody else leads, or sleeps where the
//! next kick wakes him, unless the guest has as many stand-ins as it may; one
//! thread sleeps for good, and no other for longer than [`IDLE`]; whoever
//! leaves the lead looks at the ring once more afterwards, so that a kick that
//! found somebody in the lead is not lost.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::Span;
use vm_memory::GuestAddressSpace;

use crate::observe::logs::Throttle;
use crate::observe::queues::QueueTally;
use crate::server::{Pace, Parked};

use super::desk::{Desk, Handled};
use super::lead::{Lead, Sight, Turn};
use super::parking::{Parking, Waiting};
use super::patience::Patience;
use super::pool::Pool;
use super::ring::{Done, Ring, Taken, Ticket};
use super::watchman::{self, Watch, Watched};

/// A stand-in that is not called for so long ends.
const IDLE: Duration = Duration::from_secs(5);

/// What the queues of one device have in common.
pub(super) struct Office {
    pub(super) desk: Arc<Desk>,
    pub(super) parking: Parking,
    pub(super) pool: Pool,
    pub(super) complaints: Throttle,
    /// Where the log of its threads belongs.
    pub(super) span: Span,
}

/// One queue.
pub(super) struct Lane {
    index: usize,
    ring: Ring,
    office: Arc<Office>,
    tally: Arc<QueueTally>,
    lead: Lead,
    watch: Watch,
    patience: Patience,
    crew: Mutex<Crew>,
    /// A thread has ended.
    ended: Condvar,
    closing: AtomicBool,
}

/// The threads of a queue.
#[derive(Debug, Default)]
struct Crew {
    threads: usize,
    /// Those that sleep, or are about to, or were just woken.
    asleep: usize,
}

impl Lane {
    /// A queue that nobody serves yet.
    pub(super) fn new(
        index: usize,
        ring: Ring,
        office: Arc<Office>,
        tally: Arc<QueueTally>,
    ) -> Arc<Lane> {
        Arc::new(Lane {
            index,
            ring,
            office,
            tally,
            lead: Lead::default(),
            watch: Watch::default(),
            patience: Patience::default(),
            crew: Mutex::default(),
            ended: Condvar::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Starts the queue's own thread.
    pub(super) fn start(self: &Arc<Lane>) -> std::io::Result<()> {
        self.spawn(&mut self.crew.lock())
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Nothing more is taken, and threads end as they come back.
    pub(super) fn close(&self) {
        // Release pairs with the Acquire in `is_closing`.
        self.closing.store(true, Ordering::Release);
        self.ring.bell().ring();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// After [`close`](Self::close): waits until `deadline` for the threads to
    /// end, and answers how many did not.
    pub(super) fn join(&self, deadline: Instant) -> usize {
        let mut crew = self.crew.lock();
        while crew.threads > 0 {
            if self.ended.wait_until(&mut crew, deadline).timed_out() {
                break;
            }
        }
        crew.threads
    }

    fn spawn(self: &Arc<Lane>, crew: &mut Crew) -> std::io::Result<()> {
        let (lane, span) = (Arc::clone(self), self.office.span.clone());
        let name = format!("queue {}", self.index);
        std::thread::Builder::new().name(name).spawn(move || {
            let _in_span = span.enter();
            while lane.sleep() {
                lane.serve();
            }
            lane.leave();
        })?;
        crew.threads += 1;
        Ok(())
    }

    fn leave(&self) {
        let mut crew = self.crew.lock();
        crew.threads -= 1;
        if crew.threads > 0 {
            // Whoever it was that stood in: there is one less beside the first.
            self.office.pool.dismiss();
        }
        if self.is_closing() && crew.asleep > 0 {
            // One ring wakes one.
            self.ring.bell().ring();
        }
        self.ended.notify_all();
    }

    /// Sleeps until there may be something to do. False if this thread is not
    /// needed any more.
    fn sleep(&self) -> bool {
        let patience = {
            let mut crew = self.crew.lock();
            if self.is_closing() {
                return false;
            }
            crew.asleep += 1;
            (crew.asleep > 1).then_some(IDLE)
        };
        let rung = self.ring.bell().wait(patience);
        let mut crew = self.crew.lock();
        crew.asleep -= 1;
        !self.is_closing() && (rung || crew.asleep == 0)
    }

    /// Sees to it that somebody sleeps who can be woken.
    fn call(self: &Arc<Lane>) -> bool {
        let mut crew = self.crew.lock();
        if crew.asleep > 0 {
            return true;
        }
        if !self.office.pool.hire() {
            self.tally.short_of_threads();
            return false;
        }
        match self.spawn(&mut crew) {
            Ok(()) => {
                self.tally.stand_in_started();
                true
            }
            Err(error) => {
                self.office.pool.dismiss();
                self.tally.short_of_threads();
                if let Some(held_back) = self.office.complaints.pass() {
                    tracing::warn!(held_back, %error, "no thread to stand in");
                }
                false
            }
        }
    }

    /// Leads the queue, if nobody does, until the guest has nothing more for
    /// it or somebody else has the lead.
    pub(super) fn serve(self: &Arc<Lane>) {
        if self.office.desk.has_stale_rings(&self.ring) {
            if let Some(held_back) = self.office.complaints.pass() {
                tracing::warn!(
                    held_back,
                    "a ring is in a window whose maps are not announced"
                );
            }
            return;
        }
        let mut idle_rounds = 0;
        // One idle round may be a request that came between the last look and
        // `listen`. A ring that claims more and yields nothing again is broken.
        while idle_rounds < 2 && !self.is_closing() {
            // Who has the lead will find what we were called for.
            let Some(leader) = Leader::of(self) else {
                return;
            };
            let result = leader.empty_and_watch();
            let led_to_the_end = leader.resign();
            match result {
                Ok(0) => idle_rounds += 1,
                Ok(_) => idle_rounds = 0,
                Err(error) => return self.complain(&error),
            }
            // After the lead is free: a kick from now on finds it so.
            if !led_to_the_end || !self.has_more() {
                return;
            }
        }
    }

    /// Lets the guest kick, and answers whether there is something that no
    /// kick will announce.
    fn has_more(&self) -> bool {
        let more = self.ring.listen();
        self.office.desk.settle();
        more.unwrap_or_else(|error| {
            self.complain(&error);
            false
        })
    }

    fn complain(&self, error: &virtio_queue::Error) {
        if let Some(held_back) = self.office.complaints.pass() {
            tracing::warn!(queue = self.index, held_back, %error, "the guest's ring is broken");
        }
    }
}

impl Watched for Lane {
    fn lead(&self) -> &Lead {
        &self.lead
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn relieve(self: Arc<Self>, seen: Sight) -> bool {
        if !self.call() {
            return false;
        }
        if self.lead.depose(seen) {
            self.tally.found_stuck();
            self.ring.bell().ring();
        }
        true
    }

    fn is_over(&self) -> bool {
        self.is_closing()
    }
}

/// The thread that leads a queue.
struct Leader<'l> {
    lane: &'l Arc<Lane>,
    turn: Cell<Option<Turn>>,
    /// The request under way gave up the lead by itself.
    gave_up: Cell<bool>,
}

impl<'l> Leader<'l> {
    fn of(lane: &'l Arc<Lane>) -> Option<Leader<'l>> {
        let turn = lane.lead.take()?;
        watchman::report(lane);
        Some(Leader {
            lane,
            turn: Cell::new(Some(turn)),
            gave_up: Cell::new(false),
        })
    }

    /// Gives the lead up; false if it was lost before.
    fn resign(self) -> bool {
        let Some(turn) = self.turn.take() else {
            return false;
        };
        let resigned = self.lane.lead.resign(turn);
        if !resigned {
            // Between two requests, for want of a processor.
            self.lane.tally.came_back(Duration::ZERO);
        }
        resigned
    }

    /// Whether this thread goes on after a request, which began at `began`.
    fn goes_on(&self, began: Instant) -> bool {
        let lead = &self.lane.lead;
        let kept = self.turn.take().and_then(|turn| lead.step(turn));
        let turn = match kept {
            Some(turn) => Some(turn),
            None => {
                self.lane.tally.came_back(began.elapsed());
                // Who gave it up takes it again if it is free.
                let again = self.gave_up.take().then(|| lead.take()).flatten();
                if again.is_some() {
                    watchman::report(self.lane);
                }
                again
            }
        };
        let goes_on = turn.is_some();
        self.turn.set(turn);
        goes_on
    }

    /// Empties the ring, again and again while the guest comes at once.
    /// Answers how many requests were taken.
    fn empty_and_watch(&self) -> Result<u64, virtio_queue::Error> {
        let lane = self.lane;
        lane.ring.hush()?;
        let mut taken = self.empty()?;
        while taken > 0 && self.is_leading() && lane.patience.watch(|| lane.ring.is_waiting()) {
            match self.empty()? {
                0 => break,
                more => taken += more,
            }
        }
        Ok(taken)
    }

    fn is_leading(&self) -> bool {
        let turn = self.turn.take();
        let leading = turn.is_some();
        self.turn.set(turn);
        leading
    }

    fn empty(&self) -> Result<u64, virtio_queue::Error> {
        let (lane, desk) = (self.lane, &self.lane.office.desk);
        let (mut taken, mut done) = (0, None);
        let mut clock = Instant::now();
        let result = loop {
            if lane.is_closing() {
                break Ok(());
            }
            let memory = desk.memory.memory();
            // To tell late, somebody else must be able to tell instead.
            let at_once = !lane.office.pool.has_room();
            let (chain, ticket) = match lane.ring.turn(&memory, done.take(), at_once) {
                Taken::Request(chain, ticket) => (chain, ticket),
                Taken::Nothing => break Ok(()),
                Taken::Broken(error) => break Err(error),
            };
            taken += 1;
            let began = clock;
            match desk.handle(&memory, chain, self, &mut clock) {
                Handled::Used(used) => done = Some(Done { ticket, used }),
                Handled::Waits(reply_at, parked) => self.park(ticket, reply_at, parked),
            }
            desk.settle();
            if !self.goes_on(began) {
                break Ok(());
            }
        };
        if let Some(done) = done {
            lane.ring.hand_back(done);
            desk.settle();
        }
        lane.tally.served(taken);
        result.map(|()| taken)
    }

    fn park(&self, ticket: Ticket, reply_at: u64, parked: Parked) {
        let lane = self.lane;
        lane.office.parking.park(Waiting {
            queue: lane.index,
            ring_size: lane.ring.size(),
            reply_at,
            parked,
            completion: lane.ring.completion(ticket),
        });
        // Who stops a ring marks it and then cancels: it has found this
        // request, or here is its mark.
        if !lane.ring.is_running() {
            lane.office.parking.cancel(Some(lane.index));
        }
    }
}

impl Pace for Leader<'_> {
    /// Gives up the lead, if there is anybody to take it.
    fn takes_long(&self) {
        if !self.is_leading() || !self.lane.call() {
            return;
        }
        let resigned = self.turn.take().is_some_and(|t| self.lane.lead.resign(t));
        self.gave_up.set(resigned);
        if resigned {
            self.lane.tally.gave_way();
            self.lane.ring.tell_rest();
            if self.lane.has_more() {
                self.lane.ring.bell().ring();
            }
        }
    }
}
