//! Both ways against a VMM that keeps one region, and a library that is a real
//! server of a real window.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use daxwindow_front_end::{ServerOptions, Window, WindowServer};
use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use daxwindow_shared::preload::{OTHER_BACK_END, Preamble};
use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use zerocopy::FromBytes;

use super::library::Way;
use super::verdict::DaxOff;
use super::*;

const BYTES: u64 = 64 << 20;
const BASE: u64 = 0xe000_0000;

/// Maps no file, only the window's memfd, once.
#[derive(Default)]
struct Vmm {
    dax: Mutex<Option<Arc<Dax>>>,
    region: Mutex<Option<WindowRange>>,
    refuses: AtomicBool,
    asked: AtomicUsize,
}

impl FrontEnd for Vmm {
    fn request(&self, request: &front_end::ShmemRequest<'_>) -> Result<(), FrontEndError> {
        self.asked.fetch_add(1, SeqCst);
        if self.refuses.load(SeqCst) {
            return Err(FrontEndError::Refused);
        }
        let dax = self.dax.lock().clone().expect("known");
        let mut region = self.region.lock();
        match request {
            front_end::ShmemRequest::Map(range, source) if region.is_none() => {
                let file = File::from(source.fd.try_clone().expect("descriptor"));
                assert!(dax.is_own_window(&file), "it maps nothing else");
                *region = Some(*range);
                dax.memory_table(&[(0, 1 << 30), (BASE, range.len())], Some(BASE));
            }
            front_end::ShmemRequest::Unmap(range) if *region == Some(*range) => {
                *region = None;
                dax.memory_table(&[(0, 1 << 30)], None);
            }
            _ => return Err(FrontEndError::Refused),
        }
        Ok(())
    }
}

/// The library's end.
struct Library {
    window: Arc<Window>,
    server: WindowServer,
    memfd: File,
}

impl Library {
    fn receive(connection: &UnixStream) -> Library {
        let mut bytes = [0; size_of::<Preamble>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(connection, parts, &mut ancillary, flags).expect("received");
        let preamble = Preamble::read_from_bytes(&bytes).expect("whole");
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let memfd = File::from(fds.pop().expect("a memfd"));
        let channel = UnixStream::from(fds.pop().expect("a channel"));
        let window = Arc::new(Window::reserve(preamble.window_bytes).expect("reserved"));
        let options = ServerOptions {
            reply_ack: true,
            ..ServerOptions::default()
        };
        let server = WindowServer::start(channel, Arc::clone(&window), options).expect("started");
        Library {
            window,
            server,
            memfd,
        }
    }

    fn note_others(&self, others: u64) {
        let written = self.memfd.write_at(&others.to_ne_bytes(), BYTES);
        assert_eq!(written.expect("written"), 8);
    }
}

struct Files(Arc<OwnedFd>);

impl MapSource for Files {
    fn open_for_mapping(&self, _nodeid: u64, _writable: bool) -> Result<MapFile, Errno> {
        Ok(MapFile {
            fd: Arc::clone(&self.0),
        })
    }

