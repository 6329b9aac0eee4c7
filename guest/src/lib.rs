//! The guest end of a virtio-fs DAX window, in user space.
//!
//! One process attaches to a virtio-fs daemon as a virtual machine would, and
//! sees the shared files in the host's page cache: by copies out of mapped
//! ranges ([`File::read_at`]) or as memory whose page faults map them
//! ([`File::map`]). Without a window it works by requests.
//!
//! ```no_run
//! use daxwindow_guest::{Access, Guest, SessionOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // daxwindowd --socket-path /run/fs.sock --shared-dir /usr/share --dax always
//! let guest = Guest::connect(SessionOptions::new("/run/fs.sock"))?;
//!
//! for entry in guest.list("licenses")? {
//!     println!("{} ({:?})", entry.name.display(), entry.file_type);
//! }
//!
//! let file = guest.open("licenses/MIT", Access::Read)?;
//! let mut text = vec![0; file.metadata()?.len() as usize];
//! let len = file.read_at(&mut text, 0)?; // copied out of the host's page cache
//! println!("{}", String::from_utf8_lossy(&text[..len]));
//! # Ok(())
//! # }
//! ```
//!
//! | room | owns |
//! | --- | --- |
//! | `file` | [`Guest`], [`File`] and what they return |
//! | `fault` | [`View`]: address space whose page faults become mapped ranges |
//! | `mapper` | which file ranges are in the window: lookup, pins, admission, reclaim, prefetch |
//! | [`session`] | the protocol: a FUSE client with many requests in flight, time-outs, clean errors |
//! | `transport` | how requests travel: a vhost-user front end in this process |
//! | `window` | the region of address space that the back end maps files into |
//!
//! A VMM that shows a window to a guest of its own takes
//! [`daxwindow_front_end`] instead.

#![deny(unsafe_code)]
#![warn(missing_debug_implementations)]

mod error;
mod fault;
mod file;
mod mapper;
pub mod session;
#[cfg(feature = "test-utils")]
#[doc(hidden)]
pub mod test_utils;
// What is exported with `test-utils` is there without it, too.
#[cfg_attr(not(feature = "test-utils"), allow(unreachable_pub))]
mod transport;
mod window;

pub use daxwindow_shared::latency::Summary as LatencySummary;
pub use error::{Error, Result};
pub use fault::View;
pub use file::{Access, DirEntry, File, FileType, Guest, GuestOptions, MapperStats, Metadata};
pub use rustix::io::Errno;
#[doc(no_inline)]
pub use session::{Session, SessionOptions};
