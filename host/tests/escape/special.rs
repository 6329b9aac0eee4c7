//! What a file can be beside its bytes: device nodes, FIFOs and sockets, which
//! the daemon makes but never opens, and the bits and attributes that give
//! whoever executes a file more than they have.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{ROOT_ID, SetattrIn};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::io::Errno;

use crate::common::{
    Daemon, PATIENCE, RANGE, attach, in_memory, on_disk, open, read_by_request, walk,
    write_by_request,
};
use crate::{House, INSIDE, SANDBOXES, refused};

/// `/dev/zero`, as `rdev` of MKNOD has it; whoever opened it would read
/// zeroes.
const ZERO: u32 = 0x105;
/// The disk of a major number for tests.
const BLOCK: u32 = 0x700;

/// Every request that would open a node, or act on what is behind it.
fn assert_is_never_opened(session: &Session, name: &[u8], node: u64) {
    let no = [Errno::NXIO];
    for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        for more in [0, libc::O_NONBLOCK, libc::O_TRUNC, libc::O_DIRECT] {
            // Opening a FIFO would wait for its other end, and a device would
            // be there.
            refused(session.open(node, (access | more) as u32), &no);
            // CREATE without O_EXCL opens what exists.
            let create = (access | more | libc::O_CREAT) as u32;
            refused(session.create(ROOT_ID, name, create, 0o600), &no);
        }
    }
    refused(session.opendir(node, 0), &[Errno::NOTDIR]);
    session
        .setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true)
        .expect_err("nothing to map");
    let size = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        ..SetattrIn::default()
    };
    refused(session.setattr(node, &size), &[Errno::INVAL, Errno::NXIO]);
    // The kernel has no user attributes on those.
    let set = session.setxattr(node, b"user.x", b"1", 0);
    refused(set, &[Errno::PERM]);
}

#[test]
fn special_files_are_made_and_never_opened() {
    for sandbox in SANDBOXES {
        for handles in ["prefer", "never"] {
            let house = House::new(on_disk());
            let share = house.share();
            let flags = ["--inode-file-handles", handles, "--xattr"];
            let flags = [sandbox, &flags, &["--dax", "always"]].concat();
            let daemon = Daemon::start(&share, &flags);
            let session = attach(&daemon);
            for (name, kind, rdev) in [
                ("char", libc::S_IFCHR, ZERO),
                ("block", libc::S_IFBLK, BLOCK),
                ("fifo", libc::S_IFIFO, 0),
                ("socket", libc::S_IFSOCK, 0),
            ] {
                let made = session.mknod(ROOT_ID, name.as_bytes(), kind | 0o666, rdev);
                let made = made.expect("root may").nodeid;
                let kept = share.join(name).symlink_metadata().expect("there");
                assert_eq!(kept.mode() & libc::S_IFMT, kind);
                if rdev != 0 {
                    let (major, minor) = (rdev >> 8, rdev & 0xff);
                    assert_eq!(kept.rdev(), makedev(major, minor), "{name}");
                }
                assert_is_never_opened(&session, name.as_bytes(), made);
                let found = walk(&session, name).expect("found").nodeid;
                assert_is_never_opened(&session, name.as_bytes(), found);
            }
            // Nobody has the FIFO open for reading.
            let writer = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(share.join("fifo"));
            let errno = writer.expect_err("no reader").raw_os_error();
            assert_eq!(errno, Some(libc::ENXIO));
            assert_eq!(daemon.open_targets_of("/dev/zero"), 0);
        }
    }
}

/// In the sandbox not even a daemon that somebody has taken over could.
#[test]
fn devices_and_set_id_bits_mean_nothing_to_the_daemon() {
    let house = House::new(on_disk());
    let daemon = Daemon::start(&house.share(), &[]);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid()));
    for mount in mounts.expect("procfs").lines() {
        assert!(mount.contains("nosuid,nodev"), "{mount}");
    }
}

/// Without the capability for it a guest makes none, and FIFOs as ever.
#[test]
fn who_may_not_make_devices_is_told_so() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        let share = house.share();
        let daemon = Daemon::start(&share, &[sandbox, &["--modcaps=-mknod"]].concat());
        let session = attach(&daemon);
        for kind in [libc::S_IFCHR, libc::S_IFBLK] {
            let made = session.mknod(ROOT_ID, b"device", kind | 0o600, ZERO);
            refused(made, &[Errno::PERM]);
        }
        let fifo = session.mknod(ROOT_ID, b"fifo", libc::S_IFIFO | 0o600, 0);
        fifo.expect("anybody may");
        assert!(!share.join("device").exists());
    }
}

