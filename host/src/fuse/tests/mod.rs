//! Requests as bytes, against a real directory.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;

use daxwindow_shared::fuse::dirent::entries;
use daxwindow_shared::fuse::flags::{InitFlags, SetattrValid, SetxattrFlags, WriteFlags};
use daxwindow_shared::fuse::*;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::dax::{DaxMode, DaxOptions};
use crate::fs::ShareOptions;

mod extensions;
mod hostile;
mod newer;
mod semantics;

const UNIQUE: u64 = 0x1234_5678_9abc;
const PLENTY: usize = 1 << 20;

struct Guest {
    dir: TempDir,
    server: Server,
}

impl Guest {
    fn unborn(readonly: bool) -> Guest {
        Guest::of(ShareOptions {
            readonly,
            xattr: true,
            ..Default::default()
        })
    }

    fn of(share: ShareOptions) -> Guest {
        Guest::with(share, ServerOptions::default())
    }

    fn with(share: ShareOptions, options: ServerOptions) -> Guest {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dax = DaxOptions {
            mode: DaxMode::Never,
            ..Default::default()
        };
        let fs = SharedDir::open(dir.path(), share).expect("a directory");
        Guest {
            server: Server::new(fs, Dax::new(dax), options),
            dir,
        }
    }

    fn new() -> Guest {
        let guest = Guest::unborn(false);
        guest.init(InitFlags::all());
        guest
    }

    fn init(&self, flags: InitFlags) -> InitOut {
        let (flags, flags2) = flags.to_words();
        let request = InitIn {
            major: 7,
            minor: 45,
            max_readahead: 1 << 17,
            flags,
            flags2,
            ..Default::default()
        };
        self.value(Opcode::Init, 0, &[request.as_bytes()])
    }

    fn raw(&self, opcode: u32, nodeid: u64, body: &[&[u8]], capacity: usize) -> Vec<u8> {
        let body = body.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: UNIQUE,
            nodeid,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            ..Default::default()
        };
        self.server
            .handle_bytes(&[header.as_bytes(), &body].concat(), capacity)
    }

    /// The reply's body, or its error; checks what holds for every reply.
    fn call(&self, opcode: Opcode, nodeid: u64, body: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        check(self.raw(opcode as u32, nodeid, body, PLENTY))
    }

    fn value<T: FromBytes>(&self, opcode: Opcode, nodeid: u64, body: &[&[u8]]) -> T {
        let reply = self.call(opcode, nodeid, body).expect("success");
        T::read_from_bytes(&reply).expect("a reply of the right size")
    }

    fn errno(&self, opcode: Opcode, nodeid: u64, body: &[&[u8]]) -> Errno {
        self.call(opcode, nodeid, body).expect_err("refused")
    }

    fn lookup(&self, name: &str) -> EntryOut {
        self.value(Opcode::Lookup, ROOT_ID, &[&z(name)])
    }

    fn open(&self, nodeid: u64, flags: i32) -> u64 {
        let args = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        let out: OpenOut = self.value(Opcode::Open, nodeid, &[args.as_bytes()]);
        out.fh
    }

    fn create(&self, name: &str, flags: i32) -> (u64, u64) {
        let args = CreateIn {
            flags: flags as u32,
            mode: 0o100_644,
            ..Default::default()
        };
        let reply = self
            .call(Opcode::Create, ROOT_ID, &[args.as_bytes(), &z(name)])
            .expect("created");
        let (entry, rest) = EntryOut::read_from_prefix(&reply).expect("entry");
        let open = OpenOut::read_from_bytes(rest).expect("open");
        (entry.nodeid, open.fh)
    }

    fn write(&self, (node, fh): (u64, u64), offset: u64, data: &[u8], flags: WriteFlags) -> u32 {
        let args = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            write_flags: flags.bits(),
            ..Default::default()
        };
        let out: WriteOut = self.value(Opcode::Write, node, &[args.as_bytes(), data]);
        out.size
    }

    fn read(&self, (node, fh): (u64, u64), offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let args = ReadIn {
            fh,
            offset,
            size,
            ..Default::default()
        };
        self.call(Opcode::Read, node, &[args.as_bytes()])
    }

    fn host_file(&self, name: &str, data: &[u8]) {
        std::fs::write(self.dir.path().join(name), data).expect("write");
    }

    fn on_host(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).expect("read")
    }
}

/// A string with its NUL.
fn z(text: &str) -> Vec<u8> {
    CString::new(text).expect("no NUL").into_bytes_with_nul()
}

