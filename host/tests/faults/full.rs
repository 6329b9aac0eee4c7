//! No room left, or no inodes.

use std::os::unix::fs::MetadataExt;

use daxwindow_guest::Access;
use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use crate::common::{
    Daemon, PAGE, RANGE, assert_same, assert_truncated, attach, eventually, guest, host_bytes,
    open, pattern, read_all, walk, write_by_request,
};
use crate::errno;
use crate::mounted::Tmpfs;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "64M"];
const STEP: usize = 64 << 10;

/// Writes pattern 7 to the end of `path` until there is no room, and returns
/// the bytes that were acknowledged.
fn fill(session: &daxwindow_guest::session::Session, path: &str) -> u64 {
    let (entry, handle) = open(session, path, libc::O_RDWR).expect("open");
    let at = (entry.nodeid, handle.fh);
    let mut done = 0;
    let refused = loop {
        match write_by_request(session, at, done, &pattern(7, done, STEP)) {
            // A short write is one that says how far it came.
            Ok(count) => done += count as u64,
            Err(error) => break error.errno(),
        }
    };
    assert_eq!(refused, Errno::NOSPC);
    session.fsync(at.0, at.1, false).expect("what came is kept");
    session.release(at.0, at.1).expect("closed");
    // What a guest remembers keeps its room after its name is gone.
    session.forget(at.0, 1);
    done
}

#[test]
fn a_full_disk_keeps_what_it_acknowledged_and_takes_more_when_there_is_room() {
    let disk = Tmpfs::new("size=4m");
    for name in ["ballast", "file"] {
        std::fs::write(disk.path().join(name), "").expect("made");
    }
    std::fs::write(disk.path().join("ballast"), pattern(1, 0, 1 << 20)).expect("written");
    let daemon = Daemon::start(disk.path(), &DAX);
    let session = attach(&daemon);
    let done = fill(&session, "file");
    assert!(done >= 2 << 20, "{done}");
    let path = disk.path().join("file");
    assert_eq!(path.metadata().expect("there").len(), done);
    let kept = host_bytes(&path, 0, done as usize);
    assert_same(&kept, &pattern(7, 0, done as usize), "acknowledged bytes");

    // Overwriting needs no room, and neither does anything that frees some.
    let (entry, handle) = open(&session, "file", libc::O_RDWR).expect("open");
    let at = (entry.nodeid, handle.fh);
    assert_eq!(
        write_by_request(&session, at, 100, b"overwritten").expect("room"),
        11
    );
    let full = errno(session.fallocate(at.0, at.1, 0, 0, done + (1 << 20)));
    assert_eq!(full, Errno::NOSPC);
    let free = session.statfs(ROOT_ID).expect("numbers").bavail;
    assert_eq!(free, 0);
    session.unlink(ROOT_ID, b"ballast").expect("removed");
    assert!(session.statfs(ROOT_ID).expect("numbers").bavail > 0);
    let more = pattern(8, done, STEP);
    let count = write_by_request(&session, at, done, &more).expect("there is room again");
    assert_eq!(count, more.len());
    assert_same(&host_bytes(&path, done, STEP), &more, "more bytes");
    session.release(at.0, at.1).expect("closed");
}

#[test]
fn no_inodes_left_is_enospc_and_leaves_nothing_behind() {
    let disk = Tmpfs::new("size=4m,nr_inodes=8");
    let daemon = Daemon::start(disk.path(), &[]);
    let session = attach(&daemon);
    let mut made = 0;
    let refused = loop {
        let name = format!("file{made}");
        match session.mknod(ROOT_ID, name.as_bytes(), libc::S_IFREG | 0o600, 0) {
            Ok(entry) => {
                // What the guest remembers keeps an inode, name or not.
                session.forget(entry.nodeid, 1);
                made += 1;
            }
            Err(error) => break error.errno(),
        }
    };
    assert_eq!(refused, Errno::NOSPC);
    assert!(made > 3, "{made}");
    assert_eq!(errno(session.mkdir(ROOT_ID, b"dir", 0o700)), Errno::NOSPC);
    let link = session.symlink(ROOT_ID, b"link", &[b'x'; 2000]);
    assert_eq!(errno(link), Errno::NOSPC);
    let create = session.create(ROOT_ID, b"new", libc::O_RDWR as u32, 0o600);
    assert_eq!(errno(create), Errno::NOSPC);
    let names = std::fs::read_dir(disk.path()).expect("readable").count();
    assert_eq!(names, made, "what failed left a name");
    session.unlink(ROOT_ID, b"file0").expect("removed");
    eventually("there is one again", || {
        session.mkdir(ROOT_ID, b"dir", 0o700).is_ok()
    });
}

const HOLE: u64 = 1 << 20;
const AT: usize = 5 * PAGE as usize;

