//! One FUSE request: decode, call, encode.
//!
//! A request comes in as a [`chain::Reader`] and a [`chain::Writer`]; its
//! header and arguments are copied out and checked (`request`), the opcode
//! picks a handler (`dispatch`), the handler calls [`SharedDir`] or [`Dax`],
//! and its answer is put behind a header (`reply`). File data passes through
//! this process's own memory only where it has to (`bounce`).
//!
//! | file | requests |
//! | --- | --- |
//! | `init` | INIT, DESTROY |
//! | `names` | LOOKUP, FORGET, BATCH_FORGET, SYMLINK, READLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK |
//! | `attrs` | GETATTR, SETATTR, STATX, STATFS |
//! | `io` | OPEN, CREATE, READ, WRITE, FLUSH, RELEASE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64, TMPFILE, SYNCFS |
//! | `dirs` | OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR |
//! | `xattrs` | SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR |
//! | `ioctl` | IOCTL |
//! | `locks` | GETLK, SETLK, SETLKW |
//! | `mapping` | SETUPMAPPING, REMOVEMAPPING |
//!
//! `call` is a request on its way, `options` how it is answered where there is
//! a choice, `session` what was agreed at INIT, `in_flight` bounds how many are
//! under way; `responder` answers from other threads; `extensions` has what
//! may follow the requests that create, `caching` what guests may keep.
//!
//! Laws: every request with room for a reply gets exactly one, of the length
//! that is reported as used, at once or, for a lock, later; whether the answer
//! has room is checked before anything is done, so that a refused request has
//! no effect.

mod attrs;
mod bounce;
mod caching;
mod call;
pub mod chain;
mod dirs;
mod dispatch;
mod extensions;
mod in_flight;
mod init;
mod io;
mod ioctl;
mod locks;
mod mapping;
mod names;
mod options;
mod reply;
mod request;
mod responder;
mod session;
mod xattrs;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::{InHeader, Opcode};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::dax::{Dax, DaxOffer, NoDax};
use crate::fs::SharedDir;
use crate::logs::Throttle;
use crate::metrics::counters::Counters;
use crate::metrics::queues::QueueTallies;

pub use caching::{CacheMode, Caching};
use call::{Call, Terms};
use chain::{ChainError, Hole, Sides};
use in_flight::InFlight;
pub use init::MAX_WRITE_BYTES;
pub use locks::BlockedLock;
pub use options::ServerOptions;
use reply::Reply;
use responder::NoQueue;
pub use responder::{ReplyPort, RequestQueue, Responder};
use session::Session;
pub use session::{Began, DaxWish};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered with so many bytes.
    Reply(u32),
    /// Another thread answers it, or has.
    Deferred,
}

/// Answers the requests of one guest at a time, from any number of threads.
pub struct Server {
    fs: SharedDir,
    dax: Dax,
    options: ServerOptions,
    session: Session,
    counters: Arc<Counters>,
    queues: QueueTallies,
    in_flight: InFlight,
    complaints: Throttle,
    vanishings: Throttle,
    /// Since when the client that is served is connected.
    client: Mutex<Option<Instant>>,
    /// The window still holds the mappings of a device that was reset.
    stale_window: Mutex<bool>,
}

impl Server {
    /// A server without a session: the first request must be INIT.
    pub fn new(fs: SharedDir, dax: Dax, options: ServerOptions) -> Server {
        Server {
            fs,
            dax,
            options,
            session: Session::default(),
            counters: Arc::new(Counters::new()),
            queues: QueueTallies::default(),
            in_flight: InFlight::new(options.max_in_flight),
            complaints: Throttle::new(Duration::from_secs(10)),
            vanishings: Throttle::new(Duration::from_secs(10)),
            client: Mutex::new(None),
            stale_window: Mutex::new(false),
        }
    }

    /// The window.
    pub fn dax(&self) -> &Dax {
        &self.dax
    }

    /// The shared directory.
    pub fn fs(&self) -> &SharedDir {
        &self.fs
    }

    /// A client has connected, or is gone.
    pub fn set_client(&self, connected: bool) {
        *self.client.lock() = connected.then(Instant::now);
    }

