use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daxwindow_shared::shmem::{MAP_WRITABLE, MapMessage, MapRequest, SHMEM_MAP, SHMEM_UNMAP};
use daxwindow_shared::window::RANGE_BYTES;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::service::SMALL_PIECES;
use super::*;
use crate::error::ChannelError;
use crate::framing::{F_NEED_REPLY, F_REPLY, Header, MAX_FDS, VERSION};
use crate::window::{Window, mappings};

mod fs_map;
mod polled;
mod refused;

const WINDOW: u64 = 4 * RANGE_BYTES;

/// The back end's end of a channel, and the server behind the other.
struct Peer {
    stream: UnixStream,
    server: WindowServer,
    window: Arc<Window>,
}

impl Peer {
    fn new() -> Peer {
        Peer::with(None)
    }

    fn with(hook: Option<Arc<dyn WindowHook>>) -> Peer {
        Peer::speaking(Language::Shmem, hook)
    }

    fn speaking(language: Language, hook: Option<Arc<dyn WindowHook>>) -> Peer {
        Peer::over(WINDOW, language, hook)
    }

    fn over(bytes: u64, language: Language, hook: Option<Arc<dyn WindowHook>>) -> Peer {
        let (ours, stream) = UnixStream::pair().expect("pair");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("timeout");
        let window = Arc::new(Window::reserve(bytes).expect("window"));
        let shared = Arc::clone(&window);
        let options = ServerOptions {
            reply_ack: true,
            internal: Internal { language, hook },
        };
        let server = WindowServer::start(ours, shared, options).expect("server");
        Peer {
            stream,
            server,
            window,
        }
    }

    fn send(&self, header: Header, body: &[u8], fds: &[BorrowedFd<'_>]) {
        send_with(&self.stream, &[header.as_bytes(), body].concat(), fds);
    }

    /// The errno answered, zero for success.
    fn answer(&mut self) -> i32 {
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply).expect("an answer");
        let (header, value) = reply.split_at(12);
        let header = Header::read_from_bytes(header).expect("header");
        assert_eq!((header.flags, header.size), (VERSION | F_REPLY, 8));
        let value = i64::from_ne_bytes(value.try_into().expect("8 bytes"));
        i32::try_from(-value).expect("an errno")
    }

