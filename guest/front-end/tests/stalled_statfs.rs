//! A file whose own file system answers nothing about itself. Needs
//! `/dev/fuse` and `CAP_SYS_ADMIN`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use daxwindow_front_end::RegularFile;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    OpenFlags, ReplyAttr, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};

const FILE: u64 = 2;

/// One file with large blocks. `statfs` is never answered.
struct Stalled(Arc<Mutex<Vec<ReplyStatfs>>>);

fn attr(ino: u64) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: 4096,
        blocks: 8,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: match ino {
            FILE => FileType::RegularFile,
            _ => FileType::Directory,
        },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    }
}

impl Filesystem for Stalled {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "file" {
            true => reply.entry(&Duration::MAX, &attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::MAX, &attr(ino.into()));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.0.lock().expect("no panic").push(reply);
    }
}

#[test]
fn a_file_is_examined_without_a_word_from_its_file_system() {
    let directory = tempfile::tempdir().expect("directory");
    let held = Arc::default();
    let files = Stalled(Arc::clone(&held));
    let mount = fuser::spawn_mount(files, directory.path(), &Config::default());
    let mount = mount.expect("a FUSE mount (/dev/fuse, CAP_SYS_ADMIN)");
    let file = File::open(directory.path().join("file")).expect("open");
    let (said, hears) = mpsc::channel();
    let examining = std::thread::spawn(move || {
        let is_regular = RegularFile::check(file.as_fd()).is_ok();
        said.send(is_regular).expect("somebody hears");
    });
    let heard = hears.recv_timeout(Duration::from_secs(60));
    let asked = std::mem::take(&mut *held.lock().expect("no panic")).len();
    assert_eq!((heard, asked), (Ok(true), 0));
    examining.join().expect("no panic");
    drop(mount);
}
