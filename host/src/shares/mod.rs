//! The shares of one process: each has a name, a socket, a directory and one
//! guest at a time, and nothing in common with the others but the process.
//!
//! | file | owns |
//! | --- | --- |
//! | [`name`] | what a share may be called |
//! | [`registry`] | which shares there are; adding and removing them |
//! | [`share`] | one of them: its server, its socket, its thread |
//! | [`control`] | the socket at which shares are added and removed |
//! | [`protocol`] | what is said there |
//! | [`descriptors`] | and handed over with it |
//!
//! Laws: a guest that misbehaves, or a share that fails, is no matter of any
//! other; a share is removed when its guest has gone, or by force; nobody
//! waits without end for one that does not.

pub mod control;
pub mod descriptors;
pub mod name;
pub mod protocol;
pub mod registry;
pub mod share;

pub use name::ShareName;
pub use registry::Shares;
pub use share::{About, NewShare, Share};
