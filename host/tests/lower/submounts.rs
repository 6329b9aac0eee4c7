//! Where a file system of its own begins for the guest, below the share.

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::{AttrFlags, InitFlags};
use daxwindow_shared::fuse::{EntryOut, ROOT_ID};
use rustix::mount::{MountFlags, mount};

use crate::common::wire::offer;
use crate::common::{Daemon, attach, open, read_by_request, walk};
use crate::places::{btrfs, overlay_over, run, tool};

fn is_submount(entry: &EntryOut) -> bool {
    AttrFlags::from_bits_retain(entry.attr.flags).contains(AttrFlags::SUBMOUNT)
}

#[track_caller]
fn assert_holds(session: &Session, path: &str, text: &[u8]) {
    let (entry, handle) = open(session, path, libc::O_RDONLY).expect("opened");
    let bytes = read_by_request(session, (entry.nodeid, handle.fh), 0, 100).expect("read");
    assert_eq!(bytes, text);
}

/// Names in the root that READDIRPLUS says have a file system of their own.
fn listed_submounts(session: &Session) -> Vec<Vec<u8>> {
    let listing = session.opendir(ROOT_ID, 0).expect("opened").fh;
    let (mut found, mut offset) = (Vec::new(), 0);
    loop {
        let items = session.readdirplus(ROOT_ID, listing, offset);
        let items = items.expect("listed");
        let Some(last) = items.last() else { break };
        offset = last.head.off;
        found.extend(items.into_iter().filter_map(|item| {
            let is_top = item.entry.is_some_and(|entry| is_submount(&entry));
            is_top.then_some(item.name)
        }));
    }
    found.sort();
    found
}

/// Two files with one number, on two devices of one mount: the guest tells
/// them apart by the device that it gives to each subvolume.
#[test]
fn a_btrfs_subvolume_is_a_file_system_of_its_own_for_the_guest() {
    let place = btrfs();
    for name in ["s1", "s2"] {
        let at = place.path().join(name);
        run(tool("btrfs-progs:btrfs")
            .args(["-q", "subvolume", "create"])
            .arg(&at));
        std::fs::create_dir(at.join("plain")).expect("a directory");
        std::fs::write(at.join("f"), name).expect("written");
    }
    for handles in ["never", "prefer", "mandatory"] {
        let daemon = Daemon::start(place.path(), &["--inode-file-handles", handles]);
        let session = attach(&daemon);
        let agreed = offer(&session, InitFlags::SUBMOUNTS);
        assert!(agreed.contains(InitFlags::SUBMOUNTS));
        for round in 0..2 {
            let [one, two] = ["s1/f", "s2/f"].map(|path| walk(&session, path).expect("there"));
            assert_eq!(one.attr.ino, two.attr.ino);
            assert_ne!(one.nodeid, two.nodeid);
            assert!(!is_submount(&one), "{handles} {round}");
            for (path, is_top) in [
                ("s1", true),
                ("s2", true),
                ("many", false),
                ("s1/plain", false),
            ] {
                let entry = walk(&session, path).expect("there");
                assert_eq!(is_submount(&entry), is_top, "{path} {handles} {round}");
            }
            assert_holds(&session, "s1/f", b"s1");
            assert_holds(&session, "s2/f", b"s2");
        }
        assert_eq!(listed_submounts(&session), [b"s1", b"s2"], "{handles}");
    }
}

/// Its files may have devices of their own, one for each layer, and its
/// directories do not.
#[test]
fn no_directory_of_an_overlay_is_taken_for_a_file_system_of_its_own() {
    let place = overlay_over(|lower| {
        // A file system of its own below, so that layers differ in device.
        mount("tmpfs", lower, "tmpfs", MountFlags::empty(), None).expect("mounted");
        std::fs::create_dir_all(lower.join("dir/below")).expect("directories");
        std::fs::write(lower.join("dir/f"), "lower").expect("written");
    });
    std::fs::create_dir_all(place.path().join("upper/below")).expect("directories");
    std::fs::create_dir(place.path().join("dir/above")).expect("a directory");
    let daemon = Daemon::start(place.path(), &[]);
    let session = attach(&daemon);
    assert!(offer(&session, InitFlags::SUBMOUNTS).contains(InitFlags::SUBMOUNTS));
    for path in [
        "dir",
        "dir/below",
        "dir/above",
        "dir/f",
        "upper",
        "upper/below",
    ] {
        let entry = walk(&session, path).expect("there");
        assert!(!is_submount(&entry), "{path}");
    }
}
