//! What a daemon is started with, checked.

use std::os::fd::RawFd;
use std::path::PathBuf;

use rustix::fs::Gid;

use crate::dax::DaxOptions;
use crate::device::serve::DeviceOptions;
use crate::fs::ShareOptions;
use crate::isolation;
use crate::server::ServerOptions;

/// Everything the daemon needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listeners: Listeners,
    /// Who may connect besides the owner.
    pub socket_group: Option<Gid>,
    /// What to share.
    pub shared_dir: PathBuf,
    /// How it is shared.
    pub share: ShareOptions,
    /// The window.
    pub dax: DaxOptions,
    /// How requests are answered where there is a choice.
    pub server: ServerOptions,
    /// What the device tells the guest.
    pub device: DeviceOptions,
    /// How the daemon is isolated.
    pub isolation: isolation::Options,
    /// What to log.
    pub log_level: String,
    /// Log to syslog.
    pub syslog: bool,
    /// Where to tell how things are.
    pub status_socket: Option<PathBuf>,
    /// Flags that do less than somebody may expect, to be logged.
    pub warnings: Vec<&'static str>,
}

/// Where the VMM connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket of our own at this path.
    Path(PathBuf),
    /// A socket that listens already.
    Inherited(RawFd),
    /// The same, as the service manager has passed it.
    Activated(RawFd),
}

/// All places where VMMs connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Open from the start, a guest each.
    pub fixed: Vec<Listen>,
    /// Where more may be opened.
    pub socket_dir: Option<PathBuf>,
    /// How many there may be.
    pub max_shares: usize,
    /// When the last guest has gone, the daemon ends.
    pub once: bool,
}

impl Listeners {
    /// Descriptors of sockets that this process was started with.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let descriptor = |listen: &Listen| match listen {
            Listen::Path(_) => None,
            Listen::Inherited(fd) | Listen::Activated(fd) => Some(*fd),
        };
        self.fixed.iter().filter_map(descriptor).collect()
    }
}
