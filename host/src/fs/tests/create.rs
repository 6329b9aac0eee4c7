//! What is created: whose it is, and with which bits.

use std::os::unix::fs::{PermissionsExt, symlink};

use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use super::super::{IdMap, Ids};
use super::*;

const O_EXCL: u32 = libc::O_EXCL as u32;
const O_TRUNC: u32 = libc::O_TRUNC as u32;
const O_APPEND: u32 = libc::O_APPEND as u32;

fn chown(path: PathBuf, uid: u32, gid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
}

fn chmod(path: PathBuf, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn create_one_of_each(share: &Share, caller: Caller, parent: u64) {
    let fs = &share.fs;
    fs.mkdir(caller, parent, n(c"dir"), 0o755, 0).unwrap();
    fs.mknod(caller, parent, n(c"fifo"), 0o010644, 0, 0)
        .unwrap();
    fs.mknod(caller, parent, n(c"node"), 0o100644, 0, 0)
        .unwrap();
    fs.mknod(caller, parent, n(c"socket"), 0o140644, 0, 0)
        .unwrap();
    fs.symlink(caller, parent, n(c"link"), c"target").unwrap();
    fs.create(caller, parent, n(c"file"), O_RDWR, 0o644, 0)
        .unwrap();
}

const EACH: [&str; 6] = ["dir", "fifo", "node", "socket", "link", "file"];

#[test]
fn what_a_caller_creates_is_the_callers() {
    for caller in [
        USER,
        ROOT,
        Caller {
            uid: 0,
            gid: 5,
            pid: 1,
        },
    ] {
        let share = Share::new();
        create_one_of_each(&share, caller, ROOT_ID);
        for name in EACH {
            assert_eq!(share.owner(name), creator(caller), "{name}");
        }
    }
}

#[test]
fn what_the_guest_allowed_does_not_fail_on_the_host() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    let d = share.find(c"d").nodeid;
    if is_root() {
        // Somebody else's, and closed to others: a capability in the guest.
        chown(share.path("d"), 2000, 2000);
    }
    chmod(share.path("d"), 0o300);
    create_one_of_each(&share, USER, d);
    for name in EACH {
        assert_eq!(share.owner(&format!("d/{name}")), creator(USER), "{name}");
    }
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let share = Share::new();
    std::fs::create_dir(share.path("d")).unwrap();
    let group = if is_root() { 3000 } else { creator(USER).1 };
    chown(share.path("d"), creator(ROOT).0, group);
    chmod(share.path("d"), 0o2777);
    let d = share.find(c"d").nodeid;
    create_one_of_each(&share, USER, d);
    for name in EACH {
        let owner = share.owner(&format!("d/{name}"));
        assert_eq!(owner, (creator(USER).0, group), "{name}");
    }
    assert_eq!(share.mode("d/dir"), 0o2755);
    assert_eq!(share.mode("d/file"), 0o644);
}

#[test]
fn umask_and_special_bits() {
    let share = Share::new();
    let fs = &share.fs;
    fs.mkdir(USER, ROOT_ID, n(c"d"), 0o1777, 0o022).unwrap();
    fs.mknod(USER, ROOT_ID, n(c"n"), 0o100666, 0, 0o027)
        .unwrap();
    fs.create(USER, ROOT_ID, n(c"c"), O_RDWR, 0o666, 0o077)
        .unwrap();
    fs.create(USER, ROOT_ID, n(c"z"), O_RDWR, 0, u32::MAX)
        .unwrap();
    fs.create(USER, ROOT_ID, n(c"w"), O_RDWR, u32::MAX, 0)
        .unwrap();
    assert_eq!(share.mode("d"), 0o1755);
    assert_eq!(share.mode("n"), 0o640);
    assert_eq!(share.mode("c"), 0o600);
    assert_eq!(share.mode("z"), 0);
    assert_eq!(share.mode("w"), 0o7777);
}

