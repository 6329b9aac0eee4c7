//! What the daemon cannot do, even if it is made to: isolation, on by default.
//!
//! | file | owns |
//! | --- | --- |
//! | `launch` | the way from one process to those that serve and look after it |
//! | `namespaces` | leaving the host's namespaces |
//! | `idmap` | which users a user namespace has |
//! | [`root`] | what is at `/` |
//! | `supervisor` | the process that stays outside |
//! | `signals` | what comes before anybody heeds it |
//! | `helper` | a process that keeps one privilege for one purpose |
//! | [`caps`] | capabilities |
//! | `landlock` | a second fence around the share |
//! | [`seccomp`], `calls` | system calls |
//! | `limits` | descriptors |
//!
//! Laws: what serves a guest has no privilege that serving does not need, and
//! sees nothing of the host but the share; everything from outside is opened
//! before, or comes as a descriptor. What cannot be had is an error that
//! names the flag to change, never a silent omission. docs/isolation.md has
//! the whole list.

mod calls;
pub mod caps;
mod helper;
mod idmap;
mod landlock;
mod launch;
mod limits;
mod namespaces;
pub mod root;
pub mod seccomp;
mod signals;
mod supervisor;
mod sys;

use std::io;

use self::caps::ModCaps;
use self::root::Tree;
use self::seccomp::{Seccomp, SeccompError};

pub use idmap::{IdMap, IdMapError, has_one_id};
pub use launch::{Inside, Plan, launch};
pub use limits::{NofileError, set_nofile};
pub use signals::{heeded as heeded_signals, hold as hold_signals};
pub use sys::{ignore_file_size_signal, inherited, opened_by, takes_writes};

pub(crate) use helper::{Alone, spawn};

/// How the daemon is kept from the rest of the host (`--sandbox`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sandbox {
    /// Give the daemon namespaces of its own (mount, process, network, IPC, and
    /// user where it needs one), with the shared directory for a root.
    #[default]
    Namespace,
    /// Make the shared directory the daemon's root, without namespaces; for
    /// root only.
    Chroot,
    /// Do not isolate the daemon: a guest that takes it over reaches whatever
    /// the daemon's user may.
    None,
}

/// What the operator decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What happens to a system call that is not on the list.
    pub seccomp: Seccomp,
    /// Changes to the capabilities kept.
    pub modcaps: ModCaps,
    /// Users of the user namespace. Empty: none is made for who may do
    /// without, and for others it has themselves.
    pub uid_map: Vec<IdMap>,
    /// Groups, likewise.
    pub gid_map: Vec<IdMap>,
}

/// Why the daemon is not isolated as it should be.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// Namespaces cannot be had.
    #[error(
        "--sandbox namespace: cannot {action}: {cause}; where namespaces are refused, as in \
         many containers, use --sandbox chroot (root only) or --sandbox none"
    )]
    Namespaces {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The ids are refused.
    #[error("--uid-map, --gid-map: {0}")]
    IdMaps(String),
    /// The root cannot be changed.
    #[error(
        "--sandbox: cannot {action}: {cause}; where this is refused, as in many containers, use \
         --sandbox chroot (root only) or --sandbox none"
    )]
    Root {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// `chroot` is root's.
    #[error("--sandbox chroot is for root only; use --sandbox namespace, which anybody may")]
    ChrootNotRoot,
    /// One flag asks for what another takes away.
    #[error(
        "--modcaps takes dac_read_search away, which file handles need; use \
         --inode-file-handles never"
    )]
    NeedsReadSearch,
    /// Everybody would have them.
    #[error(
        "--modcaps: {0} came with the file of the program (setcap), which gives it to whoever \
         starts the daemon, and pads files only; start it as root, or with the capability \
         inheritable and ambient (AmbientCapabilities= of systemd, setpriv --inh-caps \
         --ambient-caps)"
    )]
    OfTheFile(String),
    /// Maps without a namespace to hold them.
    #[error("--uid-map and --gid-map need a user namespace; use --sandbox namespace")]
    MapsWithoutNamespace,
    /// A directory.
    #[error("--shared-dir {:?}: {cause}{}", .tree.path, root::what_to_share(cause))]
    Tree {
        /// Which.
        tree: Tree,
        /// What the kernel says.
        cause: io::Error,
    },
    /// A process cannot be made.
    #[error("cannot {action}: {cause}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// Capabilities.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] ::caps::errors::CapsError),
    /// Landlock.
    #[error("cannot set up Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
    /// The filter.
    #[error("--seccomp: {0}; use --seccomp none where the kernel has no filters")]
    Seccomp(#[from] SeccompError),
}

impl IsolationError {
    fn root(action: &'static str, cause: io::Error) -> Self {
        IsolationError::Root { action, cause }
    }

    fn process(action: &'static str, cause: io::Error) -> Self {
        IsolationError::Process { action, cause }
    }

    fn tree(tree: &Tree, cause: io::Error) -> Self {
        IsolationError::Tree {
            tree: tree.clone(),
            cause,
        }
    }
}
