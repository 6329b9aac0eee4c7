//! Opening, and what open files can do.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use daxwindow_shared::fuse::{FallocateIn, ROOT_ID};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::*;
use crate::dax::MapSource;

#[test]
fn special_files_are_never_opened() {
    let share = Share::new();
    let fs = &share.fs;
    fs.mknod(ROOT, ROOT_ID, n(c"fifo"), 0o010666, 0, 0).unwrap();
    let _listener = UnixListener::bind(share.path("socket")).unwrap();
    let mut names = vec![c"fifo", c"socket"];
    if fs
        .mknod(ROOT, ROOT_ID, n(c"null"), 0o020666, 0x103, 0)
        .is_ok()
    {
        names.push(c"null");
    }
    for name in names {
        let id = share.find(name).nodeid;
        for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
            assert_eq!(fs.open_file(id, flags, false), Err(Errno::NXIO));
        }
        assert_eq!(fs.open_for_mapping(id, false).unwrap_err(), Errno::NXIO);
        assert_eq!(fs.opendir(id), Err(Errno::NOTDIR));
        let truncate = set(1 << 3, |_| {});
        assert_eq!(fs.setattr(ROOT, id, &truncate).unwrap_err(), Errno::NXIO);
        // Attributes need no opening.
        let changed = fs.setattr(ROOT, id, &set(1, |s| s.mode = 0o600)).unwrap();
        assert_eq!(changed.mode & 0o7777, 0o600);
        assert!(matches!(fs.listxattr(id, 0), Ok(_) | Err(Errno::NOTSUP)));
    }
    assert_eq!(fs.open_file(ROOT_ID, O_RDONLY, false), Err(Errno::ISDIR));
    assert_eq!(fs.live_handles(), 0);
}

#[test]
fn host_flags_are_an_allow_list() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let noise = libc::O_CREAT
        | libc::O_EXCL
        | libc::O_TRUNC
        | libc::O_APPEND
        | libc::O_DIRECT
        | libc::O_NONBLOCK
        | libc::O_NOFOLLOW
        | libc::O_NOATIME;
    let fh = fs.open_file(f, O_RDWR | noise as u32, false).unwrap();
    let open = fs.file(f, fh).unwrap();
    assert!(open.append && open.readable && open.writable);
    let flags = rustix::fs::fcntl_getfl(&open.file).unwrap();
    let host = OFlags::APPEND | OFlags::DIRECT | OFlags::NONBLOCK | OFlags::NOATIME;
    assert!(!flags.intersects(host), "{flags:?}");
    assert_eq!(
        fs.getattr(f, None).unwrap().size,
        7,
        "OPEN does not truncate"
    );
    for bad in [libc::O_PATH, libc::O_TMPFILE | libc::O_RDWR, 3] {
        assert_eq!(fs.open_file(f, bad as u32, false), Err(Errno::INVAL));
    }
    let sync = fs
        .open_file(f, O_WRONLY | libc::O_DSYNC as u32, false)
        .unwrap();
    let open = fs.file(f, sync).unwrap();
    assert!(!open.readable);
    let flags = rustix::fs::fcntl_getfl(&open.file).unwrap();
    let sync = libc::O_SYNC as u32;
    assert_eq!(flags.bits() & sync, libc::O_DSYNC as u32);
}

#[test]
fn a_handle_has_the_rights_it_was_opened_with() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let read = fs.open_file(f, O_RDONLY, false).unwrap();
    let open = fs.file(f, read).unwrap();
    assert!(open.readable && !open.writable);
    assert_eq!(rustix::io::pwrite(&open.file, b"x", 0), Err(Errno::BADF));
    let punch = FallocateIn {
        fh: read,
        length: 1,
        ..FallocateIn::default()
    };
    assert_eq!(fs.fallocate(f, &punch), Err(Errno::BADF));
    let truncate = set(1 << 3 | 1 << 6, |s| s.fh = read);
    assert_eq!(fs.setattr(ROOT, f, &truncate).unwrap_err(), Errno::INVAL);
}

#[test]
fn opening_kills_setuid_when_told_to() {
    let share = Share::new();
    let f = share.file(c"f", "");
    let path = share.path("f");
    let setuid = std::fs::Permissions::from_mode(0o6775);
    std::fs::set_permissions(&path, setuid).unwrap();
    share.fs.open_file(f, O_RDONLY, true).unwrap();
    share.fs.open_file(f, O_RDWR, false).unwrap();
    assert_eq!(share.mode("f"), 0o6775);
    share.fs.open_file(f, O_RDWR, true).unwrap();
    assert_eq!(share.mode("f"), 0o775);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6765)).unwrap();
    share.fs.kill_suidgid(f).unwrap();
    assert_eq!(
        share.mode("f"),
        0o2765,
        "setgid without group execution stays"
    );
}

#[test]
fn allocate_seek_and_copy() {
    let share = Share::new();
    let fs = &share.fs;
    let (f, g) = (share.file(c"f", "hello"), share.file(c"g", ""));
    let (fh, gh) = (
        fs.open_file(f, O_RDWR, false).unwrap(),
        fs.open_file(g, O_RDWR, false).unwrap(),
    );
    let grow = FallocateIn {
        fh,
        length: 1 << 20,
        ..FallocateIn::default()
    };
    fs.fallocate(f, &grow).unwrap();
    assert_eq!(fs.getattr(f, None).unwrap().size, 1 << 20);
    for (offset, length, mode) in [
        (0, 0, 0),
        (u64::MAX, 1, 0),
        (0, u64::MAX, 0),
        (0, 1, 1 << 30),
    ] {
        let bad = FallocateIn {
            fh,
            offset,
            length,
            mode,
            padding: 0,
        };
        assert!(fs.fallocate(f, &bad).is_err());
    }

    assert_eq!(fs.lseek(f, fh, 0, 3), Ok(0));
    assert_eq!(fs.lseek(f, fh, 1 << 20, 4), Err(Errno::NXIO));
    assert_eq!(fs.lseek(f, fh, 0, 2), Ok(1 << 20));
    assert_eq!(fs.lseek(f, fh, -5i64 as u64, 2), Ok((1 << 20) - 5));
    assert_eq!(fs.lseek(f, fh, i64::MIN as u64, 2), Err(Errno::INVAL));
    assert_eq!(fs.lseek(f, fh, 42, 0), Ok(42));
    for (offset, whence) in [(0, 1), (0, 5), (0, u32::MAX), (u64::MAX, 0)] {
        assert_eq!(fs.lseek(f, fh, offset, whence), Err(Errno::INVAL));
    }
    assert!(fs.lseek(f, fh, u64::MAX, 3).is_err());

    assert_eq!(fs.copy_file_range((f, fh, 1), (g, gh, 2), 4, 0), Ok(4));
    assert_eq!(std::fs::read(share.path("g")).unwrap(), b"\0\0ello");
    let flagged = fs.copy_file_range((f, fh, 0), (g, gh, 0), 4, 1);
    assert_eq!(flagged, Err(Errno::INVAL));
    let all = fs.copy_file_range((f, fh, 0), (g, gh, 0), u64::MAX, 0);
    assert!(all.is_err() || all == Ok(1 << 20), "{all:?}");
    assert!(
        fs.copy_file_range((f, fh, u64::MAX), (g, gh, 0), 4, 0)
            .is_err()
    );
}
