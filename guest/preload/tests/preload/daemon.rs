//! A daemon's half of a connection: it sends the preamble, answers, passes the
//! memfd, and has files mapped.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use daxwindow_shared::preload::{MAGIC, MARK, Notes, Preamble};
use daxwindow_shared::shmem::{MAP_WRITABLE, MapMessage, SHMEM_MAP, SHMEM_UNMAP};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use crate::Vmm;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 4096;
/// Bytes of the windows.
pub(crate) const WINDOW: u64 = 16 * MIB;
/// What is answered first.
pub(crate) const FEATURES: u64 = 0x1234_5678_9abc;

/// How long to wait for what has to come. Only a test that fails waits so long.
const LONG: Duration = Duration::from_secs(120);

pub(crate) struct Daemon {
    directory: TempDir,
    listener: UnixListener,
    pub(crate) connection: Option<UnixStream>,
    channel: Option<UnixStream>,
    memfd: File,
    /// What the front end knows it by.
    pub(crate) name: &'static str,
}

/// A file of `count` pages, each of which begins with its number.
pub(crate) fn pages(count: u64) -> File {
    let file = tempfile::tempfile().expect("a file");
    for n in 0..count {
        write_page(&file, n);
    }
    file
}

pub(crate) fn write_page(file: &File, n: u64) {
    file.write_all_at(&[page(n); PAGE as usize], n * PAGE)
        .expect("written");
}

/// What page `n` holds: never zero.
pub(crate) fn page(n: u64) -> u8 {
    (n % 251 + 1) as u8
}

pub(crate) fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let iov = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

