//! Listings.

use std::collections::BTreeSet;

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use super::*;

/// One entry as listed: inode, cookie, type, name.
type Item = (u64, u64, u32, String);

/// Up to `most` entries from a cookie on.
fn list(fs: &SharedDir, node: u64, fh: u64, offset: u64, most: usize) -> Vec<Item> {
    let mut items = Vec::new();
    let mut sink = |item: crate::fs::DirItem<'_>| {
        if items.len() == most {
            return false;
        }
        let name = item.name.to_str().unwrap().to_owned();
        items.push((item.ino, item.offset, item.typ, name));
        true
    };
    fs.readdir(node, fh, offset, &mut sink).unwrap();
    items
}

fn fill(share: &Share, count: usize) -> BTreeSet<String> {
    let names: BTreeSet<_> = (0..count).map(|i| format!("file-number-{i:05}")).collect();
    for name in &names {
        share.write(name, "");
    }
    names
}

fn names_of(items: &[Item]) -> BTreeSet<String> {
    let dots = [".", ".."];
    let names = items.iter().map(|item| item.3.clone());
    names.filter(|name| !dots.contains(&&**name)).collect()
}

#[test]
fn a_large_directory_from_every_hundredth_cookie() {
    let share = Share::new();
    let names = fill(&share, 3000);
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    let all = list(&share.fs, ROOT_ID, fh, 0, usize::MAX);
    assert_eq!(all.len(), 3002);
    assert_eq!(names_of(&all), names);
    for at in (0..all.len()).step_by(100) {
        let rest = list(&share.fs, ROOT_ID, fh, all[at].1, usize::MAX);
        assert_eq!(rest, all[at + 1..], "from {at}");
    }
    // And backwards, a few at a time, on a handle of its own.
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    for at in (0..all.len()).rev().step_by(100) {
        let some = list(&share.fs, ROOT_ID, fh, all[at].1, 7);
        assert_eq!(some, all[at + 1..all.len().min(at + 8)], "from {at}");
    }
}

#[test]
fn a_listing_in_pieces_is_whole() {
    let share = Share::new();
    let names = fill(&share, 1000);
    for most in [1, 2, 7, 100, 600] {
        let fh = share.fs.opendir(ROOT_ID).unwrap();
        let (mut offset, mut all) = (0, Vec::new());
        loop {
            let piece = list(&share.fs, ROOT_ID, fh, offset, most);
            let Some(last) = piece.last() else { break };
            offset = last.1;
            all.extend(piece);
        }
        assert_eq!(all.len(), 1002, "{most} at a time");
        assert_eq!(names_of(&all), names);
        assert!(list(&share.fs, ROOT_ID, fh, offset, 9).is_empty());
        share.fs.releasedir(ROOT_ID, fh).unwrap();
    }
    assert_eq!(share.fs.listing.used(), 0);
}

#[test]
fn nothing_kept_is_only_slower() {
    let share = Share::new();
    let names = fill(&share, 300);
    let spent = share.fs.listing.take(super::super::dir::MAX_LISTING_BYTES);
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    let (mut offset, mut all) = (0, Vec::new());
    while let Some(item) = list(&share.fs, ROOT_ID, fh, offset, 1).pop() {
        offset = item.1;
        all.push(item);
    }
    assert_eq!((all.len(), names_of(&all)), (302, names));
    drop(spent);
}

#[test]
fn a_rewound_listing_is_fresh() {
    let share = Share::new();
    fill(&share, 10);
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    list(&share.fs, ROOT_ID, fh, 0, 3);
    share.write("new", "");
    let again = list(&share.fs, ROOT_ID, fh, 0, usize::MAX);
    assert!(names_of(&again).contains("new"));
}

