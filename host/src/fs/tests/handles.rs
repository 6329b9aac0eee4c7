//! Inodes known by handle: no descriptor, and still the inode and no other.
//! As root these run with handles; nobody else can open them, which is tested
//! as well.

use std::collections::{BTreeSet, HashSet};
use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use super::*;
use crate::dax::MapSource;

/// Handles and not one cached descriptor, so that each use opens the handle.
fn bare() -> ShareOptions {
    ShareOptions {
        inode_file_handles: InodeFileHandles::Mandatory,
        max_cached_descriptors: 0,
        ..ShareOptions::default()
    }
}

/// A share on this host's disk, and one in memory.
fn both() -> [Share; 2] {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    [Share::with(bare()), Share::within(memory, bare())]
}

/// Takes a file away and creates another in its place; true if that got its
/// inode number, as it does on ext4 unless another process was quicker.
fn replace(share: &Share, name: &str, ino: u64) -> bool {
    std::fs::remove_file(share.path(name)).unwrap();
    share.write(name, "second");
    std::fs::metadata(share.path(name)).unwrap().ino() == ino
}

#[test]
fn a_node_takes_no_descriptor_and_gives_its_memory_back() {
    for share in both() {
        let ids: Vec<u64> = (0..300)
            .map(|n| share.file(&CString::new(n.to_string()).unwrap(), "x"))
            .collect();
        let usage = share.fs.usage();
        assert_eq!(
            (usage.live, usage.held_descriptors, usage.cached_descriptors),
            (300, 0, 0)
        );
        assert_eq!((usage.mounts, usage.mounts_by_handle), (1, 1));
        assert!(usage.heap_bytes / usage.live <= 256, "{usage:?}");
        for id in &ids {
            assert_eq!(share.fs.getattr(*id, None).unwrap().size, 1);
            let fh = share.fs.open_file(*id, O_RDWR, false).unwrap();
            share.fs.release(*id, fh).unwrap();
            share.fs.forget(*id, 1);
        }
        assert_eq!(share.fs.usage().live, 0);
    }
}

#[test]
fn an_unlinked_file_is_usable_while_the_guest_knows_it() {
    for share in both() {
        let fs = &share.fs;
        let (f, over) = (share.file(c"f", "12345"), share.file(c"over", "over"));
        let d = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap().nodeid;
        share.write("new", "new");
        fs.unlink(ROOT_ID, n(c"f")).unwrap();
        fs.rename(ROOT_ID, n(c"new"), ROOT_ID, n(c"over"), 0)
            .unwrap();
        fs.rmdir(ROOT_ID, n(c"d")).unwrap();
        for (id, size) in [(f, 5), (over, 4)] {
            let attr = fs.getattr(id, None).unwrap();
            assert_eq!((attr.size, attr.nlink), (size, 0));
            let map = fs.open_for_mapping(id, true).unwrap();
            rustix::io::pwrite(&map.fd, b"x", 0).unwrap();
            let fh = fs.open_file(id, O_RDONLY, false).unwrap();
            fs.release(id, fh).unwrap();
        }
        assert_eq!(fs.getattr(d, None).unwrap().mode & 0o170000, 0o040000);
        assert_eq!(fs.usage().held_descriptors, 3);
        for id in [f, over, d] {
            fs.forget(id, 1);
            assert_eq!(fs.getattr(id, None), Err(Errno::STALE));
        }
        assert_eq!(fs.usage().held_descriptors, 0);
    }
}