/// The host swaps a file with something that must not be opened, while it is
/// opened.
#[test]
fn a_file_swapped_with_a_special_one_is_never_opened_as_that() {
    for sandbox in SANDBOXES {
        for handles in ["prefer", "never"] {
            let house = House::new(in_memory());
            let share = house.share();
            let mode = Mode::from_raw_mode(0o666);
            for (name, kind, device) in [
                ("char", FileType::CharacterDevice, makedev(1, 5)),
                ("fifo", FileType::Fifo, 0),
            ] {
                let special = share.join(name);
                mknodat(CWD, &special, kind, mode, device).expect("made");
                std::fs::write(share.join("file"), INSIDE).expect("a file");
                let flags = ["--inode-file-handles", handles];
                let daemon = Daemon::start(&share, &[sandbox, &flags].concat());
                let session = attach(&daemon);
                let swapper = crate::races::Again::swapping(&share.join("file"), &special);
                let (mut opened, mut refused) = (0u32, 0u32);
                let deadline = Instant::now() + PATIENCE;
                let mut round = 0;
                while opened < 100 || refused < 100 {
                    assert!(Instant::now() < deadline, "{opened}, {refused}");
                    round += 1;
                    match any_way_in(&session, round) {
                        Ok(bytes) => {
                            assert_eq!(bytes, INSIDE);
                            opened += 1;
                        }
                        Err(errno) => {
                            let known = [Errno::NXIO, Errno::NOENT, Errno::STALE];
                            assert!(known.contains(&errno), "{errno}");
                            refused += 1;
                        }
                    }
                }
                swapper.end();
                drop(session);
                drop(daemon);
                let (file, other) = (share.join("file"), special);
                if !file.symlink_metadata().expect("there").is_file() {
                    renameat_with(CWD, &file, CWD, &other, RenameFlags::EXCHANGE).expect("swap");
                }
                let kind = other.symlink_metadata().expect("there").file_type();
                assert!(kind.is_char_device() || kind.is_fifo());
            }
        }
    }
}

/// Opens `file`, by node or by CREATE, and reads it.
fn any_way_in(session: &Session, round: u32) -> Result<Vec<u8>, Errno> {
    let opened = match round % 2 {
        0 => open(session, "file", libc::O_RDONLY),
        _ => session.create(ROOT_ID, b"file", libc::O_RDONLY as u32, 0o600),
    };
    let (entry, handle) = opened.map_err(|error| error.errno())?;
    let read = read_by_request(session, (entry.nodeid, handle.fh), 0, 100);
    session.release(entry.nodeid, handle.fh).expect("closed");
    session.forget(entry.nodeid, 1);
    read.map_err(|error| error.errno())
}

fn mode_of(path: &Path) -> u32 {
    path.symlink_metadata().expect("there").mode() & 0o7777
}

fn set_mode(session: &Session, node: u64, mode: u32) {
    let set = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode,
        ..SetattrIn::default()
    };
    session.setattr(node, &set).expect("set");
}

/// They are the guest's to give (docs/isolation.md says what that means for
/// the host), by every request that sets a mode, and stay as written.
#[test]
fn set_id_bits_are_written_as_the_guest_gives_them() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        let share = house.share();
        let daemon = Daemon::start(&share, sandbox);
        let session = attach(&daemon);
        let flags = libc::O_RDWR as u32;
        let (made, _) = session
            .create(ROOT_ID, b"created", flags, 0o6755)
            .expect("made");
        assert_eq!(mode_of(&share.join("created")), 0o6755);
        let kind = libc::S_IFREG | 0o4711;
        session.mknod(ROOT_ID, b"node", kind, 0).expect("made");
        assert_eq!(mode_of(&share.join("node")), 0o4711);
        session.mkdir(ROOT_ID, b"dir", 0o1777).expect("made");
        assert_eq!(mode_of(&share.join("dir")), 0o1777);
        set_mode(&session, made.nodeid, 0o4755);
        assert_eq!(mode_of(&share.join("created")), 0o4755);
    }
}

