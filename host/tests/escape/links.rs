//! Links and `..`.

use std::os::unix::fs::symlink;

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{EntryOut, Opcode, ROOT_ID, SetattrIn};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;

use crate::common::wire::{Message, ask};
use crate::common::{Daemon, RANGE, attach, on_disk, walk};
use crate::{House, INSIDE, SANDBOXES, SECRET, refused};

const NOT_A_DIRECTORY: [Errno; 2] = [Errno::NOTDIR, Errno::LOOP];

/// Every request that takes a node, on a node that is a link.
fn assert_link_leads_nowhere(session: &Session, link: EntryOut) {
    let id = link.nodeid;
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        refused(session.open(id, flags as u32), &[Errno::LOOP]);
    }
    for name in [b"secret".as_slice(), b"passwd", b"outside"] {
        refused(session.lookup(id, name), &NOT_A_DIRECTORY);
        refused(session.mkdir(id, name, 0o755), &NOT_A_DIRECTORY);
        refused(session.unlink(id, name), &NOT_A_DIRECTORY);
        refused(session.rmdir(id, name), &NOT_A_DIRECTORY);
        refused(session.symlink(id, name, b"x"), &NOT_A_DIRECTORY);
        let fifo = libc::S_IFIFO | 0o600;
        refused(session.mknod(id, name, fifo, 0), &NOT_A_DIRECTORY);
        refused(session.link(id, id, name), &NOT_A_DIRECTORY);
        refused(session.rename(id, name, ROOT_ID, b"got"), &NOT_A_DIRECTORY);
        let created = session.create(id, name, libc::O_RDWR as u32, 0o644);
        refused(created, &NOT_A_DIRECTORY);
    }
    refused(session.opendir(id, 0), &NOT_A_DIRECTORY);
    session
        .setup_mapping(id, FileOffset(0), WindowOffset(0), RANGE, false)
        .expect_err("a link");
    // A link has no size to set and no mode; its times are its own.
    let size = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        ..SetattrIn::default()
    };
    refused(session.setattr(id, &size), &[Errno::INVAL, Errno::LOOP]);
    let mode = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode: 0o4777,
        ..SetattrIn::default()
    };
    refused(session.setattr(id, &mode), &[Errno::OPNOTSUPP]);
    for valid in [
        SetattrValid::MTIME_NOW | SetattrValid::ATIME_NOW,
        SetattrValid::UID,
    ] {
        let own = SetattrIn {
            valid: valid.bits(),
            uid: 12,
            ..SetattrIn::default()
        };
        session.setattr(id, &own).expect("of the link itself");
    }
}

#[test]
fn links_are_handed_over_and_never_followed() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        let share = house.share();
        let outside = house.outside();
        let targets = [
            "/",
            "/etc/passwd",
            "..",
            "../outside",
            "../outside/secret",
            "../outside/dir",
            "../../../../../../../etc",
            outside.to_str().expect("UTF-8"),
            "loop",
            // Magic links: of whoever looks, and of everybody.
            "/proc/self/root",
            "/proc/self/cwd",
            "/proc/self/fd/3",
            "/proc/self/fd/10",
            "/proc/1/root/etc",
            "/dev/fd/4",
            // A name of the daemon's working directory.
            "3",
        ];
        for (number, target) in targets.iter().enumerate() {
            symlink(target, share.join(format!("l{number}"))).expect("a link");
        }
        symlink("loop", share.join("loop")).expect("a link");
        let daemon = Daemon::start(&share, &[sandbox, &["--dax", "always", "--xattr"]].concat());
        let session = attach(&daemon);
        for (number, target) in targets.iter().enumerate() {
            let name = format!("l{number}");
            let link = walk(&session, &name).expect("the link itself");
            let read = session.readlink(link.nodeid).expect("its target");
            assert_eq!(read, target.as_bytes());
            assert_link_leads_nowhere(&session, link);
            // CREATE without O_EXCL opens what is there: not through a link.
            let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;
            let created = session.create(ROOT_ID, name.as_bytes(), flags, 0o644);
            refused(created, &[Errno::LOOP]);
            // The kernel has no user attributes on a link, so this would be
            // its target's.
            let set = session.setxattr(link.nodeid, b"user.x", b"1", 0);
            refused(set, &[Errno::PERM]);
        }
        house.assert_untouched();
    }
}