fn check(reply: Vec<u8>) -> Result<Vec<u8>, Errno> {
    let (header, body) = OutHeader::read_from_prefix(&reply).expect("a header");
    assert_eq!(header.len as usize, reply.len());
    assert_eq!(header.unique, UNIQUE);
    if header.error == 0 {
        return Ok(body.to_vec());
    }
    assert!((-4095..0).contains(&header.error), "{}", header.error);
    assert!(body.is_empty());
    Err(Errno::from_raw_os_error(-header.error))
}

fn ok<T: IntoBytes + Immutable>(guest: &Guest, op: Opcode, nodeid: u64, args: &T) {
    let reply = guest.call(op, nodeid, &[args.as_bytes()]).expect("success");
    assert!(reply.is_empty());
}

#[test]
fn nothing_is_answered_before_init_and_after_destroy() {
    let guest = Guest::unborn(false);
    guest.host_file("f", b"x");
    assert_eq!(guest.errno(Opcode::Lookup, 1, &[&z("f")]), Errno::NOTCONN);
    let out = guest.init(InitFlags::all());
    assert_eq!((out.major, out.minor, out.time_gran), (7, 45, 1));
    assert_eq!(out.max_write, MAX_WRITE_BYTES);
    let nodeid = guest.lookup("f").nodeid;
    guest.call(Opcode::Destroy, 0, &[]).expect("destroyed");
    assert_eq!(guest.errno(Opcode::Lookup, 1, &[&z("f")]), Errno::NOTCONN);

    guest.init(InitFlags::all());
    let args = GetattrIn::default();
    guest.errno(Opcode::Getattr, nodeid, &[args.as_bytes()]);
    let again = guest.lookup("f").nodeid;
    guest.init(InitFlags::all());
    guest.errno(Opcode::Getattr, again, &[args.as_bytes()]);
}

#[test]
fn versions_are_negotiated() {
    let guest = Guest::unborn(false);
    let mut init = InitIn {
        major: 8,
        ..Default::default()
    };
    let out: InitOut = guest.value(Opcode::Init, 0, &[init.as_bytes()]);
    assert_eq!(out.major, 7);
    assert_eq!(guest.errno(Opcode::Syncfs, 1, &[&[0; 8]]), Errno::NOTCONN);
    for (major, minor) in [(6, 99), (7, 30)] {
        (init.major, init.minor) = (major, minor);
        assert_eq!(
            guest.errno(Opcode::Init, 0, &[init.as_bytes()]),
            Errno::PROTO
        );
    }
    // The short form of kernels before 7.36.
    (init.major, init.minor) = (7, 31);
    let out: InitOut = guest.value(Opcode::Init, 0, &[&init.as_bytes()[..16]]);
    assert_eq!(out.minor, 31);
    assert_eq!(
        guest.errno(Opcode::Init, 0, &[&init.as_bytes()[..15]]),
        Errno::INVAL
    );
}

#[test]
fn a_file_is_created_written_read_and_removed() {
    let guest = Guest::new();
    let file = guest.create("f", libc::O_RDWR);
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    assert_eq!(guest.write(file, 5, &data, WriteFlags::empty()), 100_000);
    assert_eq!(guest.on_host("f")[5..], data);
    assert_eq!(guest.read(file, 5, 100_000).expect("read"), data);
    assert_eq!(
        guest.read(file, 100_000, 4096).expect("short"),
        data[99_995..]
    );
    assert_eq!(
        guest.read(file, 100_005, 4096).expect("end of file"),
        Vec::<u8>::new()
    );
    assert_eq!(guest.read(file, u64::MAX, 1), Err(Errno::INVAL));

    let (node, fh) = file;
    ok(
        &guest,
        Opcode::Flush,
        node,
        &FlushIn {
            fh,
            ..Default::default()
        },
    );
    ok(
        &guest,
        Opcode::Fsync,
        node,
        &FsyncIn {
            fh,
            ..Default::default()
        },
    );
    let end = LseekIn {
        fh,
        whence: libc::SEEK_DATA as u32,
        ..Default::default()
    };
    let out: LseekOut = guest.value(Opcode::Lseek, node, &[end.as_bytes()]);
    assert_eq!(out.offset, 0);
    ok(
        &guest,
        Opcode::Release,
        node,
        &ReleaseIn {
            fh,
            ..Default::default()
        },
    );
    assert_eq!(guest.read(file, 0, 1), Err(Errno::BADF));
    guest
        .call(Opcode::Unlink, ROOT_ID, &[&z("f")])
        .expect("unlinked");
    assert_eq!(
        guest.errno(Opcode::Lookup, ROOT_ID, &[&z("f")]),
        Errno::NOENT
    );
}

