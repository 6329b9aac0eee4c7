//! A file system that becomes read-only under the guest.

use daxwindow_guest::Access;
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{ROOT_ID, SetattrIn};
use rustix::io::Errno;

use crate::common::{
    Daemon, assert_same, attach, eventually, guest, make_file, open, pattern, read_all,
    read_by_request, walk,
};
use crate::errno;
use crate::mounted::Tmpfs;

const SIZE: usize = 3 << 20;

#[test]
fn everything_that_changes_is_erofs_and_everything_that_reads_goes_on() {
    let disk = Tmpfs::new("size=16m");
    make_file(&disk.path().join("file"), 1, SIZE);
    std::fs::create_dir(disk.path().join("dir")).expect("made");
    let daemon = Daemon::start(
        disk.path(),
        &["--dax", "always", "--dax-window", "16M", "--xattr"],
    );
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("there").nodeid;
    disk.remount(true).expect("nobody writes");

    let create = session.create(ROOT_ID, b"new", libc::O_RDWR as u32, 0o600);
    assert_eq!(errno(create), Errno::ROFS);
    assert_eq!(errno(session.mkdir(ROOT_ID, b"new", 0o700)), Errno::ROFS);
    assert_eq!(errno(session.symlink(ROOT_ID, b"new", b"x")), Errno::ROFS);
    assert_eq!(errno(session.link(node, ROOT_ID, b"new")), Errno::ROFS);
    let node_made = session.mknod(ROOT_ID, b"new", libc::S_IFIFO | 0o600, 0);
    assert_eq!(errno(node_made), Errno::ROFS);
    assert_eq!(errno(session.unlink(ROOT_ID, b"file")), Errno::ROFS);
    assert_eq!(errno(session.rmdir(ROOT_ID, b"dir")), Errno::ROFS);
    let renamed = session.rename(ROOT_ID, b"file", ROOT_ID, b"new");
    assert_eq!(errno(renamed), Errno::ROFS);
    for (valid, what) in [
        (SetattrValid::MODE, "mode"),
        (SetattrValid::SIZE, "size"),
        (SetattrValid::UID, "owner"),
        (SetattrValid::MTIME, "time"),
    ] {
        let set = SetattrIn {
            valid: valid.bits(),
            ..SetattrIn::default()
        };
        assert_eq!(errno(session.setattr(node, &set)), Errno::ROFS, "{what}");
    }
    assert_eq!(
        errno(session.setxattr(node, b"user.a", b"b", 0)),
        Errno::ROFS
    );
    assert_eq!(errno(session.open(node, libc::O_RDWR as u32)), Errno::ROFS);

    let (entry, handle) = open(&session, "file", libc::O_RDONLY).expect("open");
    let got = read_by_request(&session, (entry.nodeid, handle.fh), 0, SIZE / 2);
    assert_same(&got.expect("read"), &pattern(1, 0, SIZE / 2), "by READ");
    session
        .fsync(entry.nodeid, handle.fh, false)
        .expect("nothing to sync");
    session.release(entry.nodeid, handle.fh).expect("closed");
    disk.remount(false).expect("writable again");
    session.mkdir(ROOT_ID, b"new", 0o700).expect("as before");
}

/// A live writable mapping is a writer: the host's remount waits for it.
#[test]
fn a_mapped_file_keeps_the_host_from_it_until_the_range_is_gone() {
    let disk = Tmpfs::new("size=16m");
    make_file(&disk.path().join("file"), 1, SIZE);
    let daemon = Daemon::start(disk.path(), &["--dax", "always", "--dax-window", "16M"]);
    let first = guest(&daemon);
    let file = first.open("file", Access::ReadWrite).expect("open");
    file.write_at(b"mapped", 10).expect("written");
    assert!(first.stats().setups > 0);
    assert_eq!(disk.remount(true), Err(Errno::BUSY));
    drop(file);
    drop(first);
    eventually("read-only", || disk.remount(true).is_ok());

    let want = [
        &pattern(1, 0, 10)[..],
        b"mapped",
        &pattern(1, 16, SIZE - 16),
    ]
    .concat();
    let second = guest(&daemon);
    let file = second.open("file", Access::Read).expect("open");
    assert!(file.is_dax());
    assert_same(&read_all(&file).expect("read"), &want, "through the window");
    let stats = second.stats();
    assert!(stats.setups > 0 && stats.setup_failures == 0, "{stats:?}");
    let refused = second.open("file", Access::ReadWrite).map(drop);
    assert_eq!(errno(refused), Errno::ROFS);
}
