//! Operations that FUSE learned late: TMPFILE, COPY_FILE_RANGE_64, IOCTL; and
//! what newer guests leave to the server: set-id bits, the umask.

use daxwindow_shared::fuse::ioctl::{FSGETXATTR, FSSETXATTR, GETFLAGS, SETFLAGS};
use rustix::fs::XattrFlags;

use super::*;

const NODUMP: u32 = 0x40;

#[test]
fn a_file_without_a_name_can_be_written_and_given_one() {
    let guest = Guest::new();
    let args = CreateIn {
        flags: (libc::O_TMPFILE | libc::O_RDWR) as u32,
        mode: 0o100_666,
        umask: 0o022,
        ..Default::default()
    };
    let tmpfile =
        |args: CreateIn| guest.call(Opcode::Tmpfile, ROOT_ID, &[args.as_bytes(), &z("/")]);
    let reply = tmpfile(args).expect("made");
    let (entry, rest) = EntryOut::read_from_prefix(&reply).expect("entry");
    let open = OpenOut::read_from_bytes(rest).expect("open");
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, 0o100_644));
    let file = (entry.nodeid, open.fh);
    assert_eq!(guest.write(file, 0, b"data", WriteFlags::empty()), 4);
    assert_eq!(guest.dir.path().read_dir().expect("list").count(), 0);
    let link = LinkIn {
        oldnodeid: entry.nodeid,
    };
    let named: EntryOut = guest.value(Opcode::Link, ROOT_ID, &[link.as_bytes(), &z("named")]);
    assert_eq!((named.nodeid, named.attr.nlink), (entry.nodeid, 1));
    assert_eq!(guest.on_host("named"), b"data");

    let exclusive = CreateIn {
        flags: args.flags | libc::O_EXCL as u32,
        ..args
    };
    let reply = tmpfile(exclusive).expect("made");
    let (entry, _) = EntryOut::read_from_prefix(&reply).expect("entry");
    let link = LinkIn {
        oldnodeid: entry.nodeid,
    };
    let refused = guest.errno(Opcode::Link, ROOT_ID, &[link.as_bytes(), &z("never")]);
    assert_eq!(refused, Errno::NOENT);
    let reading = CreateIn {
        flags: libc::O_TMPFILE as u32,
        ..args
    };
    assert_eq!(tmpfile(reading), Err(Errno::INVAL));
    assert_eq!(guest.server.fs().live_handles(), 2);
}

#[test]
fn a_tmpfile_belongs_to_its_caller() {
    let guest = Guest::new();
    let args = CreateIn {
        flags: (libc::O_TMPFILE | libc::O_RDWR) as u32,
        mode: 0o100_600,
        ..Default::default()
    };
    let body = [args.as_bytes(), &z("/")].concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: Opcode::Tmpfile as u32,
        unique: UNIQUE,
        nodeid: ROOT_ID,
        uid: 1234,
        gid: 1235,
        ..Default::default()
    };
    let request = [header.as_bytes(), &body].concat();
    let reply = check(guest.server.handle_bytes(&request, PLENTY)).expect("made");
    let (entry, _) = EntryOut::read_from_prefix(&reply).expect("entry");
    let us = rustix::process::geteuid();
    let expected = match us.is_root() {
        true => (1234, 1235),
        false => (us.as_raw(), rustix::process::getegid().as_raw()),
    };
    assert_eq!((entry.attr.uid, entry.attr.gid), expected);
}

#[test]
fn a_copy_may_be_counted_in_64_bits() {
    let guest = Guest::new();
    let from = guest.create("from", libc::O_RDWR);
    let to = guest.create("to", libc::O_RDWR);
    guest.write(from, 0, b"0123456789", WriteFlags::empty());
    let args = CopyFileRangeIn {
        fh_in: from.1,
        off_in: 2,
        nodeid_out: to.0,
        fh_out: to.1,
        off_out: 1,
        len: u64::MAX >> 1,
        flags: 0,
    };
    let out: CopyFileRangeOut = guest.value(Opcode::CopyFileRange64, from.0, &[args.as_bytes()]);
    assert_eq!(out.bytes_copied, 8);
    assert_eq!(guest.on_host("to"), b"\x0023456789");
    let strange = CopyFileRangeIn { flags: 1, ..args };
    let refused = guest.errno(Opcode::CopyFileRange64, from.0, &[strange.as_bytes()]);
    assert_eq!(refused, Errno::INVAL);
}

fn ioctl(guest: &Guest, node: u64, args: &IoctlIn, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let reply = guest.call(Opcode::Ioctl, node, &[args.as_bytes(), data])?;
    let (out, data) = IoctlOut::read_from_prefix(&reply).expect("a whole reply");
    assert_eq!(out, IoctlOut::default());
    assert_eq!(data.len(), args.out_size as usize);
    Ok(data.to_vec())
}

