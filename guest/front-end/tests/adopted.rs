//! A window in address space of somebody else's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::ptr::with_exposed_provenance_mut as pointer;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use daxwindow_front_end::area::{AdoptedSpace, Area, Protection, SpaceGuard, Tenant};
use daxwindow_front_end::{FileOffset, MapRequest, RegularFile, ServerOptions, Window};
use daxwindow_front_end::{WindowOffset, WindowRange, WindowServer};
use daxwindow_shared::shmem::{MapMessage, SHMEM_MAP, SHMEM_UNMAP};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
const RANGE: u64 = 2 << 20;
const BYTES: u64 = 4 * RANGE;

/// Refuses when it is told to, and keeps what it hears.
#[derive(Debug, Default)]
struct Listener {
    refuses: AtomicBool,
    heard: Mutex<Vec<(usize, usize, bool)>>,
}

impl Tenant for Listener {
    fn may_map(&self, _: &SpaceGuard<'_>) -> Result<(), Errno> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(Errno::PERM),
            false => Ok(()),
        }
    }

    fn replaced(&self, _: &SpaceGuard<'_>, at: usize, len: usize, by_file: bool) {
        self.heard
            .lock()
            .expect("no panic")
            .push((at, len, by_file));
    }
}

fn adopted() -> (&'static AdoptedSpace, &'static Listener, Window) {
    let listener: &Listener = Box::leak(Box::default());
    let space: &AdoptedSpace = Box::leak(Box::new(AdoptedSpace::new(listener)));
    let window = Window::adopt(space, BYTES).expect("a window");
    (space, listener, window)
}

/// Memory of the test's own.
fn memory() -> usize {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: at an address that the kernel chooses.
    let at = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), BYTES as usize, prot, flags) };
    at.expect("memory").expose_provenance()
}

fn set_place(space: &AdoptedSpace, at: usize) {
    // SAFETY: memory of the test's own, which it uses by `load` alone.
    unsafe { space.lock().set_place(at).expect("a place") };
}

fn load(address: usize) -> u8 {
    // SAFETY: memory of the test's own, or what a window has mapped there.
    unsafe { pointer::<u8>(address).read_volatile() }
}

fn file_of(byte: u8) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&vec![byte; RANGE as usize])
        .expect("written");
    file
}

fn range(at: u64, len: u64) -> WindowRange {
    WindowRange::new(at, len, BYTES, PAGE).expect("a range")
}

fn map(window: &Window, at: u64, byte: u8) -> Result<(), Option<i32>> {
    let file = file_of(byte);
    let request = MapRequest {
        range: range(at, RANGE),
        file_offset: FileOffset(0),
        writable: false,
    };
    let regular = RegularFile::check(file.as_fd()).expect("a regular file");
    let mapped = window.map(request, regular);
    mapped.map_err(|error: io::Error| error.raw_os_error())
}

#[test]
fn files_are_where_the_place_is_and_nowhere_else() {
    let (space, _, window) = adopted();
    assert_eq!((window.address(), window.bytes()), (0, BYTES));
    assert_eq!(map(&window, 0, 1), Err(Some(libc::ENXIO)));
    window.unmap(range(0, BYTES)).expect("nothing to do");

    let [first, second] = [memory(), memory()];
    set_place(space, first);
    assert_eq!((window.address(), load(first)), (first, 0));
    map(&window, RANGE, 2).expect("mapped");
    assert_eq!(load(first + RANGE as usize), 2);

    set_place(space, second);
    map(&window, 0, 3).expect("mapped");
    let [range_bytes, page] = [RANGE as usize, PAGE as usize];
    // What was mapped in the place before is its owner's.
    assert_eq!([load(first), load(first + range_bytes)], [0, 2]);
    assert_eq!([load(second), load(second + range_bytes)], [3, 0]);
    window.unmap(range(PAGE, PAGE)).expect("unmapped");
    assert_eq!(
        [load(second), load(second + page), load(second + 2 * page)],
        [3, 0, 3]
    );

    space.lock().forget_place();
    assert_eq!(map(&window, 0, 4), Err(Some(libc::ENXIO)));
    window.unmap(range(0, BYTES)).expect("nothing to do");
    assert_eq!((load(second), window.address()), (3, 0));
    drop(window);
    assert_eq!(load(second), 3);
}

