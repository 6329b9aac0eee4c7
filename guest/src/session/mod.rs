//! The FUSE client: typed requests to one daemon, many in flight from many
//! threads.
//!
//! This is the protocol: nodes are numbers, requests and replies are the
//! structs of `linux/fuse.h` ([`wire`]), and the caller gives back what it
//! looked up. [`Guest`](crate::Guest) is built on it, and has files and paths.
//!
//! - `request_table`: requests in flight on one queue, and the calls that wait
//!   for them; `busy_poll`: polling before a wait in the kernel.
//! - `call`: one request from encoding to checked reply.
//! - `parts`: a request's descriptors.
//! - `negotiate`: INIT.
//! - `names`, `attributes`, `data`, `directory`, `mapping`: the requests, by
//!   family.
//! - [`pending`](Pending): requests waited for later; [`pipeline`](Pipeline):
//!   many of them, taken as they are done.
//! - `raw`, `tuning`: entry points for tests; [`relay`](Relay): requests that a
//!   kernel has made.
//!
//! Laws: a call ends with an answer, a time-out, or, as soon as the daemon is
//! gone, [`Disconnected`](crate::Error::Disconnected); what the daemon answers
//! can fail a call but never this process; memory the device may still write is
//! never reused.

mod attributes;
mod busy_poll;
mod call;
mod data;
mod directory;
mod mapping;
mod names;
mod negotiate;
mod parts;
mod pending;
mod pipeline;
mod raw;
mod relay;
mod request_table;
// `Tuning` is exported with `test-utils`.
#[cfg_attr(not(feature = "test-utils"), allow(unreachable_pub))]
pub(crate) mod tuning;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use daxwindow_shared::fuse::flags::InitFlags;
use daxwindow_shared::fuse::{InitOut, Opcode};
use parking_lot::RwLock;

use self::call::{Caller, Core, Request};
use self::negotiate::Limits;
use crate::error::Result;
use crate::transport::Transport;
use crate::transport::vhost_user::{VhostUser, VhostUserOptions};

pub use crate::transport::{DmaBuf, GuestAddr};
pub use daxwindow_front_end::Window;
#[doc(inline)]
pub use daxwindow_shared::fuse as wire;
pub use daxwindow_shared::window::{FileOffset, WindowOffset};
pub use directory::Listed;
pub use pending::Pending;
pub use pipeline::{Answer, Order, Pipeline};
pub use relay::Relay;
use tuning::Tuning;

/// How long DESTROY may take when a session is dropped.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(2);

/// How to connect, and what to ask for. [`SessionOptions::new`] has the
/// defaults; a literal ends with them, since more fields may come.
///
/// ```
/// use daxwindow_guest::SessionOptions;
///
/// let options = SessionOptions {
///     request_queues: 2,
///     ..SessionOptions::new("/run/fs.sock")
/// };
/// # assert!(options.dax);
/// ```
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// Bytes of guest memory for queues and buffers.
    pub memory_bytes: u64,
    /// Request queues to use; at most what the device has.
    pub request_queues: usize,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether to ask for a window at all.
    pub dax: bool,
}

impl SessionOptions {
    /// Defaults for a daemon at `socket`: 64 MiB of memory, one request queue
    /// of 256 entries, 30 seconds, with a window.
    pub fn new(socket: impl Into<PathBuf>) -> SessionOptions {
        SessionOptions {
            socket: socket.into(),
            memory_bytes: 64 << 20,
            request_queues: 1,
            queue_size: 256,
            timeout: Duration::from_secs(30),
            dax: true,
        }
    }
}

/// A FUSE session with one daemon. All methods may be called from many
/// threads. Dropping it sends DESTROY and closes the connection.
pub struct Session {
    core: Arc<Core>,
    /// The transport again, for what only vhost-user has.
    device: Option<Arc<VhostUser>>,
    negotiated: RwLock<(InitOut, Limits)>,
    /// Neither DESTROY nor a further request makes sense.
    ended: AtomicBool,
}

impl Session {
    /// Connects, sets the device up, sends INIT.
    pub fn connect(options: SessionOptions) -> Result<Arc<Session>> {
        let (core, device) = set_up(options, Tuning::default())?;
        Session::begin(core, Some(device))
    }

