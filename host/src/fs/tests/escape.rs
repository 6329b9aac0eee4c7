//! Nothing leads out of the shared directory.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use daxwindow_shared::fuse::ROOT_ID;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::*;
use crate::dax::MapSource;

const S_IFMT: u32 = 0o170000;
const S_IFLNK: u32 = 0o120000;

#[test]
fn links_are_nodes_and_never_ways() {
    let share = Share::new();
    std::fs::write(share.outside("secret"), "secret").unwrap();
    symlink("/", share.path("to_root")).unwrap();
    symlink("../outside", share.path("to_outside")).unwrap();
    symlink("../outside/secret", share.path("to_secret")).unwrap();
    for (name, target) in [
        (c"to_root", "/"),
        (c"to_outside", "../outside"),
        (c"to_secret", "../outside/secret"),
    ] {
        let entry = share.find(name);
        assert_eq!(entry.attr.mode & S_IFMT, S_IFLNK);
        assert_eq!(share.fs.readlink(entry.nodeid).unwrap(), target.as_bytes());
        let id = entry.nodeid;
        assert_eq!(
            share.fs.lookup(id, n(c"secret")).unwrap_err(),
            Errno::NOTDIR
        );
        assert_eq!(share.fs.opendir(id), Err(Errno::NOTDIR));
        assert_eq!(share.fs.open_file(id, O_RDONLY, false), Err(Errno::LOOP));
        assert_eq!(
            share.fs.open_for_mapping(id, false).unwrap_err(),
            Errno::LOOP
        );
        let made = share.fs.mkdir(ROOT, id, n(c"d"), 0o755, 0);
        assert_eq!(made.unwrap_err(), Errno::NOTDIR);
    }
    assert!(!share.outside("d").exists());
}

#[test]
fn the_kernel_refuses_what_a_check_would_miss() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    symlink("d", share.path("link")).unwrap();
    for bad in [c"..", c"d/../..", c"/", c"/etc/passwd", c"../outside"] {
        // While something is renamed anywhere on the machine the kernel cannot
        // tell where `..` leads, and refuses with `EAGAIN` until it can.
        let found = std::iter::repeat_with(|| share.fs.lookup(ROOT_ID, Name::unchecked(bad)))
            .find(|found| !matches!(found, Err(Errno::AGAIN)));
        assert_eq!(found.unwrap().unwrap_err(), Errno::XDEV, "{bad:?}");
        let made = share
            .fs
            .create(ROOT, ROOT_ID, Name::unchecked(bad), O_RDWR, 0o600, 0);
        assert!(made.is_err(), "{bad:?}");
    }
    let through = share.fs.lookup(ROOT_ID, Name::unchecked(c"link/x"));
    assert_eq!(through.unwrap_err(), Errno::LOOP);
}

#[test]
fn magic_links_are_plain_links_here() {
    let fs = SharedDir::open("/proc/self".as_ref(), ShareOptions::default()).unwrap();
    for name in [c"root", c"cwd", c"exe"] {
        let entry = fs.lookup(ROOT_ID, n(name)).unwrap();
        assert_eq!(entry.attr.mode & S_IFMT, S_IFLNK);
        assert_eq!(
            fs.open_file(entry.nodeid, O_RDONLY, false),
            Err(Errno::LOOP)
        );
        assert_eq!(fs.opendir(entry.nodeid), Err(Errno::NOTDIR));
        let inside = fs.lookup(entry.nodeid, n(c"etc"));
        assert_eq!(inside.unwrap_err(), Errno::NOTDIR);
    }
}

#[test]
fn a_directory_swapped_for_a_link_never_leads_out() {
    let share = Share::new();
    std::fs::write(share.outside("secret"), "secret").unwrap();
    std::fs::create_dir(share.path("d")).unwrap();
    std::fs::write(share.path("d/public"), "public").unwrap();
    symlink("../outside", share.path("evil")).unwrap();
    let stop = AtomicBool::new(false);
    let (mut links, mut dirs) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, evil) = (share.path("d"), share.path("evil"));
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &d, CWD, &evil, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..5000 {
            let d = share.find(c"d");
            let secret = share.fs.lookup(d.nodeid, n(c"secret")).unwrap_err();
            let public = share.fs.lookup(d.nodeid, n(c"public"));
            let made = share.fs.create(ROOT, d.nodeid, n(c"new"), O_RDWR, 0o600, 0);
            if d.attr.mode & S_IFMT == S_IFLNK {
                links += 1;
                assert_eq!(secret, Errno::NOTDIR);
                assert!(public.is_err() && made.is_err());
            } else {
                dirs += 1;
                assert_eq!(secret, Errno::NOENT);
                share.fs.forget(public.unwrap().nodeid, 1);
                let (entry, fh) = made.unwrap();
                share.fs.release(entry.nodeid, fh).unwrap();
                share.fs.forget(entry.nodeid, 1);
            }
            share.fs.forget(d.nodeid, 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(links > 0 && dirs > 0, "{links} links, {dirs} directories");
    let outside: Vec<_> = std::fs::read_dir(share.outside("")).unwrap().collect();
    assert_eq!(outside.len(), 1, "only the secret is outside");
    assert_eq!(share.fs.live_inodes(), 0);
}

#[test]
fn a_node_follows_its_inode_and_not_its_name() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    std::fs::write(share.path("d/f"), "f").unwrap();
    let d = share.find(c"d").nodeid;
    std::fs::rename(share.path("d"), share.path("moved")).unwrap();
    symlink("../outside", share.path("d")).unwrap();
    let f = share.fs.lookup(d, n(c"f")).unwrap();
    assert_eq!(f.attr.size, 1);
    share.fs.mkdir(ROOT, d, n(c"sub"), 0o755, 0).unwrap();
    assert!(share.path("moved/sub").is_dir());
}

#[test]
fn acting_on_a_link_does_not_act_on_its_target() {
    let share = Share::new();
    std::fs::write(share.outside("victim"), "victim").unwrap();
    symlink(share.outside("victim"), share.path("link")).unwrap();
    let before = std::fs::metadata(share.outside("victim")).unwrap();
    let link = share.find(c"link").nodeid;

    let chmod = set(1, |s| s.mode = 0o666);
    let refused = share.fs.setattr(ROOT, link, &chmod).unwrap_err();
    assert_eq!(refused, Errno::OPNOTSUPP);
    let truncate = set(1 << 3, |s| s.size = 0);
    assert_eq!(
        share.fs.setattr(ROOT, link, &truncate).unwrap_err(),
        Errno::LOOP
    );
    let times = set(1 << 4 | 1 << 5, |s| (s.atime, s.mtime) = (5, 6));
    assert_eq!(share.fs.setattr(ROOT, link, &times).unwrap().mtime, 6);
    let own = share.owner("link");
    let chown = set(1 << 1 | 1 << 2, |s| (s.uid, s.gid) = own);
    share.fs.setattr(ROOT, link, &chown).unwrap();
    assert!(share.fs.setxattr(link, c"user.x", b"y", 0, false).is_err());
    share.fs.link(link, ROOT_ID, n(c"second")).unwrap();
    assert_eq!(
        std::fs::read_link(share.path("second")).unwrap(),
        share.outside("victim")
    );

    let after = std::fs::metadata(share.outside("victim")).unwrap();
    assert_eq!(after.mode(), before.mode());
    assert_eq!((after.mtime(), after.len()), (before.mtime(), before.len()));
    assert_eq!((after.uid(), after.nlink()), (before.uid(), 1));
}
