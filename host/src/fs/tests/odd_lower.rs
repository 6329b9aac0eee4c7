//! Lower file systems with habits that no local one has: a FUSE server with
//! cookies above `i64::MAX`, names above 255 bytes and an errno of its own for
//! what it does not know.

use std::ffi::{CStr, CString, OsStr};
use std::time::{Duration, UNIX_EPOCH};

use daxwindow_shared::fuse::ROOT_ID;
use fuser::{
    BackgroundSession, Config, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, IoctlFlags, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyIoctl, ReplyStatfs, Request,
};
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::{Name, ShareOptions, SharedDir};
use super::is_root;

const COUNT: u64 = 300;
/// What comes before the first entry's cookie.
const BASE: u64 = 1 << 63;
const FIRST: u64 = 2;
const CONTENT: &[u8] = b"hello";

/// The name of an entry; the first one's has 600 bytes.
fn name(index: u64) -> String {
    match index {
        0 => "\u{5b57}".repeat(200),
        index => format!("name-{index}"),
    }
}

struct OddFs;

fn attributes(inode: INodeNo) -> FileAttr {
    let is_dir = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if is_dir { 0 } else { CONTENT.len() as u64 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: match is_dir {
            true => FileType::Directory,
            false => FileType::RegularFile,
        },
        perm: if is_dir { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for OddFs {
    fn lookup(&self, _: &Request, _: INodeNo, wanted: &OsStr, reply: ReplyEntry) {
        match (0..COUNT).find(|index| *wanted == *name(*index)) {
            Some(index) => {
                let attr = attributes(INodeNo(FIRST + index));
                reply.entry(&Duration::ZERO, &attr, Generation(0));
            }
            None => reply.error(FuseErrno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attributes(inode));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(CONTENT);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for index in offset.saturating_sub(BASE)..COUNT {
            let inode = INodeNo(FIRST + index);
            let kind = FileType::RegularFile;
            if reply.add(inode, BASE + index + 1, kind, name(index)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1, 1, 1, 1, 1, 4096, 1023, 4096);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(FuseErrno::EOPNOTSUPP);
    }
}

/// The file system, shared; nothing for those who may not mount.
fn odd() -> Option<(SharedDir, BackgroundSession, TempDir)> {
    if !is_root() {
        return None;
    }
    let place = tempfile::tempdir().expect("a directory");
    let session = fuser::spawn_mount(OddFs, place.path(), &Config::default()).expect("mounted");
    let share = SharedDir::open(place.path(), ShareOptions::default()).expect("shared");
    Some((share, session, place))
}

fn look(share: &SharedDir, name: &str) -> Result<u64, Errno> {
    let name = CString::new(name).expect("no zero");
    let name: &CStr = &name;
    Ok(share.lookup(ROOT_ID, Name::new(name)?)?.nodeid)
}

#[test]
fn cookies_with_the_highest_bit_set_lead_back_to_their_place() {
    let Some((share, _session, _place)) = odd() else {
        return;
    };
    let fh = share.opendir(ROOT_ID).expect("opened");
    // As a guest does whose programs read by small buffers: it goes back to
    // the last entry that was taken.
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let mut batch = Vec::new();
        let listed = share.readdir(ROOT_ID, fh, offset, &mut |item| {
            batch.push((item.name.to_str().expect("text").to_owned(), item.offset));
            batch.len() < 100
        });
        listed.expect("listed");
        batch.truncate(64);
        match batch.last() {
            Some((_, cookie)) => offset = *cookie,
            None => break,
        }
        names.extend(batch.into_iter().map(|(name, _)| name));
    }
    let all: Vec<String> = (0..COUNT).map(name).collect();
    assert_eq!(names, all);
    let strange = share.readdir(ROOT_ID, fh, u64::MAX, &mut |_| true);
    assert_eq!(strange, Err(Errno::INVAL), "the cookie of no entry");
}

#[test]
fn a_name_is_as_long_as_its_file_system_allows() {
    let Some((share, _session, _place)) = odd() else {
        return;
    };
    let node = look(&share, &name(0)).expect("600 bytes");
    let fh = share.open_file(node, libc::O_RDONLY as u32, false);
    let open = share.file(node, fh.expect("opened")).expect("open");
    let mut content = [0; 5];
    rustix::io::pread(&open.file, &mut content, 0).expect("read");
    assert_eq!(content, *CONTENT);
    assert_eq!(look(&share, &"x".repeat(4095)), Err(Errno::NOENT));
    assert_eq!(look(&share, &"x".repeat(4096)), Err(Errno::NAMETOOLONG));
}

#[test]
fn attributes_that_a_file_system_does_not_know_are_enotty() {
    let Some((share, _session, _place)) = odd() else {
        return;
    };
    let node = look(&share, &name(1)).expect("there");
    let fh = share.open_file(node, libc::O_RDONLY as u32, false);
    let fh = fh.expect("opened");
    assert_eq!(share.file_flags(node, fh), Err(Errno::NOTTY));
    assert_eq!(share.file_xattr(node, fh).err(), Some(Errno::NOTTY));
    let dir = share.opendir(ROOT_ID).expect("opened");
    assert_eq!(share.file_flags(ROOT_ID, dir), Err(Errno::NOTTY));
}