#[test]
fn mknod_makes_what_it_is_told_or_nothing() {
    let share = Share::new();
    let fs = &share.fs;
    for mode in [0o040755, 0o120777, 0o170000, 0o030000] {
        let made = fs.mknod(ROOT, ROOT_ID, n(c"x"), mode, 0, 0);
        assert_eq!(made.unwrap_err(), Errno::INVAL, "{mode:o}");
    }
    let plain = fs.mknod(ROOT, ROOT_ID, n(c"p"), 0o644, 0, 0).unwrap();
    assert_eq!(plain.attr.mode, 0o100644);
    let again = fs.mknod(ROOT, ROOT_ID, n(c"p"), 0o644, 0, 0);
    assert_eq!(again.unwrap_err(), Errno::EXIST);
    // Device 1:3, for whoever may make one.
    match fs.mknod(USER, ROOT_ID, n(c"null"), 0o020666, 0x103, 0) {
        Ok(null) => assert_eq!((null.attr.mode, null.attr.rdev), (0o020666, 0x103)),
        Err(errno) => assert_eq!(errno, Errno::PERM),
    }
}

#[test]
fn create_opens_what_it_created() {
    let share = Share::new();
    let fs = &share.fs;
    // No right in the mode, and yet the creator writes.
    let (entry, fh) = fs
        .create(USER, ROOT_ID, n(c"f"), O_RDWR | O_EXCL | O_APPEND, 0, 0)
        .unwrap();
    let open = fs.file(entry.nodeid, fh).unwrap();
    assert!(open.readable && open.writable && open.append);
    rustix::io::pwrite(&open.file, b"hello", 0).unwrap();
    // At the offset, not at the end: the descriptor does not append.
    rustix::io::pwrite(&open.file, b"J", 0).unwrap();
    assert_eq!(fs.getattr(entry.nodeid, None).unwrap().size, 5);
    assert_eq!(share.find(c"f").nodeid, entry.nodeid);
    let flags = rustix::io::fcntl_getfd(&open.file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn create_on_what_exists() {
    let share = Share::new();
    let fs = &share.fs;
    let old = share.file(c"old", "content");
    chmod(share.path("old"), 0o666);
    let excl = fs.create(USER, ROOT_ID, n(c"old"), O_RDWR | O_EXCL, 0o600, 0);
    assert_eq!(excl.unwrap_err(), Errno::EXIST);
    let (entry, fh) = fs
        .create(USER, ROOT_ID, n(c"old"), O_RDWR, 0o600, 0)
        .unwrap();
    assert_eq!((entry.nodeid, entry.attr.size), (old, 7));
    fs.file(old, fh).unwrap();
    let (entry, _) = fs
        .create(USER, ROOT_ID, n(c"old"), O_RDWR | O_TRUNC, 0o600, 0)
        .unwrap();
    assert_eq!((entry.nodeid, entry.attr.size), (old, 0));
    assert_eq!(share.mode("old"), 0o666);
    fs.forget(old, 3);
    assert_eq!(fs.live_inodes(), 0);

    std::fs::create_dir(share.path("dir")).unwrap();
    let dir = fs.create(USER, ROOT_ID, n(c"dir"), O_RDWR, 0o600, 0);
    assert_eq!(dir.unwrap_err(), Errno::ISDIR);
    fs.mknod(ROOT, ROOT_ID, n(c"fifo"), 0o010666, 0, 0).unwrap();
    let fifo = fs.create(USER, ROOT_ID, n(c"fifo"), O_WRONLY, 0o600, 0);
    assert_eq!(fifo.unwrap_err(), Errno::NXIO, "and did not block");
}

#[test]
fn create_does_not_follow_a_link() {
    let share = Share::new();
    std::fs::write(share.outside("victim"), "victim").unwrap();
    symlink("../outside/victim", share.path("link")).unwrap();
    symlink("../outside/new", share.path("dangling")).unwrap();
    for name in [c"link", c"dangling"] {
        let opened = share
            .fs
            .create(ROOT, ROOT_ID, n(name), O_RDWR | O_TRUNC, 0o666, 0);
        assert_eq!(opened.unwrap_err(), Errno::LOOP);
        let excl = share
            .fs
            .create(ROOT, ROOT_ID, n(name), O_RDWR | O_EXCL, 0o666, 0);
        assert_eq!(excl.unwrap_err(), Errno::EXIST);
    }
    assert_eq!(std::fs::read(share.outside("victim")).unwrap(), b"victim");
    assert!(!share.outside("new").exists());
    assert_eq!(share.fs.live_handles(), 0);
}

#[test]
fn a_file_that_came_in_between_is_opened_with_the_callers_rights() {
    let share = Share::new();
    share.write("secret", "x");
    chmod(share.path("secret"), 0o600);
    let opened = share
        .fs
        .create(USER, ROOT_ID, n(c"secret"), O_RDWR, 0o666, 0);
    if is_root() {
        assert_eq!(opened.unwrap_err(), Errno::ACCESS);
        assert_eq!((share.fs.live_inodes(), share.fs.live_handles()), (0, 0));
    } else {
        opened.unwrap();
    }
    share
        .fs
        .create(ROOT, ROOT_ID, n(c"secret"), O_RDWR, 0o666, 0)
        .unwrap();
}

#[test]
fn an_unprivileged_daemon_creates_as_itself() {
    // One that is unprivileged when it starts finds that it cannot use handles.
    let share = Share::with(ShareOptions {
        inode_file_handles: InodeFileHandles::Never,
        ..ShareOptions::default()
    });
    let work = || {
        if is_root() {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(4000),
                rustix::fs::Gid::from_raw(4000),
            );
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let me = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        create_one_of_each(&share, USER, ROOT_ID);
        let file = share.find(c"file").nodeid;
        share.fs.link(file, ROOT_ID, n(c"hard")).unwrap();
        share.fs.setxattr(file, c"user.a", b"b", 0, false).unwrap();
        assert_eq!(share.fs.getattr(file, None).unwrap().nlink, 2);
        for name in EACH {
            assert_eq!(share.owner(name), me, "{name}");
        }
    };
    if is_root() {
        chmod(share.path(""), 0o777);
        chmod(share.all.path().to_path_buf(), 0o755);
    }
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

#[test]
fn a_caller_whom_a_rule_makes_another_creates_where_the_host_lets_that_one() {
    if !is_root() {
        return;
    }
    let map = |rule: &str| IdMap::new(&[rule.parse().unwrap()]).unwrap();
    let share = Share::with(ShareOptions {
        ids: Ids {
            uid: map("map:0:100000:1000"),
            gid: map("map:0:100000:1000"),
            ..Ids::default()
        },
        ..ShareOptions::default()
    });
    chmod(share.path(""), 0o755);
    std::fs::create_dir(share.path("roots")).unwrap();
    chmod(share.path("roots"), 0o755);
    std::fs::create_dir(share.path("own")).unwrap();
    chmod(share.path("own"), 0o700);
    chown(share.path("own"), 100_000, 100_000);
    let (roots, own) = (share.find(c"roots").nodeid, share.find(c"own").nodeid);
    let fs = &share.fs;
    let made = fs.create(ROOT, roots, n(c"f"), O_RDWR, 0o644, 0);
    assert_eq!(made.err(), Some(Errno::ACCESS), "a fence");
    let made = fs.mkdir(ROOT, roots, n(c"d"), 0o755, 0);
    assert_eq!(made.err(), Some(Errno::ACCESS));
    fs.create(ROOT, own, n(c"f"), O_RDWR, 0o644, 0).unwrap();
    assert_eq!(share.owner("own/f"), (100_000, 100_000));
}
