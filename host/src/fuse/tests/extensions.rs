//! Labels and groups that follow requests that create.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::semantics::guest;
use super::*;

/// A request that says who sends it, with extensions that the header counts.
fn extended(
    guest: &Guest,
    opcode: Opcode,
    (uid, gid): (u32, u32),
    body: &[u8],
    extensions: &[u8],
) -> Result<Vec<u8>, Errno> {
    let body = [body, extensions].concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: opcode as u32,
        unique: UNIQUE,
        nodeid: ROOT_ID,
        uid,
        gid,
        total_extlen: (extensions.len() / 8) as u16,
        ..Default::default()
    };
    let request = [header.as_bytes(), &body].concat();
    check(guest.server.handle_bytes(&request, PLENTY))
}

fn extension(typ: u32, content: &[&[u8]]) -> Vec<u8> {
    let mut content = content.concat();
    content.resize(content.len().next_multiple_of(8), 0);
    let size = (size_of::<ExtHeader>() + content.len()) as u32;
    [ExtHeader { size, typ }.as_bytes(), &content].concat()
}

fn label(name: &str, value: &[u8]) -> Vec<u8> {
    let size = value.len() as u32;
    let header = Secctx { size, padding: 0 };
    extension(1, &[header.as_bytes(), &z(name), value])
}

fn group(gid: u32) -> Vec<u8> {
    extension(EXT_GROUPS, &[1u32.as_bytes(), gid.as_bytes()])
}

fn user_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(len) => Some(value[..len].to_vec()),
        Err(Errno::NODATA) => None,
        Err(errno) => panic!("{path:?}: {errno}"),
    }
}

#[test]
fn labels_are_on_whatever_is_created_and_nothing_unlabelled_stays() {
    let options = ServerOptions {
        security_labels: true,
        ..ServerOptions::default()
    };
    let guest = guest(options);
    let us = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let create = CreateIn {
        flags: libc::O_RDONLY as u32,
        mode: 0o100_400,
        ..Default::default()
    };
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let tmpfile = CreateIn {
        flags: (libc::O_TMPFILE | libc::O_RDWR) as u32,
        ..create
    };
    let bodies = [
        (
            Opcode::Create,
            "file",
            [create.as_bytes(), &z("file")].concat(),
        ),
        (Opcode::Mkdir, "dir", [mkdir.as_bytes(), &z("dir")].concat()),
        (Opcode::Tmpfile, "", [tmpfile.as_bytes(), &z("/")].concat()),
    ];
    // A name that no host's file system takes: unknown to all.
    for (opcode, name, body) in &bodies {
        let bad = label("strange.label", b"x");
        let refused = extended(&guest, *opcode, us, body, &bad);
        assert_eq!(refused, Err(Errno::OPNOTSUPP), "{opcode:?}");
        assert!(name.is_empty() || !guest.dir.path().join(name).exists());
        assert_eq!(guest.dir.path().read_dir().expect("list").count(), 0);
    }
    for (opcode, name, body) in &bodies {
        let good = label("user.label", b"unlabeled");
        let reply = extended(&guest, *opcode, us, body, &good).expect("created");
        let (entry, _) = EntryOut::read_from_prefix(&reply).expect("entry");
        let size = GetxattrIn {
            size: 64,
            padding: 0,
        };
        let stored = guest.call(
            Opcode::Getxattr,
            entry.nodeid,
            &[size.as_bytes(), &z("user.label")],
        );
        assert_eq!(stored.expect("stored"), b"unlabeled", "{opcode:?}");
        if !name.is_empty() {
            let path = guest.dir.path().join(name);
            assert_eq!(user_xattr(&path, "user.label"), Some(b"unlabeled".into()));
            assert_eq!(
                entry.attr.nlink,
                path.metadata().expect("there").nlink() as u32
            );
        }
    }
    // Of what is there already, nothing is changed.
    let other = label("user.label", b"other");
    let again = extended(&guest, Opcode::Create, us, &bodies[0].2, &other);
    again.expect("opened");
    let path = guest.dir.path().join("file");
    assert_eq!(user_xattr(&path, "user.label"), Some(b"unlabeled".into()));

    // As Linux before 6.3 has it: behind the name, and counted nowhere.
    let body = [mkdir.as_bytes(), &z("old")].concat();
    let uncounted = [body, label("user.label", b"old")].concat();
    extended(&guest, Opcode::Mkdir, us, &uncounted, &[]).expect("created");
    let path = guest.dir.path().join("old");
    assert_eq!(user_xattr(&path, "user.label"), Some(b"old".into()));
    // A guest without a security module says so each time.
    let none = [mkdir.as_bytes(), &z("plain")].concat();
    extended(&guest, Opcode::Mkdir, us, &none, &extension(0, &[])).expect("created");
}

#[test]
fn extensions_that_were_not_agreed_or_go_with_other_requests_are_refused() {
    let us = (0, 0);
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let body = [mkdir.as_bytes(), &z("d")].concat();
    let plain = guest(ServerOptions::default());
    let refused = extended(&plain, Opcode::Mkdir, us, &body, &label("user.a", b"x"));
    assert_eq!(refused, Err(Errno::INVAL));
    let refused = extended(&plain, Opcode::Lookup, us, &z("d"), &group(1));
    assert_eq!(refused, Err(Errno::INVAL));
    let twice = [group(1), group(1)].concat();
    let refused = extended(&plain, Opcode::Mkdir, us, &body, &twice);
    assert_eq!(refused, Err(Errno::INVAL));
    // Where extensions are counted, nothing else may follow the name.
    let more = [&*body, &[0; 8]].concat();
    let refused = extended(&plain, Opcode::Mkdir, us, &more, &group(1));
    assert_eq!(refused, Err(Errno::INVAL));
    assert_eq!(plain.dir.path().read_dir().expect("list").count(), 0);
    extended(&plain, Opcode::Mkdir, us, &body, &group(1)).expect("created");
}

#[test]
fn a_setgid_directory_hands_its_group_to_what_its_members_create() {
    let guest = guest(ServerOptions::default());
    let root = rustix::process::geteuid().is_root();
    let ours = rustix::process::getegid().as_raw();
    let shared = if root { 2000 } else { ours };
    let dir = guest.dir.path();
    std::os::unix::fs::chown(dir, None, Some(shared)).expect("chown");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o2770)).expect("chmod");
    let mkdir = MkdirIn {
        mode: 0o2770,
        umask: 0,
    };
    let body = [mkdir.as_bytes(), &z("d")].concat();
    extended(&guest, Opcode::Mkdir, (1234, 1235), &body, &group(shared)).expect("created");
    let made = dir.join("d").metadata().expect("there");
    let owner = if root { 1234 } else { made.uid() };
    assert_eq!((made.uid(), made.gid()), (owner, shared));
    assert_eq!(made.mode() & 0o7777, 0o2770);
    // A group that is not the directory's is nobody's business.
    let body = [mkdir.as_bytes(), &z("e")].concat();
    extended(&guest, Opcode::Mkdir, (1234, 1235), &body, &group(u32::MAX)).expect("created");
}