#[test]
fn what_a_rename_replaces_is_kept_whatever_the_renames_before_did() {
    for share in both() {
        let fs = &share.fs;
        let over = |from, to| fs.rename(ROOT_ID, n(from), ROOT_ID, n(to), 0);
        // A free name or another's, in every order of two.
        let mut replaced = Vec::new();
        for replaces in [false, true, true, false, false, true] {
            share.write("from", "new");
            if replaces {
                replaced.push(share.file(c"to", "1234567"));
            }
            over(c"from", c"to").unwrap();
            assert!(!share.path("from").exists());
            assert_eq!(std::fs::read(share.path("to")).unwrap(), b"new");
            std::fs::remove_file(share.path("to")).unwrap();
            for id in &replaced {
                let attr = fs.getattr(*id, None).unwrap();
                assert_eq!((attr.size, attr.nlink), (7, 0));
            }
        }
        assert_eq!(fs.usage().held_descriptors, 3);
        assert_eq!(over(c"nothing", c"to"), Err(Errno::NOENT));
        fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0).unwrap();
        let d = fs.lookup(ROOT_ID, n(c"d")).unwrap().nodeid;
        let into_itself = || fs.rename(ROOT_ID, n(c"d"), d, n(c"d"), 0);
        assert_eq!(into_itself(), Err(Errno::INVAL));
        // Which says nothing about the file system.
        share.write("from", "new");
        let free = fs.rename(ROOT_ID, n(c"from"), d, n(c"to"), 0);
        assert_eq!(free, Ok(()));
        assert!(share.path("d/to").exists());
    }
}

#[test]
fn a_file_with_a_name_left_is_not_held() {
    for share in both() {
        let fs = &share.fs;
        let f = share.file(c"f", "12345");
        fs.link(f, ROOT_ID, n(c"g")).unwrap();
        fs.unlink(ROOT_ID, n(c"f")).unwrap();
        assert_eq!(fs.usage().held_descriptors, 0);
        assert_eq!(fs.getattr(f, None).unwrap().nlink, 1);
        fs.unlink(ROOT_ID, n(c"g")).unwrap();
        assert_eq!(fs.usage().held_descriptors, 1);
        assert_eq!(fs.getattr(f, None).unwrap().nlink, 0);
        // What could not be removed is not held either.
        share.file(c"h", "");
        assert_eq!(fs.rmdir(ROOT_ID, n(c"h")), Err(Errno::NOTDIR));
        assert_eq!(fs.usage().held_descriptors, 1);
    }
}

#[test]
fn without_a_descriptor_for_it_an_unlinked_file_goes_when_it_is_closed() {
    let share = Share::with(ShareOptions {
        max_inode_descriptors: 1,
        ..bare()
    });
    let fs = &share.fs;
    let (a, b) = (share.file(c"a", "a"), share.file(c"b", "b"));
    let fh = fs.open_file(b, O_RDONLY, false).unwrap();
    fs.unlink(ROOT_ID, n(c"a")).unwrap();
    fs.unlink(ROOT_ID, n(c"b")).unwrap();
    assert_eq!(fs.getattr(a, None).unwrap().size, 1);
    assert_eq!(fs.getattr(b, None).unwrap().size, 1, "open still");
    fs.open_for_mapping(b, false).unwrap();
    fs.release(b, fh).unwrap();
    assert_eq!(fs.getattr(b, None), Err(Errno::STALE));
    assert_eq!(fs.open_for_mapping(b, false).unwrap_err(), Errno::STALE);
    assert_eq!(fs.getattr(a, None).unwrap().size, 1);
}

#[test]
fn a_file_without_a_name_from_the_start_lives_too() {
    for share in both() {
        let fs = &share.fs;
        let (entry, fh) = fs.tmpfile(ROOT, ROOT_ID, O_RDWR, 0o600, 0).unwrap();
        fs.getattr(entry.nodeid, None).unwrap();
        fs.link(entry.nodeid, ROOT_ID, n(c"named")).unwrap();
        fs.release(entry.nodeid, fh).unwrap();
        assert_eq!(fs.getattr(entry.nodeid, None).unwrap().nlink, 1);
    }
}

#[test]
fn an_inode_number_in_use_again_is_another_node() {
    let share = Share::with(bare());
    // Soon after its birth, and when it can be known by that. Which numbers a
    // busy host uses again is its own affair, so there are several rounds, and
    // it need not do so in both.
    let waits = [Duration::ZERO, Duration::from_millis(2100)];
    let reuses = |&wait: &Duration| (0..12).any(|_| numbers_used_again(&share, wait) > 0);
    let reused = waits.iter().filter(|wait| reuses(wait)).count();
    assert!(reused > 0, "this host uses no number again");
}

