//! Everything about files but their data, over the wire: names, attributes,
//! directories, extended attributes, allocation, durability.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use common::{
    Daemon, RANGE, attach, guest, host_bytes, in_memory, make_file, on_disk, open, pattern, walk,
};
use daxwindow_guest::{Access, Metadata, Session};
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{CopyFileRangeIn, ROOT_ID, SetattrIn};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;

#[track_caller]
fn errno<T>(result: daxwindow_guest::Result<T>) -> Errno {
    result.err().expect("refused").errno()
}

#[track_caller]
fn assert_like_the_host(seen: &Metadata, path: &Path) {
    let host = std::fs::symlink_metadata(path).expect("stat");
    assert_eq!(seen.ino(), host.ino());
    assert_eq!(seen.mode(), host.mode());
    assert_eq!(seen.len(), host.size());
    assert_eq!(seen.blocks(), host.blocks());
    assert_eq!(u64::from(seen.nlink()), host.nlink());
    assert_eq!((seen.uid(), seen.gid()), (host.uid(), host.gid()));
    assert_eq!(seen.modified(), host.modified().ok());
    let changed = Duration::new(host.ctime() as u64, host.ctime_nsec() as u32);
    assert_eq!(seen.changed(), Some(UNIX_EPOCH + changed));
}

#[test]
fn attributes_are_the_hosts() {
    let share = on_disk();
    make_file(&share.path().join("file"), 1, 12_345);
    std::fs::create_dir(share.path().join("dir")).expect("a directory");
    std::os::unix::fs::symlink("file", share.path().join("link")).expect("a link");
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    for name in ["file", "dir", "link"] {
        let path = share.path().join(name);
        assert_like_the_host(&guest.metadata(name).expect("attributes"), &path);
    }
    assert_like_the_host(&guest.metadata("/").expect("the root"), share.path());
    assert_eq!(
        guest.read_link("link").expect("a target"),
        Path::new("file")
    );
    assert_eq!(errno(guest.metadata("missing")), Errno::NOENT);
    assert_eq!(errno(guest.metadata("file/below")), Errno::NOTDIR);
}

#[test]
fn attributes_can_be_set() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    let set = SetattrIn {
        valid: (SetattrValid::MODE | SetattrValid::SIZE).bits(),
        mode: 0o640,
        size: 50,
        ..SetattrIn::default()
    };
    let attr = session.setattr(node, &set).expect("chmod and truncate");
    assert_eq!((attr.mode & 0o7777, attr.size), (0o640, 50));
    assert_like_the_host(&attr.into(), &path);
    let set = SetattrIn {
        valid: (SetattrValid::ATIME | SetattrValid::MTIME).bits(),
        atime: 1_000_000_000,
        atimensec: 5,
        mtime: 2_000_000_000,
        mtimensec: 999_999_999,
        ..SetattrIn::default()
    };
    let attr = session.setattr(node, &set).expect("utimes");
    assert_eq!((attr.mtime, attr.mtimensec), (2_000_000_000, 999_999_999));
    assert_eq!((attr.atime, attr.atimensec), (1_000_000_000, 5));
    assert_like_the_host(&attr.into(), &path);
    let set = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: 1 << 63,
        ..SetattrIn::default()
    };
    let refused = errno(session.setattr(node, &set));
    assert!([Errno::INVAL, Errno::FBIG].contains(&refused), "{refused}");
}

#[test]
fn a_big_directory_is_listed_whole() {
    const NAMES: usize = 3000;
    for share in [on_disk(), in_memory()] {
        let big = share.path().join("big");
        std::fs::create_dir(&big).expect("a directory");
        let mut want = BTreeMap::new();
        for number in 0..NAMES {
            // Names of all lengths.
            let name = format!("{number:05}{}", "x".repeat(number % 200));
            std::fs::write(big.join(&name), []).expect("a file");
            let ino = std::fs::metadata(big.join(&name)).expect("stat").ino();
            want.insert(name.into(), ino);
        }
        let daemon = Daemon::start(share.path(), &[]);
        let guest = guest(&daemon);
        let listed = guest.list("big").expect("list");
        assert!(
            listed
                .iter()
                .all(|e| e.metadata.is_some_and(|seen| seen.ino() == e.ino))
        );
        let got: BTreeMap<_, _> = listed.into_iter().map(|e| (e.name, e.ino)).collect();
        assert_eq!(got, want);
        let place = share.path().to_str().expect("UTF-8");
        common::eventually("looked-up entries are forgotten", || {
            daemon.open_files_on(place) < 10
        });

        let session = guest.session();
        let dir = walk(session, "big").expect("big").nodeid;
        let handle = session.opendir(dir, 0).expect("opendir").fh;
        let names = list_plainly(session, dir, handle);
        assert_eq!(names.len(), NAMES + 2, "with . and ..");
        // From the start again, on the same handle.
        assert_eq!(list_plainly(session, dir, handle), names);
        session.fsyncdir(dir, handle, false).expect("fsyncdir");
        session.releasedir(dir, handle).expect("releasedir");
        assert_eq!(errno(session.readdir(dir, handle, 0)), Errno::BADF);
    }
}