/// A file that changes hands or content is not what somebody has trusted.
#[test]
fn set_id_bits_go_when_a_file_is_given_away_or_written() {
    for sandbox in SANDBOXES {
        for kills in ["--killpriv-v2", "--no-killpriv-v2"] {
            let house = House::new(on_disk());
            let share = house.share();
            let path = share.join("program");
            std::fs::write(&path, INSIDE).expect("a file");
            let daemon = Daemon::start(&share, &[sandbox, &[kills, "--dax", "never"]].concat());
            let session = attach(&daemon);
            let node = walk(&session, "program").expect("there").nodeid;

            set_mode(&session, node, 0o6755);
            assert_eq!(mode_of(&path), 0o6755);
            let give = SetattrIn {
                valid: SetattrValid::UID.bits(),
                uid: 1234,
                ..SetattrIn::default()
            };
            session.setattr(node, &give).expect("given away");
            assert_eq!(mode_of(&path), 0o755, "{kills}");

            // A guest says whose write takes them, by a flag of its own.
            set_mode(&session, node, 0o6755);
            let size = SetattrIn {
                valid: (SetattrValid::SIZE | SetattrValid::KILL_SUIDGID).bits(),
                size: 3,
                ..SetattrIn::default()
            };
            session.setattr(node, &size).expect("cut");
            assert_eq!(mode_of(&path), 0o755, "{kills}");
        }
    }
}

/// `security.capability` as `setcap cap_net_raw+ep` writes it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const NAME: &str = "security.capability";

/// The attribute as the host has it.
fn capability_of(path: &Path) -> Option<Vec<u8>> {
    let mut value = vec![0; 64];
    let got = rustix::fs::getxattr(path, NAME, &mut value[..]).ok()?;
    value.truncate(got);
    Some(value)
}

#[test]
fn capabilities_of_files_are_neither_read_nor_written_without_xattr() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        let path = house.share().join("program");
        std::fs::write(&path, INSIDE).expect("a file");
        let daemon = Daemon::start(&house.share(), sandbox);
        let session = attach(&daemon);
        let node = walk(&session, "program").expect("there").nodeid;
        let none = [Errno::NOSYS, Errno::OPNOTSUPP];
        let set = session.setxattr(node, NAME.as_bytes(), &CAPABILITY, 0);
        refused(set, &none);
        assert_eq!(capability_of(&path), None);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, NAME, &CAPABILITY, flags).expect("root may");
        refused(session.getxattr(node, NAME.as_bytes()), &none);
        refused(session.removexattr(node, NAME.as_bytes()), &none);
        refused(session.listxattr(node), &none);
        assert_eq!(capability_of(&path).as_deref(), Some(&CAPABILITY[..]));
    }
}

#[test]
fn capabilities_of_files_go_when_a_file_is_given_away_or_written() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        let path = house.share().join("program");
        std::fs::write(&path, INSIDE).expect("a file");
        let flags = [sandbox, &["--xattr", "--dax", "never"]].concat();
        let daemon = Daemon::start(&house.share(), &flags);
        let session = attach(&daemon);
        let (node, handle) = open(&session, "program", libc::O_RDWR).expect("opened");
        let node = node.nodeid;
        let give = |session: &Session| {
            let set = session.setxattr(node, NAME.as_bytes(), &CAPABILITY, 0);
            set.expect("with --xattr the guest's root may");
            assert_eq!(capability_of(&path).as_deref(), Some(&CAPABILITY[..]));
        };
        give(&session);
        write_by_request(&session, (node, handle.fh), 0, INSIDE).expect("written");
        assert_eq!(capability_of(&path), None, "after a write");
        give(&session);
        let owner = SetattrIn {
            valid: SetattrValid::UID.bits(),
            uid: 1234,
            ..SetattrIn::default()
        };
        session.setattr(node, &owner).expect("given away");
        assert_eq!(capability_of(&path), None, "after a change of owner");
        give(&session);
        let size = SetattrIn {
            valid: SetattrValid::SIZE.bits(),
            size: 1,
            ..SetattrIn::default()
        };
        session.setattr(node, &size).expect("cut");
        assert_eq!(capability_of(&path), None, "after truncation");
    }
}