    fn send_request(&mut self, request: u32, message: MapMessage, fds: &[BorrowedFd<'_>]) -> i32 {
        self.send(header(request, 40), message.as_bytes(), fds);
        self.answer()
    }

    fn map(&mut self, message: MapMessage, file: &impl AsFd) -> i32 {
        self.send_request(SHMEM_MAP, message, &[file.as_fd()])
    }

    fn unmap(&mut self, message: MapMessage) -> i32 {
        self.send_request(SHMEM_UNMAP, message, &[])
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let iov = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(stream, &iov, &mut control, SendFlags::empty());
    assert_eq!(sent.expect("sent"), bytes.len());
}

fn header(request: u32, size: u32) -> Header {
    Header {
        request,
        flags: VERSION | F_NEED_REPLY,
        size,
    }
}

fn range(n: u64) -> MapMessage {
    MapMessage {
        shm_offset: n * RANGE_BYTES,
        len: RANGE_BYTES,
        ..MapMessage::default()
    }
}

fn file() -> File {
    let file = tempfile::tempfile().expect("file");
    file.set_len(3 * RANGE_BYTES).expect("size");
    file
}

fn errno(errno: Errno) -> i32 {
    errno.raw_os_error()
}

#[test]
fn maps_and_unmaps_are_served_and_counted() {
    let (mut peer, file) = (Peer::new(), file());
    assert_eq!(
        peer.map(
            MapMessage {
                flags: MAP_WRITABLE,
                ..range(0)
            },
            &file
        ),
        0
    );
    assert_eq!(peer.map(range(2), &file), 0);
    // Over a live one, as a plain mmap front end allows.
    assert_eq!(
        peer.map(
            MapMessage {
                fd_offset: RANGE_BYTES,
                ..range(2)
            },
            &file
        ),
        0
    );
    assert_eq!(
        peer.server.stats(),
        ServerStats {
            maps: 3,
            unmaps: 0,
            refusals: 0,
            live: 2
        }
    );
    assert_eq!(peer.unmap(range(2)), 0);
    assert_eq!(peer.unmap(range(2)), errno(Errno::NOENT));
    assert_eq!(
        peer.unmap(MapMessage {
            len: WINDOW,
            ..range(0)
        }),
        errno(Errno::NOENT)
    );
    assert_eq!(peer.unmap(range(0)), 0);
    assert_eq!(
        peer.server.stats(),
        ServerStats {
            maps: 3,
            unmaps: 2,
            refusals: 2,
            live: 0
        }
    );
}

#[test]
fn a_hook_can_refuse_lie_and_hang() {
    struct Moody(Mutex<Vec<Verdict>>);
    impl WindowHook for Moody {
        fn on_map(&self, _: &MapRequest) -> Verdict {
            self.0
                .lock()
                .expect("no panic")
                .pop()
                .unwrap_or(Verdict::Serve)
        }
        fn on_unmap(&self, _: &MapRequest) -> Verdict {
            Verdict::Refuse(Errno::BUSY)
        }
    }
    let moods = vec![
        Verdict::Ignore,
        Verdict::Pretend,
        Verdict::Refuse(Errno::NOSPC),
    ];
    let (mut peer, file) = (Peer::with(Some(Arc::new(Moody(Mutex::new(moods))))), file());
    assert_eq!(peer.map(range(0), &file), errno(Errno::NOSPC));
    assert_eq!(peer.map(range(0), &file), 0);
    assert_eq!(peer.server.stats().maps, 0);
    peer.send(header(SHMEM_MAP, 40), range(0).as_bytes(), &[file.as_fd()]);
    // The next answer is the next message's.
    assert_eq!(peer.unmap(range(0)), errno(Errno::NOENT));
    assert_eq!(peer.map(range(0), &file), 0);
    assert_eq!(peer.unmap(range(0)), errno(Errno::BUSY));
}

#[test]
fn a_server_ends_with_its_channel_and_with_its_owner() {
    let Peer { stream, server, .. } = Peer::new();
    stream.shutdown(Shutdown::Both).expect("shutdown");
    drop(server);
    let Peer { stream, server, .. } = Peer::new();
    assert!(!server.has_ended());
    drop(server);
    assert_eq!((&stream).read(&mut [0; 1]).expect("end of file"), 0);
}

#[test]
fn who_waits_for_the_end_hears_of_its_cause() {
    let Peer { stream, server, .. } = Peer::new();
    drop(stream);
    server.wait().expect("closed in order");
    let Peer { stream, server, .. } = Peer::new();
    (&stream).write_all(&[1; 5]).expect("sent");
    drop(stream);
    let error = server.wait().expect_err("half a message");
    assert!(matches!(error, ChannelError::Incomplete), "{error:?}");
    let peer = Peer::new();
    peer.send(header(SHMEM_MAP, 4097), &[], &[]);
    let error = peer.server.wait().expect_err("a giant");
    assert!(
        matches!(error, ChannelError::TooLong { bytes: 4097 }),
        "{error:?}"
    );
}

#[test]
fn a_socket_that_does_not_wait_is_waited_for() {
    let (mut peer, file) = (Peer::new(), file());
    peer.server.socket.set_nonblocking(true).expect("mode");
    assert_eq!(peer.map(range(0), &file), 0);
    assert_eq!(peer.unmap(range(0)), 0);
    assert!(!peer.server.has_ended());
}

#[test]
fn the_vhost_crates_back_end_is_understood() {
    use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
    use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};
    let (peer, file) = (Peer::new(), file());
    let backend = Backend::from_stream(peer.stream.try_clone().expect("clone"));
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    let request = VhostUserMMap {
        shmid: 0,
        padding: [0; 7],
        fd_offset: 0,
        shm_offset: RANGE_BYTES,
        len: RANGE_BYTES,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    backend.shmem_map(&request, &file).expect("mapped");
    backend.shmem_unmap(&request).expect("unmapped");
    backend
        .shmem_unmap(&request)
        .expect_err("nothing there any more");
    assert_eq!(peer.server.stats().unmaps, 1);
}