fn list_plainly(session: &Session, dir: u64, handle: u64) -> BTreeSet<Vec<u8>> {
    let (mut names, mut offset) = (BTreeSet::new(), 0);
    loop {
        let batch = session.readdir(dir, handle, offset).expect("readdir");
        let Some(last) = batch.last() else {
            return names;
        };
        offset = last.head.off;
        for entry in batch {
            assert!(names.insert(entry.name), "listed twice");
        }
    }
}

#[test]
fn names_come_and_go() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &[]);
    let guest = guest(&daemon);
    let on_host = |name: &str| share.path().join(name);
    guest.mkdir("a", 0o750).expect("mkdir");
    let mode = std::fs::metadata(on_host("a")).expect("stat").permissions();
    assert_eq!(mode.mode() & 0o777, 0o750);
    guest.mkdir("a/b", 0o755).expect("mkdir");
    assert_eq!(errno(guest.mkdir("a", 0o755)), Errno::EXIST);
    assert_eq!(errno(guest.rmdir("a")), Errno::NOTEMPTY);
    drop(guest.create("a/b/file", 0o600).expect("create"));
    assert_eq!(errno(guest.rmdir("a/b/file")), Errno::NOTDIR);
    let refused = errno(guest.unlink("a/b"));
    assert!([Errno::ISDIR, Errno::PERM].contains(&refused));
    guest.symlink("b/file", "a/link").expect("symlink");
    let target = std::fs::read_link(on_host("a/link")).expect("a link");
    assert_eq!(target, Path::new("b/file"));
    assert_eq!(errno(guest.open("a/link", Access::Read)), Errno::LOOP);
    guest.rename("a/b/file", "a/moved").expect("rename");
    assert!(on_host("a/moved").exists() && !on_host("a/b/file").exists());
    guest.rmdir("a/b").expect("rmdir");
    guest.unlink("a/moved").expect("unlink");
    guest.unlink("a/link").expect("unlink");
    guest.rmdir("a").expect("rmdir");
    assert_eq!(std::fs::read_dir(share.path()).expect("list").count(), 0);
}

#[test]
fn special_nodes_and_hard_links_are_made() {
    let share = on_disk();
    make_file(&share.path().join("file"), 1, 100);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let fifo = libc::S_IFIFO | 0o620;
    session.mknod(ROOT_ID, b"fifo", fifo, 0).expect("mknod");
    let host = std::fs::metadata(share.path().join("fifo")).expect("stat");
    assert!(host.file_type().is_fifo());
    assert_eq!(host.permissions().mode() & 0o777, 0o620);
    let refused = errno(session.mknod(ROOT_ID, b"x", libc::S_IFDIR | 0o755, 0));
    assert_eq!(refused, Errno::INVAL);

    let file = walk(&session, "file").expect("file");
    let link = session.link(file.nodeid, ROOT_ID, b"link").expect("link");
    assert_eq!((link.nodeid, link.attr.nlink), (file.nodeid, 2));
    let host = std::fs::metadata(share.path().join("link")).expect("stat");
    assert_eq!(host.ino(), file.attr.ino);
    let error = errno(session.link(file.nodeid, ROOT_ID, b"fifo"));
    assert_eq!(error, Errno::EXIST);
    let dir = session.mkdir(ROOT_ID, b"dir", 0o755).expect("mkdir").nodeid;
    assert_eq!(errno(session.link(dir, ROOT_ID, b"dir2")), Errno::PERM);
    session.unlink(ROOT_ID, b"file").expect("unlink");
    assert_eq!(session.getattr(file.nodeid, None).expect("alive").nlink, 1);
}

