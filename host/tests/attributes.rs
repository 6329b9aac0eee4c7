//! Extended attributes and owners on their way through the daemon: which
//! names and ids the guest's become on the host and the host's in the guest.
//! Needs root, which may own files to anybody.

mod common;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::wire::{Answer, Message, args, ask};
use common::{Daemon, attach, attach_plain, make_file, on_disk, open, walk, write_by_request};
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{CreateIn, MkdirIn, Opcode, ROOT_ID, SetattrIn};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

#[track_caller]
fn errno<T>(result: daxwindow_guest::Result<T>) -> Errno {
    result.err().expect("refused").errno()
}

/// Names and values that the host has for a file, security labels of the
/// machine itself aside.
fn on_host(path: &Path) -> BTreeSet<(String, String)> {
    let mut list = Vec::with_capacity(64 << 10);
    rustix::fs::listxattr(path, rustix::buffer::spare_capacity(&mut list)).expect("listed");
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let names = names.filter(|name| *name != b"security.selinux");
    names
        .map(|name| {
            let c_name = CString::new(name).expect("no NUL");
            let mut value = Vec::with_capacity(1024);
            rustix::fs::getxattr(path, &c_name, rustix::buffer::spare_capacity(&mut value))
                .expect("there");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(name), text(&value))
        })
        .collect()
}

fn set_on_host(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("set on the host");
}

/// Names that the guest sees.
fn in_guest(session: &Session, node: u64) -> BTreeSet<String> {
    let list = session.listxattr(node).expect("listed");
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    names.filter(|name| name != "security.selinux").collect()
}

fn set_of<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn without_the_flag_there_are_none() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    set_on_host(&path, "user.a", b"v");
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    for refused in [
        session.setxattr(node, b"user.b", b"v", 0).err(),
        session.getxattr(node, b"user.a").err(),
        session.listxattr(node).err(),
        session.removexattr(node, b"user.a").err(),
    ] {
        assert_eq!(refused.expect("refused").errno(), Errno::NOSYS);
    }
    let kept = BTreeSet::from([("user.a".to_owned(), "v".to_owned())]);
    assert_eq!(on_host(&path), kept);
}

#[test]
fn a_map_keeps_the_guests_attributes_below_a_prefix() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    set_on_host(&path, "user.hosts", b"own");
    let daemon = Daemon::start(share.path(), &["--xattrmap", ":map::user.virtiofs.:"]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    for name in [&b"trusted.a"[..], b"user.b", b"security.selinux"] {
        session.setxattr(node, name, name, 0).expect("set");
        assert_eq!(session.getxattr(node, name).expect("get"), name);
        let size = session.getxattr_size(node, name).expect("size");
        assert_eq!(size as usize, name.len());
    }
    let stored = on_host(&path);
    for (name, value) in [
        ("user.hosts", "own"),
        ("user.virtiofs.trusted.a", "trusted.a"),
        ("user.virtiofs.user.b", "user.b"),
        ("user.virtiofs.security.selinux", "security.selinux"),
    ] {
        assert!(
            stored.contains(&(name.to_owned(), value.to_owned())),
            "{stored:?}"
        );
    }
    assert_eq!(in_guest(&session, node), set_of(["trusted.a", "user.b"]));
    // What the host has of its own is out of reach, whatever it is called.
    assert_eq!(errno(session.getxattr(node, b"user.hosts")), Errno::NODATA);
    session.removexattr(node, b"trusted.a").expect("removed");
    assert_eq!(
        errno(session.removexattr(node, b"trusted.a")),
        Errno::NODATA
    );
    assert!(
        !on_host(&path)
            .iter()
            .any(|(name, _)| name.contains("trusted"))
    );
}