#[test]
fn an_append_goes_to_the_end_as_it_is() {
    let guest = Guest::new();
    let file = guest.create("log", libc::O_WRONLY | libc::O_APPEND);
    guest.write(file, 0, b"one", WriteFlags::empty());
    // Somebody else appends; the guest still believes that the size is 3.
    guest.host_file("log", b"oneTWO");
    guest.write(file, 3, b"three", WriteFlags::empty());
    assert_eq!(guest.on_host("log"), b"oneTWOthree");
    // Pages of a shared mapping have their own place.
    guest.write(file, 0, b"ONE", WriteFlags::CACHE);
    assert_eq!(guest.on_host("log"), b"ONETWOthree");
    assert_eq!(guest.read(file, 0, 1), Err(Errno::BADF), "write only");
}

#[test]
fn names_and_trees() {
    let guest = Guest::new();
    let dir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let made: EntryOut = guest.value(Opcode::Mkdir, ROOT_ID, &[dir.as_bytes(), &z("d")]);
    guest.host_file("f", b"data");
    let file = guest.lookup("f").nodeid;
    let link = LinkIn { oldnodeid: file };
    let linked: EntryOut = guest.value(Opcode::Link, made.nodeid, &[link.as_bytes(), &z("g")]);
    assert_eq!((linked.nodeid, linked.attr.nlink), (file, 2));
    let sym: EntryOut = guest.value(Opcode::Symlink, ROOT_ID, &[&z("s"), &z("d/g")]);
    assert_eq!(
        guest.call(Opcode::Readlink, sym.nodeid, &[]).expect("read"),
        b"d/g"
    );
    let fifo = MknodIn {
        mode: 0o010_600,
        ..Default::default()
    };
    let fifo: EntryOut = guest.value(Opcode::Mknod, ROOT_ID, &[fifo.as_bytes(), &z("p")]);
    assert_eq!(fifo.attr.mode, 0o010_600);

    let to = RenameIn {
        newdir: made.nodeid,
    };
    guest
        .call(Opcode::Rename, ROOT_ID, &[to.as_bytes(), &z("f"), &z("h")])
        .expect("renamed");
    let keep = Rename2In {
        newdir: made.nodeid,
        flags: libc::RENAME_NOREPLACE,
        padding: 0,
    };
    let both = [keep.as_bytes(), &z("s"), &z("h")];
    assert_eq!(guest.errno(Opcode::Rename2, ROOT_ID, &both), Errno::EXIST);
    assert_eq!(
        guest.errno(Opcode::Rmdir, ROOT_ID, &[&z("d")]),
        Errno::NOTEMPTY
    );
    assert!(guest.dir.path().join("d/h").exists());
}

#[test]
fn attributes_are_set_and_carry_the_timeouts() {
    let guest = Guest::new();
    guest.host_file("f", b"0123456789");
    let node = guest.lookup("f").nodeid;
    let set = SetattrIn {
        valid: (SetattrValid::MODE | SetattrValid::SIZE).bits(),
        mode: 0o100_600,
        size: 4,
        ..Default::default()
    };
    let out: AttrOut = guest.value(Opcode::Setattr, node, &[set.as_bytes()]);
    assert_eq!((out.attr.size, out.attr.mode), (4, 0o100_600));
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (1, 0));
    let meta = std::fs::metadata(guest.dir.path().join("f")).expect("exists");
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (4, 0o600));
    let out: KStatfs = guest.value(Opcode::Statfs, ROOT_ID, &[]);
    assert!(out.blocks > 0 && out.namelen == 255);
    ok(&guest, Opcode::Syncfs, ROOT_ID, &SyncfsIn::default());
}

#[test]
fn a_directory_is_listed_in_pieces_with_and_without_entries() {
    let guest = Guest::new();
    for i in 0..100 {
        guest.host_file(&format!("file-{i:03}"), b"");
    }
    for plus in [false, true] {
        let opcode = if plus {
            Opcode::Readdirplus
        } else {
            Opcode::Readdir
        };
        let out: OpenOut = guest.value(Opcode::Opendir, ROOT_ID, &[&[0; 8]]);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let args = ReadIn {
                fh: out.fh,
                offset,
                size: 1000,
                ..Default::default()
            };
            let list = guest
                .call(opcode, ROOT_ID, &[args.as_bytes()])
                .expect("listed");
            assert!(list.len() <= 1000);
            for entry in entries(&list, plus) {
                let name = String::from_utf8(entry.name.to_vec()).expect("utf-8");
                offset = entry.head.off;
                let node = entry.entry.map_or(0, |entry| entry.nodeid);
                assert_eq!(node != 0, plus && !name.starts_with('.'), "{name}");
                names.push(name);
            }
            if list.is_empty() {
                break;
            }
        }
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let expected: Vec<_> = (0..100).map(|i| format!("file-{i:03}")).collect();
        assert_eq!(names, expected);
        let small = ReadIn {
            fh: out.fh,
            size: 10,
            ..Default::default()
        };
        assert_eq!(
            guest.errno(opcode, ROOT_ID, &[small.as_bytes()]),
            Errno::INVAL
        );
        let close = ReleaseIn {
            fh: out.fh,
            ..Default::default()
        };
        ok(&guest, Opcode::Releasedir, ROOT_ID, &close);
    }
    // What READDIRPLUS looked up can be forgotten, and only that.
    let live = guest.server.fs().live_inodes();
    let first = guest.lookup("file-000").nodeid;
    let forget = ForgetIn { nlookup: 2 };
    assert!(
        guest
            .raw(Opcode::Forget as u32, first, &[forget.as_bytes()], 64)
            .is_empty()
    );
    assert_eq!(guest.server.fs().live_inodes(), live - 1);
}