#[test]
fn rename_flags_are_kept() {
    let share = on_disk();
    std::fs::write(share.path().join("a"), "a").expect("a file");
    std::fs::write(share.path().join("b"), "b").expect("a file");
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let rename =
        |from: &[u8], to: &[u8], flags: u32| session.rename2(ROOT_ID, from, ROOT_ID, to, flags);
    let text = |name: &str| std::fs::read_to_string(share.path().join(name)).expect("host");
    let no_replace = libc::RENAME_NOREPLACE;
    assert_eq!(errno(rename(b"a", b"b", no_replace)), Errno::EXIST);
    rename(b"a", b"b", libc::RENAME_EXCHANGE).expect("exchanged");
    assert_eq!((text("a"), text("b")), ("b".into(), "a".into()));
    let missing = errno(rename(b"a", b"c", libc::RENAME_EXCHANGE));
    assert_eq!(missing, Errno::NOENT);
    rename(b"a", b"c", no_replace).expect("a free name");
    assert_eq!(text("c"), "b");
    for flags in [1 << 3, 1 << 31, no_replace | libc::RENAME_EXCHANGE] {
        assert_eq!(errno(rename(b"b", b"d", flags)), Errno::INVAL);
    }
    rename(b"b", b"c", 0).expect("replaced");
    assert_eq!(text("c"), "a");
}

#[test]
fn extended_attributes_are_the_hosts() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    let daemon = Daemon::start(share.path(), &["--xattr"]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    session
        .setxattr(node, b"user.colour", b"green", 0)
        .expect("set");
    let mut host = [0; 16];
    let got = rustix::fs::getxattr(&path, "user.colour", &mut host).expect("host");
    assert_eq!(&host[..got], b"green");
    let value = session.getxattr(node, b"user.colour").expect("get");
    assert_eq!(value, b"green");
    let size = session.getxattr_size(node, b"user.colour").expect("size");
    assert_eq!(size, 5);
    session
        .setxattr(node, b"user.empty", b"", libc::XATTR_CREATE as u32)
        .expect("empty");
    let list = session.listxattr(node).expect("list");
    let names: BTreeSet<_> = list.split(|b| *b == 0).collect();
    assert!(names.contains(&b"user.colour"[..]) && names.contains(&b"user.empty"[..]));
    let create = libc::XATTR_CREATE as u32;
    let error = errno(session.setxattr(node, b"user.colour", b"red", create));
    assert_eq!(error, Errno::EXIST);
    session.removexattr(node, b"user.colour").expect("removed");
    let error = errno(session.getxattr(node, b"user.colour"));
    assert_eq!(error, Errno::NODATA);
    let error = errno(session.removexattr(node, b"user.colour"));
    assert_eq!(error, Errno::NODATA);
    session
        .setxattr(node, b"no-such-namespace", b"x", 0)
        .expect_err("a bad name");
}

#[test]
fn allocation_holes_and_seeking_are_the_hosts() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 256 << 10);
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let session = attach(&daemon);
    let (entry, handle) = open(&session, "file", libc::O_RDWR).expect("open");
    let (node, fh) = (entry.nodeid, handle.fh);
    let allocate =
        |mode: i32, offset: u64, len: u64| session.fallocate(node, fh, mode as u32, offset, len);
    let size = || std::fs::metadata(&path).expect("stat").len();
    allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).expect("keep size");
    assert_eq!(size(), 256 << 10);
    allocate(0, 0, 512 << 10).expect("grow");
    assert_eq!(size(), 512 << 10);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    allocate(punch, 64 << 10, 64 << 10).expect("punch");
    assert_eq!(host_bytes(&path, 64 << 10, 64 << 10), vec![0; 64 << 10]);
    let kept = host_bytes(&path, 0, 64 << 10);
    assert_eq!(kept, pattern(1, 0, 64 << 10));
    let seek = |offset: u64, whence: i32| session.lseek(node, fh, offset, whence as u32);
    assert_eq!(seek(0, libc::SEEK_HOLE).expect("hole"), 64 << 10);
    assert_eq!(seek(64 << 10, libc::SEEK_DATA).expect("data"), 128 << 10);
    assert_eq!(seek(0, libc::SEEK_END).expect("end"), 512 << 10);
    assert_eq!(errno(seek(1 << 20, libc::SEEK_DATA)), Errno::NXIO);
    assert_eq!(errno(seek(0, libc::SEEK_CUR)), Errno::INVAL);
    assert_eq!(errno(allocate(0, 0, 0)), Errno::INVAL);
    assert_eq!(errno(allocate(1 << 30, 0, 4096)), Errno::OPNOTSUPP);
}

