//! What a store through the window changes besides the bytes: a file's times,
//! and what write(2) takes from a file.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Daemon, guest, in_memory, make_file, on_disk, open, walk};
use daxwindow_guest::{Access, File, Guest};
use daxwindow_shared::fuse::SetattrIn;
use daxwindow_shared::fuse::flags::SetattrValid;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

const SIZE: usize = 1 << 20;
/// Longer than the host's clock stands still for file times.
const TICK: Duration = Duration::from_millis(30);

fn modified(path: &Path) -> SystemTime {
    let attributes = path.metadata().expect("there");
    attributes.modified().expect("a time")
}

/// Lets the clock of file times go on, and returns the time.
fn later() -> SystemTime {
    std::thread::sleep(TICK);
    let now = SystemTime::now();
    std::thread::sleep(TICK);
    now
}

fn opened(guest: &Guest, access: Access) -> File {
    let file = guest.open("file", access).expect("open");
    assert!(file.is_dax());
    file
}

/// Stores into the first page, each time by the same mapping.
fn store(file: &File, text: &[u8]) {
    let stored = file.write_at(text, 100).expect("stored");
    assert_eq!(stored, text.len());
}

#[test]
fn each_descriptor_that_stored_has_moved_the_time_when_it_is_closed() {
    for share in [on_disk(), in_memory()] {
        let path = share.path().join("file");
        make_file(&path, 1, SIZE);
        let daemon = Daemon::start(share.path(), &[]);
        let guest = guest(&daemon);
        for turn in 0..3 {
            let before = later();
            let file = opened(&guest, Access::ReadWrite);
            store(&file, b"first");
            let between = later();
            // The page is dirty: the host's kernel does not see this one.
            store(&file, b"other");
            drop(file);
            assert!(modified(&path) >= between, "{share:?}, time {turn}");
            assert!(modified(&path) > before);
        }
    }
}

#[test]
fn a_flush_moves_the_time_of_what_stays_open_once_for_all_stores_before() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, SIZE);
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let session = guest.session();
    let (entry, handle) = open(session, "file", libc::O_RDWR).expect("open");
    let flush = || session.flush(entry.nodeid, handle.fh).expect("flushed");
    let file = opened(&guest, Access::ReadWrite);
    for turn in 0..3 {
        store(&file, b"one");
        let between = later();
        store(&file, b"two");
        flush();
        let moved = modified(&path);
        assert!(moved >= between, "time {turn}");
        later();
        flush();
        flush();
        assert_eq!(modified(&path), moved, "nothing was stored meanwhile");
    }
    session.release(entry.nodeid, handle.fh).expect("closed");
}

#[test]
fn a_file_open_for_writing_and_only_read_keeps_its_time() {
    for share in [on_disk(), in_memory()] {
        let path = share.path().join("file");
        make_file(&path, 1, SIZE);
        let daemon = Daemon::start(share.path(), &[]);
        let guest = guest(&daemon);
        let before = modified(&path);
        later();
        for _ in 0..2 {
            let file = opened(&guest, Access::ReadWrite);
            let mut got = [0; 4096];
            file.read_at(&mut got, 0).expect("read");
            drop(file);
            assert_eq!(modified(&path), before, "{share:?}");
        }
    }
    // Where the host's kernel sees stores, also what was written before.
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, SIZE);
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    store(&opened(&guest, Access::ReadWrite), b"text");
    let before = modified(&path);
    later();
    let file = opened(&guest, Access::ReadWrite);
    file.read_at(&mut [0; 4096], 0).expect("read");
    drop(file);
    assert_eq!(modified(&path), before);
}

#[test]
fn a_time_that_the_guest_sets_after_its_stores_is_the_one_that_stays() {
    for share in [on_disk(), in_memory()] {
        let path = share.path().join("file");
        make_file(&path, 1, SIZE);
        let daemon = Daemon::start(share.path(), &[]);
        let guest = guest(&daemon);
        let node = walk(guest.session(), "file").expect("there").nodeid;
        let file = opened(&guest, Access::ReadWrite);
        store(&file, b"text");
        let set = SetattrIn {
            valid: SetattrValid::MTIME.bits(),
            mtime: 1_000_000_000,
            mtimensec: 5,
            ..SetattrIn::default()
        };
        guest.session().setattr(node, &set).expect("set");
        drop(file);
        let host = path.metadata().expect("there");
        assert_eq!((host.mtime(), host.mtime_nsec()), (1_000_000_000, 5));
        // A time of access is another.
        let file = opened(&guest, Access::ReadWrite);
        store(&file, b"more");
        let before = later();
        store(&file, b"last");
        let set = SetattrIn {
            valid: SetattrValid::ATIME.bits(),
            atime: 1_000_000_000,
            ..SetattrIn::default()
        };
        guest.session().setattr(node, &set).expect("set");
        drop(file);
        assert!(modified(&path) >= before, "{share:?}");
    }
}

#[test]
fn what_others_write_keeps_its_time_where_the_guest_stores_nothing() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, SIZE);
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let file = opened(&guest, Access::ReadWrite);
    file.read_at(&mut [0; 4096], 0).expect("read");
    let host = OpenOptions::new().write(true).open(&path).expect("opened");
    host.write_all_at(b"host", 0).expect("written");
    let written = modified(&path);
    later();
    drop(file);
    assert_eq!(modified(&path), written);
}

/// `VFS_CAP_REVISION_2`, effective, with `CAP_NET_RAW` permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn has_capability(path: &Path) -> bool {
    match rustix::fs::getxattr(path, "security.capability", &mut [0; 64][..]) {
        Ok(_) => true,
        Err(Errno::NODATA) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn a_store_takes_a_files_capabilities_as_a_write_does() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, SIZE);
    let give = || {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, flags).expect("root");
    };
    give();
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let file = opened(&guest, Access::ReadWrite);
    file.read_at(&mut [0; 4096], 0).expect("read");
    assert!(has_capability(&path), "it was only read");
    store(&file, b"text");
    assert!(!has_capability(&path));
    // By a range that is mapped already: at the latest when it is closed.
    drop(file);
    give();
    let file = opened(&guest, Access::ReadWrite);
    later();
    store(&file, b"more");
    drop(file);
    assert!(!has_capability(&path));
}
