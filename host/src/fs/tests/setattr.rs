//! Changing attributes.

use std::os::unix::fs::PermissionsExt;

use daxwindow_shared::fuse::ROOT_ID;
use daxwindow_shared::fuse::flags::SetattrValid as V;
use rustix::io::Errno;

use super::*;

fn valid(flags: V) -> u32 {
    flags.bits()
}

#[test]
fn mode_and_size_and_times_one_by_one() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let attr = fs
        .setattr(USER, f, &set(valid(V::MODE), |s| s.mode = 0o106751))
        .unwrap();
    assert_eq!(attr.mode, 0o106751);
    let attr = fs
        .setattr(USER, f, &set(valid(V::SIZE), |s| s.size = 3))
        .unwrap();
    assert_eq!(attr.size, 3);
    let attr = fs
        .setattr(USER, f, &set(valid(V::SIZE), |s| s.size = 1 << 30))
        .unwrap();
    assert_eq!(attr.size, 1 << 30);

    let times = set(valid(V::ATIME | V::MTIME), |s| {
        (s.atime, s.atimensec, s.mtime, s.mtimensec) = (1, 2, 3, 4);
    });
    let attr = fs.setattr(USER, f, &times).unwrap();
    let got = (attr.atime, attr.atimensec, attr.mtime, attr.mtimensec);
    assert_eq!(got, (1, 2, 3, 4));
    let attr = fs
        .setattr(USER, f, &set(valid(V::ATIME), |s| s.atime = 9))
        .unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.mtimensec), (9, 3, 4));
    let now = V::MTIME | V::MTIME_NOW;
    let attr = fs
        .setattr(USER, f, &set(valid(now), |s| s.mtime = 5))
        .unwrap();
    assert!(attr.mtime > 1_600_000_000);
    assert_eq!(attr.atime, 9);
    let old = set(valid(V::MTIME), |s| s.mtime = -7i64 as u64);
    assert_eq!(fs.setattr(USER, f, &old).unwrap().mtime as i64, -7);
    let nothing = fs.setattr(USER, f, &set(0, |s| s.size = 5)).unwrap();
    assert_eq!(nothing.size, 1 << 30);
}

#[test]
fn all_at_once_ends_as_asked() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let (uid, gid) = creator(USER);
    let all = V::MODE | V::UID | V::GID | V::SIZE | V::ATIME | V::MTIME | V::CTIME;
    let attr = fs
        .setattr(
            ROOT,
            f,
            &set(valid(all), |s| {
                (s.mode, s.uid, s.gid, s.size) = (0o4711, uid, gid, 100);
                (s.atime, s.mtime, s.ctime) = (10, 20, 30);
            }),
        )
        .unwrap();
    assert_eq!((attr.mode & 0o7777, attr.uid, attr.gid), (0o4711, uid, gid));
    assert_eq!((attr.size, attr.atime, attr.mtime), (100, 10, 20));
}

#[test]
fn a_size_by_handle() {
    let share = Share::new();
    let fs = &share.fs;
    let (f, g) = (share.file(c"f", "content"), share.file(c"g", ""));
    let fh = fs.open_file(f, O_RDWR, false).unwrap();
    // No right left: the handle is enough.
    let mut none = std::fs::metadata(share.path("f")).unwrap().permissions();
    none.set_mode(0o000);
    std::fs::set_permissions(share.path("f"), none).unwrap();
    let by_handle = set(valid(V::SIZE | V::FH), |s| (s.size, s.fh) = (2, fh));
    assert_eq!(fs.setattr(USER, f, &by_handle).unwrap().size, 2);
    assert_eq!(fs.setattr(USER, g, &by_handle).unwrap_err(), Errno::BADF);
    let huge = set(valid(V::SIZE | V::FH), |s| (s.size, s.fh) = (u64::MAX, fh));
    assert_eq!(fs.setattr(USER, f, &huge).unwrap_err(), Errno::INVAL);
}

#[test]
fn setuid_goes_when_told_and_with_the_owner() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let suid = |mode| {
        fs.setattr(ROOT, f, &set(valid(V::MODE), |s| s.mode = mode))
            .unwrap()
    };
    suid(0o6755);
    let shrink = set(valid(V::SIZE | V::KILL_SUIDGID), |s| s.size = 1);
    assert_eq!(fs.setattr(USER, f, &shrink).unwrap().mode & 0o7777, 0o755);
    suid(0o6755);
    let (uid, gid) = creator(USER);
    let chown = set(valid(V::UID | V::GID), |s| (s.uid, s.gid) = (uid, gid));
    assert_eq!(fs.setattr(ROOT, f, &chown).unwrap().mode & 0o7777, 0o755);
}

#[test]
fn directories_and_links() {
    let share = Share::new();
    let fs = &share.fs;
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
    let attr = fs
        .setattr(ROOT, d, &set(valid(V::MODE), |s| s.mode = 0o1700))
        .unwrap();
    assert_eq!(attr.mode, 0o041700);
    let truncate = set(valid(V::SIZE), |_| {});
    assert_eq!(fs.setattr(ROOT, d, &truncate).unwrap_err(), Errno::ISDIR);
    let l = fs
        .symlink(ROOT, ROOT_ID, n(c"l"), c"nowhere")
        .unwrap()
        .nodeid;
    let (uid, gid) = creator(USER);
    let chown = set(valid(V::UID | V::GID), |s| (s.uid, s.gid) = (uid, gid));
    let attr = fs.setattr(ROOT, l, &chown).unwrap();
    assert_eq!((attr.uid, attr.gid), (uid, gid));
}

#[test]
fn values_that_mean_something_else_to_the_kernel_are_refused() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let before = fs.getattr(f, None).unwrap();
    for bad in [
        set(valid(V::UID), |s| s.uid = u32::MAX),
        set(valid(V::GID), |s| s.gid = u32::MAX),
        // UTIME_OMIT and UTIME_NOW in disguise.
        set(valid(V::ATIME | V::SIZE), |s| s.atimensec = 0x3fff_fffe),
        set(valid(V::MTIME | V::SIZE), |s| s.mtimensec = 0x3fff_ffff),
        set(valid(V::MTIME), |s| s.mtimensec = 1_000_000_000),
    ] {
        assert_eq!(fs.setattr(ROOT, f, &bad).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(fs.getattr(f, None).unwrap(), before);
    let stale = fs.setattr(ROOT, 4711, &set(valid(V::MODE), |_| {}));
    assert_eq!(stale.unwrap_err(), Errno::STALE);
}
