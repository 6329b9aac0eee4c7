//! A read-only share refuses every change, and nothing else.

use daxwindow_shared::fuse::{FallocateIn, ROOT_ID};
use rustix::io::Errno;

use super::*;
use crate::dax::MapSource;

#[test]
fn every_change_is_refused_before_anything_is_touched() {
    let share = Share::with(ShareOptions {
        readonly: true,
        ..ShareOptions::default()
    });
    let fs = &share.fs;
    assert!(fs.readonly());
    std::fs::create_dir(share.path("d")).unwrap();
    let f = share.file(c"f", "content");
    let fh = fs.open_file(f, O_RDONLY, false).unwrap();
    let before = fs.getattr(f, None).unwrap();

    let name = n(c"new");
    let refused = [
        fs.setattr(ROOT, f, &set(1, |s| s.mode = 0)).map(|_| ()),
        fs.setattr(ROOT, f, &set(1 << 3, |_| {})).map(|_| ()),
        fs.setattr(ROOT, f, &set(1 << 7, |_| {})).map(|_| ()),
        fs.symlink(ROOT, ROOT_ID, name, c"t").map(|_| ()),
        fs.mknod(ROOT, ROOT_ID, name, 0o100644, 0, 0).map(|_| ()),
        fs.mkdir(ROOT, ROOT_ID, name, 0o755, 0).map(|_| ()),
        fs.link(f, ROOT_ID, name).map(|_| ()),
        fs.unlink(ROOT_ID, n(c"f")),
        fs.rmdir(ROOT_ID, n(c"d")),
        fs.rename(ROOT_ID, n(c"f"), ROOT_ID, name, 0),
        fs.create(ROOT, ROOT_ID, name, O_RDWR, 0o644, 0).map(|_| ()),
        fs.create(ROOT, ROOT_ID, n(c"f"), O_RDONLY, 0o644, 0)
            .map(|_| ()),
        fs.open_file(f, O_WRONLY, false).map(|_| ()),
        fs.open_file(f, O_RDWR, true).map(|_| ()),
        fs.fallocate(
            f,
            &FallocateIn {
                fh,
                length: 1,
                ..FallocateIn::default()
            },
        ),
        fs.copy_file_range((f, fh, 0), (f, fh, 3), 1, 0).map(|_| ()),
        fs.setxattr(f, c"user.a", b"b", 0, false),
        fs.removexattr(f, c"user.a"),
        fs.kill_suidgid(f),
        fs.open_for_mapping(f, true).map(|_| ()),
    ];
    for (which, result) in refused.iter().enumerate() {
        assert_eq!(*result, Err(Errno::ROFS), "{which}");
    }
    assert_eq!(fs.getattr(f, None).unwrap(), before);
    assert!(!share.path("new").exists());
    assert!(share.path("d").exists());
    assert_eq!((fs.live_inodes(), fs.live_handles()), (1, 1));
}

#[test]
fn reading_works() {
    let share = Share::with(ShareOptions {
        readonly: true,
        ..ShareOptions::default()
    });
    let fs = &share.fs;
    let f = share.file(c"f", "content");
    let fh = fs
        .open_file(f, O_RDONLY | libc::O_TRUNC as u32, true)
        .unwrap();
    fs.fsync(f, fh, false).unwrap();
    fs.listxattr(f, 0).unwrap();
    fs.open_for_mapping(f, false).unwrap();
    fs.opendir(ROOT_ID).unwrap();
    fs.syncfs(ROOT_ID).unwrap();
    assert_eq!(fs.getattr(f, None).unwrap().size, 7);
}
