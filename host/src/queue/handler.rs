//! Where requests are handled and answered, whichever thread comes: what a
//! queue's threads and the thread of those that wait for locks have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard as Loaded};
use rustix::io::Errno;
use vm_memory::{GuestAddressSpace, GuestMemoryLoadGuard, GuestMemoryMmap};

use crate::dax::{TestFaults, WindowGpas};
use crate::fs::Bell;
use crate::fuse::chain::{self, Writer};
use crate::fuse::{BlockedLock, Outcome, ReplyPort, RequestQueue, Server};
use crate::sigbus;

use super::ring::{Chain, Completion, Memory, Ring};
use super::stale::Staleness;

/// One client's server and memory.
pub(crate) struct RequestHandler {
    pub(crate) server: Arc<Server>,
    pub(crate) memory: Memory,
    staleness: ArcSwap<Staleness>,
    /// Whose memory it is.
    guest: sigbus::GuestId,
}

impl RequestHandler {
    pub(crate) fn new(server: Arc<Server>, memory: Memory) -> RequestHandler {
        RequestHandler {
            server,
            memory,
            staleness: ArcSwap::default(),
            guest: sigbus::GuestId::new(),
        }
    }

    /// Watches the guest's memory from now on.
    pub(crate) fn watch(&self, memory: &GuestMemoryMmap) -> std::io::Result<()> {
        self.guest.act();
        sigbus::watch(memory)
    }

    /// All requests to come use this memory.
    pub(crate) fn replace_memory(&self, memory: GuestMemoryMmap) {
        match self.memory.lock() {
            Ok(current) => current.replace(memory),
            Err(poisoned) => poisoned.into_inner().replace(memory),
        }
    }

    /// Leaves threads that still use other memory without it.
    pub(super) fn take_back_memory(&self) {
        self.guest.act();
        sigbus::prune();
        if let Err(error) = sigbus::withdraw(&self.memory.memory()) {
            tracing::error!(%error, "threads that are given up keep the guest's memory");
        }
    }

    /// The client has gone: nothing of its memory is kept, whatever threads
    /// there still are.
    pub(crate) fn forget_memory(&self) {
        self.replace_memory(GuestMemoryMmap::new());
        self.take_back_memory();
        sigbus::close_withdrawn();
    }

    /// The guest's memory of now. If that is not `last` any more, what this
    /// thread used before may be nobody's.
    pub(super) fn memory_after(&self, last: &mut usize) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
        let memory = self.memory.memory();
        let now = std::ptr::from_ref(&*memory).addr();
        let before = std::mem::replace(last, now);
        if before != now && before != 0 {
            self.prune();
        }
        memory
    }

    /// A thread has ended that may have used memory of a client that has gone.
    pub(super) fn prune(&self) {
        self.guest.act();
        sigbus::prune();
    }

    /// Rings when a lock may have come free.
    pub(super) fn bell(&self) -> &Bell {
        self.server.fs().lock_bell()
    }

    /// The memory table has these regions from now on, and may go out of date
    /// without a word.
    pub(crate) fn note_regions(&self, regions: &[(u64, u64)]) {
        let staleness = self.staleness.load().after(regions);
        self.staleness.store(Arc::new(staleness));
    }

    /// The memory table shows windows here whose bytes are elsewhere.
    pub(crate) fn note_windows(&self, windows: impl Iterator<Item = (u64, u64)>) {
        let staleness = self.staleness.load().with_windows(windows.collect());
        self.staleness.store(Arc::new(staleness));
    }

    /// Handles a request of the guest's that came in by `queue`. `clock` tells
    /// when it began, and afterwards when it was done.
    pub(super) fn handle(
        &self,
        memory: &GuestMemoryMmap,
        chain: Chain<'_>,
        queue: &dyn RequestQueue,
        clock: &mut Instant,
    ) -> Outcome {
        self.guest.act();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let doubts = self.doubts();
            match chain::split(memory, chain, |addr, len| doubts.of(addr, len)) {
                Ok(sides) => self.server.serve(sides, queue, clock),
                Err(error) => {
                    self.server.refuse_chain(&error);
                    Outcome::Reply(0)
                }
            }
        }));
        handled.unwrap_or_else(|_| {
            // The panic hook has told where. The queue goes on.
            tracing::error!("a request was dropped by an internal error of this daemon");
            Outcome::Reply(0)
        })
    }

    /// Room for an answer in `memory`, which is that of now, if it `is_awaited`:
    /// that is asked afterwards, so that this memory is withdrawn if the request
    /// is given up from then on.
    fn room<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        reply_at: u64,
        is_awaited: impl FnOnce() -> bool,
    ) -> Writer<'m> {
        let doubts = self.doubts();
        match is_awaited() {
            true => chain::header_room(memory, reply_at, |addr, len| doubts.of(addr, len)),
            false => Writer::default(),
        }
    }

    /// Asks again for a lock: the result, or none as yet.
    pub(super) fn retry(&self, lock: &BlockedLock) -> Option<Result<(), Errno>> {
        self.server.retry(lock)
    }

    /// After guest memory was touched: puts right what vanished meanwhile.
    pub(crate) fn settle(&self) {
        self.guest.act();
        sigbus::remap();
        match sigbus::take_faults() {
            0 => {}
            vanished => self.server.note_vanished(vanished),
        }
    }

    /// Whether a queue's rings lie where the memory table is not believed.
    pub(super) fn has_stale_rings(&self, ring: &Ring) -> bool {
        let doubts = self.doubts();
        doubts.any() && ring.parts().iter().any(|&(addr, len)| doubts.of(addr, len))
    }

    fn doubts(&self) -> Doubts {
        Doubts {
            believes: self.server.dax().injects(TestFaults::DOUBT_TABLE),
            window: self.server.dax().window_gpas(),
            staleness: self.staleness.load(),
        }
    }
}

/// Where the memory table is not believed just now.
struct Doubts {
    /// Left out in a test.
    believes: bool,
    window: Option<WindowGpas>,
    staleness: Loaded<Arc<Staleness>>,
}

impl Doubts {
    fn any(&self) -> bool {
        !self.believes && self.staleness.is_any(self.window)
    }

    fn of(&self, addr: u64, len: u32) -> bool {
        !self.believes && self.staleness.covers(self.window, addr, len)
    }
}

/// Where the reply to a request goes that another thread answers.
pub(super) struct DeferredReply {
    pub(super) handler: Arc<RequestHandler>,
    /// Guest physical address of its header.
    pub(super) reply_at: u64,
    pub(super) completion: Completion,
}

impl ReplyPort for DeferredReply {
    fn reply(self: Box<Self>, write: &mut dyn FnMut(Writer<'_>) -> u32) {
        let DeferredReply {
            handler,
            reply_at,
            completion,
        } = *self;
        handler.guest.act();
        let memory = handler.memory.memory();
        let used = write(handler.room(&memory, reply_at, || completion.is_awaited()));
        completion.complete(used);
        handler.settle();
    }
}
