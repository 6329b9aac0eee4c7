//! One good request of every kind, to be spoilt.

use std::path::Path;
use std::sync::Arc;

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::ioctl::GETFLAGS;
use daxwindow_shared::fuse::{
    BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, FileLock, FlushIn, ForgetIn, ForgetOne,
    FsyncIn, GetattrIn, GetxattrIn, InitIn, IoctlIn, KERNEL_MINOR_VERSION, KERNEL_VERSION, LinkIn,
    LkIn, LseekIn, MkdirIn, MknodIn, Opcode, OpenIn, ROOT_ID, ReadIn, ReleaseIn, RemoveMappingIn,
    RemoveMappingOne, Rename2In, RenameIn, SetattrIn, SetupMappingIn, SetxattrIn, StatxIn,
    SyncfsIn, WriteIn,
};
use tempfile::TempDir;

use crate::common::wire::{Message, args};
use crate::common::{Daemon, RANGE, attach, in_memory, make_file, open, walk};

/// A daemon, a guest, and what the guest has open.
pub(crate) struct Scene {
    pub(crate) share: TempDir,
    pub(crate) session: Arc<Session>,
    pub(crate) file: u64,
    pub(crate) fh: u64,
    pub(crate) dir: u64,
    pub(crate) dh: u64,
    pub(crate) link: u64,
    // Last: it ends when its guest has gone.
    pub(crate) daemon: Daemon,
}

/// Files that every scene has.
fn furnish(share: &Path) {
    make_file(&share.join("file"), 1, 8192);
    std::fs::create_dir(share.join("dir")).expect("a directory");
    std::fs::write(share.join("dir/inner"), "x").expect("a file");
    std::os::unix::fs::symlink("file", share.join("link")).expect("a link");
}

/// Puts back what damaged requests may have removed.
pub(crate) fn refurnish(share: &Path) {
    for entry in std::fs::read_dir(share).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path).expect("remove");
        } else {
            std::fs::remove_file(path).expect("remove");
        }
    }
    furnish(share);
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let share = in_memory();
        furnish(share.path());
        let daemon = Daemon::start(
            share.path(),
            &[
                "--dax",
                "always",
                "--dax-window",
                "16M",
                "--locks",
                "--xattr",
            ],
        );
        let session = attach(&daemon);
        let mut scene = Scene {
            share,
            session,
            file: 0,
            fh: 0,
            dir: 0,
            dh: 0,
            link: 0,
            daemon,
        };
        scene.reopen();
        scene
    }

    /// Looks everything up again, in a fresh session.
    pub(crate) fn reopen(&mut self) {
        let session = &self.session;
        let (file, handle) = open(session, "file", libc::O_RDWR).expect("file");
        let dir = walk(session, "dir").expect("dir").nodeid;
        self.file = file.nodeid;
        self.fh = handle.fh;
        self.dir = dir;
        self.dh = session.opendir(dir, 0).expect("opendir").fh;
        self.link = walk(session, "link").expect("link").nodeid;
    }
}

fn message(opcode: Opcode, nodeid: u64, parts: &[&[u8]]) -> Message {
    Message::new(opcode as u32, nodeid, parts.concat())
}

