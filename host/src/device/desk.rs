//! Where requests are handled and answered, whichever thread comes: what a
//! queue's threads and the thread of parked requests have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard as Loaded};
use rustix::io::Errno;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use crate::dax::{Naive, WindowGpas};
use crate::fs::Bell;
use crate::guard;
use crate::server::{IfBlocked, Pace, Parked, Served, Server, Unanswered, chain};

use super::parking::Waiting;
use super::ring::{Chain, Completion, Memory, Ring};
use super::stale::Staleness;

/// One client's server and memory.
pub(super) struct Desk {
    pub(super) server: Arc<Server>,
    pub(super) memory: Memory,
    staleness: ArcSwap<Staleness>,
    /// Whose memory it is.
    party: guard::Party,
}

/// What became of a chain.
pub(super) enum Handled {
    /// So many bytes of it are used.
    Used(u32),
    /// Its answer waits, and belongs at this guest physical address.
    Waits(u64, Parked),
    /// Another thread has handed it back.
    Elsewhere,
}

impl Desk {
    pub(super) fn new(server: Arc<Server>, memory: Memory) -> Desk {
        Desk {
            server,
            memory,
            staleness: ArcSwap::default(),
            party: guard::Party::new(),
        }
    }

    /// Watches the guest's memory from now on.
    pub(super) fn watch(&self, memory: &GuestMemoryMmap) -> std::io::Result<()> {
        self.party.act();
        guard::watch(memory)
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

    /// Handles a request of the guest's. `clock` tells when it began, and
    /// afterwards when it was done; `pace` is told if it takes long.
    pub(super) fn handle(
        &self,
        memory: &GuestMemoryMmap,
        chain: Chain<'_>,
        pace: &dyn Pace,
        clock: &mut Instant,
    ) -> Handled {
        self.party.act();
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
                (Served::Parked(parked), Some(at)) => Handled::Waits(at, parked),
                (Served::Parked(_), None) => Handled::Used(0),
                (Served::Elsewhere, _) => Handled::Elsewhere,
            }
        }));
        handled.unwrap_or_else(|_| {
            // The panic hook has told where. The queue goes on.
            tracing::error!("a request was dropped by a defect of this daemon");
            Handled::Used(0)
        })
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
        self.party.act();
        let memory = self.memory.memory();
        let doubts = self.doubts();
        let is_stale = |addr, len| doubts.of(addr, len);
        let room = chain::header_room(&memory, reply_at, is_stale);
        let used = self.server.answer(request, outcome, room);
        completion.complete(used);
        self.settle();
    }

    /// After guest memory was touched: puts right what vanished meanwhile.
    pub(super) fn settle(&self) {
        self.party.act();
        guard::mend();
        match guard::take_faults() {
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
            believes: self.server.dax().leaves_out(Naive::DOUBT_TABLE),
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