#[test]
fn selected_attributes_are_mapped_and_their_place_is_guarded() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    set_on_host(&path, "trusted.hosts", b"own");
    let rules = "/prefix/all/trusted./user.virtiofs./
                 /bad/server//trusted./
                 /bad/client/user.virtiofs.//
                 /ok/all///";
    let daemon = Daemon::start(share.path(), &["-o", &format!("xattrmap={rules}")]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    session
        .setxattr(node, b"trusted.a", b"1", 0)
        .expect("mapped");
    session.setxattr(node, b"user.a", b"2", 0).expect("through");
    assert_eq!(in_guest(&session, node), set_of(["trusted.a", "user.a"]));
    let stored = b"user.virtiofs.trusted.a";
    assert_eq!(errno(session.setxattr(node, stored, b"3", 0)), Errno::PERM);
    assert_eq!(errno(session.removexattr(node, stored)), Errno::PERM);
    // Denied to look at as well, in the way a guest kernel can bear.
    assert_eq!(errno(session.getxattr(node, stored)), Errno::NODATA);
    assert_eq!(session.getxattr(node, b"trusted.a").expect("kept"), b"1");
}

#[test]
fn hidden_and_unsupported_attributes() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    set_on_host(&path, "user.secret", b"s");
    set_on_host(&path, "user.open", b"o");
    set_on_host(&path, "trusted.x", b"x");
    let rules = ":bad:all:user.secret:user.secret::unsupported:all:trusted.:trusted.::ok:all:::";
    let daemon = Daemon::start(share.path(), &["--xattrmap", rules]);
    let session = attach(&daemon);
    let node = walk(&session, "file").expect("file").nodeid;
    assert_eq!(in_guest(&session, node), set_of(["user.open"]));
    assert_eq!(errno(session.getxattr(node, b"user.secret")), Errno::NODATA);
    assert_eq!(
        errno(session.getxattr(node, b"trusted.x")),
        Errno::OPNOTSUPP
    );
    let refused = session.setxattr(node, b"trusted.y", b"y", 0);
    assert_eq!(errno(refused), Errno::OPNOTSUPP);
    assert_eq!(
        errno(session.removexattr(node, b"user.secret")),
        Errno::PERM
    );
}

/// `VFS_CAP_REVISION_2`, effective, with `CAP_NET_RAW` permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_mapped_file_capability_goes_with_every_change() {
    let share = on_disk();
    let path = share.path().join("file");
    make_file(&path, 1, 100);
    let daemon = Daemon::start(share.path(), &["--xattrmap", ":map:security.:user.v.:"]);
    let session = attach_plain(&daemon);
    let (entry, handle) = open(&session, "file", libc::O_RDWR).expect("opened");
    let node = entry.nodeid;
    let name = b"security.capability";
    let set = |valid, size, uid| SetattrIn {
        valid,
        size,
        uid,
        ..SetattrIn::default()
    };
    let changes: [(&str, &dyn Fn()); 4] = [
        ("nothing", &|| {}),
        ("a write", &|| {
            write_by_request(&session, (node, handle.fh), 0, b"x").expect("written");
        }),
        ("a truncation", &|| {
            let set = set(SetattrValid::SIZE.bits(), 50, 0);
            session.setattr(node, &set).expect("cut");
        }),
        ("a change of owner", &|| {
            let set = set(SetattrValid::UID.bits(), 0, 1234);
            session.setattr(node, &set).expect("given away");
        }),
    ];
    for (what, change) in changes {
        session.setxattr(node, name, &CAPABILITY, 0).expect("set");
        change();
        let kept = session.getxattr(node, name).is_ok();
        assert_eq!(kept, what == "nothing", "{what}");
        let stored = on_host(&path);
        let stored = stored
            .iter()
            .any(|(name, _)| name == "user.v.security.capability");
        assert_eq!(stored, kept, "{what}");
    }
}

/// Sends a request as somebody.
fn as_user(session: &Session, (uid, gid): (u32, u32), opcode: Opcode, body: Vec<u8>) -> Answer {
    let mut message = Message::new(opcode as u32, ROOT_ID, body);
    message.header.uid = uid;
    message.header.gid = gid;
    ask(session, &message)
}

fn mkdir(session: &Session, who: (u32, u32), name: &str) -> Answer {
    let mkdir = args(MkdirIn {
        mode: 0o755,
        umask: 0,
    });
    let body = [&mkdir, name.as_bytes(), b"\0"].concat();
    as_user(session, who, Opcode::Mkdir, body)
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).expect("there");
    (meta.uid(), meta.gid())
}

