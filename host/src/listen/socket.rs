//! The listening socket and its file.
//!
//! Law: a file that somebody else may still use is never replaced, and only a
//! file of our own is removed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, chmod, chownat, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::inherited;
use super::pid_file::{PidFile, PidFileError, main_pid};

/// Nobody but the owner may connect: who does gets the whole share.
const MODE: Mode = Mode::from_raw_mode(0o700);
/// With `--socket-group`.
const GROUP_MODE: Mode = Mode::from_raw_mode(0o770);
/// Clients that may wait while one is let in or turned away.
const BACKLOG: i32 = 16;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Unix sockets have short names.
    #[error("{flag} {path:?}: {len} bytes are too long for the name of a socket (at most 107)")]
    TooLong {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// A daemon answers there.
    #[error("{flag} {path:?}: in use, another daemon is listening there")]
    InUse {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The same, and which it is.
    #[error("{flag} {path:?}: in use by the daemon with process id {pid}")]
    Owned {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// As the file beside it says.
        pid: u32,
    },
    /// A file that is not the daemon's would be lost.
    #[error("{flag} {path:?}: the file with .pid added holds something other than a process id")]
    NotAPidFile {
        /// The flag that named it.
        flag: &'static str,
        /// The path of the socket.
        path: PathBuf,
    },
    /// A file that is not a socket would be lost.
    #[error("{flag} {path:?}: the file exists and is not a socket")]
    NotASocket {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A descriptor that cannot be listened on.
    #[error("--fd {fd}: not an inherited Unix socket that listens: {cause}")]
    Inherited {
        /// The descriptor.
        fd: RawFd,
        /// What the kernel, or we, say.
        cause: Errno,
    },
    /// The same, as the service manager passed it.
    #[error("LISTEN_FDS: descriptor {fd} is no Unix socket that listens: {cause}")]
    Activated {
        /// The descriptor.
        fd: RawFd,
        /// What the kernel, or we, say.
        cause: Errno,
    },
    /// The same, as a client handed it over.
    #[error("the socket does not listen: {0}")]
    Given(Errno),
    /// Anything else.
    #[error("{flag} {path:?}: cannot {action}: {cause}")]
    Io {
        /// The flag that named it.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
}

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    file: Option<SocketFile>,
}

/// The file of a socket, found again from its directory, wherever the root of
/// this process is by then. It is removed on drop, unless somebody has put
/// another in its place; and then the one that names the process.
#[derive(Debug)]
pub struct SocketFile {
    directory: Arc<OwnedFd>,
    name: OsString,
    /// Device and inode, to know it again; none if it is left to others.
    identity: Option<(u64, u64)>,
    pid: Option<PidFile>,
}

impl Socket {
    /// Listens at `path`, which `flag` named, replacing what a daemon left
    /// behind that is gone.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn bind(flag: &'static str, path: &Path) -> Result<Socket, SocketError> {
        Socket::bind_for(flag, path, None)
    }

    /// The same for guests: `path` with `.pid` added tells which process takes
    /// signals, and keeps others from the socket.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn bind_with_pid(flag: &'static str, path: &Path) -> Result<Socket, SocketError> {
        Socket::bind_for(flag, path, Some(main_pid()))
    }

    fn bind_for(flag: &'static str, path: &Path, pid: Option<u32>) -> Result<Socket, SocketError> {
        let failed = |action, cause| SocketError::Io {
            flag,
            path: path.to_owned(),
            action,
            cause,
        };
        let len = path.as_os_str().len();
        if len > 107 {
            let path = path.to_owned();
            return Err(SocketError::TooLong { flag, path, len });
        }
        let directory = open_directory_of(path);
        let directory = directory.map_err(|errno| failed("open the directory", errno.into()))?;
        let directory = Arc::new(directory);
        let pid = match (pid, path.file_name()) {
            (Some(pid), Some(name)) => Some(
                PidFile::take(&directory, name, pid)
                    .map_err(|error| SocketError::of_pid_file(flag, path, error))?,
            ),
            _ => None,
        };
        clear_the_way(flag, path)?;
        let listener = listen_at(path).map_err(|errno| failed("listen", errno.into()))?;
        Ok(Socket {
            listener,
            path: path.to_owned(),
            file: SocketFile::find(directory, path, pid),
        })
    }

    /// Takes over a socket that somebody else has bound for us, in
    /// `directory`, as the last component of `path`; its file goes with it.
    ///
    /// # Errors
    ///
    /// [`SocketError::Given`] for what is no Unix socket that listens,
    /// [`SocketError::Owned`] and the like if another daemon has it.
    pub fn given(
        listener: OwnedFd,
        directory: OwnedFd,
        path: PathBuf,
    ) -> Result<Socket, SocketError> {
        inherited::require_listening(&listener).map_err(SocketError::Given)?;
        let directory = Arc::new(directory);
        let name = path.file_name().unwrap_or_default();
        let pid = match PidFile::take(&directory, name, main_pid()) {
            // The directory may be for others to write, such as who bound it.
            Err(PidFileError::Io(errno)) => {
                tracing::warn!(?path, "cannot make the file with .pid added: {errno}");
                None
            }
            taken => Some(taken.map_err(|error| SocketError::of_pid_file("--name", &path, error))?),
        };
        Ok(Socket {
            listener: UnixListener::from(listener),
            file: SocketFile::find(directory, &path, pid),
            path,
        })
    }

    /// Lets members of a group connect, too.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`].
    pub fn let_in(&self, group: Gid) -> Result<(), SocketError> {
        let failed = |cause: Errno| SocketError::Io {
            flag: "--socket-group",
            path: self.path.clone(),
            action: "give the socket to the group",
            cause: cause.into(),
        };
        let file = self.open_file().map_err(failed)?;
        // In this order, or another group could connect in between.
        let flags = AtFlags::EMPTY_PATH;
        chownat(&file, "", None, Some(group), flags).map_err(failed)?;
        chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), GROUP_MODE).map_err(failed)
    }

    /// The file of the socket and nothing that others have put in its place,
    /// which may be a link: the directory may be for others to write.
    fn open_file(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match &self.file {
            Some(file) => openat(&file.directory, &file.name, flags, Mode::empty()),
            None => openat(CWD, &self.path, flags, Mode::empty()),
        }?;
        let stat = fstat(&opened)?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        let identity = Some((stat.st_dev, stat.st_ino));
        let is_ours = self
            .file
            .as_ref()
            .is_none_or(|file| file.identity == identity);
        // A second name may be that of another's socket.
        match is_socket && is_ours && stat.st_nlink == 1 {
            true => Ok(opened),
            false => Err(Errno::STALE),
        }
    }

    /// Takes over a socket that listens already, as `--fd` names it.
    ///
    /// # Errors
    ///
    /// [`SocketError::Inherited`].
    pub fn inherit(fd: RawFd) -> Result<Socket, SocketError> {
        let listener = inherited::listener(fd);
        Ok(Socket::made_elsewhere(
            listener.map_err(|cause| SocketError::Inherited { fd, cause })?,
        ))
    }

    /// The same as the service manager has passed it.
    ///
    /// # Errors
    ///
    /// [`SocketError::Activated`].
    pub fn activated(fd: RawFd) -> Result<Socket, SocketError> {
        let listener = inherited::activated(fd);
        let listener = listener.map_err(|cause| SocketError::Activated { fd, cause })?;
        Ok(Socket::made_elsewhere(listener))
    }

    fn made_elsewhere(listener: UnixListener) -> Socket {
        let path = listener.local_addr().ok();
        let path = path.and_then(|address| address.as_pathname().map(Path::to_owned));
        Socket {
            listener,
            path: path.unwrap_or_default(),
            // It belongs to who made it.
            file: None,
        }
    }

    /// Closes the socket and lets the file be: somebody else listens there now.
    pub fn leave_file(mut self) {
        self.file.take().into_iter().for_each(SocketFile::leave);
    }

    /// Its file, for somebody else to remove in time; none if it belongs to
    /// who made it.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }

    /// The socket itself.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl SocketFile {
    /// The socket at the last component of `path`, if there is one.
    fn find(directory: Arc<OwnedFd>, path: &Path, pid: Option<PidFile>) -> Option<SocketFile> {
        let name = path.file_name()?.to_owned();
        let identity = identity(&directory, &name)?;
        Some(SocketFile {
            directory,
            name,
            identity: Some(identity),
            pid,
        })
    }

    /// Leaves the file to another process.
    pub fn leave(mut self) {
        self.identity = None;
        self.pid.take().into_iter().for_each(PidFile::leave);
    }

    /// What it takes to remove it, and to keep others from the socket until
    /// then.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.pid.as_ref().map(PidFile::lock);
        [self.directory.as_fd()].into_iter().chain(lock)
    }
}