    fn begin(core: Core, device: Option<Arc<VhostUser>>) -> Result<Arc<Session>> {
        let core = Arc::new(core);
        let reply = negotiate::init(&core, core.transport.window().is_some())?;
        let negotiated = RwLock::new((reply, Limits::from_reply(&reply)));
        Ok(Arc::new(Session {
            core,
            device,
            negotiated,
            ended: AtomicBool::new(false),
        }))
    }

    /// The window, if the daemon has one and DAX was asked for.
    pub fn window(&self) -> Option<&Arc<Window>> {
        self.core.transport.window()
    }

    /// The share's tag, if the daemon names one.
    pub fn tag(&self) -> Option<&str> {
        self.device.as_ref()?.agreed().tag.as_deref()
    }

    /// The daemon's answer to INIT, without flags that were not offered.
    pub fn negotiated(&self) -> InitOut {
        self.negotiated.read().0
    }

    /// Inode DAX agreed: only inodes with FUSE_ATTR_DAX are mapped.
    pub fn inode_dax(&self) -> bool {
        self.flags().contains(InitFlags::HAS_INODE_DAX)
    }

    /// Whether the daemon is still there.
    pub fn is_connected(&self) -> bool {
        self.core.transport.is_connected()
    }

    /// A buffer of at least `bytes` in guest memory.
    pub fn alloc(&self, bytes: usize) -> Result<DmaBuf> {
        self.core.alloc(bytes)
    }

    /// Ends the FUSE session: the daemon drops all mappings, inodes and
    /// handles. The connection stays, for [`reinit`](Self::reinit).
    pub fn destroy(&self) -> Result<()> {
        self.send_destroy(self.core.timeout)
    }

    fn send_destroy(&self, timeout: Duration) -> Result<()> {
        let request = Request::new(Opcode::Destroy, 0, &[]);
        let core = &*self.core;
        let sent = core.start(core, core.own_queue(), &request, timeout)?;
        sent.wait(&request, 0..=0)?;
        self.ended.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Sends INIT again, as a guest that mounts again.
    pub fn reinit(&self) -> Result<InitOut> {
        let reply = negotiate::init(&self.core, self.window().is_some())?;
        *self.negotiated.write() = (reply, Limits::from_reply(&reply));
        self.ended.store(false, Ordering::Relaxed);
        Ok(reply)
    }

    /// Resets the device, as a guest that reboots, and sends INIT again.
    /// Requests in flight fail.
    pub fn reset_device(&self) -> Result<InitOut> {
        self.core.reset()?;
        self.reinit()
    }

    fn flags(&self) -> InitFlags {
        negotiate::agreed(&self.negotiated.read().0)
    }

    fn limits(&self) -> Limits {
        self.negotiated.read().1
    }

    /// A buffer with `parts` in it, one behind the other.
    fn spill(&self, parts: &[&[u8]]) -> Result<DmaBuf> {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut buf = self.alloc(len)?;
        let mut at = 0;
        for part in parts {
            buf.copy_from(at, part);
            at += part.len();
        }
        Ok(buf)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tag", &self.tag())
            .field("is_connected", &self.is_connected())
            .field("window", &self.window())
            .field("negotiated", &self.negotiated())
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let ended = self.ended.load(Ordering::Relaxed) || !self.is_connected();
        if !ended && let Err(error) = self.send_destroy(DESTROY_TIMEOUT) {
            tracing::debug!(%error, "DESTROY was not answered");
        }
        self.core.transport.disconnect();
    }
}

/// Connects to the daemon and sets the device up, without a request yet.
fn set_up(options: SessionOptions, tuning: Tuning) -> Result<(Core, Arc<VhostUser>)> {
    let device = Arc::new(VhostUser::connect(VhostUserOptions {
        socket: options.socket,
        memory_bytes: options.memory_bytes,
        queue_size: options.queue_size,
        request_queues: options.request_queues,
        window_limit_bytes: if options.dax {
            tuning.window_limit_bytes
        } else {
            0
        },
        legacy_window_bytes: tuning.legacy_window_bytes,
        control_timeout: tuning.control_timeout,
        hook: tuning.hook,
    })?);
    let transport: Arc<dyn Transport> = device.clone();
    let mut core = Core::new(transport, caller(), options.timeout, tuning.busy_poll)?;
    core.separate_headers = tuning.separate_headers;
    Ok((core, device))
}

/// This process, as the daemon may log it.
fn caller() -> Caller {
    Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        pid: rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs(),
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
