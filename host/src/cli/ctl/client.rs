//! `daxwindowd ctl`: tells a daemon to add and to remove shares.
//!
//! The client opens the directory and binds the socket, and hands both over:
//! the daemon may be confined to where it sees neither.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::isolation::root::{Tree, clone_tree, what_to_share};
use crate::listen::socket::{Socket, SocketError};

use crate::shares::control::REMOVE_PATIENCE;
use crate::shares::descriptors::{send_line, take_line};
use crate::shares::name::control_file;
use crate::shares::protocol::{Add, Answer, Listed, MAX_LINE_BYTES, Request, to_line};
use crate::shares::registry::open_directory;

use super::{AddFlags, Ctl, Order};

/// How long an answer may take: others may be heard before us.
const PATIENCE: Duration = Duration::from_secs(60).saturating_add(REMOVE_PATIENCE);

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The daemon says so.
    #[error("{0}")]
    Refused(String),
    /// The directory to share.
    #[error("--shared-dir {path:?}: {cause}{}", what_to_share(cause))]
    Directory {
        /// As it was named.
        path: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The socket to be.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The daemon cannot be talked to.
    #[error("--socket-dir: cannot {action} {path:?}: {cause}")]
    Io {
        /// The control socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// Something else answers there.
    #[error("--socket-dir: what listens at {0:?} does not answer as this daemon does")]
    Answer(PathBuf),
}

/// Does what was ordered; answers what there is to print.
///
/// # Errors
///
/// [`CtlError`]; what was not done has left nothing behind.
pub fn run(ctl: &Ctl) -> Result<String, CtlError> {
    let daemon = Daemon {
        control: ctl.socket_dir.join(control_file()),
    };
    match &ctl.order {
        Order::Add(flags) => add(&daemon, &ctl.socket_dir, flags),
        Order::Remove(flags) => {
            let (name, force) = (flags.name.clone(), flags.force);
            daemon.told(&Request::Remove { name, force }, &[])?;
            Ok(String::new())
        }
        Order::List { json } => match daemon.asked(&Request::List, &[])? {
            Answer::Shares(shares) if *json => Ok(as_json(&shares)),
            Answer::Shares(shares) => Ok(as_lines(&shares)),
            _ => Err(CtlError::Answer(daemon.control)),
        },
    }
}

fn add(daemon: &Daemon, socket_dir: &Path, flags: &AddFlags) -> Result<String, CtlError> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let root = tree(flags).map_err(|cause| CtlError::Directory {
        path: flags.shared_dir.clone(),
        cause,
    })?;
    let home = open_directory(socket_dir).map_err(|e| daemon.failed("find the directory of", e))?;
    let path = absolute(&socket_dir.join(flags.name.socket_file()));
    // Its file goes with this unless the daemon has taken it over.
    let socket = Socket::bind("--name", &path)?;
    let request = Request::Add(Add {
        name: flags.name.clone(),
        directory: absolute(&flags.shared_dir),
        socket: path.clone(),
        tag: flags.tag.clone(),
        readonly: flags.readonly,
        dax: flags.dax,
        window_bytes: flags.dax_window.map(|window| window.0),
    });
    let handed = [root.as_fd(), socket.listener().as_fd(), home.as_fd()];
    daemon.told(&request, &handed)?;
    socket.leave_file();
    Ok(format!("{}\n", path.display()))
}

/// The directory as a tree of mounts of its own, which not even `..` leads out
/// of, where that may be made; else as it is.
fn tree(flags: &AddFlags) -> io::Result<OwnedFd> {
    let tree = Tree {
        path: flags.shared_dir.clone(),
        readonly: flags.readonly,
    };
    match clone_tree(&tree) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_directory(&flags.shared_dir)
        }
        made => made,
    }
}

struct Daemon {
    control: PathBuf,
}

impl Daemon {
    fn failed(&self, action: &'static str, cause: io::Error) -> CtlError {
        let path = self.control.clone();
        CtlError::Io {
            path,
            action,
            cause,
        }
    }

    fn told(
        &self,
        request: &Request,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(), CtlError> {
        match self.asked(request, descriptors)? {
            Answer::Done => Ok(()),
            _ => Err(CtlError::Answer(self.control.clone())),
        }
    }

    fn asked(
        &self,
        request: &Request,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<Answer, CtlError> {
        let socket = UnixStream::connect(&self.control);
        let socket = socket.map_err(|e| self.failed("connect to", e))?;
        let line = to_line(request).map_err(|e| self.failed("write a request to", e))?;
        send_line(&socket, &line, descriptors).map_err(|e| self.failed("write to", e))?;
        let answer = take_line(&socket, MAX_LINE_BYTES, PATIENCE);
        let (line, _) = answer.map_err(|e| self.failed("hear from", e))?;
        match serde_json::from_slice(&line) {
            Ok(Answer::Error(error)) => Err(CtlError::Refused(error)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(CtlError::Answer(self.control.clone())),
        }
    }
}

fn as_json(shares: &[Listed]) -> String {
    // Plain strings and booleans: nothing that has no JSON.
    let text = serde_json::to_string_pretty(shares).unwrap_or_default();
    text + "\n"
}

fn as_lines(shares: &[Listed]) -> String {
    let mut text = String::new();
    for share in shares {
        let use_ = if share.in_use { "in use" } else { "free" };
        let access = if share.readonly { "ro" } else { "rw" };
        let (name, socket, directory) = (&share.name, &share.socket, &share.directory);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}\t{use_}\t{socket}\t{access}\t{directory}");
    }
    text
}
