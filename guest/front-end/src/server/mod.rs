//! The server for `SHMEM_MAP` and `SHMEM_UNMAP`: a back end sends them on its
//! channel, this maps into a [`Window`](crate::Window).
//!
//! - `service`: what is done with a message.
//! - `mapped`: which bytes of the window are mapped.
//! - `channel`: messages in, replies out, one step at a time.
//! - `thread` and `polled`: the two forms, which only take steps.
//! - `fs_map`: messages from before the specification.
//! - `hook`: fault injection.
//!
//! Laws: a message is checked in full before anything is mapped (region,
//! flags, alignment, overflow, inside the window, one descriptor of a regular
//! file); a refused message is answered with a negated errno and leaves both
//! the window and the channel as they were; only a message whose end cannot
//! be found closes the channel, and a window that is lost. However a back end
//! maps, the process keeps half of the mappings that the kernel allows it.
//!
//! The framing is done here and not by the vhost crate's handler, which
//! leaves the body of a message with a wrong descriptor count unread and so
//! loses the channel.

mod channel;
mod fs_map;
mod hook;
mod mapped;
mod options;
mod polled;
mod service;
mod stats;
#[cfg(test)]
mod tests;
mod thread;

pub use hook::{Verdict, WindowHook};
#[cfg(any(test, feature = "internals"))]
pub use options::Internal;
pub use options::{Language, ServerOptions};
pub use polled::{PolledServer, Progress};
pub use stats::ServerStats;
pub use thread::WindowServer;
