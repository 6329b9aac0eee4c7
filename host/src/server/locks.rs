//! Requests about locks, and the answer to those that wait.
//!
//! A SETLKW that cannot be granted yet is no error and no answer: the request
//! is *parked*, its thread goes on with the next one, and whoever keeps it
//! asks again until there is an answer.

use daxwindow_shared::fuse::{LkIn, LkOut};
use rustix::io::Errno;

use crate::fs::{LockWait, Locked};

use super::unanswered::Unanswered;
use super::{Call, Fate, Server};

/// What handling a request came to.
#[derive(Debug)]
pub enum Served {
    /// It was answered with so many bytes.
    Answered(u32),
    /// It is to be answered by [`Server::answer`], when [`Server::retry`] says so.
    Parked(Parked),
    /// Another thread has answered it meanwhile.
    Elsewhere,
    /// It was answered, but the place for the answer is not there.
    Unreached(Unanswered),
}

/// What is to be done with a request that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfBlocked {
    /// It is parked.
    Park,
    /// It fails with this.
    Refuse(Errno),
}

/// A request that waits for a lock.
#[derive(Debug)]
pub struct Parked {
    /// What it takes to answer it.
    pub request: Unanswered,
    pub(super) wait: LockWait,
}

impl Server {
    pub(super) fn getlk(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        self.require_locks()?;
        let args: LkIn = call.body.only()?;
        let lk = self.fs.conflicting_lock(call.header.nodeid, &args)?;
        call.reply.value(&LkOut { lk })
    }

    pub(super) fn setlk(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        match self.lock(call)? {
            Locked::Done => Ok(()),
            Locked::Blocked(_) => Err(Errno::AGAIN),
        }
    }

    pub(super) fn setlkw(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        match (self.lock(call)?, call.terms.if_blocked) {
            (Locked::Done, _) => Ok(()),
            (Locked::Blocked(_), IfBlocked::Refuse(errno)) => Err(errno),
            (Locked::Blocked(wait), IfBlocked::Park) => {
                call.fate = Fate::Waits(wait);
                Ok(())
            }
        }
    }

    fn lock(&self, call: &mut Call<'_, '_, '_>) -> Result<Locked, Errno> {
        self.require_locks()?;
        let args: LkIn = call.body.only()?;
        self.fs.lock(call.header.nodeid, &args)
    }

    /// A guest that is not offered locks keeps them to itself.
    fn require_locks(&self) -> Result<(), Errno> {
        match self.fs.serves_locks() {
            true => Ok(()),
            false => Err(Errno::NOSYS),
        }
    }

    /// Asks again for a parked request: its outcome, or none as yet.
    pub fn retry(&self, parked: &Parked) -> Option<Result<(), Errno>> {
        match self.fs.try_lock(&parked.wait) {
            Err(Errno::AGAIN) => None,
            outcome => Some(outcome),
        }
    }
}
