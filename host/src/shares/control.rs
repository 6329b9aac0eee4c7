//! The control socket: shares are added and removed here.
//!
//! A thread for each connection: a directory that is added may be on a file
//! system that does not answer. Only the daemon's own user and root are heard: the file lets nobody else in, and the kernel's word on who has
//! connected is asked for besides. Nothing that comes is looked up by path:
//! directory and socket come as descriptors, so that it works however the
//! daemon is confined.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use daxwindow_shared::window::RANGE_BYTES;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::listen::attended::{AttendError, Attended};
use crate::listen::socket::{Socket, SocketError};

use super::descriptors::{send_line, take_line};
use super::name::control_file;
use super::protocol::{ADD_DESCRIPTORS, Add, Answer, Listed, MAX_LINE_BYTES, Request, to_line};
use super::registry::Shares;
use super::share::{Changes, NewShare};

/// How long a client may take to say what it wants, and to hear the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the requests of a guest that is disconnected may take to end.
pub const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// A control socket in `directory` that nobody attends to yet.
///
/// # Errors
///
/// When another daemon has it, or it cannot be made.
pub fn bind(directory: &Path) -> Result<Socket, SocketError> {
    Socket::bind_with_pid("--socket-dir", &directory.join(control_file()))
}

/// Adds to `shares` what it is told to at `socket`.
///
/// # Errors
///
/// When its thread does not start.
pub fn attend(socket: Socket, shares: &Arc<Shares>) -> Result<Attended, AttendError> {
    let shares = shares.clone();
    let names = ("--socket-dir", "control");
    Attended::start(names, socket, move |client| {
        let (client, shares) = (client.try_clone()?, shares.clone());
        let thread = std::thread::Builder::new().name("request".into());
        let hear = move || {
            if let Err(error) = hear(&client, &shares) {
                tracing::warn!(%error, "control: a client was not answered");
            }
        };
        thread.spawn(hear).map(drop)
    })
}

/// Takes one request and answers it.
fn hear(client: &UnixStream, shares: &Arc<Shares>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let answer = match is_trusted(client)? {
        true => match take_line(client, MAX_LINE_BYTES, PATIENCE) {
            Ok((line, descriptors)) => obey(&line, descriptors, shares),
            Err(error) => Answer::Error(format!("the request: {error}")),
        },
        false => Answer::Error("only the daemon's own user and root are heard".into()),
    };
    if let Answer::Error(error) = &answer {
        tracing::info!("control: refused: {error}");
    }
    send_line(client, &to_line(&answer)?, &[])
}

fn is_trusted(client: &UnixStream) -> io::Result<bool> {
    // Not by rustix: to it a process of another namespace, which has no number
    // here, is an error.
    let peer = getsockopt(client, PeerCredentials)?.uid();
    Ok(peer == 0 || peer == rustix::process::geteuid().as_raw())
}

fn obey(line: &[u8], descriptors: Vec<OwnedFd>, shares: &Arc<Shares>) -> Answer {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return Answer::Error(format!("the request: {error}")),
    };
    let done = match request {
        Request::List => return Answer::Shares(list(shares)),
        Request::Add(add) => new_share(add, descriptors).and_then(|new| {
            let name = new.name.to_string();
            shares.add(new).map_err(|error| error.to_string())?;
            tracing::info!(name, "control: share added");
            Ok(())
        }),
        Request::Remove { name, force } => shares
            .remove(&name, force, REMOVE_PATIENCE)
            .map(|()| tracing::info!(%name, force, "control: share removed"))
            .map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Error(error),
    }
}

fn list(shares: &Shares) -> Vec<Listed> {
    let listed = |share: &Arc<super::Share>| {
        let about = share.about().clone();
        Listed {
            name: about.name.to_string(),
            in_use: share.in_use(),
            socket: about.socket.to_string_lossy().into_owned(),
            directory: about.directory.to_string_lossy().into_owned(),
            tag: about.tag,
            readonly: about.readonly,
        }
    };
    shares.list().iter().map(listed).collect()
}

/// Checks what came and what it came with.
fn new_share(add: Add, descriptors: Vec<OwnedFd>) -> Result<NewShare, String> {
    let count = descriptors.len();
    let wanted: [OwnedFd; ADD_DESCRIPTORS] = descriptors
        .try_into()
        .map_err(|_| format!("add comes with {ADD_DESCRIPTORS} descriptors, not {count}"))?;
    let [root, listener, home] = wanted;
    for (fd, what) in [(&root, "shared directory"), (&home, "socket's directory")] {
        require_directory(fd)
            .map_err(|errno| format!("the {what} is no directory opened with O_PATH: {errno}"))?;
    }
    let window = add.window_bytes.unwrap_or(0);
    if !window.is_multiple_of(RANGE_BYTES) {
        return Err(format!(
            "window_bytes {window} is no multiple of {RANGE_BYTES}"
        ));
    }
    let socket = Socket::given(listener, home, add.socket).map_err(|error| error.to_string())?;
    Ok(NewShare {
        name: add.name,
        root,
        directory: add.directory,
        socket,
        changes: Changes {
            tag: add.tag,
            readonly: add.readonly,
            dax: add.dax,
            window_bytes: add.window_bytes,
        },
    })
}

fn require_directory(fd: &OwnedFd) -> Result<(), Errno> {
    let is_path = rustix::fs::fcntl_getfl(fd)?.contains(OFlags::PATH);
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    match kind {
        FileType::Directory if is_path => Ok(()),
        FileType::Directory => Err(Errno::INVAL),
        _ => Err(Errno::NOTDIR),
    }
}
