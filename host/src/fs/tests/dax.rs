//! What a node remembers of DAX, and the path that rules go by.

use std::path::PathBuf;

use daxwindow_shared::fuse::ROOT_ID;

use super::*;

#[test]
fn a_node_keeps_what_was_decided_first() {
    let share = Share::new();
    let f = share.file(c"f", "content");
    assert_eq!(share.find(c"f").dax, None, "nobody has decided");
    assert!(!share.fs.is_dax(f));
    assert!(share.fs.settle_dax(f, true));
    assert!(share.fs.settle_dax(f, false), "the first decision holds");
    assert!(share.fs.is_dax(f));

    // By another name, after a rename, and grown or cut.
    share
        .fs
        .link(f, ROOT_ID, n(c"g"))
        .map(|linked| assert_eq!((linked.nodeid, linked.dax), (f, Some(true))))
        .unwrap();
    share
        .fs
        .rename(ROOT_ID, n(c"f"), ROOT_ID, n(c"h"), 0)
        .unwrap();
    share.write("h", "");
    assert_eq!(share.find(c"h").dax, Some(true));

    // Who forgets it may hear otherwise next time.
    share.fs.forget(f, u64::MAX);
    assert_eq!(share.find(c"h").dax, None);
}

#[test]
fn a_file_that_cannot_be_mapped_has_no_dax_until_the_session_ends() {
    use crate::dax::MapSource;
    let share = Share::new();
    let (f, g) = (share.file(c"f", "content"), share.file(c"g", "content"));
    assert!(share.fs.settle_dax(f, true) && share.fs.settle_dax(g, true));
    share.fs.refused(f);
    share.fs.refused(4711);
    assert!(!share.fs.is_dax(f) && share.fs.is_dax(g));
    assert_eq!(share.find(c"f").dax, Some(false));
    // The guest drops the inode, and hears the same of the next.
    share.fs.forget(f, u64::MAX);
    let again = share.find(c"f");
    assert_eq!(again.dax, None);
    assert!(!share.fs.settle_dax(again.nodeid, true));
    share.fs.reset();
    assert!(share.fs.settle_dax(share.find(c"f").nodeid, true));
}

#[test]
fn only_regular_files_are_to_be_decided_about() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    std::os::unix::fs::symlink("d", share.path("l")).unwrap();
    for name in [c"d", c"l"] {
        assert_eq!(share.find(name).dax, Some(false));
    }
    assert!(!share.fs.is_dax(ROOT_ID));
    assert!(!share.fs.is_dax(4711), "no such node");
    assert!(!share.fs.settle_dax(4711, true));
}

#[test]
fn paths_start_at_the_share_and_follow_the_host() {
    let share = Share::new();
    std::fs::create_dir_all(share.path("a/b")).unwrap();
    let a = share.find(c"a").nodeid;
    let b = share.fs.lookup(a, n(c"b")).unwrap().nodeid;
    let path = |parent| share.fs.path_in_share(parent, n(c"f"));
    assert_eq!(path(ROOT_ID), Some(PathBuf::from("f")));
    assert_eq!(path(b), Some(PathBuf::from("a/b/f")));
    std::fs::rename(share.path("a/b"), share.path("c")).unwrap();
    assert_eq!(path(b), Some(PathBuf::from("c/f")));
    std::fs::rename(share.path("c"), share.outside("c")).unwrap();
    assert_eq!(path(b), None, "no longer in the share");
    assert_eq!(path(4711), None);
}