fn about_names(scene: &Scene) -> Vec<Message> {
    let mknod = args(MknodIn {
        mode: libc::S_IFREG | 0o644,
        ..MknodIn::default()
    });
    let mkdir = args(MkdirIn {
        mode: 0o755,
        umask: 0,
    });
    let create = args(CreateIn {
        flags: libc::O_RDWR as u32,
        mode: libc::S_IFREG | 0o644,
        ..CreateIn::default()
    });
    let to_dir = args(RenameIn { newdir: scene.dir });
    let to_dir_2 = args(Rename2In {
        newdir: scene.dir,
        ..Rename2In::default()
    });
    let link = args(LinkIn {
        oldnodeid: scene.file,
    });
    vec![
        message(Opcode::Lookup, ROOT_ID, &[b"file\0"]),
        message(Opcode::Symlink, ROOT_ID, &[b"symlink\0", b"target\0"]),
        message(Opcode::Mknod, ROOT_ID, &[&mknod, b"node\0"]),
        message(Opcode::Mkdir, ROOT_ID, &[&mkdir, b"made\0"]),
        message(Opcode::Link, ROOT_ID, &[&link, b"hard\0"]),
        message(Opcode::Create, ROOT_ID, &[&create, b"created\0"]),
        message(Opcode::Tmpfile, ROOT_ID, &[&create, b"/\0"]),
        message(Opcode::Rename, ROOT_ID, &[&to_dir, b"node\0", b"moved\0"]),
        message(Opcode::Rename2, ROOT_ID, &[&to_dir_2, b"hard\0", b"hard\0"]),
        message(Opcode::Unlink, ROOT_ID, &[b"symlink\0"]),
        message(Opcode::Rmdir, ROOT_ID, &[b"made\0"]),
        message(Opcode::Readlink, scene.link, &[]),
    ]
}

fn about_files(scene: &Scene) -> Vec<Message> {
    let (file, fh) = (scene.file, scene.fh);
    let open = args(OpenIn {
        flags: libc::O_RDWR as u32,
        open_flags: 0,
    });
    let read = args(ReadIn {
        fh,
        size: 4096,
        ..ReadIn::default()
    });
    let write = args(WriteIn {
        fh,
        size: 16,
        ..WriteIn::default()
    });
    let copy = args(CopyFileRangeIn {
        fh_in: fh,
        nodeid_out: file,
        fh_out: fh,
        off_out: 4096,
        len: 64,
        ..CopyFileRangeIn::default()
    });
    let fallocate = args(FallocateIn {
        fh,
        length: 8192,
        ..FallocateIn::default()
    });
    let lseek = args(LseekIn {
        fh,
        whence: libc::SEEK_END as u32,
        ..LseekIn::default()
    });
    let fsync = args(FsyncIn {
        fh,
        ..FsyncIn::default()
    });
    let flush = args(FlushIn {
        fh,
        ..FlushIn::default()
    });
    let flags = args(IoctlIn {
        fh,
        cmd: GETFLAGS,
        out_size: 4,
        ..IoctlIn::default()
    });
    vec![
        message(Opcode::CopyFileRange64, file, &[&copy]),
        message(Opcode::Ioctl, file, &[&flags]),
        message(Opcode::Open, file, &[&open]),
        message(Opcode::Read, file, &[&read]),
        message(Opcode::Write, file, &[&write, &[7; 16]]),
        message(Opcode::CopyFileRange, file, &[&copy]),
        message(Opcode::Fallocate, file, &[&fallocate]),
        message(Opcode::Lseek, file, &[&lseek]),
        message(Opcode::Fsync, file, &[&fsync]),
        message(Opcode::Flush, file, &[&flush]),
        message(Opcode::Syncfs, ROOT_ID, &[&args(SyncfsIn::default())]),
    ]
}

fn about_locks(scene: &Scene) -> Vec<Message> {
    let lock = args(LkIn {
        fh: scene.fh,
        owner: 1,
        lk: FileLock {
            start: 0,
            end: 99,
            typ: libc::F_WRLCK as u32,
            pid: 1,
        },
        ..LkIn::default()
    });
    let kinds = [Opcode::Getlk, Opcode::Setlk, Opcode::Setlkw];
    let to_message = |opcode| message(opcode, scene.file, &[&lock]);
    kinds.map(to_message).to_vec()
}

