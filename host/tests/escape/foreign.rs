//! Numbers that a guest has no right to: nodes and handles that it never got,
//! gave back, or that another guest of the same daemon has.

use std::path::PathBuf;
use std::sync::Arc;

use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_shared::fuse::flags::{InitFlags, SetattrValid};
use daxwindow_shared::fuse::{CopyFileRangeIn, Opcode, ROOT_ID, SetattrIn};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::common::wire::{Message, ask, offer};
use crate::common::{
    Daemon, PATIENCE, RANGE, attach, eventually, in_memory, on_disk, open, read_by_request, walk,
    write_by_request,
};
use crate::{House, INSIDE, SANDBOXES, refused};

const HANDLES: [&str; 3] = ["never", "prefer", "mandatory"];

/// Two guests of one daemon and one directory.
struct Scene {
    one: Arc<Session>,
    other: Arc<Session>,
    house: House,
    _sockets: TempDir,
    // Last: it ends when its guests have gone.
    _daemon: Daemon,
}

fn connect(socket: &PathBuf) -> Arc<Session> {
    let options = SessionOptions {
        memory_bytes: 16 << 20,
        timeout: PATIENCE,
        ..SessionOptions::new(socket)
    };
    Session::connect(options).expect("a session")
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let house = House::new(on_disk());
        let share = house.share();
        std::fs::create_dir_all(share.join("dir/below")).expect("directories");
        for name in ["file", "dir/a", "dir/b", "dir/below/c"] {
            std::fs::write(share.join(name), INSIDE).expect("a file");
        }
        let sockets = tempfile::tempdir().expect("a directory");
        let second = sockets.path().join("second");
        let both = ["--socket-path", second.to_str().expect("UTF-8"), "--xattr"];
        let dax = ["--dax", "always"];
        let daemon = Daemon::start(&share, &[flags, &both, &dax].concat());
        daemon.expect_log("waiting for a client", 2);
        Scene {
            one: attach(&daemon),
            other: connect(&second),
            house,
            _sockets: sockets,
            _daemon: daemon,
        }
    }
}

/// Every request that names a node, with one that is none of this guest's.
fn assert_node_is_nothing(session: &Session, node: u64) {
    let no = [Errno::STALE];
    let rw = libc::O_RDWR as u32;
    refused(session.getattr(node, None), &no);
    refused(session.setattr(node, &SetattrIn::default()), &no);
    refused(session.lookup(node, b"a"), &no);
    refused(session.readlink(node), &no);
    refused(session.open(node, rw), &no);
    refused(session.opendir(node, 0), &no);
    refused(session.create(node, b"got", rw, 0o600), &no);
    refused(session.mkdir(node, b"got", 0o700), &no);
    refused(session.mknod(node, b"got", libc::S_IFREG | 0o600, 0), &no);
    refused(session.symlink(node, b"got", b"x"), &no);
    refused(session.unlink(node, b"a"), &no);
    refused(session.rmdir(node, b"below"), &no);
    refused(session.statfs(node), &no);
    refused(session.getxattr(node, b"user.x"), &no);
    refused(session.listxattr(node), &no);
    refused(session.setxattr(node, b"user.x", b"1", 0), &no);
    refused(session.removexattr(node, b"user.x"), &no);
    refused(
        session.setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true),
        &no,
    );
    // In and out of it.
    refused(session.link(node, ROOT_ID, b"got"), &no);
    let file = walk(session, "file").expect("there").nodeid;
    refused(session.link(file, node, b"got"), &no);
    for flags in [0, libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE] {
        refused(session.rename2(node, b"a", ROOT_ID, b"got", flags), &no);
        refused(session.rename2(ROOT_ID, b"file", node, b"a", flags), &no);
    }
    // As those ask who serve by number.
    for name in [b".\0".as_slice(), b"..\0"] {
        let lookup = Message::new(Opcode::Lookup as u32, node, name);
        assert_ne!(ask(session, &lookup).errno, 0);
    }
    session.forget(node, 1);
    session.forget(node, u64::MAX);
}