#[test]
fn links_that_the_guest_makes_lead_nowhere_either() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        let daemon = Daemon::start(&house.share(), &[sandbox, &["--dax", "always"]].concat());
        let session = attach(&daemon);
        let outside = house.outside();
        let outside = outside.to_str().expect("UTF-8").as_bytes();
        for target in [b"/etc".as_slice(), b"../outside", b"/", outside] {
            let link = session.symlink(ROOT_ID, b"way-out", target).expect("made");
            assert_link_leads_nowhere(&session, link);
            // A hard link to it is a link as well, not its target.
            let hard = session.link(link.nodeid, ROOT_ID, b"hard").expect("linked");
            assert_link_leads_nowhere(&session, hard);
            session.unlink(ROOT_ID, b"hard").expect("removed");
            session.unlink(ROOT_ID, b"way-out").expect("removed");
        }
        house.assert_untouched();
    }
}

/// With every request that takes names, at each of the places where it takes
/// one.
#[test]
fn the_parent_of_the_share_has_no_name() {
    for sandbox in SANDBOXES {
        let house = House::new(on_disk());
        std::fs::create_dir(house.share().join("dir")).expect("a directory");
        let daemon = Daemon::start(&house.share(), sandbox);
        let session = attach(&daemon);
        let dir = walk(&session, "dir").expect("dir").nodeid;
        for nodeid in [ROOT_ID, dir] {
            for name in ["..", ".", "../outside", "../../etc", "/etc", "/", "dir/.."] {
                let body = [name.as_bytes(), b"\0"].concat();
                let lookup = Message::new(Opcode::Lookup as u32, nodeid, body);
                assert_eq!(ask(&session, &lookup).errno, libc::EINVAL, "{name}");
                let name = name.as_bytes();
                let no = [Errno::INVAL];
                let flags = libc::O_RDWR as u32;
                refused(session.create(nodeid, name, flags, 0o600), &no);
                refused(session.mkdir(nodeid, name, 0o700), &no);
                refused(session.mknod(nodeid, name, libc::S_IFREG | 0o600, 0), &no);
                refused(session.symlink(nodeid, name, b"x"), &no);
                refused(session.link(dir, nodeid, name), &no);
                refused(session.unlink(nodeid, name), &no);
                refused(session.rmdir(nodeid, name), &no);
                for flags in [0, libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE] {
                    let out = session.rename2(ROOT_ID, b"dir", nodeid, name, flags);
                    refused(out, &no);
                    let here = session.rename2(nodeid, name, ROOT_ID, b"got", flags);
                    refused(here, &no);
                }
                refused(session.rename(ROOT_ID, b"dir", nodeid, name), &no);
            }
            // "." and ".." are listed, but not looked up.
            let dh = session.opendir(nodeid, 0).expect("opendir").fh;
            for item in session.readdirplus(nodeid, dh, 0).expect("list") {
                if item.name == b".." || item.name == b"." {
                    assert_eq!(item.entry.expect("an entry").nodeid, 0);
                }
            }
        }
        house.assert_untouched();
    }
}

#[test]
fn a_directory_moved_out_of_the_share_has_no_way_up() {
    for sandbox in SANDBOXES {
        for handles in ["never", "prefer", "mandatory"] {
            let house = House::new(on_disk());
            let share = house.share();
            std::fs::create_dir_all(share.join("a/b")).expect("directories");
            std::fs::write(share.join("a/b/file"), INSIDE).expect("a file");
            let flags = ["--inode-file-handles", handles];
            let daemon = Daemon::start(&share, &[sandbox, &flags].concat());
            let session = attach(&daemon);
            let a = walk(&session, "a").expect("a").nodeid;
            let b = walk(&session, "a/b").expect("b").nodeid;
            // Beside what nobody may touch.
            let moved = house.base.path().join("moved");
            std::fs::create_dir(&moved).expect("a directory");
            std::fs::write(moved.join("secret"), SECRET).expect("a file");
            std::fs::rename(share.join("a"), moved.join("a")).expect("moved");
            for node in [a, b] {
                let lookup = Message::new(Opcode::Lookup as u32, node, b"..\0");
                assert_eq!(ask(&session, &lookup).errno, libc::EINVAL);
                for name in [b"secret".as_slice(), b"../secret", b"../../secret"] {
                    let no = [Errno::NOENT, Errno::INVAL, Errno::ACCESS, Errno::STALE];
                    refused(session.lookup(node, name), &no);
                }
                refused(
                    session.rename(node, b"..", ROOT_ID, b"got"),
                    &[Errno::INVAL],
                );
            }
            let secret = std::fs::read(moved.join("secret")).expect("still there");
            assert_eq!(secret, SECRET);
            assert_eq!(std::fs::read_dir(&moved).expect("listed").count(), 2);
            house.assert_untouched();
        }
    }
}