fn about_attributes(scene: &Scene) -> Vec<Message> {
    let setattr = args(SetattrIn {
        valid: 1,
        mode: 0o600,
        ..SetattrIn::default()
    });
    let setxattr = args(SetxattrIn {
        size: 5,
        ..SetxattrIn::default()
    });
    let getxattr = args(GetxattrIn {
        size: 64,
        padding: 0,
    });
    let name = b"user.colour\0";
    vec![
        message(Opcode::Getattr, scene.file, &[&args(GetattrIn::default())]),
        message(Opcode::Setattr, scene.file, &[&setattr]),
        message(Opcode::Statx, scene.file, &[&args(StatxIn::default())]),
        message(Opcode::Statfs, ROOT_ID, &[]),
        message(Opcode::Setxattr, scene.file, &[&setxattr, name, b"green"]),
        message(Opcode::Getxattr, scene.file, &[&getxattr, name]),
        message(Opcode::Listxattr, scene.file, &[&getxattr]),
        message(Opcode::Removexattr, scene.file, &[name]),
    ]
}

fn about_directories(scene: &Scene) -> Vec<Message> {
    let list = args(ReadIn {
        fh: scene.dh,
        size: 4096,
        ..ReadIn::default()
    });
    let fsync = args(FsyncIn {
        fh: scene.dh,
        ..FsyncIn::default()
    });
    vec![
        message(Opcode::Opendir, scene.dir, &[&args(OpenIn::default())]),
        message(Opcode::Readdir, scene.dir, &[&list]),
        message(Opcode::Readdirplus, scene.dir, &[&list]),
        message(Opcode::Fsyncdir, scene.dir, &[&fsync]),
    ]
}

/// SETUPMAPPING of the first range of the scene's file.
pub(crate) fn setup(nodeid: u64) -> (u64, SetupMappingIn) {
    let setup = SetupMappingIn {
        fh: u64::MAX,
        foffset: 0,
        len: RANGE,
        flags: 3,
        moffset: 0,
    };
    (nodeid, setup)
}

/// REMOVEMAPPING that claims `count` ranges and carries `ranges`.
pub(crate) fn removal(count: u32, ranges: &[(u64, u64)]) -> Message {
    let mut body = args(RemoveMappingIn { count });
    for &(moffset, len) in ranges {
        body.extend(args(RemoveMappingOne { moffset, len }));
    }
    Message::new(Opcode::Removemapping as u32, ROOT_ID, body)
}

fn about_the_window(scene: &Scene) -> Vec<Message> {
    let (nodeid, setup) = setup(scene.file);
    vec![
        message(Opcode::Setupmapping, nodeid, &[&args(setup)]),
        removal(1, &[(0, RANGE)]),
    ]
}

/// INIT as Linux sends it.
pub(crate) fn init() -> Message {
    let init = InitIn {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead: 1 << 17,
        ..InitIn::default()
    };
    message(Opcode::Init, 0, &[&args(init)])
}

/// Requests that are never answered.
pub(crate) fn forgets() -> Vec<Message> {
    let one = args(ForgetOne {
        nodeid: u64::MAX,
        nlookup: 1,
    });
    let many = args(BatchForgetIn { count: 1, dummy: 0 });
    vec![
        message(Opcode::Forget, u64::MAX, &[&args(ForgetIn { nlookup: 1 })]),
        message(Opcode::BatchForget, 0, &[&many, &one]),
    ]
}

/// What ends a handle that the other samples need.
pub(crate) fn releases(scene: &Scene) -> Vec<Message> {
    let release = |fh| {
        args(ReleaseIn {
            fh,
            ..ReleaseIn::default()
        })
    };
    vec![
        message(Opcode::Release, scene.file, &[&release(scene.fh)]),
        message(Opcode::Releasedir, scene.dir, &[&release(scene.dh)]),
    ]
}

/// Every answered request that a session serves, in an order in which all of
/// them succeed.
pub(crate) fn answered(scene: &Scene) -> Vec<Message> {
    [
        about_names(scene),
        about_files(scene),
        about_locks(scene),
        about_attributes(scene),
        about_directories(scene),
        about_the_window(scene),
        releases(scene),
    ]
    .concat()
}