#[test]
fn a_range_of_owners_is_shifted_both_ways() {
    let share = on_disk();
    // Who is mapped has the host's rights of whom they are mapped to.
    std::fs::set_permissions(share.path(), PermissionsExt::from_mode(0o777)).expect("set");
    let daemon = Daemon::start(
        share.path(),
        &[
            "--translate-uid",
            "map:0:100000:65536",
            "--translate-gid",
            "map:0:200000:65536",
        ],
    );
    let session = attach(&daemon);
    // Created: directories, files, links, nodes.
    assert_eq!(mkdir(&session, (1000, 1001), "dir").errno, 0);
    assert_eq!(owner(&share.path().join("dir")), (101_000, 201_001));
    let create = args(CreateIn {
        flags: libc::O_RDWR as u32,
        mode: libc::S_IFREG | 0o644,
        ..CreateIn::default()
    });
    let body = [&create, &b"file\0"[..]].concat();
    assert_eq!(as_user(&session, (0, 7), Opcode::Create, body).errno, 0);
    assert_eq!(owner(&share.path().join("file")), (100_000, 200_007));
    let body = b"link\0target\0".to_vec();
    assert_eq!(as_user(&session, (5, 6), Opcode::Symlink, body).errno, 0);
    assert_eq!(owner(&share.path().join("link")), (100_005, 200_006));

    // Told: by lookup, by getattr, and what is in no range as it is.
    let dir = walk(&session, "dir").expect("found");
    assert_eq!((dir.attr.uid, dir.attr.gid), (1000, 1001));
    let root = session.getattr(ROOT_ID, None).expect("the root");
    assert_eq!((root.uid, root.gid), (0, 0), "in no range of the host's");

    // Set, and told in the same reply.
    let set = SetattrIn {
        valid: (SetattrValid::UID | SetattrValid::GID).bits(),
        uid: 3000,
        gid: 70_000,
        ..SetattrIn::default()
    };
    let attr = session.setattr(dir.nodeid, &set).expect("given away");
    assert_eq!((attr.uid, attr.gid), (3000, 70_000));
    assert_eq!(owner(&share.path().join("dir")), (103_000, 70_000));
}

#[test]
fn all_users_are_one_and_one_is_another() {
    let share = on_disk();
    std::os::unix::fs::chown(share.path(), Some(1001), Some(100)).expect("root may");
    // The example of virtiofsd's README.
    let daemon = Daemon::start(
        share.path(),
        &[
            "--translate-uid=squash-guest:0:1001:4294967295",
            "--translate-gid=squash-guest:0:100:4294967295",
            "--translate-uid=host:1001:1000:1",
            "--translate-gid=host:100:1000:1",
        ],
    );
    let session = attach(&daemon);
    for (name, who) in [("a", (0, 0)), ("b", (1000, 1000)), ("c", (55_555, 3))] {
        assert_eq!(mkdir(&session, who, name).errno, 0);
        assert_eq!(owner(&share.path().join(name)), (1001, 100));
        let seen = walk(&session, name).expect("found").attr;
        assert_eq!((seen.uid, seen.gid), (1000, 1000));
    }
}

#[test]
fn forbidden_owners_create_nothing_and_get_nothing() {
    let share = on_disk();
    let daemon = Daemon::start(
        share.path(),
        &[
            "--translate-uid=forbid-guest:0:1000",
            "--translate-gid=forbid-guest:0:1000",
            "--translate-uid=squash-host:0:1000:1000",
        ],
    );
    let session = attach(&daemon);
    for who in [(0, 1000), (1000, 0), (999, 999)] {
        assert_eq!(mkdir(&session, who, "d").errno, libc::EPERM, "{who:?}");
    }
    assert!(!share.path().join("d").exists());
    assert_eq!(mkdir(&session, (1000, 1000), "d").errno, 0);
    let node = walk(&session, "d").expect("found").nodeid;
    for (uid, gid) in [(0, 2000), (2000, 0)] {
        let set = SetattrIn {
            valid: (SetattrValid::UID | SetattrValid::GID).bits(),
            uid,
            gid,
            ..SetattrIn::default()
        };
        assert_eq!(errno(session.setattr(node, &set)), Errno::PERM);
    }
    assert_eq!(owner(&share.path().join("d")), (1000, 1000));
    // Seeing is not forbidden.
    let root = session.getattr(ROOT_ID, None).expect("the root");
    assert_eq!((root.uid, root.gid), (1000, 0));
}