/// The memfd of a window.
pub(crate) fn memfd(bytes: u64) -> File {
    let fd = rustix::fs::memfd_create("daxwindow", MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(fd);
    file.set_len(bytes).expect("size");
    file
}

pub(crate) fn preamble(window_bytes: u64) -> Preamble {
    Preamble {
        magic: MAGIC,
        window_bytes,
    }
}

impl Daemon {
    pub(crate) fn new(name: &'static str) -> Daemon {
        Daemon::at(tempfile::tempdir().expect("a directory"), name)
    }

    pub(crate) fn at(directory: TempDir, name: &'static str) -> Daemon {
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a socket");
        Daemon {
            directory,
            listener,
            connection: None,
            channel: None,
            memfd: memfd(WINDOW + size_of::<Notes>() as u64),
            name,
        }
    }

    /// A front end that has this daemon's window mapped, and is `name` of it.
    pub(crate) fn with_window(vmm: &mut Vmm, name: &'static str) -> Daemon {
        let mut daemon = Daemon::new(name);
        daemon.connect(vmm);
        daemon.begin(vmm);
        daemon.have_mapped(vmm);
        daemon
    }

    pub(crate) fn path(&self) -> String {
        let path = self.directory.path().join("socket");
        path.to_str().expect("text").to_owned()
    }

    /// Has the front end connect; the name of its end.
    pub(crate) fn connect(&mut self, vmm: &mut Vmm) -> Vec<u8> {
        let order = format!("connect {} {}", self.path(), self.name);
        assert_eq!(vmm.ask(&order), "ok");
        self.accept()
    }

    /// Takes a connection; the name of its other end.
    pub(crate) fn accept(&mut self) -> Vec<u8> {
        let (connection, peer) = self.listener.accept().expect("a client");
        connection.set_read_timeout(Some(LONG)).expect("time-out");
        self.connection = Some(connection);
        peer.as_abstract_name().unwrap_or_default().to_vec()
    }

    pub(crate) fn connection(&self) -> &UnixStream {
        self.connection.as_ref().expect("connected")
    }

    /// Takes the front end's first message.
    pub(crate) fn first_message(&self) {
        let mut header = [0; 12];
        self.connection().read_exact(&mut header).expect("a header");
        assert_eq!(header[..4], 1u32.to_ne_bytes());
    }

    /// Says what the library has to hear, and the answer.
    pub(crate) fn begin(&mut self, vmm: &mut Vmm) {
        vmm.tell(&format!("features {}", self.name));
        self.first_message();
        self.offer();
        self.answer(FEATURES);
        assert_eq!(vmm.answer(), FEATURES.to_string());
    }

    /// Sends the preamble.
    pub(crate) fn offer(&mut self) {
        let (ours, theirs) = UnixStream::pair().expect("a channel");
        ours.set_read_timeout(Some(LONG)).expect("time-out");
        let fds = [theirs.as_fd(), self.memfd.as_fd()];
        send(self.connection(), preamble(WINDOW).as_bytes(), &fds);
        self.channel = Some(ours);
    }

    pub(crate) fn answer(&self, value: u64) {
        let header = [1u32, 5, 8].map(u32::to_ne_bytes).concat();
        let mut connection = self.connection();
        connection.write_all(&header).expect("a header");
        connection.write_all(&value.to_ne_bytes()).expect("a value");
    }

    /// Has the front end map the memfd, as SHMEM_MAP does; the address.
    pub(crate) fn have_mapped(&mut self, vmm: &mut Vmm) -> usize {
        vmm.tell(&format!("memfd {}", self.name));
        send(self.connection(), &[0], &[self.memfd.as_fd()]);
        assert_eq!(vmm.answer(), "ok");
        self.have_mapped_again(vmm)
    }

    /// The same with the memfd that it has.
    pub(crate) fn have_mapped_again(&self, vmm: &mut Vmm) -> usize {
        let address = vmm.ask(&format!("map {} {WINDOW}", self.name));
        address.parse().expect("an address")
    }

    /// What the library has noted.
    pub(crate) fn notes(&self) -> Notes {
        let mut bytes = [0; size_of::<Notes>()];
        self.memfd.read_exact_at(&mut bytes, WINDOW).expect("notes");
        Notes::read_from_bytes(&bytes).expect("notes")
    }

    /// Maps `len` bytes of `file`; the errno.
    pub(crate) fn map_part(&self, file: &File, from: u64, to: u64, len: u64, flags: u64) -> i32 {
        let message = MapMessage {
            fd_offset: from,
            shm_offset: to,
            len,
            flags,
            ..MapMessage::default()
        };
        self.ask(SHMEM_MAP, message, Some(file))
    }

    /// Maps a range of 2 MiB from the start of `file` on, for stores as well.
    pub(crate) fn map(&self, file: &File, to: u64) -> i32 {
        self.map_part(file, 0, to, 2 * MIB, MAP_WRITABLE)
    }

    pub(crate) fn unmap(&self, at: u64, len: u64) -> i32 {
        let message = MapMessage {
            shm_offset: at,
            len,
            ..MapMessage::default()
        };
        self.ask(SHMEM_UNMAP, message, None)
    }

    fn ask(&self, request: u32, message: MapMessage, file: Option<&File>) -> i32 {
        const NEEDS_REPLY: u32 = 1 << 3;
        let header = [request, 1 | NEEDS_REPLY, 40]
            .map(u32::to_ne_bytes)
            .concat();
        let bytes = [&header, message.as_bytes()].concat();
        let fds: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
        send(self.channel(), &bytes, &fds);
        self.reply()
    }

    pub(crate) fn channel(&self) -> &UnixStream {
        self.channel.as_ref().expect("a channel")
    }

    /// The errno in a reply.
    pub(crate) fn reply(&self) -> i32 {
        let mut reply = [0; 20];
        self.channel().read_exact(&mut reply).expect("a reply");
        let value = reply[12..].try_into().expect("8 bytes");
        i32::try_from(-i64::from_ne_bytes(value)).expect("an errno")
    }

    /// Goes away as a daemon that was killed.
    pub(crate) fn die(&mut self) {
        self.channel = None;
        self.connection = None;
    }

    /// Whether `name` is one that the library gives.
    pub(crate) fn is_marked(name: &[u8]) -> bool {
        name.starts_with(MARK) && name.len() == MARK.len() + 16
    }
}

/// Waits until `holds`.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