/// Every request that names a handle, with one that is none of this node's.
fn assert_handle_is_nothing(session: &Session, node: u64, fh: u64) {
    let no = [Errno::BADF];
    refused(read_by_request(session, (node, fh), 0, 100), &no);
    refused(write_by_request(session, (node, fh), 0, b"got"), &no);
    refused(session.fsync(node, fh, false), &no);
    refused(session.flush(node, fh), &no);
    refused(session.fallocate(node, fh, 0, 0, 10), &no);
    refused(session.lseek(node, fh, 0, 3), &no);
    refused(session.readdir(node, fh, 0), &no);
    refused(session.readdirplus(node, fh, 0), &no);
    refused(session.fsyncdir(node, fh, false), &no);
    refused(session.release(node, fh), &no);
    refused(session.releasedir(node, fh), &no);
    let cut = SetattrIn {
        valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
        fh,
        ..SetattrIn::default()
    };
    refused(session.setattr(node, &cut), &no);
    let copy = CopyFileRangeIn {
        fh_in: fh,
        nodeid_out: node,
        fh_out: fh,
        len: 10,
        ..CopyFileRangeIn::default()
    };
    refused(session.copy_file_range(node, &copy), &no);
}

#[test]
fn nodes_of_another_guest_and_of_nobody_are_nothing() {
    for sandbox in SANDBOXES {
        for handles in HANDLES {
            let scene = Scene::new(&[sandbox, &["--inode-file-handles", handles]].concat());
            // One guest knows much, the other only the root and one file.
            let (one, other) = (&scene.one, &scene.other);
            let mut known = Vec::new();
            for path in ["file", "dir", "dir/a", "dir/b", "dir/below", "dir/below/c"] {
                known.push(walk(one, path).expect("there").nodeid);
            }
            let file = walk(other, "file").expect("there").nodeid;
            for node in known.iter().copied().filter(|node| *node > file) {
                assert_node_is_nothing(other, node);
            }
            // No number, however it is made.
            let most = known.iter().max().copied().expect("some");
            for node in [0, most + 1, most + 1000, 1 << 32, 1 << 63, u64::MAX] {
                assert_node_is_nothing(other, node);
                assert_node_is_nothing(one, node);
            }
            // The inode numbers that the host shows are no node ids.
            let ino = one.getattr(known[2], None).expect("known").ino;
            if !known.contains(&ino) {
                assert_node_is_nothing(one, ino);
            }
            // Whatever was forgotten meanwhile was not the neighbour's.
            for node in known {
                one.getattr(node, None).expect("still known");
            }
            other.getattr(file, None).expect("still known");
            scene.house.assert_untouched();
        }
    }
}

#[test]
fn forgotten_nodes_are_nothing_even_if_the_file_comes_back() {
    for sandbox in SANDBOXES {
        for handles in HANDLES {
            let scene = Scene::new(&[sandbox, &["--inode-file-handles", handles]].concat());
            let session = &scene.one;
            let dir = walk(session, "dir").expect("there").nodeid;
            let node = session.lookup(dir, b"a").expect("there").nodeid;
            session.lookup(dir, b"a").expect("once more");
            session.forget(node, 1);
            session.getattr(node, None).expect("known once more");
            session.forget(node, 1);
            // FORGET has no answer and a queue of its own.
            eventually("it is forgotten", || session.getattr(node, None).is_err());
            assert_node_is_nothing(session, node);
            // Found again it has another number, and the old one none.
            let again = session.lookup(dir, b"a").expect("there").nodeid;
            assert_ne!(again, node);
            assert_node_is_nothing(session, node);
            // The root cannot be forgotten.
            session.forget(ROOT_ID, u64::MAX);
            session.getattr(ROOT_ID, None).expect("the root");
        }
    }
}

