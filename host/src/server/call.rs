//! A request between its header and its answer.

use std::time::Instant;

use daxwindow_shared::fuse::{InHeader, Opcode};

use crate::fs::LockWait;

use super::chain::Reader;
use super::in_flight::Admitted;
use super::reply::Reply;
use super::request::Body;
use super::{IfBlocked, Pace};

/// A request on its way to its handler.
pub(super) struct Call<'b, 'r, 'm> {
    pub(super) header: InHeader,
    pub(super) opcode: Opcode,
    pub(super) body: Body<'b>,
    /// What the header counts as extensions of the body.
    pub(super) extensions: Body<'b>,
    /// What follows the body: the data of WRITE.
    pub(super) data: &'r mut Reader<'m>,
    pub(super) reply: &'r mut Reply<'m>,
    pub(super) terms: Terms<'r>,
    pub(super) fate: Fate,
}

/// How and until when a request is answered.
pub(super) struct Terms<'r> {
    pub(super) started: Instant,
    /// Its place in the budget, while it is under way.
    pub(super) admitted: &'r mut Admitted,
    /// Guest physical address of the answer's header, if it has one.
    pub(super) reply_at: Option<u64>,
    pub(super) if_blocked: IfBlocked,
    pub(super) pace: &'r dyn Pace,
}

/// Who answers a request that was handled.
pub(super) enum Fate {
    /// Who has handled it.
    Here,
    /// Nobody as yet, and nothing is put in `reply`: it waits.
    Waits(LockWait),
    /// Somebody has; nothing is put in `reply` any more.
    Elsewhere,
}
