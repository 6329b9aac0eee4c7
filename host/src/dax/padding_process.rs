//! The process that pads files, and how it is asked.
//!
//! FUSE passthrough wants `CAP_SYS_ADMIN`, and what serves a guest must not
//! have it. So one process has it and does nothing else: it gets a descriptor
//! and gives its padded self back. It has no guest, no share and no path to
//! anything.
//!
//! Law: who asks gets no more access to a file than the descriptor that came
//! along has. The kernel does not look at that, since it opens the file anew.
//!
//! Messages, one packet each: one byte, 1 for writable and 0 for not, with the
//! descriptor; and back an errno (i32, native order), 0 with a descriptor,
//! any other followed by a sentence if no file could ever be padded.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};

use super::padded::{Mount, PaddedView};
use crate::isolation::seccomp::Seccomp;
use crate::isolation::{Alone, spawn};

/// How long it may take over one file, which is a matter of microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a message.
const MAX_MESSAGE: usize = 512;

/// A process that pads files; it ends when this does.
#[derive(Debug)]
pub struct PaddingProcess {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None once it has failed to answer.
    line: Option<OwnedFd>,
    why_not: Option<String>,
}

impl PaddingProcess {
    /// Starts it. Needs `CAP_SYS_ADMIN`, of which more than this process are
    /// to give up, and a process without threads. `keep` is what it logs to.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn start(seccomp: Seccomp, keep: &[RawFd]) -> std::io::Result<PaddingProcess> {
        let line = spawn(c"daxwindowd-pad", keep, |line| run(&line, seccomp))?;
        sockopt::set_socket_timeout(&line, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(PaddingProcess {
            state: Mutex::new(State {
                line: Some(line),
                why_not: None,
            }),
        })
    }

    /// See [`super::padding::View::pad`].
    pub(super) fn pad(&self, file: &OwnedFd, writable: bool) -> Result<Arc<OwnedFd>, Errno> {
        let mut state = self.state.lock();
        let line = state.line.as_ref().ok_or(Errno::IO)?;
        let answered = send(line, &[u8::from(writable)], Some(file)).and_then(|()| receive(line));
        match answered {
            Ok(Message { bytes, fd }) => {
                let errno = bytes.first_chunk().map(|chunk| i32::from_ne_bytes(*chunk));
                match (errno, fd) {
                    (Some(0), Some(fd)) => Ok(Arc::new(fd)),
                    (Some(errno @ 1..4096), None) => {
                        let said = bytes.get(4..).filter(|said| !said.is_empty());
                        state.why_not = said.map(|s| String::from_utf8_lossy(s).into_owned());
                        Err(Errno::from_raw_os_error(errno))
                    }
                    _ => Err(Errno::IO),
                }
            }
            Err(error) => {
                // An answer that comes later would be taken for another's.
                tracing::error!(%error, "dax: the process that pads files does not answer");
                state.line = None;
                Err(Errno::IO)
            }
        }
    }

    /// Why no file could ever be padded, if it said so.
    pub(super) fn why_not(&self) -> Option<String> {
        self.state.lock().why_not.clone()
    }
}

/// The life of the process.
fn run(line: &OwnedFd, seccomp: Seccomp) {
    let view = ready(seccomp);
    // The end of the line is the end of the process.
    while let Ok(Message { bytes, fd }) = receive(line) {
        if bytes.is_empty() {
            return;
        }
        let padded = match (&view, fd) {
            (Ok(view), Some(fd)) => {
                let writable = bytes == [1];
                may_pad(&fd, writable).and_then(|()| view.pad(&Arc::new(fd), writable))
            }
            (Ok(_), None) => Err(Errno::BADF),
            (Err(_), _) => Err(Errno::OPNOTSUPP),
        };
        let answered = match padded {
            Ok(fd) => send(line, &0i32.to_ne_bytes(), Some(&fd)),
            Err(errno) => {
                let errno = errno.raw_os_error().to_ne_bytes();
                let said = view.as_ref().err().map_or("", String::as_str);
                let said = said
                    .as_bytes()
                    .get(..MAX_MESSAGE / 2)
                    .unwrap_or(said.as_bytes());
                send(line, &[&errno, said].concat(), None)
            }
        };
        if answered.is_err() {
            return;
        }
    }
}

/// A view in a process that can do nothing else any more.
fn ready(seccomp: Seccomp) -> Result<PaddedView, String> {
    let mount = Mount::new().map_err(|cause| format!("cannot mount the view: {cause}"))?;
    let alone = Alone::with_sys_admin()
        .map_err(|cause| format!("cannot isolate the process that pads: {cause}"))?;
    let view = mount
        .serve()
        .map_err(|cause| format!("cannot serve the view: {cause}"))?;
    alone
        .pads_only(view.root_fd(), seccomp)
        .map_err(|cause| format!("cannot isolate the process that pads: {cause}"))?;
    Ok(view)
}

/// Whether a descriptor gives the access that is asked for.
fn may_pad(fd: &OwnedFd, writable: bool) -> Result<(), Errno> {
    let flags = fcntl_getfl(fd)?;
    let access = flags & OFlags::ACCMODE;
    let enough = match writable {
        true => access == OFlags::RDWR,
        false => access == OFlags::RDONLY || access == OFlags::RDWR,
    };
    if flags.contains(OFlags::PATH) || !enough {
        return Err(Errno::ACCESS);
    }
    match FileType::from_raw_mode(fstat(fd)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

struct Message {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

fn send(line: &OwnedFd, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(AsFd::as_fd);
    if let Some(fd) = &fds {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let data = [IoSlice::new(bytes)];
    sendmsg(line, &data, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Empty at the end of the line.
fn receive(line: &OwnedFd) -> Result<Message, Errno> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut data = [IoSliceMut::new(&mut bytes)];
        match recvmsg(line, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            got => break got?,
        }
    };
    bytes.truncate(got.bytes);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Message { bytes, fd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn nobody_gets_more_access_than_they_have() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "x").expect("written");
        let open = |read, write| -> OwnedFd {
            let mut options = OpenOptions::new();
            let file = options.read(read).write(write).open(&path);
            file.expect("opens").into()
        };
        let (read, write, both) = (open(true, false), open(false, true), open(true, true));
        for (fd, writable, may) in [
            (&read, false, Ok(())),
            (&read, true, Err(Errno::ACCESS)),
            (&write, false, Err(Errno::ACCESS)),
            (&write, true, Err(Errno::ACCESS)),
            (&both, false, Ok(())),
            (&both, true, Ok(())),
        ] {
            assert_eq!(may_pad(fd, writable), may, "{fd:?} {writable}");
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path_only = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert_eq!(
            may_pad(&path_only.expect("opens"), false),
            Err(Errno::ACCESS)
        );
        let directory = std::fs::File::open(dir.path()).expect("opens").into();
        assert_eq!(may_pad(&directory, false), Err(Errno::INVAL));
        let device = std::fs::File::open("/dev/zero").expect("opens").into();
        assert_eq!(may_pad(&device, false), Err(Errno::INVAL));
    }
}
