//! Any bytes with any descriptors, cut up anyhow, from a back end to the
//! server of map messages. Whatever comes, only the window changes, it stays
//! whole, every reply is sound, and no descriptor is left over.
#![no_main]

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use daxwindow_front_end::internal::{F_NEED_REPLY, F_REPLY, Header, Internal, Language};
use daxwindow_front_end::{PolledServer, Progress, ServerOptions, Window, WindowRange};
use daxwindow_shared::shmem::{MAP_WRITABLE, MapMessage, SHMEM_MAP, SHMEM_UNMAP};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
const WINDOW: u64 = 8 << 20;
const VERSION: u32 = 1;
/// Most descriptors of one `sendmsg`: more than any message carries.
const MOST_FDS: usize = 12;
/// In the names of files that may be mapped, as the kernel shows them.
const NAME: &str = "daxwindow-fuzz";

#[derive(Arbitrary, Debug)]
struct Input {
    is_old: bool,
    reply_ack: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Sound but for its descriptor, with small numbers, so that ranges meet.
    Near { unmap: bool, page: u16, pages: u16, file_page: u8, write: bool, kind: Kind, cut: u8 },
    /// A message of the right size, with any numbers in it.
    Any { request: u8, flags: u8, fields: [u64; 5], kinds: Vec<Kind>, cut: u8 },
    /// A body as long as its header says.
    Body { request: u8, flags: u8, body: Vec<u8>, kinds: Vec<Kind>, cut: u8 },
    /// Not even that.
    Bytes { bytes: Vec<u8>, kinds: Vec<Kind>, cut: u8 },
    /// Somebody reads the window.
    Look { at: u32 },
}

/// Kinds of descriptors.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    None,
    Memfd,
    Empty,
    ReadOnly,
    WriteOnly,
    Unmappable,
    Path,
    Directory,
    Device,
    Pipe,
    Socket,
    Event,
}

struct Scene {
    window: Arc<Window>,
    /// Memory right below and right above the window.
    canaries: [Canary; 2],
    descriptors: Vec<OwnedFd>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    // One whose neighbourhood is free; the others are kept, to be in nobody's
    // way.
    let mut tried = Vec::new();
    let (window, canaries) = loop {
        let window = Window::reserve(WINDOW).expect("a window");
        let (start, end) = (window.address(), window.address() + WINDOW as usize);
        if let (Some(below), Some(above)) = (Canary::at(start - Canary::LEN), Canary::at(end)) {
            break (Arc::new(window), [below, above]);
        }
        tried.push(window);
        assert!(tried.len() < 100, "no window with room around it");
    };
    std::mem::forget(tried);
    Scene { window, canaries, descriptors: descriptors() }
});

/// One of each kind but none, in order.
fn descriptors() -> Vec<OwnedFd> {
    let memfd = |bytes: u64| {
        let memfd = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC).expect("memfd"));
        memfd.write_all_at(&vec![0x11; bytes as usize], 0).expect("written");
        memfd
    };
    let (memfd, empty) = (memfd(3 << 20), memfd(0));
    let path = std::env::temp_dir().join(format!("{NAME}-{}", std::process::id()));
    std::fs::write(&path, [0x22; 8192]).expect("written");
    let read_only = File::open(&path).expect("open");
    let write_only = File::options().write(true).open(&path).expect("open");
    let no_access = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).expect("O_PATH");
    std::fs::remove_file(&path).expect("removed");
    let (pipe, _) = std::io::pipe().expect("pipe");
    let (socket, _) = UnixStream::pair().expect("pair");
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty());
    vec![
        memfd.into(),
        empty.into(),
        read_only.into(),
        write_only.into(),
        File::open("/proc/version").expect("procfs").into(),
        no_access,
        File::open("/").expect("directory").into(),
        File::open("/dev/zero").expect("device").into(),
        pipe.into(),
        socket.into(),
        event.expect("eventfd"),
    ]
}

