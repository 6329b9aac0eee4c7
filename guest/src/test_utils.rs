//! What the tests and measurements of this repository need beyond the API:
//! fault injection, hostile requests, back ends that speak an older protocol.
//! Not for others: it changes without notice.

pub use daxwindow_front_end::ServerStats;
pub use daxwindow_front_end::internal::{Language, Verdict, WindowHook};

pub use crate::session::tuning::Tuning;
pub use crate::transport::vhost_user::handshake::Agreed;
pub use crate::transport::vhost_user::{VhostUser, VhostUserOptions};
pub use crate::transport::{
    Calls, Chain, Completion, GuestMemory, RawDescriptor, Segment, SubmitError, Transport, Wake,
};
