//! A VMM's half of a virtio-fs DAX window.

#![deny(unsafe_code)]

mod framing;
pub mod server;
pub mod window;

/// Address space, as windows and views are made of it.
pub mod area {
    pub use crate::window::sys::{Area, Protection, Staged};
}

/// What `daxwindow-guest` needs beyond it. Not for others: it changes without
/// notice.
#[doc(hidden)]
pub mod internal {
    pub use crate::framing::{F_NEED_REPLY, F_REPLY, Header, Message, receive, send_number};
}
