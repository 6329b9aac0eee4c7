//! A VMM's half of a virtio-fs DAX window, for VMMs to take alone.
//!
//! A vhost-user back end with shared memory regions
//! (`VHOST_USER_PROTOCOL_F_SHMEM`) asks its front end, the VMM, to map ranges
//! of files into a *window*, a region of the guest's physical address space.
//! This crate is what a front end needs for that, and nothing of a FUSE client:
//!
//! | | |
//! | --- | --- |
//! | [`Window`] | reserved address space, or [adopted](Window::adopt), of which every range is checked before anything is mapped |
//! | [`WindowServer`] | serves SHMEM_MAP and SHMEM_UNMAP on a thread of its own |
//! | [`PolledServer`] | the same, called by a VMM's own loop |
//! | [`area`] | the address space beneath, to show pieces of a window elsewhere as well |
//!
//! What a VMM does besides: it agrees on the protocol features `SHMEM`,
//! `BACKEND_REQ` and `BACKEND_SEND_FD` (and `REPLY_ACK`, without which a back
//! end cannot know that a range is there), asks for the region's size by
//! `GET_SHMEM_CONFIG`, and shows the window to the guest as one region, in KVM
//! one memory slot, from [`Window::address`] on. It is told to the guest as
//! the device's shared memory region 0. What is mapped later appears in it.
//!
//! Nothing that a back end sends is trusted. A message is checked in full
//! before anything is mapped, and whatever it says, only the window changes.
//! The guest meets a SIGBUS behind the end of a file, as any process that maps one:
//! the VMM decides what becomes of it there.
//!
//! # A thread
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//!
//! use daxwindow_front_end::{ServerOptions, Window, WindowServer};
//!
//! # fn show_to_guest(_address: usize, _bytes: u64) {}
//! # fn set_backend_req_fd(_channel: UnixStream) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let window = Arc::new(Window::reserve(256 << 20)?);
//! show_to_guest(window.address(), window.bytes());
//!
//! let (ours, theirs) = UnixStream::pair()?;
//! let options = ServerOptions {
//!     reply_ack: true, // as agreed with the back end
//!     ..ServerOptions::default()
//! };
//! let server = WindowServer::start(ours, Arc::clone(&window), options)?;
//! set_backend_req_fd(theirs); // sent to the back end, and closed here
//!
//! // When the back end has closed its end; a drop ends the server from here.
//! server.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! # A loop of the VMM's own
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//!
//! use daxwindow_front_end::{PolledServer, Progress, ServerOptions, Window};
//! use rustix::event::{PollFd, PollFlags, poll};
//!
//! # fn set_backend_req_fd(_channel: UnixStream) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let window = Arc::new(Window::reserve(256 << 20)?);
//! let (ours, theirs) = UnixStream::pair()?;
//! let options = ServerOptions {
//!     reply_ack: true,
//!     ..ServerOptions::default()
//! };
//! let mut server = PolledServer::new(ours, window, options);
//! set_backend_req_fd(theirs);
//!
//! let mut events = PollFlags::IN;
//! loop {
//!     // Among whatever else the VMM waits for.
//!     poll(&mut [PollFd::new(&server, events)], None)?;
//!     events = match server.serve_ready()? {
//!         Progress::WaitReadable | Progress::Again => PollFlags::IN,
//!         Progress::WaitWritable => PollFlags::OUT,
//!         Progress::Closed => break,
//!     };
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Address space of the VMM's own
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//!
//! use daxwindow_front_end::area::{AdoptedSpace, Tenant};
//! use daxwindow_front_end::{ServerOptions, Window, WindowServer};
//! # use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
//!
//! struct Indifferent;
//! impl Tenant for Indifferent {}
//! static SPACE: AdoptedSpace = AdoptedSpace::new(&Indifferent);
//!
//! # const BYTES: usize = 256 << 20;
//! # unsafe fn map_region() -> std::io::Result<usize> {
//! #     let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
//! #     let at = unsafe { mmap_anonymous(std::ptr::null_mut(), BYTES, ProtFlags::READ, flags)? };
//! #     Ok(at.expose_provenance())
//! # }
//! # unsafe fn unmap_region(at: usize) -> std::io::Result<()> {
//! #     Ok(unsafe { munmap(std::ptr::with_exposed_provenance_mut(at), BYTES)? })
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let window = Arc::new(Window::adopt(&SPACE, 256 << 20)?);
//! let (ours, theirs) = UnixStream::pair()?;
//! let server = WindowServer::start(ours, window, ServerOptions::default())?;
//!
//! // The VMM maps its region of the guest's memory, as it always does.
//! let address = unsafe { map_region()? };
//! // SAFETY: the region has the window's size, and nothing else is in it.
//! unsafe { SPACE.lock().set_place(address)? };
//!
//! // Before the region goes away, at a reset for one.
//! SPACE.lock().forget_place();
//! unsafe { unmap_region(address)? };
//! # drop((server, theirs));
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]
#![warn(missing_debug_implementations)]
// What is exported with `internals` is there without it, too.
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]

mod error;
mod framing;
mod server;
mod window;

pub use daxwindow_shared::shmem::MapRequest;
pub use daxwindow_shared::window::{FileOffset, WindowError, WindowOffset, WindowRange};
pub use error::{ChannelError, FileError};
pub use server::{PolledServer, Progress, ServerOptions, ServerStats, WindowServer};
pub use window::{RegularFile, Window};

/// The address space beneath a [`Window`], and how one piece of it is shown at
/// a second place.
pub mod area {
    pub use crate::window::sys::{AdoptedSpace, Area, Protection, SpaceGuard, Staged, Tenant};
}

/// What `daxwindow-guest` needs beyond it: the messages of an older time, fault
/// injection, and messages as bytes. Not for others: it changes without notice.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internal {
    pub use crate::framing::{F_NEED_REPLY, F_REPLY, Header, Message, receive, send_number};
    pub use crate::server::{Internal, Language, Verdict, WindowHook};
}
