//! One queue, and how a thread serves it.
//!
//! One thread *leads*: it empties the ring and serves what it takes right
//! there, so that a request costs no hand-over. If it is stuck in a request,
//! the detector deposes it and another leads from then on; a request that is
//! known to take long gives up the lead by itself first. Who comes back from
//! such a request hands it back and sleeps with the others, see `workers`.
//!
//! Laws: while a request is under way somebody else leads, or sleeps where the
//! next kick wakes him, unless the guest has as many threads away as it may;
//! whoever leaves the lead looks at the ring once more afterwards, so that a
//! kick that found somebody in the lead is not lost.

#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tracing::Span;

use crate::logs::Throttle;
use crate::metrics::queues::QueueTally;

use super::busy_poll::BusyPoll;
use super::defect::Defects;
use super::handler::RequestHandler;
use super::leadership::{Leadership, Observed};
use super::lock_waits::LockWaits;
use super::multi_queue::{MultiQueue, Queues};
use super::processors::Counted;
use super::ring::Ring;
use super::round::{Ended, Round};
use super::stall::{Watch, Watched};
use super::workers::Workers;

/// What the queues of one device have in common.
pub(crate) struct DeviceContext {
    pub(crate) handler: Arc<RequestHandler>,
    pub(crate) lock_waits: LockWaits,
    pub(crate) workers: Workers,
    pub(crate) defects: Arc<Defects>,
    pub(crate) multi_queue: MultiQueue,
    /// The queues by number, once they are known.
    pub(crate) queues: OnceLock<Vec<Weak<DeviceQueue>>>,
    pub(crate) complaints: Throttle,
    /// Where the log of its threads belongs.
    pub(crate) span: Span,
}

impl DeviceContext {
    /// One of its queues.
    pub(super) fn queue(&self, queue: usize) -> Option<Arc<DeviceQueue>> {
        self.queues.get()?.get(queue)?.upgrade()
    }

    /// Wakes a thread of each of these queues.
    pub(super) fn wake(&self, queues: Queues) {
        let queues = queues.filter_map(|queue| self.queue(queue));
        queues.for_each(|queue| queue.ring.changed());
    }
}

/// One queue.
pub(crate) struct DeviceQueue {
    pub(super) index: usize,
    ring: Ring,
    pub(crate) context: Arc<DeviceContext>,
    pub(super) tally: Arc<QueueTally>,
    pub(crate) leadership: Leadership,
    watch: Watch,
    /// Of the thread whose own queue it is, while it serves.
    pub(super) counted: Counted,
    pub(super) busy_poll: BusyPoll,
    /// A defect, for tests.
    #[cfg(test)]
    pub(crate) struck: AtomicBool,
}

impl DeviceQueue {
    /// A queue that nobody serves yet.
    pub(crate) fn new(
        index: usize,
        ring: Ring,
        context: Arc<DeviceContext>,
        tally: Arc<QueueTally>,
    ) -> Arc<DeviceQueue> {
        Arc::new(DeviceQueue {
            index,
            ring,
            context,
            tally,
            leadership: Leadership::default(),
            watch: Watch::default(),
            counted: Counted::default(),
            busy_poll: BusyPoll::default(),
            #[cfg(test)]
            struck: AtomicBool::new(false),
        })
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn is_closing(&self) -> bool {
        self.context.workers.is_closing()
    }

    /// A thread that was away, because its request took so long, is back.
    pub(super) fn came_back(&self, taken: Duration) {
        self.tally.came_back(taken);
        self.context.workers.come_back();
    }

    /// Leads the queue, if nobody does, until the guest has nothing more for
    /// it or somebody else has the lead.
    pub(crate) fn serve(self: &Arc<DeviceQueue>) {
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
        while !self.is_closing() {
            // Who has the lead will find what we were called for, and so will
            // the thread to which the queue is assigned.
            if self.leadership.look().is_led() || self.context.multi_queue.assign(self.index) {
                return;
            }
            let Some(mut round) = Round::of(self) else {
                return;
            };
            // Without one, this thread hears the next kick of another queue only
            // when it is done.
            self.context.ensure_sleeper(self);
            let result = round.serve();
            let led_to_the_end = round.end();
            let ended = result.unwrap_or_else(|error| {
                self.complain(&error);
                Ended::Broken
            });
            // After the lead is free: a kick from now on finds it so.
            let more = led_to_the_end && self.has_more();
            if !more || ended == Ended::Broken {
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
        let more = self.ring.enable_kicks();
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

impl Watched for DeviceQueue {
    fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn relieve(self: Arc<Self>, seen: Observed) -> bool {
        // If it has a shift, others had better look after its queues.
        self.context.wake(self.context.multi_queue.depose());
        if !self.context.stand_in(&self) {
            return false;
        }
        if self.leadership.depose(seen) {
            self.counted.end();
            self.tally.found_stuck();
            self.ring.changed();
        } else {
            self.context.workers.come_back();
        }
        true
    }

    fn is_over(&self) -> bool {
        self.is_closing()
    }
}
