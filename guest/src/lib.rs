//! The guest end of a virtio-fs DAX window, in user space.
//!
//! | room | owns |
//! | --- | --- |
//! | [`transport`] | how requests travel: a vhost-user front end in this process |
//! | [`session`] | the FUSE client: many requests in flight, time-outs, clean errors |
//! | [`window`] | the region of address space the back end maps files into |
//! | [`mapper`] | which file ranges are in the window: lookup, pins, admission, reclaim, prefetch |
//! | [`fault`] | views: address space whose page faults become mapped ranges |
//! | [`mod@file`] | the API people use |
//!
//! Start at [`Guest`](file::Guest).

#![deny(unsafe_code)]

mod error;
pub mod fault;
pub mod file;
pub mod mapper;
pub mod session;
pub mod transport;
pub mod window;

pub use error::{Error, Result};
