//! The connection that the framework has accepted, and keeps to itself.
//!
//! A VMM with the library gives its end a name that says so, and that no other
//! connection has ([`daxwindow_shared::preload::MARK`]). By that it is found
//! among this process's descriptors.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use daxwindow_shared::preload::MARK;
use rustix::io::fcntl_getfd;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// So many numbers in a row that are free end the search: the kernel gives a
/// connection the lowest that is.
const GAP: RawFd = 1 << 10;

/// Connections of VMMs with the library, by their names.
#[derive(Debug, Default)]
pub(super) struct Connections(HashSet<Vec<u8>>);

impl Connections {
    /// Those there are at the listener's address now.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn at(listener: &UnixListener) -> io::Result<Connections> {
        let names = marked(listener)?.into_iter().map(|(name, _)| name);
        Ok(Connections(names.collect()))
    }

    /// One that there was not then.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn newer(&self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        let mut now = marked(listener)?.into_iter();
        let newer = now.find(|(name, _)| !self.0.contains(name));
        Ok(newer.map(|(_, stream)| stream))
    }
}

/// Every marked connection at the listener's address, with its name.
fn marked(listener: &UnixListener) -> io::Result<Vec<(Vec<u8>, UnixStream)>> {
    let here = listener.local_addr()?;
    let mut found = Vec::new();
    let (mut number, mut end) = (0, GAP);
    while number < end {
        let descriptor = descriptor(number);
        number += 1;
        if descriptor.is_some() {
            end = number.saturating_add(GAP);
        }
        let Some(stream) = descriptor.and_then(stream) else {
            continue;
        };
        let name = stream.peer_addr().ok().and_then(|peer| mark_of(&peer));
        let is_here = || stream.local_addr().is_ok_and(|at| same(&at, &here));
        if let Some(name) = name.filter(|_| is_here()) {
            found.push((name, stream));
        }
    }
    Ok(found)
}

/// The descriptor of this number, if it is open.
fn descriptor<'a>(number: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: not -1, and borrowed for questions to the kernel and for its
    // duplication. If another thread closes it meanwhile, the kernel answers
    // EBADF or speaks of another one; what counts is asked of the duplicate.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).is_ok().then_some(borrowed)
}

/// Another descriptor of that one, if it is a connection.
fn stream(borrowed: BorrowedFd<'_>) -> Option<UnixStream> {
    if socket_domain(borrowed) != Ok(AddressFamily::UNIX) {
        return None;
    }
    let owned: OwnedFd = borrowed.try_clone_to_owned().ok()?;
    let is_stream = socket_domain(&owned) == Ok(AddressFamily::UNIX)
        && socket_type(&owned) == Ok(SocketType::STREAM)
        && socket_acceptconn(&owned) == Ok(false);
    is_stream.then(|| UnixStream::from(owned))
}

fn mark_of(peer: &SocketAddr) -> Option<Vec<u8>> {
    let name = peer.as_abstract_name()?;
    name.starts_with(MARK).then(|| name.to_vec())
}

fn same(a: &SocketAddr, b: &SocketAddr) -> bool {
    a.as_pathname() == b.as_pathname() && a.as_abstract_name() == b.as_abstract_name()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    use rustix::net::{SocketAddrUnix, SocketFlags, bind, connect, socket_with};

    fn connected(path: &std::path::Path, name: Option<&str>) -> UnixStream {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.expect("socket");
        if let Some(name) = name {
            let name = [MARK, name.as_bytes()].concat();
            let name = SocketAddrUnix::new_abstract_name(&name).expect("short");
            bind(&socket, &name).expect("unique");
        }
        connect(&socket, &SocketAddrUnix::new(path).expect("short")).expect("connected");
        UnixStream::from(socket)
    }

    #[test]
    fn a_marked_connection_is_found_once_and_no_other_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (at, elsewhere) = (dir.path().join("s"), dir.path().join("other"));
        let listener = UnixListener::bind(&at).expect("listens");
        let other = UnixListener::bind(&elsewhere).expect("listens");
        let unique = |what: &str| format!("{}-{what}", std::process::id());
        let before = Connections::at(&listener).expect("listed");
        let _plain = connected(&at, None);
        let _accepted = listener.accept().expect("accepted");
        let _there = connected(&elsewhere, Some(&unique("there")));
        let _accepted_there = other.accept().expect("accepted");
        assert!(before.newer(&listener).expect("listed").is_none());

        let mut client = connected(&at, Some(&unique("here")));
        let _ours = listener.accept().expect("accepted");
        let found = before.newer(&listener).expect("listed").expect("found");
        (&found).write_all(b"hello").expect("written");
        let mut heard = [0; 5];
        client.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"hello");
        let now = Connections::at(&listener).expect("listed");
        assert!(now.newer(&listener).expect("listed").is_none());
    }
}
