//! Extended attributes.

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use super::super::XattrReply;
use super::*;

const CREATE: u32 = 1;
const REPLACE: u32 = 2;

#[test]
fn values_sizes_and_range() {
    let share = Share::new();
    let fs = &share.fs;
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
    for id in [share.file(c"f", ""), d] {
        fs.setxattr(id, c"user.a", b"value", CREATE, false).unwrap();
        assert_eq!(fs.getxattr(id, c"user.a", 0), Ok(XattrReply::Size(5)));
        let value = XattrReply::Value(b"value".to_vec());
        for size in [5, 6, usize::MAX] {
            assert_eq!(fs.getxattr(id, c"user.a", size), Ok(value.clone()));
        }
        assert_eq!(fs.getxattr(id, c"user.a", 4), Err(Errno::RANGE));
        assert_eq!(fs.getxattr(id, c"user.b", 4), Err(Errno::NODATA));
        assert_eq!(fs.getxattr(id, c"", 4), Err(Errno::RANGE));

        let list = match fs.listxattr(id, usize::MAX).unwrap() {
            XattrReply::Value(list) => list,
            other => panic!("{other:?}"),
        };
        assert!(list.split(|b| *b == 0).any(|name| name == b"user.a"));
        let size = XattrReply::Size(list.len() as u32);
        assert_eq!(fs.listxattr(id, 0), Ok(size));
        assert_eq!(fs.listxattr(id, list.len() - 1), Err(Errno::RANGE));

        let again = fs.setxattr(id, c"user.a", b"v", CREATE, false);
        assert_eq!(again, Err(Errno::EXIST));
        fs.setxattr(id, c"user.a", b"", REPLACE, false).unwrap();
        assert_eq!(fs.getxattr(id, c"user.a", 9), Ok(XattrReply::Value(vec![])));
        let none = fs.setxattr(id, c"user.c", b"v", REPLACE, false);
        assert_eq!(none, Err(Errno::NODATA));
        fs.removexattr(id, c"user.a").unwrap();
        assert_eq!(fs.removexattr(id, c"user.a"), Err(Errno::NODATA));
    }
}

#[test]
fn what_is_too_large_or_unknown_is_refused() {
    let share = Share::new();
    let f = share.file(c"f", "");
    let large = vec![0; (64 << 10) + 1];
    let set = |value: &[u8], flags| share.fs.setxattr(f, c"user.a", value, flags, false);
    assert_eq!(set(&large, 0), Err(Errno::TOOBIG));
    assert_eq!(set(b"v", 4), Err(Errno::INVAL));
    assert_eq!(set(b"v", u32::MAX), Err(Errno::INVAL));
}

#[test]
fn attributes_of_files_that_nobody_may_read_or_name() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "");
    fs.setattr(ROOT, f, &set(1, |s| s.mode = 0o200)).unwrap();
    fs.setxattr(f, c"user.a", b"v", 0, false).unwrap();
    if is_root() {
        fs.setattr(ROOT, f, &set(1, |s| s.mode = 0)).unwrap();
        assert_eq!(fs.getxattr(f, c"user.a", 0), Ok(XattrReply::Size(1)));
    }
    fs.unlink(ROOT_ID, n(c"f")).unwrap();
    assert!(fs.listxattr(f, 0).is_ok());
}

#[test]
fn an_acl_takes_setgid_along() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "");
    fs.setattr(ROOT, f, &set(1, |s| s.mode = 0o2755)).unwrap();
    fs.setxattr(f, c"user.a", b"v", 0, false).unwrap();
    assert_eq!(share.mode("f"), 0o2755);
    fs.setxattr(f, c"user.a", b"v", 0, true).unwrap();
    assert_eq!(share.mode("f"), 0o755);
}

#[test]
fn an_acl_takes_setgid_from_directories_and_where_the_group_may_not_execute() {
    let share = Share::new();
    let fs = &share.fs;
    let file = share.file(c"f", "");
    std::fs::create_dir(share.path("d")).unwrap();
    let dir = share.find(c"d").nodeid;
    for (node, name, mode) in [(file, "f", 0o2744), (dir, "d", 0o2755)] {
        fs.setattr(ROOT, node, &set(1, |s| s.mode = mode)).unwrap();
        fs.setxattr(node, c"user.a", b"v", 0, true).unwrap();
        assert_eq!(share.mode(name), mode & 0o777);
    }
}

#[test]
fn links_and_special_files_have_their_own() {
    let share = Share::new();
    let fs = &share.fs;
    share.write("target", "");
    let link = fs
        .symlink(ROOT, ROOT_ID, n(c"l"), c"target")
        .unwrap()
        .nodeid;
    let fifo = fs
        .mknod(ROOT, ROOT_ID, n(c"p"), 0o010644, 0, 0)
        .unwrap()
        .nodeid;
    for id in [link, fifo] {
        // User attributes are for files and directories.
        let refused = fs.setxattr(id, c"user.a", b"v", 0, false);
        assert_eq!(refused, Err(Errno::PERM));
        if is_root() {
            fs.setxattr(id, c"trusted.a", b"v", 0, false).unwrap();
            let value = XattrReply::Value(b"v".to_vec());
            assert_eq!(fs.getxattr(id, c"trusted.a", 10), Ok(value));
            assert!(fs.listxattr(id, 100).is_ok());
            fs.removexattr(id, c"trusted.a").unwrap();
        }
    }
    let target = share.find(c"target").nodeid;
    assert_eq!(fs.getxattr(target, c"trusted.a", 0), Err(Errno::NODATA));
}