#[test]
fn an_inode_that_is_gone_is_stale_while_its_number_is_given_away() {
    let share = Share::with(bare());
    let gone: Vec<u64> = (0..64)
        .map(|n| share.file(&CString::new(n.to_string()).unwrap(), ""))
        .collect();
    for n in 0..gone.len() {
        std::fs::remove_file(share.path(&n.to_string())).unwrap();
    }
    let done = AtomicBool::new(false);
    let makes = |maker: usize| {
        while !done.load(Ordering::Relaxed) {
            for n in 0..32 {
                share.write(&format!("{maker}.{n}"), "");
            }
            for n in 0..32 {
                std::fs::remove_file(share.path(&format!("{maker}.{n}"))).unwrap();
            }
        }
    };
    let looks = || (0..1000).flat_map(|_| gone.iter().map(|id| share.fs.getattr(*id, None)));
    let found: HashSet<_> = std::thread::scope(|scope| {
        for maker in 0..4 {
            scope.spawn(move || makes(maker));
        }
        let found = looks().map(|look| look.map(drop).map_err(Errno::raw_os_error));
        let found = found.collect();
        done.store(true, Ordering::Relaxed);
        found
    });
    let stale = Err(Errno::STALE.raw_os_error());
    assert_eq!(found, HashSet::from([stale]));
}

/// Replaces files that the guest knows, `wait` after they were made, and
/// answers how many of the new ones have the number of the old.
fn numbers_used_again(share: &Share, wait: Duration) -> usize {
    let names: Vec<_> = (0..100)
        .map(|n| CString::new(n.to_string()).unwrap())
        .collect();
    for name in &names {
        share.write(name.to_str().unwrap(), "first");
    }
    std::thread::sleep(wait);
    let mut reused = 0;
    for (at, name) in names.iter().enumerate() {
        let first = share.find(name);
        for _ in 0..at % 4 {
            assert_eq!(share.find(name).nodeid, first.nodeid);
        }
        reused += usize::from(replace(share, name.to_str().unwrap(), first.attr.ino));
        let second = share.find(name);
        assert_ne!(second.nodeid, first.nodeid);
        assert_eq!(second.attr.size, 6);
        assert_eq!(share.fs.getattr(first.nodeid, None), Err(Errno::STALE));
        let open = share.fs.open_file(first.nodeid, O_RDWR, false);
        assert_eq!(open, Err(Errno::STALE));
        let map = share.fs.open_for_mapping(first.nodeid, true).map(drop);
        assert_eq!(map, Err(Errno::STALE));
        assert_eq!(share.fs.getattr(second.nodeid, None).unwrap().size, 6);
        assert_eq!(share.find(name).nodeid, second.nodeid);
    }
    share.fs.reset();
    reused
}

#[test]
fn a_cached_descriptor_does_not_hide_that_an_inode_is_gone() {
    let share = Share::with(ShareOptions {
        max_cached_descriptors: 64,
        ..bare()
    });
    let first = share.file(c"f", "first");
    share.fs.getattr(first, None).unwrap();
    assert_eq!(share.fs.usage().cached_descriptors, 1);
    std::fs::remove_file(share.path("f")).unwrap();
    share.write("f", "second");
    let second = share.find(c"f");
    assert_ne!(second.nodeid, first);
    assert_eq!(share.fs.getattr(second.nodeid, None).unwrap().size, 6);
    assert_eq!(share.fs.getattr(first, None).unwrap().nlink, 0);
    share.fs.forget(first, 1);
    share.fs.forget(second.nodeid, 1);
    assert_eq!(share.fs.usage().cached_descriptors, 0);
}