#[test]
fn file_attributes_are_read_and_changed() {
    let guest = Guest::new();
    guest.host_file("f", b"");
    let node = guest.lookup("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY);
    let get = IoctlIn {
        fh,
        cmd: GETFLAGS,
        out_size: 4,
        ..Default::default()
    };
    let set = IoctlIn {
        fh,
        cmd: SETFLAGS,
        in_size: 4,
        ..Default::default()
    };
    let flags = |wide: u32| {
        let args = IoctlIn {
            out_size: wide,
            ..get
        };
        let data = ioctl(&guest, node, &args, &[]).expect("flags");
        u32::read_from_prefix(&data).expect("four bytes").0
    };
    let before = flags(4);
    assert_eq!(flags(8), before);
    let asked = before | NODUMP;
    ioctl(&guest, node, &set, asked.as_bytes()).expect("set");
    assert_eq!(flags(4), before | NODUMP);
    // Project inheritance is the host's quota.
    let foreign = before ^ 0x2000_0000;
    assert_eq!(
        ioctl(&guest, node, &set, foreign.as_bytes()),
        Err(Errno::PERM)
    );

    let get = IoctlIn {
        cmd: FSGETXATTR,
        out_size: 28,
        ..get
    };
    let data = ioctl(&guest, node, &get, &[]).expect("attributes");
    let attr = FsXattr::read_from_bytes(&data).expect("one");
    assert_eq!(attr.xflags & 0x80, 0x80, "nodump");
    let set = IoctlIn {
        cmd: FSSETXATTR,
        in_size: 28,
        ..set
    };
    let without = FsXattr {
        xflags: attr.xflags & !0x80,
        ..attr
    };
    ioctl(&guest, node, &set, without.as_bytes()).expect("set");
    assert_eq!(flags(4) & NODUMP, 0);
    let other_project = FsXattr {
        projid: attr.projid + 1,
        ..without
    };
    assert_eq!(
        ioctl(&guest, node, &set, other_project.as_bytes()),
        Err(Errno::PERM)
    );
}

#[test]
fn no_other_command_and_no_other_size_reaches_the_host() {
    let guest = Guest::new();
    guest.host_file("f", b"");
    let node = guest.lookup("f").nodeid;
    let fh = guest.open(node, libc::O_RDONLY);
    let good = IoctlIn {
        fh,
        cmd: GETFLAGS,
        out_size: 4,
        ..Default::default()
    };
    // FICLONE, FS_IOC_SETVERSION, TIOCSTI, FIGETBSZ.
    for cmd in [0x4004_9409, 0x4008_7602, 0x5412, 2, 0, u32::MAX] {
        let args = IoctlIn { cmd, ..good };
        assert_eq!(ioctl(&guest, node, &args, &[]), Err(Errno::NOTTY));
    }
    for (out_size, errno) in [
        (0, Errno::INVAL),
        (5, Errno::INVAL),
        (u32::MAX, Errno::OVERFLOW),
    ] {
        let args = IoctlIn { out_size, ..good };
        assert_eq!(ioctl(&guest, node, &args, &[]), Err(errno), "{out_size}");
    }
    let lying = IoctlIn { in_size: 9, ..good };
    assert_eq!(ioctl(&guest, node, &lying, &[0; 4]), Err(Errno::INVAL));
    let no_handle = IoctlIn { fh: 99, ..good };
    assert_eq!(ioctl(&guest, node, &no_handle, &[]), Err(Errno::BADF));
    let elsewhere = ioctl(&guest, ROOT_ID, &good, &[]);
    assert_eq!(elsewhere, Err(Errno::BADF));

    let reader = Guest::unborn(true);
    reader.init(InitFlags::all());
    reader.host_file("f", b"");
    let node = reader.lookup("f").nodeid;
    let fh = reader.open(node, libc::O_RDONLY);
    let set = IoctlIn {
        fh,
        cmd: SETFLAGS,
        in_size: 4,
        ..Default::default()
    };
    assert_eq!(ioctl(&reader, node, &set, &[0; 4]), Err(Errno::ROFS));
}

#[test]
fn a_write_that_says_so_clears_set_id_bits() {
    let guest = Guest::new();
    let file = guest.create("f", libc::O_RDWR);
    let path = guest.dir.path().join("f");
    let mode_after = |flags| {
        let set_ids = std::fs::Permissions::from_mode(0o6755);
        std::fs::set_permissions(&path, set_ids).expect("chmod");
        // Whoever is root keeps the bits by writing alone.
        guest.write(file, 0, b"x", flags);
        std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode_after(WriteFlags::KILL_SUIDGID), 0o755);
    let kept = match rustix::process::geteuid().is_root() {
        true => 0o6755,
        false => 0o755,
    };
    assert_eq!(mode_after(WriteFlags::empty()), kept);
}

#[test]
fn an_allocation_by_a_user_clears_set_id_bits_where_they_are_ours() {
    for (flags, uid, mode) in [
        (InitFlags::HANDLE_KILLPRIV_V2, 1234, 0o755),
        (InitFlags::HANDLE_KILLPRIV_V2, 0, 0o6755),
        (InitFlags::empty(), 1234, 0o6755),
    ] {
        let guest = Guest::new();
        guest.init(flags);
        let (node, fh) = guest.create("f", libc::O_RDWR);
        let path = guest.dir.path().join("f");
        let set_ids = std::fs::Permissions::from_mode(0o6755);
        std::fs::set_permissions(&path, set_ids).expect("chmod");
        let args = FallocateIn {
            fh,
            length: 100,
            ..Default::default()
        };
        let header = InHeader {
            len: (size_of::<InHeader>() + size_of::<FallocateIn>()) as u32,
            opcode: Opcode::Fallocate as u32,
            unique: UNIQUE,
            nodeid: node,
            uid,
            ..Default::default()
        };
        let request = [header.as_bytes(), args.as_bytes()].concat();
        check(guest.server.handle_bytes(&request, PLENTY)).expect("allocated");
        let now = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode()
            & 0o7777;
        // The host's kernel clears them itself for a daemon that is not root.
        let expected = match rustix::process::geteuid().is_root() {
            true => mode,
            false => 0o755,
        };
        assert_eq!(now, expected, "{flags:?} {uid}");
    }
}

/// The bytes of an ACL: owner, named user, group, mask, others.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_default_acl_suspends_the_umask_where_acls_are_served() {
    const NOBODY: u32 = u32::MAX;
    let default = acl(&[
        (0x01, 7, NOBODY),
        (0x02, 6, 1234),
        (0x04, 5, NOBODY),
        (0x10, 7, NOBODY),
        (0x20, 5, NOBODY),
    ]);
    for (served, with_acl, mode) in [
        (true, false, 0o700),
        (true, true, 0o775),
        (false, true, 0o700),
    ] {
        let share = ShareOptions {
            posix_acl: served,
            ..Default::default()
        };
        let guest = Guest::of(share);
        let out = guest.init(InitFlags::all());
        let agreed = InitFlags::from_words(out.flags, out.flags2);
        let acls = InitFlags::POSIX_ACL | InitFlags::DONT_MASK;
        assert_eq!(
            agreed & acls,
            if served { acls } else { InitFlags::empty() }
        );
        if with_acl {
            let set = rustix::fs::setxattr(
                guest.dir.path(),
                "system.posix_acl_default",
                &default,
                XattrFlags::empty(),
            );
            set.expect("the host's file system has ACLs");
        }
        let args = MkdirIn {
            mode: 0o777,
            umask: 0o077,
        };
        let made: EntryOut = guest.value(Opcode::Mkdir, ROOT_ID, &[args.as_bytes(), &z("d")]);
        assert_eq!(made.attr.mode & 0o777, mode, "{served} {with_acl}");
    }
}

