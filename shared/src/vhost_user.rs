//! The header of vhost-user messages (vhost-user specification, "Header").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every message begins with. All numbers are in the machine's byte order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// [`VERSION`], [`F_REPLY`], [`F_NEED_REPLY`].
    pub flags: u32,
    /// Bytes of the payload behind the header.
    pub size: u32,
}
const _: () = assert!(size_of::<Header>() == 12);

/// Version of the protocol, in the low two bits of `flags`.
pub const VERSION: u32 = 1;
/// In `flags`: the message is a reply.
pub const F_REPLY: u32 = 1 << 2;
/// In `flags`: the sender waits for a reply.
pub const F_NEED_REPLY: u32 = 1 << 3;
/// Request of a front end that hands over the back end's channel.
pub const SET_BACKEND_REQ_FD: u32 = 21;