#[test]
fn entries_tell_type_and_inode_and_hide_the_parent() {
    let share = Share::new();
    let fs = &share.fs;
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap();
    fs.symlink(ROOT, ROOT_ID, n(c"l"), c"x").unwrap();
    fs.mknod(ROOT, ROOT_ID, n(c"p"), 0o010644, 0, 0).unwrap();
    let f = share.file(c"f", "");
    let f_ino = fs.getattr(f, None).unwrap().ino;
    let root_ino = fs.getattr(ROOT_ID, None).unwrap().ino;
    let fh = fs.opendir(ROOT_ID).unwrap();
    let mut items = list(fs, ROOT_ID, fh, 0, usize::MAX);
    items.sort_by(|a, b| a.3.cmp(&b.3));
    let seen: Vec<_> = items.iter().map(|i| (i.3.as_str(), i.2)).collect();
    let types = [(".", 4), ("..", 4), ("d", 4), ("f", 8), ("l", 10), ("p", 1)];
    assert_eq!(seen, types);
    assert_eq!((items[0].0, items[1].0), (root_ino, root_ino));
    assert_eq!((items[2].0, items[3].0), (d.attr.ino, f_ino));

    // Also when the parent comes out of what was kept.
    let first = list(fs, ROOT_ID, fh, 0, 1);
    let (mut offset, mut dotdot) = (first[0].1, None);
    while let Some(item) = list(fs, ROOT_ID, fh, offset, 1).pop() {
        offset = item.1;
        if item.3 == ".." {
            dotdot = Some(item.0);
        }
    }
    assert!(first[0].3 == ".." || dotdot == Some(root_ino));
    // Below the root it is the real one, which is inside.
    let fh = fs.opendir(d.nodeid).unwrap();
    let inside = list(fs, d.nodeid, fh, 0, usize::MAX);
    let parent = inside.iter().find(|item| item.3 == "..").unwrap();
    assert_eq!(parent.0, root_ino);
}

#[test]
fn hostile_cookies_harm_nobody() {
    let share = Share::new();
    fill(&share, 50);
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    for offset in [1, 2, 3, 12345, u64::MAX, 1 << 63, i64::MAX as u64, 1 << 40] {
        let mut seen = 0;
        let listed = share.fs.readdir(ROOT_ID, fh, offset, &mut |_| {
            seen += 1;
            true
        });
        assert!(seen <= 52);
        if offset > i64::MAX as u64 {
            assert_eq!(listed, Err(Errno::INVAL));
        }
    }
    assert_eq!(list(&share.fs, ROOT_ID, fh, 0, usize::MAX).len(), 52);
}

#[test]
fn threads_on_one_handle_take_turns() {
    let share = Share::new();
    fill(&share, 500);
    let fh = share.fs.opendir(ROOT_ID).unwrap();
    std::thread::scope(|scope| {
        for most in [3, 100, usize::MAX] {
            let fs = &share.fs;
            scope.spawn(move || {
                for _ in 0..10 {
                    let (mut offset, mut count) = (0, 0);
                    while let Some(last) = {
                        let piece = list(fs, ROOT_ID, fh, offset, most);
                        count += piece.len();
                        piece.last().cloned()
                    } {
                        offset = last.1;
                    }
                    assert_eq!(count, 502);
                }
            });
        }
    });
}

#[test]
fn a_sink_may_look_entries_up() {
    let share = Share::new();
    fill(&share, 20);
    let fs = &share.fs;
    let fh = fs.opendir(ROOT_ID).unwrap();
    let mut found = Vec::new();
    fs.readdir(ROOT_ID, fh, 0, &mut |item| {
        if let Ok(name) = Name::new(item.name) {
            let entry = fs.lookup(ROOT_ID, name).unwrap();
            assert_eq!(entry.attr.ino, item.ino);
            found.push(entry.nodeid);
        }
        true
    })
    .unwrap();
    assert_eq!((found.len(), fs.live_inodes()), (20, 20));
}

#[test]
fn a_directory_without_rights_and_without_a_name() {
    let share = Share::new();
    let fs = &share.fs;
    let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o700, 0).unwrap().nodeid;
    let fh = fs.opendir(d).unwrap();
    fs.rmdir(ROOT_ID, n(c"d")).unwrap();
    // What getdents says of a removed directory.
    let listed = fs.readdir(d, fh, 0, &mut |_| true);
    assert_eq!(listed, Err(Errno::NOENT));
    assert_eq!(
        fs.mkdir(ROOT, d, n(c"e"), 0o700, 0).unwrap_err(),
        Errno::NOENT
    );
}
