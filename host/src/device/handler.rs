//! Where requests are handled and answered, whichever thread comes: what a
//! queue's threads and the thread of parked requests have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard as Loaded};
use rustix::io::Errno;
use vm_memory::{GuestAddressSpace, GuestMemoryLoadGuard, GuestMemoryMmap};

use crate::dax::{TestFaults, WindowGpas};
use crate::fs::Bell;
use crate::server::chain::{self, Writer};
use crate::server::{IfBlocked, Pace, Parked, Served, Server, Unanswered};
use crate::sigbus;

use super::parking::Waiting;
use super::ring::{Chain, Completion, Memory, Ring};
use super::stale::Staleness;

/// One client's server and memory.
pub(super) struct RequestHandler {
    pub(super) server: Arc<Server>,
    pub(super) memory: Memory,
    staleness: ArcSwap<Staleness>,
    /// Whose memory it is.
    guest: sigbus::GuestId,
}

/// What became of a chain.
pub(super) enum Handled {
    /// So many bytes of it are used.
    Used(u32),
    /// Its answer waits, and belongs at this guest physical address.
    Waits(u64, Parked),
    /// Another thread has handed it back.
    Elsewhere,
    /// Its answer could not be put at this guest physical address.
    Unreached(u64, Unanswered),
}

impl RequestHandler {
    pub(super) fn new(server: Arc<Server>, memory: Memory) -> RequestHandler {
        RequestHandler {
            server,
            memory,
            staleness: ArcSwap::default(),
            guest: sigbus::GuestId::new(),
        }
    }

    /// Watches the guest's memory from now on.
    pub(super) fn watch(&self, memory: &GuestMemoryMmap) -> std::io::Result<()> {
        self.guest.act();
        sigbus::watch(memory)
    }

    /// All requests to come use this memory.
    pub(super) fn replace_memory(&self, memory: GuestMemoryMmap) {
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
    pub(super) fn forget_memory(&self) {
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
    pub(super) fn note_regions(&self, regions: &[(u64, u64)]) {
        let staleness = self.staleness.load().after(regions);
        self.staleness.store(Arc::new(staleness));
    }

    /// The memory table shows windows here whose bytes are elsewhere.
    pub(super) fn note_windows(&self, windows: impl Iterator<Item = (u64, u64)>) {
        let staleness = self.staleness.load().with_windows(windows.collect());
        self.staleness.store(Arc::new(staleness));
    }

    /// Handles a request of the guest's. `clock` tells when it began, and
    /// afterwards when it was done; `pace` is told if it takes long.
    pub(super) fn handle(
        &self,
        memory: &GuestMemoryMmap,
        chain: Chain<'_>,
        pace: &dyn Pace,
        clock: &mut Instant,
    ) -> Handled {
        self.guest.act();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let doubts = self.doubts();
            let sides = match chain::split(memory, chain, |addr, len| doubts.of(addr, len)) {
                Ok(sides) => sides,
                Err(error) => {
                    self.server.refuse_chain(&error);
                    return Handled::Used(0);
                }
            };
            let place = sides.reply_at;
            let if_blocked = match place {
                Some(_) => IfBlocked::Park,
                None => IfBlocked::Refuse(Errno::INVAL),
            };
            match (self.server.serve(sides, if_blocked, pace, clock), place) {
                (Served::Answered(used), _) => Handled::Used(used),
                (Served::Unreached(request), Some(at)) => Handled::Unreached(at, request),
                (Served::Unreached(_), None) => Handled::Used(0),
                (Served::Parked(parked), Some(at)) => Handled::Waits(at, parked),
                (Served::Parked(_), None) => Handled::Used(0),
                (Served::Elsewhere, _) => Handled::Elsewhere,
            }
        }));
        handled.unwrap_or_else(|_| {
            // The panic hook has told where. The queue goes on.
            tracing::error!("a request was dropped by an internal error of this daemon");
            Handled::Used(0)
        })
    }

    /// Answers a request whose memory was taken away while it was served, if it
    /// `is_awaited`, and none whose guest has made its memory vanish; the used
    /// length.
    pub(super) fn reach(
        &self,
        memory: &GuestMemoryMmap,
        request: &Unanswered,
        reply_at: u64,
        is_awaited: impl FnOnce() -> bool,
    ) -> u32 {
        let current = self.memory.memory();
        if std::ptr::eq(memory, &*current) {
            return 0;
        }
        let room = self.room(&current, reply_at, is_awaited);
        self.server.answer_again(request, Errno::IO, room)
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

    /// Asks again for a request that waits.
    pub(super) fn retry(&self, parked: &Parked) -> Option<Result<(), Errno>> {
        self.server.retry(parked)
    }

    /// Answers a request that waited, and hands it back.
    pub(super) fn answer(&self, waiting: Waiting, outcome: Result<(), Errno>) {
        let request = &waiting.parked.request;
        self.reply(request, waiting.reply_at, outcome, waiting.completion);
    }

    /// Answers a request in a thread that did not take it, and hands it back.
    pub(super) fn reply(
        &self,
        request: &Unanswered,
        reply_at: u64,
        outcome: Result<(), Errno>,
        completion: Completion,
    ) {
        self.guest.act();
        let memory = self.memory.memory();
        let room = self.room(&memory, reply_at, || completion.is_awaited());
        let used = self.server.answer(request, outcome, room);
        completion.complete(used);
        self.settle();
    }

    /// After guest memory was touched: puts right what vanished meanwhile.
    pub(super) fn settle(&self) {
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
