//! Requests that are answered later, by whichever thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::Opcode;
use rustix::io::Errno;

use crate::metrics::counters::Counters;

use super::chain::Writer;
use super::in_flight::Admitted;
use super::reply::Reply;
use super::{BlockedLock, Call};

/// The queue that a request came in by, as its handler sees it.
pub trait RequestQueue {
    /// The request takes long: others need not wait for it. Comes before the
    /// first system call that waits for a disk, another file system or the
    /// front end.
    fn takes_long(&self);

    /// Where the reply goes if another thread answers, with its header at guest
    /// physical address `reply_at`. Afterwards the request is not this thread's.
    ///
    /// # Errors
    ///
    /// What the request fails with if nobody else can answer it.
    fn defer(&self, reply_at: Option<u64>) -> Result<Box<dyn ReplyPort>, Errno>;

    /// Answers `lock` once [`Server::retry`](super::Server::retry) has an answer.
    fn wait_for_lock(&self, lock: BlockedLock);

    /// Whether the guest's memory was mapped anew since the request was taken,
    /// so that what it had is gone.
    fn has_lost_memory(&self) -> bool;
}

/// Where the reply to one request goes. Dropped, it hands the request back with
/// no bytes.
pub trait ReplyPort: Send {
    /// Has `write` put the reply where the guest expects it, and hands the
    /// request back with as many bytes as that answers.
    fn reply(self: Box<Self>, write: &mut dyn FnMut(Writer<'_>) -> u32);
}

/// No queue, and nobody else who would answer.
pub(super) struct NoQueue;

impl RequestQueue for NoQueue {
    fn takes_long(&self) {}

    fn defer(&self, _: Option<u64>) -> Result<Box<dyn ReplyPort>, Errno> {
        Err(Errno::AGAIN)
    }

    /// There is none without [`defer`](Self::defer).
    fn wait_for_lock(&self, lock: BlockedLock) {
        drop(lock);
    }

    fn has_lost_memory(&self) -> bool {
        false
    }
}

/// The right to answer one request, once, from any thread. A request whose
/// responder is dropped fails with `EIO`.
pub struct Responder {
    port: Option<Box<dyn ReplyPort>>,
    opcode: Option<Opcode>,
    unique: u64,
    started: Instant,
    counters: Arc<Counters>,
    _admitted: Admitted,
}

impl Responder {
    /// Answers, counts and hands back.
    pub fn send(mut self, result: Result<(), Errno>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<(), Errno>) {
        let Some(port) = self.port.take() else {
            return;
        };
        let (opcode, unique) = (self.opcode, self.unique);
        let taken: Duration = self.started.elapsed();
        self.counters.record(opcode, taken, result.is_err());
        tracing::trace!(op = ?opcode, unique, ?taken, error = ?result.err(), "answered late");
        port.reply(&mut |writer| Reply::new(writer).finish(unique, result));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.finish(Err(Errno::IO));
    }
}

impl Call<'_, '_, '_> {
    /// Takes the right to answer from this thread.
    ///
    /// # Errors
    ///
    /// What the request fails with if nobody else can answer it.
    pub(super) fn defer(&mut self, counters: &Arc<Counters>) -> Result<Responder, Errno> {
        let port = self.terms.queue.defer(self.terms.reply_at)?;
        self.is_deferred = true;
        Ok(Responder {
            port: Some(port),
            opcode: Some(self.opcode),
            unique: self.header.unique,
            started: self.terms.started,
            counters: Arc::clone(counters),
            _admitted: std::mem::take(self.terms.admitted),
        })
    }
}