#[test]
fn a_place_is_a_page_and_has_a_lock() {
    let (space, _, window) = adopted();
    let at = memory();
    // SAFETY: refused, and otherwise as in `set_place`.
    let refused = unsafe { [0, at + 1].map(|at| space.lock().set_place(at).is_err()) };
    assert_eq!((refused, space.place()), ([true; 2], None));
    set_place(space, at);
    assert!(space.holds(at) && space.holds(at + BYTES as usize - 1));
    assert!(!space.holds(at - 1) && !space.holds(at + BYTES as usize));
    let locked = space.lock();
    std::thread::scope(|scope| {
        let mapper = scope.spawn(|| map(&window, 0, 1));
        // The file is mapped elsewhere meanwhile, but not here.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(load(at), 0);
        drop(locked);
        mapper.join().expect("no panic").expect("mapped");
    });
    assert_eq!(load(at), 1);
}

#[test]
fn a_window_of_another_size_is_adopted_when_the_place_is_gone_and_the_first_stays_inside() {
    let (space, _, window) = adopted();
    set_place(space, memory());
    let busy = Window::adopt(space, RANGE).expect_err("it has a place");
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    space.lock().forget_place();
    let small = Window::adopt(space, RANGE).expect("a window");
    set_place(space, memory());
    map(&small, 0, 1).expect("mapped");
    assert_eq!(map(&window, RANGE, 1), Err(Some(libc::EINVAL)));
    window.unmap(range(RANGE, RANGE)).expect_err("outside");
}

#[test]
fn the_tenant_may_refuse_and_hears_of_what_is_done() {
    let (space, listener, window) = adopted();
    set_place(space, memory());
    listener.refuses.store(true, Ordering::Relaxed);
    assert_eq!(map(&window, 0, 1), Err(Some(libc::EPERM)));
    window.unmap(range(0, PAGE)).expect("unmapped");
    listener.refuses.store(false, Ordering::Relaxed);
    map(&window, RANGE, 1).expect("mapped");
    let (range_bytes, page) = (RANGE as usize, PAGE as usize);
    let heard = listener.heard.lock().expect("no panic").clone();
    assert_eq!(heard, [(0, page, false), (range_bytes, range_bytes, true)]);
}

#[test]
fn what_would_touch_somebody_elses_memory_fails() {
    let (space, _, window) = adopted();
    set_place(space, memory());
    map(&window, 0, 1).expect("mapped");
    assert_eq!(window.copy_out(0, &mut [0; 4]), Err(0));
    assert_eq!(window.copy_in(0, &[0; 4]), Err(0));
    window
        .populate(WindowOffset(0), PAGE)
        .expect_err("populates");
    let view = Area::reserve(RANGE as usize, Protection::None).expect("an area");
    let shown = window.alias_into(&view, 0, WindowOffset(0), PAGE as usize, Protection::Read);
    shown.expect_err("shows");
}

/// A channel to a server of an adopted window.
struct Peer(UnixStream, WindowServer);

impl Peer {
    fn new(window: Window) -> Peer {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let options = ServerOptions {
            reply_ack: true,
            ..ServerOptions::default()
        };
        let server = WindowServer::start(ours, Arc::new(window), options).expect("a server");
        Peer(theirs, server)
    }

    fn ask(&mut self, request: u32, at: u64, file: Option<&File>) -> i32 {
        let message = MapMessage {
            shm_offset: at,
            len: RANGE,
            ..MapMessage::default()
        };
        let header = [request, 9, 40].map(u32::to_ne_bytes).concat();
        let bytes = [&header, message.as_bytes()].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let iov = [io::IoSlice::new(&bytes)];
        let sent = rustix::net::sendmsg(&self.0, &iov, &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(bytes.len()));
        let mut reply = [0; 20];
        self.0.read_exact(&mut reply).expect("a reply");
        let value = i64::from_ne_bytes(reply[12..].try_into().expect("8 bytes"));
        i32::try_from(-value).expect("an errno")
    }
}

#[test]
fn a_server_forgets_what_was_mapped_in_a_place_that_is_gone() {
    let (space, _, window) = adopted();
    let mut peer = Peer::new(window);
    let file = file_of(7);
    // Of an adopted window more is unmapped than was mapped.
    assert_eq!(peer.ask(SHMEM_UNMAP, 0, None), 0);
    assert_eq!(peer.ask(SHMEM_MAP, 0, Some(&file)), libc::ENXIO);
    set_place(space, memory());
    for at in [0, 2 * RANGE] {
        assert_eq!(peer.ask(SHMEM_MAP, at, Some(&file)), 0);
    }
    assert_eq!(peer.1.stats().live, 2);
    let second = memory();
    set_place(space, second);
    assert_eq!(peer.ask(SHMEM_MAP, RANGE, Some(&file)), 0);
    assert_eq!(peer.1.stats().live, 1);
    assert_eq!([load(second), load(second + RANGE as usize)], [0, 7]);
    space.lock().forget_place();
    assert_eq!(peer.ask(SHMEM_UNMAP, RANGE, None), 0);
    assert_eq!(peer.1.stats().live, 0);
}