#[test]
fn handles_of_another_guest_closed_ones_and_those_of_other_nodes_are_nothing() {
    for sandbox in SANDBOXES {
        for handles in HANDLES {
            let scene = Scene::new(&[sandbox, &["--inode-file-handles", handles]].concat());
            let (one, other) = (&scene.one, &scene.other);
            let (file, fh) = open(one, "dir/a", libc::O_RDWR).expect("opened");
            let dir = walk(one, "dir").expect("there").nodeid;
            let dh = one.opendir(dir, 0).expect("opened").fh;
            let at = (file.nodeid, fh.fh);

            // To the other guest, which knows the same file by a node of its
            // own and has nothing open.
            let theirs = walk(other, "dir/a").expect("there").nodeid;
            let their_dir = walk(other, "dir").expect("there").nodeid;
            for handle in [at.1, dh, 0, at.1 + 1, dh + 1, u64::MAX] {
                for node in [theirs, their_dir, ROOT_ID] {
                    assert_handle_is_nothing(other, node, handle);
                }
            }
            // To the right guest by another node, and a file's for a
            // directory's.
            let b = walk(one, "dir/b").expect("there").nodeid;
            assert_handle_is_nothing(one, b, at.1);
            assert_handle_is_nothing(one, ROOT_ID, dh);
            refused(one.readdir(dir, at.1, 0), &[Errno::BADF]);
            refused(read_by_request(one, (at.0, dh), 0, 10), &[Errno::BADF]);
            // Nothing of that has closed it.
            let read = read_by_request(one, at, 0, 100).expect("still open");
            assert_eq!(read, INSIDE);
            one.release(at.0, at.1).expect("closed");
            one.releasedir(dir, dh).expect("closed");
            assert_handle_is_nothing(one, at.0, at.1);
            assert_handle_is_nothing(one, dir, dh);
            scene.house.assert_untouched();
            let kept = std::fs::read(scene.house.share().join("dir/a"));
            assert_eq!(kept.expect("there"), INSIDE);
        }
    }
}

/// A device that starts over, or the next guest at the same socket, begins
/// with the root alone.
#[test]
fn numbers_of_an_earlier_session_are_nothing() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        std::fs::create_dir(house.share().join("dir")).expect("a directory");
        std::fs::write(house.share().join("dir/a"), INSIDE).expect("a file");
        std::fs::write(house.share().join("file"), INSIDE).expect("a file");
        let daemon = Daemon::start(&house.share(), &[sandbox, &["--xattr"]].concat());
        let session = attach(&daemon);
        let (file, handle) = open(&session, "dir/a", libc::O_RDWR).expect("opened");
        session.reinit().expect("a new session");
        assert_handle_is_nothing(&session, ROOT_ID, handle.fh);
        let gone = read_by_request(&session, (file.nodeid, handle.fh), 0, 10);
        refused(gone, &[Errno::BADF]);
        assert_node_is_nothing(&session, file.nodeid);
        drop(session);
        let session = crate::common::attach_soon(&daemon);
        assert_node_is_nothing(&session, file.nodeid);
        let gone = read_by_request(&session, (file.nodeid, handle.fh), 0, 10);
        refused(gone, &[Errno::BADF]);
    }
}

/// Nobody is offered to look nodes up by number: `.` and `..` are not names.
#[test]
fn there_is_no_lookup_by_number() {
    for sandbox in SANDBOXES {
        for handles in HANDLES {
            let scene = Scene::new(&[sandbox, &["--inode-file-handles", handles]].concat());
            let agreed = offer(&scene.one, InitFlags::EXPORT_SUPPORT);
            assert!(!agreed.contains(InitFlags::EXPORT_SUPPORT), "{agreed:?}");
            let below = walk(&scene.one, "dir/below").expect("there").nodeid;
            for node in [ROOT_ID, below] {
                for name in [b".\0".as_slice(), b"..\0"] {
                    let lookup = Message::new(Opcode::Lookup as u32, node, name);
                    assert_eq!(ask(&scene.one, &lookup).errno, libc::EINVAL);
                }
            }
        }
    }
}
