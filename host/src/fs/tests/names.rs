//! Names removed, moved and added.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use super::*;

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

fn read(share: &Share, name: &str) -> String {
    std::fs::read_to_string(share.path(name)).unwrap()
}

#[test]
fn rename_and_its_flags() {
    let share = Share::new();
    let fs = &share.fs;
    share.write("a", "a");
    share.write("b", "b");
    let rename = |from, to, flags| fs.rename(ROOT_ID, n(from), ROOT_ID, n(to), flags);
    assert_eq!(rename(c"a", c"b", NOREPLACE), Err(Errno::EXIST));
    rename(c"a", c"b", EXCHANGE).unwrap();
    assert_eq!(
        (read(&share, "a"), read(&share, "b")),
        ("b".into(), "a".into())
    );
    for flags in [WHITEOUT | EXCHANGE, 8, u32::MAX, NOREPLACE | EXCHANGE] {
        assert_eq!(rename(c"a", c"b", flags), Err(Errno::INVAL), "{flags}");
    }
    assert_eq!(rename(c"a", c"x", EXCHANGE), Err(Errno::NOENT));
    rename(c"a", c"c", NOREPLACE).unwrap();
    rename(c"c", c"b", 0).unwrap();
    assert_eq!(read(&share, "b"), "b");
    assert!(!share.path("a").exists() && !share.path("c").exists());
}

#[test]
fn a_whiteout_stays_where_the_name_was() {
    let share = Share::new();
    share.write("a", "a");
    share
        .fs
        .rename(ROOT_ID, n(c"a"), ROOT_ID, n(c"b"), WHITEOUT)
        .unwrap();
    assert_eq!(read(&share, "b"), "a");
    let left = std::fs::metadata(share.path("a")).unwrap();
    assert!(left.file_type().is_char_device());
    assert_eq!(left.rdev(), 0);
}

#[test]
fn rename_between_directories() {
    let share = Share::new();
    let fs = &share.fs;
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
    let f = share.file(c"f", "f");
    fs.rename(ROOT_ID, n(c"f"), d, n(c"g"), 0).unwrap();
    assert_eq!(read(&share, "d/g"), "f");
    assert_eq!(fs.lookup(d, n(c"g")).unwrap().nodeid, f);
    assert_eq!(
        fs.rename(ROOT_ID, n(c"d"), d, n(c"in"), 0),
        Err(Errno::INVAL)
    );
    assert_eq!(fs.rename(f, n(c"x"), d, n(c"y"), 0), Err(Errno::NOTDIR));
    assert_eq!(fs.rename(777, n(c"x"), d, n(c"y"), 0), Err(Errno::STALE));
}

#[test]
fn unlink_and_rmdir_keep_to_their_kind() {
    let share = Share::new();
    let fs = &share.fs;
    share.write("f", "");
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
    fs.mkdir(ROOT, d, n(c"e"), 0o755, 0).unwrap();
    assert_eq!(fs.rmdir(ROOT_ID, n(c"f")), Err(Errno::NOTDIR));
    assert_eq!(fs.unlink(ROOT_ID, n(c"d")), Err(Errno::ISDIR));
    assert_eq!(fs.rmdir(ROOT_ID, n(c"d")), Err(Errno::NOTEMPTY));
    fs.rmdir(d, n(c"e")).unwrap();
    fs.rmdir(ROOT_ID, n(c"d")).unwrap();
    fs.unlink(ROOT_ID, n(c"f")).unwrap();
    assert_eq!(fs.unlink(ROOT_ID, n(c"f")), Err(Errno::NOENT));
    assert_eq!(fs.lookup(d, n(c"e")).unwrap_err(), Errno::NOENT);
}

#[test]
fn an_unlinked_file_stays_usable() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "12345");
    let fh = fs.open_file(f, O_RDWR, false).unwrap();
    fs.unlink(ROOT_ID, n(c"f")).unwrap();
    assert_eq!(fs.getattr(f, None).unwrap().nlink, 0);
    assert_eq!(fs.getattr(f, Some(fh)).unwrap().size, 5);
    fs.release(f, fh).unwrap();
    let fh = fs.open_file(f, O_RDWR, false).unwrap();
    rustix::io::pwrite(&fs.file(f, fh).unwrap().file, b"x", 9).unwrap();
    let truncated = fs.setattr(ROOT, f, &set(1 << 3, |s| s.size = 7)).unwrap();
    assert_eq!(truncated.size, 7);
    fs.setattr(ROOT, f, &set(1, |s| s.mode = 0o600)).unwrap();
    assert_eq!(fs.link(f, ROOT_ID, n(c"back")).unwrap_err(), Errno::NOENT);
}

#[test]
fn hard_links() {
    let share = Share::new();
    let fs = &share.fs;
    let f = share.file(c"f", "f");
    let entry = fs.link(f, ROOT_ID, n(c"g")).unwrap();
    assert_eq!((entry.nodeid, entry.attr.nlink), (f, 2));
    assert_eq!(fs.link(f, ROOT_ID, n(c"g")).unwrap_err(), Errno::EXIST);
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
    assert_eq!(fs.link(d, ROOT_ID, n(c"e")).unwrap_err(), Errno::PERM);
}

#[test]
fn statfs_and_syncs_reach_the_host() {
    let share = Share::new();
    let fs = &share.fs;
    let totals = fs.statfs(ROOT_ID).unwrap();
    assert!(totals.blocks > 0 && totals.bsize > 0 && totals.namelen >= 255);
    fs.syncfs(ROOT_ID).unwrap();
    let link = fs.symlink(ROOT, ROOT_ID, n(c"s"), c"t").unwrap().nodeid;
    fs.syncfs(link).unwrap();
    fs.statfs(link).unwrap();
    let f = share.file(c"f", "");
    let fh = fs.open_file(f, O_RDONLY, false).unwrap();
    fs.fsync(f, fh, false).unwrap();
    fs.fsync(f, fh, true).unwrap();
    fs.flush(f, fh, 0).unwrap();
    let dh = fs.opendir(ROOT_ID).unwrap();
    fs.fsyncdir(ROOT_ID, dh, false).unwrap();
    fs.fsyncdir(ROOT_ID, dh, true).unwrap();
}