/// With `--posix-acl=auto` some guests know ACLs and some do not.
#[test]
fn names_of_acls_are_for_guests_that_know_them() {
    let share = ShareOptions {
        posix_acl: true,
        xattr: true,
        ..Default::default()
    };
    let guest = Guest::of(share);
    let minimal = acl(&[
        (0x01, 7, u32::MAX),
        (0x04, 5, u32::MAX),
        (0x20, 5, u32::MAX),
    ]);
    let set = |name: &str, value: &[u8]| {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(guest.dir.path(), name, value, flags).expect("the host has them");
    };
    set("system.posix_acl_default", &minimal);
    set("user.mine", b"1");
    let acls = InitFlags::POSIX_ACL | InitFlags::DONT_MASK;
    for knows in [true, false, true] {
        let mut offered = InitFlags::all();
        offered.set(acls, knows);
        guest.init(offered);
        let fs = guest.server.fs();
        let listed = fs.listxattr(ROOT_ID, 4096).expect("listed");
        let crate::fs::XattrReply::Value(names) = listed else {
            panic!("the names were asked for");
        };
        let names = String::from_utf8(names).expect("ASCII");
        assert!(names.contains("user.mine"), "{names:?}");
        assert_eq!(names.contains("posix_acl"), knows, "{names:?}");
        let value = fs.getxattr(ROOT_ID, c"system.posix_acl_default", 4096);
        assert_eq!(value.is_ok(), knows, "{value:?}");
    }
}