#[test]
fn descriptors_stay_within_their_number_under_load() {
    let share = Share::with(ShareOptions {
        max_cached_descriptors: 64,
        ..bare()
    });
    let names: Vec<_> = (0..500)
        .map(|n| CString::new(n.to_string()).unwrap())
        .collect();
    let ids: Vec<u64> = names.iter().map(|name| share.file(name, "x")).collect();
    std::thread::scope(|scope| {
        for worker in 0..4usize {
            let (share, ids, names) = (&share, &ids, &names);
            scope.spawn(move || {
                for round in 0..4 {
                    for at in 0..ids.len() {
                        let at = (at * (worker + 1) + round) % ids.len();
                        let attr = share.fs.getattr(ids[at], None).unwrap();
                        let path = share.path(names[at].to_str().unwrap());
                        assert_eq!(attr.ino, std::fs::metadata(path).unwrap().ino());
                        assert_eq!(share.find(&names[at]).nodeid, ids[at]);
                        share.fs.forget(ids[at], 1);
                    }
                }
            });
        }
    });
    assert!(share.fs.usage().cached_descriptors <= 64);
    share.fs.reset();
    let usage = share.fs.usage();
    assert_eq!((usage.live, usage.cached_descriptors), (0, 0));
}

#[test]
fn a_file_moved_out_of_the_share_is_what_the_guest_knew() {
    for share in both() {
        let f = share.file(c"f", "12345");
        std::fs::rename(share.path("f"), share.outside("f")).unwrap();
        assert_eq!(share.fs.getattr(f, None).unwrap().size, 5);
        assert_eq!(share.fs.lookup(ROOT_ID, n(c"f")).unwrap_err(), Errno::NOENT);
    }
}

/// Something mounted for the length of a test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf, args: &[&str]) -> Mounted {
        let mut command = Command::new("mount");
        run(command.args(args).arg(&at));
        Mounted(at)
    }

    fn unmount(self) {
        run(Command::new("umount").arg(&self.0));
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {error}");
}

#[test]
fn a_mount_in_the_share_is_let_go_with_its_last_node() {
    let share = Share::with(bare());
    std::fs::create_dir(share.path("m")).unwrap();
    let mounted = Mounted::new(share.path("m"), &["-t", "tmpfs", "none"]);
    share.write("m/f", "12345");
    let m = share.find(c"m").nodeid;
    let f = share.fs.lookup(m, n(c"f")).unwrap();
    let usage = share.fs.usage();
    assert_eq!((usage.mounts, usage.mounts_by_handle), (2, 2));
    assert_eq!((usage.held_descriptors, usage.cached_descriptors), (0, 0));
    assert_eq!(share.fs.getattr(f.nodeid, None).unwrap().size, 5);
    share.fs.forget(m, 1);
    share.fs.forget(f.nodeid, 1);
    assert_eq!(share.fs.usage().mounts, 1);
    mounted.unmount();
    assert_ne!(share.find(c"m").nodeid, m);
}