impl Scene {
    fn descriptor(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        let index = (kind as usize).checked_sub(1)?;
        Some(self.descriptors[index].as_fd())
    }

    fn range(&self) -> Range<usize> {
        self.window.address()..self.window.address() + WINDOW as usize
    }

    /// What may not change has not, and whether anything is mapped.
    fn check(&self) -> bool {
        assert!(!self.window.is_lost());
        self.canaries.iter().for_each(Canary::check);
        let window = self.range();
        let (mut reached, mut is_any) = (window.start, false);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        for line in maps.lines() {
            let (span, rest) = line.split_once(' ').expect("a range");
            let (start, end) = span.split_once('-').expect("a range");
            let number = |text| usize::from_str_radix(text, 16).expect("an address");
            let (start, end) = (number(start), number(end));
            let is_inside = start >= window.start && end <= window.end;
            if rest.contains(NAME) && !rest.contains("/release/") {
                assert!(is_inside, "mapped outside of the window: {line}");
                is_any = true;
            }
            if is_inside && start == reached {
                reached = end;
            }
        }
        // Anonymous neighbours of the same kind may be one mapping with it.
        assert!(reached >= window.end || !is_any, "a hole at {reached:#x}");
        is_any
    }
}

/// Memory that nobody writes.
struct Canary(NonNull<u8>);

// SAFETY: an address of memory that is only read.
unsafe impl Send for Canary {}
// SAFETY: as above.
unsafe impl Sync for Canary {}

impl Canary {
    const LEN: usize = 16 * PAGE as usize;

    fn at(address: usize) -> Option<Canary> {
        let place = std::ptr::without_provenance_mut(address);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces nothing.
        let base = unsafe { mmap_anonymous(place, Self::LEN, protection, flags) };
        let base = base.ok()?.cast::<u8>();
        assert_eq!(base.addr(), address);
        // SAFETY: a mapping of our own of that length.
        unsafe { base.write_bytes(0xa5, Self::LEN) };
        NonNull::new(base).map(Canary)
    }

    fn check(&self) {
        // SAFETY: mapped for good, and not written any more. If somebody has
        // unmapped it, this is where it shows.
        let bytes = unsafe { std::slice::from_raw_parts(self.0.as_ptr(), Self::LEN) };
        assert!(bytes.iter().all(|byte| *byte == 0xa5), "the window's neighbour has changed");
    }
}

/// A back end, and the server that it talks to.
struct Talk {
    stream: UnixStream,
    server: PolledServer,
    is_closed: bool,
}

impl Talk {
    fn new(scene: &Scene, input: &Input) -> Talk {
        let (ours, stream) = UnixStream::pair().expect("pair");
        // So that replies have to wait.
        set_socket_send_buffer_size(&ours, 0).expect("a small buffer");
        stream.set_nonblocking(true).expect("mode");
        let language = match input.is_old {
            true => Language::FsMap,
            false => Language::Shmem,
        };
        let internal = Internal { language, ..Internal::default() };
        let options = ServerOptions { reply_ack: input.reply_ack, internal };
        let server = PolledServer::new(ours, Arc::clone(&scene.window), options);
        Talk { stream, server, is_closed: false }
    }