/// A sparse file of [`HOLE`], another that is whole, and what can be filled.
fn sparse_on(options: &str) -> Tmpfs {
    let disk = Tmpfs::new(options);
    let file = std::fs::File::create(disk.path().join("sparse")).expect("made");
    file.set_len(HOLE).expect("a hole");
    std::fs::write(disk.path().join("whole"), pattern(3, 0, 100_000)).expect("written");
    std::fs::write(disk.path().join("ballast"), "").expect("made");
    disk
}

#[test]
fn a_hole_is_mapped_only_with_room_to_fill_it() {
    let disk = sparse_on("size=4m");
    let daemon = Daemon::start(disk.path(), &DAX);
    let guest = guest(&daemon);
    let whole = guest.open("whole", Access::ReadWrite).expect("open");
    let kept = whole.map(0, 100_000, Access::ReadWrite).expect("a view");
    kept.write(0, b"before").expect("written");
    let file = guest.open("sparse", Access::ReadWrite).expect("open");
    let view = file.map(0, HOLE, Access::ReadWrite).expect("a view");
    fill(guest.session(), "ballast");

    assert_eq!(errno(view.write(AT, b"no room")), Errno::NOSPC);
    // On tmpfs a load takes a page as well.
    assert_eq!(errno(view.read(AT, &mut [0; 7])), Errno::NOSPC);
    assert_eq!(errno(file.write_at(b"no room", 9 * PAGE)), Errno::NOSPC);
    // Whatever has its bytes goes on, mapped before or now.
    kept.write(50_000, b"after").expect("this page is there");
    whole.sync().expect("synced");
    assert_eq!(host_bytes(&disk.path().join("whole"), 50_000, 5), b"after");
    let ballast = guest.open("ballast", Access::ReadWrite).expect("open");
    assert_eq!(ballast.write_at(b"over", 0).expect("through the window"), 4);
    drop(ballast);

    guest.unlink("ballast").expect("removed");
    eventually("the room is there", || view.write(AT, b"there is").is_ok());
    let sparse = disk.path().join("sparse");
    assert_eq!(host_bytes(&sparse, AT as u64, 8), b"there is");
    // Room was made for all of what is mapped now, so that nothing can fail.
    let room = sparse.metadata().expect("there").blocks() * 512;
    assert!(room >= HOLE.min(RANGE), "{room}");
    std::fs::write(disk.path().join("ballast"), "").expect("made");
    fill(guest.session(), "ballast");
    for page in 0..HOLE / PAGE {
        view.write((page * PAGE) as usize, b"everywhere")
            .expect("room");
    }
    assert_eq!(
        walk(guest.session(), "sparse").expect("there").attr.size,
        HOLE
    );
    drop(kept);
    let mut want = pattern(3, 0, 100_000);
    want[..6].copy_from_slice(b"before");
    want[50_000..50_005].copy_from_slice(b"after");
    assert_same(
        &read_all(&whole).expect("readable"),
        &want,
        "the other file",
    );
}

/// Only a range with a hole takes room, and only where room is scarce.
#[test]
fn sparse_files_stay_sparse_while_there_is_room() {
    let disk = sparse_on("size=4m");
    let flags = [&DAX[..], &["--dax-allocate-below", "1M"]].concat();
    let daemon = Daemon::start(disk.path(), &flags);
    let guest = guest(&daemon);
    let file = guest.open("sparse", Access::ReadWrite).expect("open");
    let view = file.map(0, HOLE, Access::ReadWrite).expect("a view");
    view.write(AT, b"a page").expect("written");
    let blocks = disk
        .path()
        .join("sparse")
        .metadata()
        .expect("there")
        .blocks();
    assert_eq!(blocks * 512, PAGE);
}

/// What `--dax-allocate-below` prevents: the kernel raises SIGBUS in who
/// stores, which the library catches, and a VMM does not.
#[test]
fn without_that_a_store_into_a_hole_is_a_bus_error_of_that_store_alone() {
    let disk = sparse_on("size=4m");
    let flags = [&DAX[..], &["--dax-allocate-below", "0"]].concat();
    let mut daemon = Daemon::start(disk.path(), &flags);
    let guest = guest(&daemon);
    let whole = guest.open("whole", Access::ReadWrite).expect("open");
    let file = guest.open("sparse", Access::ReadWrite).expect("open");
    let view = file.map(0, HOLE, Access::ReadWrite).expect("a view");
    view.write(0, b"mapped").expect("written");
    fill(guest.session(), "ballast");
    assert_truncated(view.write(AT, b"no room"));
    whole.write_at(b"goes on", 0).expect("this page is there");
    whole.sync().expect("synced");
    assert!(daemon.is_running());
    guest.unlink("ballast").expect("removed");
    eventually("the room is there", || view.write(AT, b"there is").is_ok());
    let sparse = disk.path().join("sparse");
    assert_eq!(host_bytes(&sparse, AT as u64, 8), b"there is");
    assert_eq!(host_bytes(&sparse, 0, 6), b"mapped");
}