#[test]
fn a_mount_of_several_devices_is_one_mount() {
    for (export, by_handle) in [("index=on,nfs_export=on", 1), ("nfs_export=off", 0)] {
        let all = tempfile::tempdir().unwrap();
        let path = |name: &str| all.path().join(name).to_str().unwrap().to_owned();
        for name in ["lower", "upper", "work", "share"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let lower = Mounted::new(path("lower").into(), &["-t", "tmpfs", "none"]);
        std::fs::write(path("lower/below"), "1").unwrap();
        std::fs::write(path("upper/above"), "12").unwrap();
        let layers = format!(
            "lowerdir={},upperdir={},workdir={},xino=off,{export}",
            path("lower"),
            path("upper"),
            path("work")
        );
        let overlay = ["-t", "overlay", "none", "-o", &layers];
        let mounted = Mounted::new(path("share").into(), &overlay);
        let device = |name: &str| std::fs::metadata(path(name)).unwrap().dev();
        let devices = ["share", "share/above", "share/below"].map(device);
        let distinct: BTreeSet<_> = devices.into_iter().collect();
        assert_eq!(distinct.len(), 3, "{devices:?}");

        let fs = SharedDir::open(path("share").as_ref(), ShareOptions::default()).unwrap();
        let (made, _) = fs
            .create(ROOT, ROOT_ID, n(c"made"), O_RDWR, 0o644, 0)
            .unwrap();
        let names = [n(c"above"), n(c"below"), n(c"made")];
        let nodes = names.map(|name| fs.lookup(ROOT_ID, name).unwrap().nodeid);
        assert_eq!(nodes[2], made.nodeid);
        assert_eq!(
            names.map(|name| fs.lookup(ROOT_ID, name).unwrap().nodeid),
            nodes
        );
        let usage = fs.usage();
        assert_eq!((usage.live, usage.mounts), (3, 1));
        assert_eq!(usage.mounts_by_handle, by_handle, "{export}");
        // What loses its last name is found among those of its device.
        fs.unlink(ROOT_ID, names[0]).unwrap();
        assert_eq!(fs.getattr(nodes[0], None).unwrap().size, 2);
        for node in nodes {
            fs.forget(node, 9);
        }
        assert_eq!(fs.usage().live, 0);
        drop(fs);
        mounted.unmount();
        lower.unmount();
    }
}

#[test]
fn a_file_system_without_handles_gets_descriptors_or_is_refused() {
    let all = tempfile::tempdir().unwrap();
    let dir = |name: &str| all.path().join(name);
    for name in ["lower", "upper", "work", "share", "outside"] {
        std::fs::create_dir(dir(name)).unwrap();
    }
    let path = |name: &str| dir(name).to_str().unwrap().to_owned();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={},nfs_export=off",
        path("lower"),
        path("upper"),
        path("work")
    );
    let mounted = Mounted::new(dir("share"), &["-t", "overlay", "none", "-o", &layers]);
    let refused = SharedDir::open(&dir("share"), bare()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported, "{refused}");

    let options = |max_inode_descriptors| ShareOptions {
        max_inode_descriptors,
        ..ShareOptions::default()
    };
    let fs = SharedDir::open(&dir("share"), options(2)).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(dir("share").join(name), name).unwrap();
    }
    let a = fs.lookup(ROOT_ID, n(c"a")).unwrap().nodeid;
    fs.unlink(ROOT_ID, n(c"a")).unwrap();
    assert_eq!(fs.getattr(a, None).unwrap().size, 1);
    fs.lookup(ROOT_ID, n(c"b")).unwrap();
    let usage = fs.usage();
    assert_eq!((usage.mounts_by_handle, usage.held_descriptors), (0, 2));
    assert_eq!(fs.lookup(ROOT_ID, n(c"c")).unwrap_err(), Errno::NFILE);
    let made = fs.mkdir(ROOT, ROOT_ID, n(c"d"), 0o755, 0);
    assert_eq!(made.unwrap_err(), Errno::NFILE);
    assert!(!dir("share").join("d").exists());
    fs.forget(a, 1);
    fs.lookup(ROOT_ID, n(c"c")).unwrap();

    // Nor does a disk's share accept an inode of such a mount.
    let around = SharedDir::open(all.path(), bare()).unwrap();
    around.lookup(ROOT_ID, n(c"lower")).unwrap();
    let inside = around.lookup(ROOT_ID, n(c"share"));
    assert_eq!(inside.unwrap_err(), Errno::OPNOTSUPP);
    drop((fs, around));
    mounted.unmount();
}

#[test]
fn without_the_capability_there_are_descriptors() {
    let all = tempfile::tempdir().unwrap();
    std::fs::set_permissions(all.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(all.path().join("f"), "12345").unwrap();
    let as_nobody = || {
        if is_root() {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(65534),
                rustix::fs::Gid::from_raw(65534),
            );
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let refused = SharedDir::open(all.path(), bare()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported, "{refused}");
        let fs = SharedDir::open(all.path(), ShareOptions::default()).unwrap();
        let f = fs.lookup(ROOT_ID, n(c"f")).unwrap().nodeid;
        assert_eq!(fs.getattr(f, None).unwrap().size, 5);
        let usage = fs.usage();
        assert_eq!((usage.mounts_by_handle, usage.held_descriptors), (0, 1));
    };
    std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
}