    /// Sends `bytes` in pieces of `cut` and has each served; the descriptors
    /// go with each.
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>], cut: u8) {
        let cut = if cut == 0 { bytes.len() } else { usize::from(cut) };
        for piece in bytes.chunks(cut.max(1)) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = &fds[..fds.len().min(MOST_FDS)];
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            }
            let (iov, flags) = ([IoSlice::new(piece)], SendFlags::NOSIGNAL);
            match rustix::net::sendmsg(&self.stream, &iov, &mut control, flags) {
                Ok(sent) => assert_eq!(sent, piece.len()),
                Err(error) => assert!(self.is_closed && error == Errno::PIPE, "{error}"),
            }
            self.serve();
        }
    }

    fn serve(&mut self) {
        // More turns than bytes there can be.
        for _ in 0..100_000 {
            match self.server.serve_ready() {
                Ok(Progress::Again) => {}
                Ok(Progress::WaitReadable) => return,
                Ok(Progress::WaitWritable) => assert!(self.take_replies() > 0, "waits for nobody"),
                Ok(Progress::Closed) | Err(_) => {
                    self.is_closed = true;
                    return;
                }
            }
        }
        panic!("it never ends");
    }

    fn take_replies(&mut self) -> usize {
        let mut taken = 0;
        loop {
            let mut reply = [0; 20];
            match self.stream.read(&mut reply) {
                Ok(0) => return taken,
                Ok(len) => assert_eq!(len, reply.len(), "a torn reply"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
                // It was closed with bytes that nobody had read.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return taken,
                Err(error) => panic!("{error}"),
            }
            let (header, value) = reply.split_at(12);
            let header = Header::read_from_bytes(header).expect("a header");
            assert_eq!((header.flags, header.size), (VERSION | F_REPLY, 8));
            let value = i64::from_ne_bytes(value.try_into().expect("8 bytes"));
            assert!((-4095..=0).contains(&value), "{value}");
            taken += 1;
        }
    }
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = body.len() as u32;
    [Header { request, flags, size }.as_bytes(), body].concat()
}

fn take_step(scene: &Scene, talk: &mut Talk, step: Step) {
    let fds = |kinds: &[Kind]| -> Vec<BorrowedFd<'_>> {
        kinds.iter().filter_map(|kind| scene.descriptor(*kind)).collect()
    };
    match step {
        Step::Near { unmap, page, pages, file_page, write, kind, cut } => {
            let body = MapMessage {
                shm_offset: u64::from(page) % (WINDOW / PAGE) * PAGE,
                len: u64::from(pages) % 1030 * PAGE,
                fd_offset: if unmap { 0 } else { u64::from(file_page) * PAGE },
                flags: if write { MAP_WRITABLE } else { 0 },
                ..MapMessage::default()
            };
            let request = if unmap { SHMEM_UNMAP } else { SHMEM_MAP };
            let bytes = message(request, VERSION | F_NEED_REPLY, body.as_bytes());
            let cut = if cut % 2 == 0 { 0 } else { cut };
            talk.send(&bytes, &fds(if unmap { &[] } else { std::slice::from_ref(&kind) }), cut);
        }
        Step::Any { request, flags, fields, kinds, cut } => {
            let bytes = message(request.into(), flags.into(), fields.as_bytes());
            talk.send(&bytes, &fds(&kinds), cut);
        }
        Step::Body { request, flags, mut body, kinds, cut } => {
            // The other language's size, now and then.
            if request % 2 == 0 {
                body.resize(256, 0);
            }
            talk.send(&message(request.into(), flags.into(), &body), &fds(&kinds), cut);
        }
        Step::Bytes { bytes, kinds, cut } => talk.send(&bytes, &fds(&kinds), cut),
        Step::Look { at } => {
            let _ = scene.window.copy_out(u64::from(at) % (2 * WINDOW), &mut [0; 64]);
        }
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

fuzz_target!(|input: Input| {
    let scene = &*SCENE;
    let before = open_descriptors();
    let mut talk = Talk::new(scene, &input);
    for step in input.steps {
        take_step(scene, &mut talk, step);
    }
    let is_any = scene.check();
    assert_eq!(is_any, talk.server.stats().live > 0, "what is mapped and what is counted");
    talk.take_replies();
    drop(talk);
    assert_eq!(open_descriptors(), before, "descriptors are left over");
    let whole = WindowRange::new(0, WINDOW, WINDOW, PAGE).expect("a range");
    scene.window.unmap(whole).expect("unmapped");
    assert!(!scene.check(), "something is left in the window");
});
