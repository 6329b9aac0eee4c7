//! One queue and the threads that serve it.
//!
//! One thread *leads*: it empties the ring and serves what it takes right
//! there, so that a request costs no hand-over. If it is stuck in a request,
//! the detector deposes it and wakes or starts a *stand-in*, which leads from
//! then on; a request that is known to take long gives up the lead by itself
//! first. Who comes back from such a request hands it back and sleeps with the
//! others on the queue's kicks, where the last to fall asleep is the first
//! to be woken. A stand-in that is not needed for a while ends.
//!
//! Laws: while a request is under way somebody else leads, or sleeps where the
//! next kick wakes him, unless the guest has as many stand-ins as it may; one
//! thread sleeps for good, and no other for longer than [`IDLE`]; whoever
//! leaves the lead looks at the ring once more afterwards, so that a kick that
//! found somebody in the lead is not lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::Span;

use crate::logs::Throttle;
use crate::metrics::queues::QueueTally;

use super::busy_poll::BusyPoll;
use super::defect::Defects;
use super::handler::RequestHandler;
use super::lead::{Lead, Sight};
use super::minding::{Minding, Queues};
use super::parking::Parking;
use super::pool::Pool;
use super::processors::Counted;
use super::ring::Ring;
use super::round::Round;
use super::stall::{Watch, Watched};

/// A stand-in that is not called for so long ends.
const IDLE: Duration = Duration::from_secs(5);

/// Between two looks at threads that are waited for.
const LOOK: Duration = Duration::from_millis(100);

/// What the queues of one device have in common.
pub(super) struct DeviceContext {
    pub(super) handler: Arc<RequestHandler>,
    pub(super) parking: Parking,
    pub(super) pool: Pool,
    pub(super) defects: Arc<Defects>,
    pub(super) minding: Minding,
    /// The queues by number, once they are known.
    pub(super) lanes: OnceLock<Vec<Weak<Lane>>>,
    pub(super) complaints: Throttle,
    /// Where the log of its threads belongs.
    pub(super) span: Span,
}

impl DeviceContext {
    /// One of its queues.
    pub(super) fn lane(&self, queue: usize) -> Option<Arc<Lane>> {
        self.lanes.get()?.get(queue)?.upgrade()
    }

    /// Wakes a thread of each of these queues.
    pub(super) fn wake(&self, queues: Queues) {
        let lanes = queues.filter_map(|queue| self.lane(queue));
        lanes.for_each(|lane| lane.ring.kicks().ring());
    }
}

/// One queue.
pub(super) struct Lane {
    pub(super) index: usize,
    ring: Ring,
    pub(super) context: Arc<DeviceContext>,
    pub(super) tally: Arc<QueueTally>,
    pub(super) lead: Lead,
    watch: Watch,
    /// Of the thread whose own queue it is, while it serves.
    pub(super) counted: Counted,
    pub(super) busy_poll: BusyPoll,
    crew: Mutex<Crew>,
    /// A thread has ended.
    ended: Condvar,
    closing: AtomicBool,
    /// A defect, for tests.
    #[cfg(test)]
    pub(super) struck: AtomicBool,
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
        context: Arc<DeviceContext>,
        tally: Arc<QueueTally>,
    ) -> Arc<Lane> {
        Arc::new(Lane {
            index,
            ring,
            context,
            tally,
            lead: Lead::default(),
            watch: Watch::default(),
            counted: Counted::default(),
            busy_poll: BusyPoll::default(),
            crew: Mutex::default(),
            ended: Condvar::new(),
            closing: AtomicBool::new(false),
            #[cfg(test)]
            struck: AtomicBool::new(false),
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
        self.ring.close();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// After [`close`](Self::close): waits until `deadline` for the threads to
    /// end, and returns how many did not.
    pub(super) fn join(&self, deadline: Instant) -> usize {
        let mut crew = self.crew.lock();
        while crew.threads > 0 && Instant::now() < deadline {
            let look = (Instant::now() + LOOK).min(deadline);
            if self.ended.wait_until(&mut crew, look).timed_out() {
                // A VMM that fills its call descriptor again and again keeps
                // nobody longer than that.
                self.ring.free_senders();
            }
        }
        crew.threads
    }

    fn spawn(self: &Arc<Lane>, crew: &mut Crew) -> std::io::Result<()> {
        let (lane, span) = (Arc::clone(self), self.context.span.clone());
        let name = format!("queue {}", self.index);
        std::thread::Builder::new().name(name).spawn(move || {
            let _in_span = span.enter();
            let whose = format!("queue {}", lane.index);
            lane.context.defects.survive(&whose, || {
                while lane.sleep() {
                    lane.serve();
                }
            });
            lane.leave();
        })?;
        crew.threads += 1;
        Ok(())
    }

    fn leave(&self) {
        if self.is_closing() {
            self.context.handler.prune();
        }
        let mut crew = self.crew.lock();
        crew.threads -= 1;
        if crew.threads > 0 {
            // Whoever it was that stood in: there is one less beside the first.
            self.context.pool.dismiss();
        }
        if self.is_closing() && crew.asleep > 0 {
            // One ring wakes one.
            self.ring.kicks().ring();
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
        let rung = self.ring.kicks().wait(patience);
        let mut crew = self.crew.lock();
        crew.asleep -= 1;
        !self.is_closing() && (rung || crew.asleep == 0)
    }

    /// Sees to it that somebody sleeps who can be woken.
    pub(super) fn call(self: &Arc<Lane>) -> bool {
        let mut crew = self.crew.lock();
        if crew.asleep > 0 {
            return true;
        }
        if !self.context.pool.hire() {
            self.tally.short_of_threads();
            return false;
        }
        match self.spawn(&mut crew) {
            Ok(()) => {
                self.tally.stand_in_started();
                true
            }
            Err(error) => {
                self.context.pool.dismiss();
                self.tally.short_of_threads();
                if let Some(held_back) = self.context.complaints.pass() {
                    tracing::warn!(held_back, %error, "no thread to stand in");
                }
                false
            }
        }
    }

    /// Leads the queue, if nobody does, until the guest has nothing more for
    /// it or somebody else has the lead.
    pub(super) fn serve(self: &Arc<Lane>) {
        #[cfg(test)]
        assert!(!self.struck.swap(false, Ordering::SeqCst), "struck");
        if self.context.handler.has_stale_rings(&self.ring) {
            if let Some(held_back) = self.context.complaints.pass() {
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
            // Who has the lead will find what we were called for, and so will
            // who minds the queue.
            if self.lead.look().is_led() || self.context.minding.entrust(self.index) {
                return;
            }
            let Some(mut round) = Round::of(self) else {
                return;
            };
            let result = round.serve();
            let led_to_the_end = round.end();
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
    pub(super) fn has_more(&self) -> bool {
        if self.is_closing() {
            return false;
        }
        let more = self.ring.listen();
        self.context.handler.settle();
        more.unwrap_or_else(|error| {
            self.complain(&error);
            false
        })
    }

    pub(super) fn complain(&self, error: &virtio_queue::Error) {
        if let Some(held_back) = self.context.complaints.pass() {
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
        // Whoever it is that minds: those it minds for had better look.
        self.context.wake(self.context.minding.depose());
        if !self.call() {
            return false;
        }
        if self.lead.depose(seen) {
            self.counted.end();
            self.tally.found_stuck();
            self.ring.kicks().ring();
        }
        true
    }

    fn is_over(&self) -> bool {
        self.is_closing()
    }
}
