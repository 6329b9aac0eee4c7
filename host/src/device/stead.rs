//! A request under way, and who may hand it back: the thread that took it, or
//! another in its stead.
//!
//! Law: whoever has the ticket hands the request back; it is taken before
//! anything is written for the guest.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::server::{Server, Stead, Unanswered};

use super::lane::Lane;
use super::ring::Ticket;

/// A ticket that several threads may take.
#[derive(Clone, Debug)]
struct Claim(Arc<Mutex<Option<Ticket>>>);

/// The ticket of the request that a thread has under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay(RefCell<Held>);

#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Alone(Ticket),
    Shared(Claim),
}

impl UnderWay {
    /// A request was taken.
    pub(super) fn begin(&self, ticket: Ticket) {
        self.0.replace(Held::Alone(ticket));
    }

    /// Its ticket, unless somebody else has taken it.
    pub(super) fn end(&self) -> Option<Ticket> {
        match self.0.take() {
            Held::Nothing => None,
            Held::Alone(ticket) => Some(ticket),
            Held::Shared(claim) => claim.0.lock().take(),
        }
    }

    /// Lets another thread take the ticket as well, for a request of `lane`
    /// whose answer's header belongs at `reply_at`; this thread is one of `own`.
    pub(super) fn share(
        &self,
        own: &Arc<Lane>,
        lane: &Arc<Lane>,
        reply_at: u64,
    ) -> Option<Box<dyn Stead>> {
        let claim = Claim(Arc::new(Mutex::new(Some(self.end()?))));
        self.0.replace(Held::Shared(claim.clone()));
        Some(Box::new(InStead {
            own: Arc::clone(own),
            lane: Arc::clone(lane),
            reply_at,
            claim,
        }))
    }
}

/// What another thread needs.
struct InStead {
    /// Whose thread is stuck.
    own: Arc<Lane>,
    /// Whose request it is.
    lane: Arc<Lane>,
    reply_at: u64,
    claim: Claim,
}

impl Stead for InStead {
    fn server(&self) -> &Server {
        &self.lane.context.handler.server
    }

    fn fail(self: Box<Self>, request: &Unanswered, errno: Errno) {
        let Some(ticket) = self.claim.0.lock().take() else {
            return;
        };
        self.own.write_off();
        let completion = self.lane.ring().completion(ticket);
        let handler = &self.lane.context.handler;
        handler.reply(request, self.reply_at, Err(errno), completion);
    }
}