impl SocketError {
    fn of_pid_file(flag: &'static str, path: &Path, error: PidFileError) -> SocketError {
        let path = path.to_owned();
        match error {
            PidFileError::InUse(Some(pid)) => SocketError::Owned { flag, path, pid },
            PidFileError::InUse(None) => SocketError::InUse { flag, path },
            PidFileError::NotAPidFile => SocketError::NotAPidFile { flag, path },
            PidFileError::Io(errno) => SocketError::Io {
                flag,
                path,
                action: "make the file with .pid added",
                cause: errno.into(),
            },
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.directory, &self.name) == self.identity {
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

fn open_directory_of(path: &Path) -> Result<OwnedFd, Errno> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, parent.unwrap_or(Path::new(".")), flags, Mode::empty())
}

/// The file gets the mode of the socket, so that it is never open to more.
fn listen_at(path: &Path) -> Result<UnixListener, Errno> {
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    rustix::fs::fchmod(&socket, MODE)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn new_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(directory: &OwnedFd, name: &OsStr) -> Option<(u64, u64)> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    is_socket.then_some((stat.st_dev, stat.st_ino))
}

/// Removes a socket file that nobody listens on.
fn clear_the_way(flag: &'static str, path: &Path) -> Result<(), SocketError> {
    let failed = |action, cause| SocketError::Io {
        flag,
        path: path.to_owned(),
        action,
        cause,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at the path", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            let path = path.to_owned();
            return Err(SocketError::NotASocket { flag, path });
        }
        Ok(_) => {}
    }
    match knock(path) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(?path, "replacing the socket file of a daemon that is gone");
            std::fs::remove_file(path).map_err(|cause| failed("remove a stale socket", cause))
        }
        Err(Errno::NOENT) => Ok(()),
        // A full backlog is somebody's backlog.
        Ok(()) | Err(Errno::AGAIN) => {
            let path = path.to_owned();
            Err(SocketError::InUse { flag, path })
        }
        Err(errno) => Err(failed(
            "find out whether the socket is in use",
            errno.into(),
        )),
    }
}

/// Connects without waiting, and hangs up.
fn knock(path: &Path) -> Result<(), Errno> {
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