#[test]
fn copies_are_made_on_the_host() {
    let share = on_disk();
    make_file(&share.path().join("from"), 1, 300_000);
    std::fs::write(share.path().join("to"), "").expect("a file");
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let (from, from_fh) = open(&session, "from", libc::O_RDONLY).expect("open");
    let (to, to_fh) = open(&session, "to", libc::O_RDWR).expect("open");
    let copy = CopyFileRangeIn {
        fh_in: from_fh.fh,
        off_in: 1000,
        nodeid_out: to.nodeid,
        fh_out: to_fh.fh,
        off_out: 5,
        len: 200_000,
        flags: 0,
    };
    let copied = session.copy_file_range(from.nodeid, &copy).expect("copy");
    assert_eq!(copied, 200_000);
    let host = host_bytes(&share.path().join("to"), 5, 200_000);
    common::assert_same(&host, &pattern(1, 1000, 200_000), "the copy");
    // As far as there is something; nothing behind the end.
    let to_the_end = CopyFileRangeIn {
        off_in: 299_000,
        ..copy
    };
    let copied = session.copy_file_range(from.nodeid, &to_the_end);
    assert_eq!(copied.expect("copy"), 1000);
    let behind = CopyFileRangeIn {
        off_in: 1 << 30,
        len: u64::MAX,
        ..copy
    };
    // All of 64 bits is more than a kernel takes: refused or nothing copied.
    assert_eq!(
        session.copy_file_range(from.nodeid, &behind).unwrap_or(0),
        0
    );
    let flags = CopyFileRangeIn { flags: 1, ..copy };
    let error = errno(session.copy_file_range(from.nodeid, &flags));
    assert_eq!(error, Errno::INVAL);
    let backwards = CopyFileRangeIn {
        fh_in: to_fh.fh,
        nodeid_out: from.nodeid,
        fh_out: from_fh.fh,
        ..copy
    };
    let error = errno(session.copy_file_range(to.nodeid, &backwards));
    assert_eq!(error, Errno::BADF, "the target is open for reading only");
}

/// A Linux guest that copied into a file it has mapped would warn.
#[test]
fn into_a_mapped_file_the_guest_copies_by_itself() {
    let share = on_disk();
    make_file(&share.path().join("from"), 1, 5000);
    make_file(&share.path().join("to"), 2, 5000);
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let session = attach(&daemon);
    let (from, from_fh) = open(&session, "from", libc::O_RDWR).expect("open");
    let (to, to_fh) = open(&session, "to", libc::O_RDWR).expect("open");
    let copy = CopyFileRangeIn {
        fh_in: from_fh.fh,
        nodeid_out: to.nodeid,
        fh_out: to_fh.fh,
        len: 100,
        ..CopyFileRangeIn::default()
    };
    let mapped = session.setup_mapping(from.nodeid, FileOffset(0), WindowOffset(0), RANGE, true);
    mapped.expect("a mapped source");
    let copied = session.copy_file_range(from.nodeid, &copy);
    assert_eq!(copied.expect("copied"), 100);
    let mapped = session.setup_mapping(to.nodeid, FileOffset(0), WindowOffset(RANGE), RANGE, true);
    mapped.expect("a mapped target");
    let error = errno(session.copy_file_range(from.nodeid, &copy));
    assert_eq!(error, Errno::OPNOTSUPP);
}

#[test]
fn totals_and_durability_come_through() {
    let share = on_disk();
    make_file(&share.path().join("file"), 1, 100);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let totals = session.statfs(ROOT_ID).expect("statfs");
    let host = rustix::fs::statvfs(share.path()).expect("statvfs");
    assert_eq!(totals.blocks, host.f_blocks);
    assert_eq!(u64::from(totals.frsize), host.f_frsize);
    assert_eq!(u64::from(totals.namelen), host.f_namemax);
    assert_eq!(totals.files, host.f_files);
    let (entry, handle) = open(&session, "file", libc::O_RDWR).expect("open");
    session
        .fsync(entry.nodeid, handle.fh, false)
        .expect("fsync");
    session
        .fsync(entry.nodeid, handle.fh, true)
        .expect("fdatasync");
    session.flush(entry.nodeid, handle.fh).expect("flush");
    session.syncfs(ROOT_ID).expect("syncfs");
    session.release(entry.nodeid, handle.fh).expect("release");
    let error = errno(session.fsync(entry.nodeid, handle.fh, false));
    assert_eq!(error, Errno::BADF);
}

#[test]
fn names_of_any_bytes_are_names() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let long = [b'l'; 255];
    let names: [&[u8]; 6] = [b" ", b"-rf", b"a\nb", b"\xff\xfe", b"...", &long];
    for name in names {
        session.mkdir(ROOT_ID, name, 0o755).expect("mkdir");
        let found = session.lookup(ROOT_ID, name).expect("lookup");
        let on_host =
            CString::new([share.path().as_os_str().as_encoded_bytes(), b"/", name].concat());
        let host = rustix::fs::stat(on_host.expect("no NUL").as_c_str()).expect("stat");
        assert_eq!(found.attr.ino, host.st_ino);
    }
    let list = guest_names(&session);
    assert!(names.iter().all(|name| list.contains(*name)));
}

fn guest_names(session: &Session) -> BTreeSet<Vec<u8>> {
    let handle = session.opendir(ROOT_ID, 0).expect("opendir").fh;
    list_plainly(session, ROOT_ID, handle)
}
