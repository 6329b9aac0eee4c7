//! A thread in the lead of a queue: how it takes the lead, keeps it from one
//! request to the next, and leaves it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::Error;

use super::device_queue::DeviceQueue;
use super::leadership::Term;
use super::stall;

/// Whose queue it is that a thread leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The thread's own.
    Own,
    /// Another's, whose thread sleeps.
    Assigned,
}

/// The lead of a queue, in the hands of a thread.
pub(crate) struct Leader {
    pub(super) queue: Arc<DeviceQueue>,
    whose: Whose,
    term: Cell<Option<Term>>,
    /// The request under way gave up the lead by itself.
    gave_up: Cell<bool>,
}

impl Leader {
    /// Takes the lead if nobody has it.
    pub(crate) fn of(queue: &Arc<DeviceQueue>, whose: Whose) -> Option<Leader> {
        let leader = Leader {
            queue: Arc::clone(queue),
            whose,
            term: Cell::new(None),
            gave_up: Cell::new(false),
        };
        leader.take().then_some(leader)
    }

    fn take(&self) -> bool {
        let Some(term) = self.queue.leadership.take() else {
            return false;
        };
        if self.whose == Whose::Own {
            self.queue.counted.begin();
        }
        stall::report(&self.queue);
        self.term.set(Some(term));
        true
    }

    pub(super) fn is_leading(&self) -> bool {
        let term = self.term.take();
        let leading = term.is_some();
        self.term.set(term);
        leading
    }

    /// Gives the lead up; false if it was lost before.
    pub(super) fn resign(&self) -> bool {
        let Some(term) = self.term.take() else {
            return false;
        };
        let resigned = self.queue.leadership.resign(term);
        match resigned {
            true => self.queue.counted.end(),
            // Between two requests, for want of a processor.
            false => self.queue.came_back(Duration::ZERO),
        }
        resigned
    }

    /// Gives the lead up, and wakes somebody else if there is something to do.
    pub(super) fn hand_over(&self) {
        if self.resign() && self.queue.has_more() {
            self.queue.ring().changed();
        }
    }

    /// The same, if there is somebody else.
    pub(super) fn hand_over_if_possible(&self) {
        if self.is_leading() && self.queue.context.ensure_sleeper(&self.queue) {
            self.hand_over();
        }
    }

    /// The request under way takes long.
    pub(super) fn give_way(&self) {
        if !self.is_leading() || !self.queue.context.stand_in(&self.queue) {
            return;
        }
        let resigned = self
            .term
            .take()
            .is_some_and(|term| self.queue.leadership.resign(term));
        self.gave_up.set(resigned);
        if !resigned {
            // The detector was first, and has counted it.
            self.queue.context.workers.come_back();
        } else {
            self.queue.counted.end();
            self.queue.tally.gave_way();
            self.queue.ring().signal_rest();
            if self.queue.has_more() {
                self.queue.ring().changed();
            }
        }
    }

    /// Shows the detector that nobody is stuck; false if the lead was lost.
    pub(super) fn show(&self) -> bool {
        let Some(term) = self.term.take() else {
            return false;
        };
        let kept = self.queue.leadership.step(term);
        if kept.is_none() {
            self.queue.came_back(Duration::ZERO);
        }
        let keeps = kept.is_some();
        self.term.set(kept);
        keeps
    }

    /// Asks the guest not to kick while this thread leads. Returns false if this
    /// thread has lost the lead: another one may have asked for kicks since then,
    /// so this one asks for them again.
    pub(crate) fn disable_kicks(&self) -> Result<bool, Error> {
        self.queue.ring().disable_kicks()?;
        let leads = self.show();
        if !leads && self.queue.has_more() {
            self.queue.ring().changed();
        }
        Ok(leads)
    }

    /// Whether this thread goes on after a request, which began at `began`.
    pub(super) fn goes_on(&self, began: Instant) -> bool {
        let kept = self
            .term
            .take()
            .and_then(|term| self.queue.leadership.step(term));
        if kept.is_some() {
            self.term.set(kept);
            return true;
        }
        self.queue.came_back(began.elapsed());
        // A thread that gave the lead up takes it again if it is free. It had
        // asked the guest for kicks and does not need them any more.
        self.gave_up.take()
            && self.take()
            && self.disable_kicks().unwrap_or_else(|error| {
                self.queue.complain(&error);
                true
            })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.hand_over();
    }
}
