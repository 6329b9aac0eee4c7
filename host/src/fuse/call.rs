//! A request between its header and its answer.

use std::time::Instant;

use daxwindow_shared::fuse::{InHeader, Opcode};

use super::RequestQueue;
use super::chain::Reader;
use super::in_flight::Admitted;
use super::reply::Reply;
use super::request::Body;

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
    /// Another thread answers, and nothing is put in `reply`.
    pub(super) is_deferred: bool,
}

/// How and until when a request is answered.
pub(super) struct Terms<'r> {
    pub(super) started: Instant,
    /// Its place in the budget, while it is under way.
    pub(super) admitted: &'r mut Admitted,
    /// Guest physical address of the answer's header, if it has one.
    pub(super) reply_at: Option<u64>,
    pub(super) queue: &'r dyn RequestQueue,
}
