//! Requests that are answered by another thread than the one they came in.

use std::time::Instant;

use daxwindow_shared::fuse::Opcode;
use rustix::io::Errno;

use crate::dax::{Dax, Deputy};

use super::chain::Writer;
use super::in_flight::Admitted;
use super::reply::Reply;
use super::{Call, Fate, Server};

/// A request that is still to be answered.
#[derive(Debug)]
pub struct Unanswered {
    pub(super) opcode: Option<Opcode>,
    pub(super) unique: u64,
    pub(super) started: Instant,
    pub(super) _admitted: Admitted,
}

/// Hands a request back in the stead of the thread that it came in.
pub trait Stead: Send {
    /// Whose request it is.
    fn server(&self) -> &Server;

    /// Answers it with this error, by [`Server::answer`], unless it is answered.
    fn fail(self: Box<Self>, request: &Unanswered, errno: Errno);
}

/// A request of which the window may dispose.
struct Left {
    request: Unanswered,
    stead: Box<dyn Stead>,
}

impl Deputy for Left {
    fn dax(&self) -> &Dax {
        &self.stead.server().dax
    }

    fn fail(self: Box<Self>, errno: Errno) {
        self.stead.fail(&self.request, errno);
    }
}

impl Call<'_, '_, '_> {
    /// The request takes long, and its thread may not come back from `work`,
    /// which answers the request in that case, if it is given a deputy.
    pub(super) fn may_leave(
        &mut self,
        work: impl FnOnce(&mut Option<Box<dyn Deputy>>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let stead = match self.terms.reply_at {
            Some(at) => self.terms.pace.may_not_return(at),
            None => {
                self.terms.pace.takes_long();
                None
            }
        };
        let Some(stead) = stead else {
            return work(&mut None);
        };
        let request = Unanswered {
            opcode: Some(self.opcode),
            unique: self.header.unique,
            started: self.terms.started,
            _admitted: std::mem::take(self.terms.admitted),
        };
        let mut deputy: Option<Box<dyn Deputy>> = Some(Box::new(Left { request, stead }));
        let result = work(&mut deputy);
        if deputy.is_none() {
            self.fate = Fate::Elsewhere;
        }
        result
    }
}

impl Server {
    /// Puts the answer where the guest expects it, and answers the used length.
    pub fn answer(
        &self,
        request: &Unanswered,
        outcome: Result<(), Errno>,
        writer: Writer<'_>,
    ) -> u32 {
        let (opcode, unique) = (request.opcode, request.unique);
        let taken = request.started.elapsed();
        self.counters.record(opcode, taken, outcome.is_err());
        tracing::trace!(op = ?opcode, unique, ?taken, error = ?outcome.err(), "answered late");
        Reply::new(writer).finish(unique, outcome)
    }

    /// Puts an error where the guest expects the answer, of a request that was
    /// counted but whose answer did not arrive; the used length.
    pub fn answer_again(&self, request: &Unanswered, errno: Errno, writer: Writer<'_>) -> u32 {
        Reply::new(writer).finish(request.unique, Err(errno))
    }
}