#[test]
fn batch_forget_takes_what_is_there() {
    let guest = Guest::new();
    guest.host_file("a", b"");
    guest.host_file("b", b"");
    let nodes = [guest.lookup("a").nodeid, guest.lookup("b").nodeid];
    let before = guest.server.fs().live_inodes();
    let items = nodes.map(|nodeid| ForgetOne { nodeid, nlookup: 1 });
    let head = BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    let body = [head.as_bytes(), items.as_bytes()];
    assert!(
        guest
            .raw(Opcode::BatchForget as u32, 0, &body, 0)
            .is_empty()
    );
    assert_eq!(guest.server.fs().live_inodes(), before - 2);
}

#[test]
fn extended_attributes_in_both_forms() {
    let guest = Guest::new();
    guest.host_file("f", b"");
    let node = guest.lookup("f").nodeid;
    let name = z("user.colour");
    let long = SetxattrIn {
        size: 4,
        setxattr_flags: SetxattrFlags::empty().bits(),
        ..Default::default()
    };
    let set = guest.call(Opcode::Setxattr, node, &[long.as_bytes(), &name, b"blue"]);
    set.expect("set");
    let ask = |size| GetxattrIn { size, padding: 0 };
    let out: GetxattrOut = guest.value(Opcode::Getxattr, node, &[ask(0).as_bytes(), &name]);
    assert_eq!(out.size, 4);
    let value = guest.call(Opcode::Getxattr, node, &[ask(100).as_bytes(), &name]);
    assert_eq!(value.expect("value"), b"blue");
    assert_eq!(
        guest.errno(Opcode::Getxattr, node, &[ask(2).as_bytes(), &name]),
        Errno::RANGE
    );
    let list = guest
        .call(Opcode::Listxattr, node, &[ask(1000).as_bytes()])
        .expect("list");
    assert!(list.windows(name.len()).any(|w| w == name));
    let bad = SetxattrIn { size: 5, ..long };
    assert_eq!(
        guest.errno(Opcode::Setxattr, node, &[bad.as_bytes(), &name, b"blue"]),
        Errno::INVAL
    );

    guest.init(InitFlags::empty());
    let node = guest.lookup("f").nodeid;
    let short = SetxattrInCompat { size: 3, flags: 0 };
    guest
        .call(Opcode::Setxattr, node, &[short.as_bytes(), &name, b"red"])
        .expect("set");
    guest
        .call(Opcode::Removexattr, node, &[&name])
        .expect("removed");
    assert_eq!(
        guest.errno(Opcode::Getxattr, node, &[ask(9).as_bytes(), &name]),
        Errno::NODATA
    );
}

#[test]
fn read_only_means_read_only() {
    let guest = Guest::unborn(true);
    guest.init(InitFlags::all());
    guest.host_file("f", b"data");
    let node = guest.lookup("f").nodeid;
    let open = |flags: i32| OpenIn {
        flags: flags as u32,
        open_flags: 0,
    };
    assert_eq!(
        guest.errno(Opcode::Open, node, &[open(libc::O_RDWR).as_bytes()]),
        Errno::ROFS
    );
    let fh = guest.open(node, libc::O_RDONLY);
    assert_eq!(guest.read((node, fh), 0, 10).expect("read"), b"data");
    let args = WriteIn {
        fh,
        size: 1,
        ..Default::default()
    };
    assert_eq!(
        guest.errno(Opcode::Write, node, &[args.as_bytes(), b"x"]),
        Errno::BADF
    );
    assert_eq!(
        guest.errno(Opcode::Unlink, ROOT_ID, &[&z("f")]),
        Errno::ROFS
    );
}
