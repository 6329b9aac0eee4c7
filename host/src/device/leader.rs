//! A thread in the lead of a queue: how it takes the lead, keeps it from one
//! request to the next, and leaves it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::Lane;
use super::leadership::Term;
use super::stall;

/// Whose queue it is that a thread leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The thread's own.
    Own,
    /// Another's, whose thread sleeps.
    Assigned,
}

/// The lead of a queue, in the hands of a thread.
pub(super) struct Leader {
    pub(super) lane: Arc<Lane>,
    whose: Whose,
    term: Cell<Option<Term>>,
    /// The request under way gave up the lead by itself.
    gave_up: Cell<bool>,
}

impl Leader {
    /// Takes the lead if nobody has it.
    pub(super) fn of(lane: &Arc<Lane>, whose: Whose) -> Option<Leader> {
        let leader = Leader {
            lane: Arc::clone(lane),
            whose,
            term: Cell::new(None),
            gave_up: Cell::new(false),
        };
        leader.take().then_some(leader)
    }

    fn take(&self) -> bool {
        let Some(term) = self.lane.leadership.take() else {
            return false;
        };
        if self.whose == Whose::Own {
            self.lane.counted.begin();
        }
        stall::report(&self.lane);
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
        let resigned = self.lane.leadership.resign(term);
        match resigned {
            true => self.lane.counted.end(),
            // Between two requests, for want of a processor.
            false => self.lane.came_back(Duration::ZERO),
        }
        resigned
    }

    /// Gives the lead up, and wakes somebody else if there is something to do.
    pub(super) fn hand_over(&self) {
        if self.resign() && self.lane.has_more() {
            self.lane.ring().changed();
        }
    }

    /// The same, if there is somebody else.
    pub(super) fn hand_over_if_possible(&self) {
        if self.is_leading() && self.lane.context.ensure_sleeper(&self.lane) {
            self.hand_over();
        }
    }

    /// The request under way takes long.
    pub(super) fn give_way(&self) {
        if !self.is_leading() || !self.lane.context.stand_in(&self.lane) {
            return;
        }
        let resigned = self
            .term
            .take()
            .is_some_and(|term| self.lane.leadership.resign(term));
        self.gave_up.set(resigned);
        if !resigned {
            // The detector was first, and has counted it.
            self.lane.context.workers.come_back();
        } else {
            self.lane.counted.end();
            self.lane.tally.gave_way();
            self.lane.ring().tell_rest();
            if self.lane.has_more() {
                self.lane.ring().changed();
            }
        }
    }

    /// Shows the detector that nobody is stuck; false if the lead was lost.
    pub(super) fn show(&self) -> bool {
        let Some(term) = self.term.take() else {
            return false;
        };
        let kept = self.lane.leadership.step(term);
        if kept.is_none() {
            self.lane.came_back(Duration::ZERO);
        }
        let keeps = kept.is_some();
        self.term.set(kept);
        keeps
    }

    /// Whether this thread goes on after a request, which began at `began`.
    pub(super) fn goes_on(&self, began: Instant) -> bool {
        let kept = self
            .term
            .take()
            .and_then(|term| self.lane.leadership.step(term));
        if kept.is_some() {
            self.term.set(kept);
            return true;
        }
        self.lane.came_back(began.elapsed());
        // Who gave it up takes it again if it is free, and the guest, which was
        // to kick meanwhile, need not any more.
        let takes_again = self.gave_up.take() && self.take();
        if takes_again && let Err(error) = self.lane.ring().hush() {
            self.lane.complain(&error);
        }
        takes_again
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.hand_over();
    }
}
