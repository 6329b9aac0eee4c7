//! Requests whose own thread asks the front end, and may not come back.
//!
//! While it asks, everything that the request holds is in a [`Pending`]: its
//! range of the window, what is to be entered, and the right to answer the
//! guest. Whoever has that goes on with the request; its own thread gets it
//! back with the answer, or finds that the request is none of its business any
//! more.
//!
//! Law: a thread that has lost its request changes nothing for it.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::counters::count;
use super::front_end::{Ask, FrontEndError};
use super::ledger::Piece;
use super::map_error::MapError;
use super::reservation::Reservation;
use super::{Connected, Dax};

/// The right to answer a request of the guest's, in whichever thread.
pub trait Deputy: Send {
    /// The window that the request is about.
    fn dax(&self) -> &Dax;

    /// Answers it with this error.
    fn fail(self: Box<Self>, errno: Errno);
}

/// Which request it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// SETUPMAPPING.
    Setup,
    /// REMOVEMAPPING, since then.
    Removal(Instant),
}

/// What a request holds while its own thread asks the front end.
pub struct Pending {
    pub(super) deputy: Box<dyn Deputy>,
    work: Work,
    reservation: Reservation,
    entering: Option<Entering>,
}

/// What is entered if it is mapped, or may be.
#[derive(Clone)]
pub(super) struct Entering {
    pub(super) connected: Arc<Connected>,
    pub(super) piece: Piece,
    pub(super) fd: Arc<OwnedFd>,
}

impl Pending {
    #[cfg(test)]
    pub(super) fn of(deputy: Box<dyn Deputy>) -> Pending {
        Pending {
            deputy,
            work: Work::Setup,
            reservation: Reservation::default(),
            entering: None,
        }
    }

    /// Ends the request without its thread.
    pub(super) fn abandon(self, why: FrontEndError) {
        let dax = self.deputy.dax();
        match self.entering {
            // If the session is another one, there is nothing to enter.
            Some(entering) => drop(dax.enter(entering, false)),
            None => count(&dax.counters.failed_removals),
        }
        let error = MapError::from(why);
        tracing::debug!(%error, "dax: a request is answered without its thread");
        match self.work {
            Work::Setup => dax.counters.refused(&error),
            Work::Removal(since) => dax.counters.removal_done(since.elapsed()),
        }
        dax.release(self.reservation);
        self.deputy.fail(error.errno());
    }
}

/// A request to the window in the thread that it came in.
pub(super) struct Request<'a> {
    pub(super) connected: Arc<Connected>,
    work: Work,
    /// The range that is being worked on.
    pub(super) reservation: Cell<Reservation>,
    /// Who answers if this thread does not come back; none if it has to.
    deputy: RefCell<&'a mut Option<Box<dyn Deputy>>>,
    lost: Cell<bool>,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        connected: Arc<Connected>,
        work: Work,
        deputy: &'a mut Option<Box<dyn Deputy>>,
    ) -> Request<'a> {
        Request {
            connected,
            work,
            reservation: Cell::default(),
            deputy: RefCell::new(deputy),
            lost: Cell::new(false),
        }
    }

    /// Asks the front end. `entering` is what is entered in the ledger if there
    /// is no answer.
    pub(super) fn ask(
        &self,
        ask: &Ask<'_>,
        entering: Option<&Entering>,
    ) -> Result<(), FrontEndError> {
        if self.lost.get() {
            return Err(FrontEndError::Abandoned);
        }
        let front_end = &self.connected.front_end;
        let Some(deputy) = self.deputy.borrow_mut().take() else {
            return front_end.ask(ask);
        };
        let pending = Pending {
            deputy,
            work: self.work,
            reservation: self.reservation.get(),
            entering: entering.cloned(),
        };
        match front_end.ask_here(ask, pending) {
            Some((pending, result)) => {
                **self.deputy.borrow_mut() = Some(pending.deputy);
                result
            }
            None => {
                self.lost.set(true);
                Err(FrontEndError::Abandoned)
            }
        }
    }

    /// The request has been answered by somebody else.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get()
    }
}
