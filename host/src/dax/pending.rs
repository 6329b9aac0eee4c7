//! Requests whose own thread asks the front end, and may not come back.
//!
//! While it asks, everything that the request holds is in a [`Pending`]: its
//! range of the window, what is to be entered, and the right to answer the
//! guest. Whoever has that goes on with the request; its own thread gets it
//! back with the answer, or finds that the request is none of its business any
//! more.
//!
//! Law: a thread that has lost its request changes nothing for it, but that it
//! notes in the ledger what the front end has answered in the end.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use daxwindow_shared::window::WindowRange;

use super::front_end::{Ask, FrontEndError, Source};
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
    change: Option<Change>,
}

/// What the front end is asked to change.
#[derive(Clone)]
pub(super) enum Change {
    Map(Entering),
    Unmap(Arc<Connected>, WindowRange),
}

/// What is entered if it is mapped, or may be.
#[derive(Clone)]
pub(super) struct Entering {
    pub(super) connected: Arc<Connected>,
    pub(super) piece: Piece,
    pub(super) fd: Arc<OwnedFd>,
}

impl Change {
    fn ask(&self) -> Ask<'_> {
        match self {
            Change::Unmap(_, range) => Ask::Unmap(*range),
            Change::Map(Entering { piece, fd, .. }) => {
                let source = Source {
                    fd,
                    fd_offset: piece.file_offset,
                    writable: piece.writable,
                };
                Ask::Map(piece.range, source)
            }
        }
    }
}

impl Pending {
    #[cfg(test)]
    pub(super) fn of(deputy: Box<dyn Deputy>) -> Pending {
        Pending {
            deputy,
            work: Work::Setup,
            reservation: Reservation::default(),
            change: None,
        }
    }

    /// Ends the request without its thread.
    pub(super) fn abandon(self, why: FrontEndError) {
        let dax = self.deputy.dax();
        if let Some(change) = self.change {
            dax.doubt(change);
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
    dax: &'a Dax,
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
        dax: &'a Dax,
        connected: Arc<Connected>,
        work: Work,
        deputy: &'a mut Option<Box<dyn Deputy>>,
    ) -> Request<'a> {
        Request {
            dax,
            connected,
            work,
            reservation: Cell::default(),
            deputy: RefCell::new(deputy),
            lost: Cell::new(false),
        }
    }

    /// Asks the front end for `change`, which is noted in the ledger here only
    /// if this thread loses the request.
    pub(super) fn ask(&self, change: &Change) -> Result<(), FrontEndError> {
        if self.lost.get() {
            return Err(FrontEndError::Abandoned);
        }
        let front_end = &self.connected.front_end;
        let Some(deputy) = self.deputy.borrow_mut().take() else {
            return front_end.ask(&change.ask());
        };
        let pending = Pending {
            deputy,
            work: self.work,
            reservation: self.reservation.get(),
            change: Some(change.clone()),
        };
        let late = |result| self.dax.note_late(change, result);
        match front_end.ask_here(&change.ask(), pending, &late) {
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

    /// The request has been answered by another thread.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Returns once the memory table tells of `change`, which the front end has
    /// acknowledged, if it tells of changes at all.
    ///
    /// That it has not done so yet proves nothing: its process may be stopped.
    /// After a while it is asked for the same once more, and what it has not
    /// announced when it has answered that, it does not announce.
    pub(super) fn wait_announced(&self, change: &Change) -> Result<(), FrontEndError> {
        let Some(base) = self.connected.can.announcing_base() else {
            return Ok(());
        };
        let (range, present) = match change {
            Change::Map(entering) => (entering.piece.range, true),
            Change::Unmap(_, range) => (*range, false),
        };
        let patience = self.dax.options.front_end_timeout;
        let is_there = || {
            let is_off = || self.dax.is_called_off(&self.connected);
            let table = &self.dax.table;
            table.wait(base, range, present, patience, is_off)
        };
        if is_there()? {
            return Ok(());
        }
        match self.ask(change) {
            Ok(()) | Err(FrontEndError::Refused) if is_there()? => Ok(()),
            Ok(()) | Err(FrontEndError::Refused) => Err(FrontEndError::NotAnnounced),
            Err(error) => Err(error),
        }
    }
}