    fn bytes(&self, _nodeid: u64) -> Result<u64, Errno> {
        Ok(rustix::fs::fstat(self.0.as_fd())?.st_size as u64)
    }
}

fn file(text: &[u8]) -> Files {
    let file = tempfile::tempfile().expect("temporary file");
    file.write_all_at(text, 0).expect("written");
    Files(Arc::new(file.into()))
}

/// A share whose client has connected.
fn connected(mapping: Mapping) -> (Arc<Dax>, Arc<Vmm>, Library) {
    let dax = Arc::new(Dax::new(DaxOptions {
        mode: DaxMode::Always,
        window_bytes: BYTES,
        mapping,
        ..DaxOptions::default()
    }));
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    dax.greet(&ours);
    let library = Library::receive(&theirs);
    let vmm = Arc::new(Vmm::default());
    *vmm.dax.lock() = Some(Arc::clone(&dax));
    (dax, vmm, library)
}

fn begin(dax: &Dax, vmm: &Arc<Vmm>) -> DaxOffer {
    dax.set_front_end(Some(Arc::clone(vmm) as Arc<dyn FrontEnd>));
    dax.announce_window();
    dax.init()
}

fn setup(moffset: u64, len: u64) -> SetupMappingIn {
    SetupMappingIn {
        fh: NO_HANDLE,
        foffset: 0,
        len,
        flags: 1,
        moffset,
    }
}

#[test]
fn a_vmm_with_the_library_has_one_region_and_the_library_every_file() {
    let (dax, vmm, library) = connected(Mapping::Auto);
    assert!(!dax.offer_memory_slots(), "of no use, and a danger");
    assert!(begin(&dax, &vmm).map_alignment.is_some());
    assert_eq!((dax.verdict(), dax.way()), (DaxVerdict::On, Way::Whole));
    let gpas = dax.window_gpas().expect("announced");
    assert_eq!((gpas.base, gpas.announced), (BASE, false));
    // The trial has left nothing, and shorter files than a range are shown.
    let before = vmm.asked.load(SeqCst);
    dax.setup(&file(b"short"), 7, &setup(4 << 20, 2 << 20))
        .expect("mapped");
    assert_eq!(library.server.stats().live, 1);
    let mut shown = [0; 5];
    library
        .window
        .copy_out(4 << 20, &mut shown)
        .expect("mapped");
    assert_eq!(&shown, b"short");
    let part = RemoveMappingOne {
        moffset: 4 << 20,
        len: 1 << 20,
    };
    dax.remove(&[part]).expect("part of it");
    assert_eq!(vmm.asked.load(SeqCst), before, "the VMM is not asked");
    // The end of a session takes all, and the region with it.
    dax.reset();
    assert_eq!(library.server.stats().live, 0);
    assert_eq!(*vmm.region.lock(), None);
    assert!(begin(&dax, &vmm).map_alignment.is_some(), "and again");
    assert_eq!(dax.way(), Way::Whole);
}

#[test]
fn a_region_that_the_vmm_has_dropped_at_a_reset_is_mapped_anew() {
    let (dax, vmm, library) = connected(Mapping::Whole);
    begin(&dax, &vmm);
    dax.setup(&file(b"text"), 7, &setup(0, 2 << 20))
        .expect("mapped");
    *vmm.region.lock() = None;
    dax.memory_table(&[(0, 1 << 30)], None);
    assert!(dax.init().map_alignment.is_some());
    assert_eq!((dax.way(), library.server.stats().live), (Way::Whole, 0));
}

#[test]
fn whoever_else_looks_into_guest_memory_has_it_mapped_range_by_range() {
    let (dax, vmm, library) = connected(Mapping::Whole);
    library.note_others(OTHER_BACK_END);
    assert_eq!(begin(&dax, &vmm), DaxOffer::default());
    let why = NotWhole::OtherBackEnd;
    assert_eq!(dax.verdict(), DaxVerdict::Off(DaxOff::NotWhole(why)));
    assert_eq!(vmm.asked.load(SeqCst), 0, "nobody has seen the memfd");

    // Known in time, the regions are announced one by one.
    let (dax, _vmm, library) = connected(Mapping::Auto);
    library.note_others(OTHER_BACK_END);
    assert!(dax.offer_memory_slots());
    assert_eq!(dax.way(), Way::Ranges(NotWhole::OtherBackEnd));
    drop(library);
}

#[test]
fn a_vmm_that_refuses_the_memfd_and_one_without_the_library_have_no_window_in_one_piece() {
    let (dax, vmm, _library) = connected(Mapping::Whole);
    vmm.refuses.store(true, SeqCst);
    assert_eq!(begin(&dax, &vmm), DaxOffer::default());
    let why = NotWhole::Region(FrontEndError::Refused);
    assert_eq!(dax.verdict(), DaxVerdict::Off(DaxOff::NotWhole(why)));

    let alone = Dax::new(DaxOptions {
        mode: DaxMode::Always,
        mapping: Mapping::Whole,
        ..DaxOptions::default()
    });
    assert!(!alone.offer_memory_slots());
    begin(&alone, &vmm);
    let why = NotWhole::NoLibrary;
    assert_eq!(alone.verdict(), DaxVerdict::Off(DaxOff::NotWhole(why)));
}

#[test]
fn a_pause_of_the_vmm_fails_no_mapping_in_one_piece() {
    let (dax, vmm, library) = connected(Mapping::Whole);
    begin(&dax, &vmm);
    let called_off = dax.cancel_waits_for_vmm();
    dax.setup(&file(b"text"), 7, &setup(0, 2 << 20))
        .expect("mapped meanwhile");
    assert_eq!(library.server.stats().live, 1);
    drop(called_off);
    dax.reset();
}

#[test]
fn a_library_that_never_answers_holds_nobody_up() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let dax = Arc::new(Dax::new(DaxOptions {
        mode: DaxMode::Always,
        window_bytes: BYTES,
        mapping: Mapping::Whole,
        ..DaxOptions::default()
    }));
    dax.greet(&ours);
    let vmm = Arc::new(Vmm::default());
    *vmm.dax.lock() = Some(Arc::clone(&dax));
    let begun = std::thread::spawn({
        let (dax, vmm) = (Arc::clone(&dax), Arc::clone(&vmm));
        move || begin(&dax, &vmm)
    });
    while vmm.region.lock().is_none() {
        std::thread::yield_now();
    }
    let called_off = dax.cancel_waits();
    assert_eq!(begun.join().expect("no panic"), DaxOffer::default());
    drop((called_off, theirs));
}
