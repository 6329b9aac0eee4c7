//! Requests about locks.
//!
//! A SETLKW that cannot be granted yet is no error and no answer: the request
//! is deferred, its thread goes on with the next one, and whoever keeps it
//! asks again until there is an answer.

use daxwindow_shared::fuse::{LkIn, LkOut};
use rustix::io::Errno;

use crate::fs::{LockWait, Locked};

use super::responder::Responder;
use super::{Call, Server};

/// A request that waits for a lock.
pub struct BlockedLock {
    /// Answers it.
    pub responder: Responder,
    wait: LockWait,
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
        let Locked::Blocked(wait) = self.lock(call)? else {
            return Ok(());
        };
        let responder = call.defer(&self.counters)?;
        let lock = BlockedLock { responder, wait };
        call.terms.queue.wait_for_lock(lock);
        Ok(())
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

    /// Asks again for a lock: the result, or none as yet.
    pub fn retry(&self, lock: &BlockedLock) -> Option<Result<(), Errno>> {
        match self.fs.try_lock(&lock.wait) {
            Err(Errno::AGAIN) => None,
            result => Some(result),
        }
    }
}