    /// Since when a client is connected.
    pub fn client(&self) -> Option<Instant> {
        *self.client.lock()
    }

    /// When the live session began, if there is one.
    pub fn session(&self) -> Option<Began> {
        self.session.began()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What was counted of its queues.
    pub fn queues(&self) -> &QueueTallies {
        &self.queues
    }

    /// Requests under way now, where they have a budget.
    pub fn in_flight(&self) -> usize {
        self.in_flight.now()
    }

    /// The guest has done nothing for a while: closes what is only kept open for
    /// its next request.
    pub fn release_caches(&self) {
        self.fs.release_caches();
        self.dax.release_caches();
    }

    /// Logs everything counted, and what is live now.
    pub fn log_counters(&self) {
        let window = self.dax.stats();
        tracing::info!("{}", self.counters.report());
        tracing::info!("{}", self.queues.report());
        tracing::info!(
            inodes = self.fs.live_inodes(),
            handles = self.fs.live_handles(),
            mapped_ranges = window.live_ranges,
            mapped_bytes = window.live_bytes,
            mapped_inodes = window.live_inodes,
            "live"
        );
        tracing::info!(
            setups = window.setups,
            hits = window.setup_hits,
            upgrades = window.upgrades,
            replacements = window.replacements,
            renewals = window.renewals,
            removals = window.removals,
            failed_removals = window.failed_removals,
            refusals = window.refusals.iter().sum::<u64>(),
            setup_p50_ns = window.setup_latency.p50_ns,
            setup_p99_ns = window.setup_latency.p99_ns,
            "window"
        );
        let without = NoDax::REASONS.iter().zip(window.files_without_dax);
        let without: Vec<String> = without
            .filter(|(_, files)| *files > 0)
            .map(|(reason, files)| format!("{reason} {files}"))
            .collect();
        tracing::info!(
            with_dax = window.files_with_dax,
            without_dax = without.join(", "),
            "files"
        );
    }

    /// Ends the session as DESTROY does: no mapping, inode or handle is left.
    /// Waits for the front end to unmap, so never call it where the front end
    /// waits for us.
    pub fn reset(&self) {
        self.session.end();
        self.fs.reset();
        self.clear_window(true);
    }

    /// The part of [`reset`](Self::reset) that needs nobody's answer. The
    /// window is cleared by [`finish_reset`](Self::finish_reset), or by the
    /// next INIT, whichever comes first.
    pub fn begin_reset(&self) {
        self.session.end();
        *self.stale_window.lock() = true;
        self.fs.reset();
    }

    /// Clears the window after [`begin_reset`](Self::begin_reset), unless an
    /// INIT has done so.
    pub fn finish_reset(&self) {
        self.clear_window(false);
    }

    fn clear_window(&self, always: bool) {
        let mut stale = self.stale_window.lock();
        if std::mem::take(&mut *stale) || always {
            self.dax.reset();
        }
    }

    /// For INIT: forgets what was mapped and asks what can be offered.
    fn fresh_window(&self) -> DaxOffer {
        // Held throughout, lest a late `finish_reset` unmap the new session.
        let mut stale = self.stale_window.lock();
        *stale = false;
        self.dax.init()
    }

    /// Handles the request in `sides`, puts the reply there and answers the
    /// used length. One of whose descriptors some do not resolve is refused
    /// before anything is done: `EFAULT`, as the kernel answers for a bad
    /// buffer, or nothing if header or reply are among them. What would have
    /// to wait fails with `EAGAIN`.
    pub fn handle(&self, sides: Sides<'_>) -> u32 {
        match self.serve(sides, &NoQueue, &mut Instant::now()) {
            Outcome::Reply(used) => used,
            Outcome::Deferred => 0,
        }
    }

    /// As [`handle`](Self::handle), for a request that came in by `queue`. The
    /// clock tells when it came, and afterwards when it was answered.
    pub fn serve(
        &self,
        sides: Sides<'_>,
        queue: &dyn RequestQueue,
        clock: &mut Instant,
    ) -> Outcome {
        let started = *clock;
        let Sides {
            mut reader,
            writer,
            hole,
            reply_at,
        } = sides;
        if let Some(hole) = &hole {
            self.note_hole(hole);
        }
        let Ok(header) = reader.read_value::<InHeader>() else {
            self.refuse("a request is shorter than its header");
            return Outcome::Reply(0);
        };
        let opcode = Opcode::from_u32(header.opcode);
        let mut reply = Reply::new(writer);
        let mut admitted = self.in_flight.admit(opcode);
        let result = match (&mut admitted, hole) {
            (_, Some(_)) => Err(Errno::FAULT),
            (Err(errno), None) => {
                self.queues.refused_in_flight();
                Err(*errno)
            }
            (Ok(admitted), None) => {
                let terms = Terms {
                    started,
                    admitted,
                    reply_at,
                    queue,
                };
                self.run(header, opcode, &mut reader, &mut reply, terms)
            }
        };
        if result == Ok(true) {
            *clock = Instant::now();
            return Outcome::Deferred;
        }
        let result = result.map(|_| ());
        let (mut used, mut is_lost) = (0, false);
        if !matches!(opcode, Some(Opcode::Forget | Opcode::BatchForget)) {
            let has_room = reply.fits_header();
            used = self.finish(header, reply, result);
            is_lost = used == 0 && has_room && queue.has_lost_memory();
        }
        *clock = Instant::now();
        let taken = clock.saturating_duration_since(started);
        tracing::trace!(
            op = ?opcode, number = header.opcode, unique = header.unique,
            nodeid = header.nodeid, used, ?taken, error = ?result.err(), "request"
        );
        self.counters.record(opcode, taken, result.is_err());
        match is_lost {
            true => fail_again(queue, reply_at, header.unique),
            false => Outcome::Reply(used),
        }
    }

    /// Notes pages of guest memory that vanished under a request or a ring.
    pub fn note_vanished(&self, pages: u64) {
        self.counters.record_vanished(pages);
        if let Some(held_back) = self.vanishings.pass() {
            tracing::warn!(held_back, pages, "guest memory vanished under a request");
        }
    }

    fn note_hole(&self, hole: &Hole) {
        self.counters.record_unresolved();
        if let Some(held_back) = self.complaints.pass() {
            tracing::warn!(held_back, "a buffer cannot be reached: {hole}");
        }
    }

    /// Notes a chain that could not be resolved; its used length is 0.
    pub fn refuse_chain(&self, error: &ChainError) {
        self.refuse(error);
    }

    /// Answers a request given as plain bytes as if the guest had left
    /// `reply_capacity` bytes for the reply. For tests and fuzzing.
    pub fn handle_bytes(&self, request: &[u8], reply_capacity: usize) -> Vec<u8> {
        let mut request = request.to_vec();
        let mut reply = vec![0; reply_capacity];
        let used = self.handle(chain::over_buffers(&mut request, &mut reply));
        reply.truncate(used as usize);
        reply
    }

    fn refuse(&self, why: impl std::fmt::Display) {
        self.counters.record_malformed();
        if let Some(held_back) = self.complaints.pass() {
            tracing::warn!(held_back, "request refused: {why}");
        }
    }

    fn finish(&self, header: InHeader, reply: Reply<'_>, result: Result<(), Errno>) -> u32 {
        if !reply.fits_header() {
            self.counters.record_unanswerable();
            if let Some(held_back) = self.complaints.pass() {
                tracing::warn!(
                    held_back,
                    opcode = header.opcode,
                    "a request leaves no room for a reply"
                );
            }
        }
        reply.finish(header.unique, result)
    }
}

/// Puts an error where the guest expects the reply to a request whose own was
/// lost with its memory.
#[cold]
fn fail_again(queue: &dyn RequestQueue, reply_at: Option<u64>, unique: u64) -> Outcome {
    match queue.defer(reply_at) {
        Ok(port) => {
            port.reply(&mut |writer| Reply::new(writer).finish(unique, Err(Errno::IO)));
            Outcome::Deferred
        }
        Err(_) => Outcome::Reply(0),
    }
}
