//! Listing directories.
//!
//! A cookie is the host file system's own `d_off`, so a guest may come back to
//! any it has seen. The host is read a buffer at a time; what the guest had no
//! room for is kept for its next request, because going back costs the host
//! far more than keeping (ext4 sorts a block anew after every seek).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RawDir, RawDirEntry, SeekFrom};
use rustix::io::Errno;

use super::SharedDir;
use super::attr::stat;
use super::handle::Open;
use crate::budget::{Budget, Share};

/// Read from the host at a time, in bytes.
const BUFFER_BYTES: usize = 16 << 10;

/// Bytes that all directories of one guest may keep between requests; beyond,
/// they are read again.
pub(super) const MAX_LISTING_BYTES: usize = 8 << 20;

/// One directory entry handed to a READDIR sink.
#[derive(Clone, Copy, Debug)]
pub struct DirItem<'a> {
    /// Inode number on the host.
    pub ino: u64,
    /// Cookie of the *next* entry.
    pub offset: u64,
    /// `DT_*` type.
    pub typ: u32,
    /// Name, "." and ".." included.
    pub name: &'a CStr,
}

/// A directory being listed.
#[derive(Debug)]
pub(super) struct OpenDir {
    /// Reported for ".." in place of what the host says: the root's parent is
    /// none of the guest's business.
    parent_ino: Option<u64>,
    /// One request at a time reads.
    listing: Mutex<Listing>,
}

#[derive(Debug)]
struct Listing {
    fd: OwnedFd,
    /// Where the host would read on; `None` if unknown.
    position: Option<u64>,
    rest: Option<Rest>,
}

/// Entries read but not handed out.
#[derive(Debug)]
struct Rest {
    /// Cookie of the first.
    from: u64,
    items: Vec<RestItem>,
    next: usize,
    names: Vec<u8>,
    _share: Share,
}

#[derive(Debug)]
struct RestItem {
    ino: u64,
    offset: u64,
    typ: u32,
    /// Where its name starts.
    name: usize,
}

type Sink<'s> = &'s mut dyn FnMut(DirItem<'_>) -> bool;

impl SharedDir {
    /// Opens a directory for listing and returns its handle.
    pub fn opendir(&self, nodeid: u64) -> Result<u64, Errno> {
        let inode = self.inode(nodeid)?;
        if inode.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let room = self.handles.reserve()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.reopen(&inode, flags)?;
        let is_root = nodeid == daxwindow_shared::fuse::ROOT_ID;
        let parent_ino = is_root.then(|| stat(&fd)).transpose()?.map(|s| s.stx_ino);
        let dir = OpenDir {
            parent_ino,
            listing: Mutex::new(Listing {
                fd,
                position: Some(0),
                rest: None,
            }),
        };
        self.handles.add(room, &inode, Open::Dir(Arc::new(dir)))
    }

    /// Closes a directory handle.
    pub fn releasedir(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        self.handles.remove_dir(nodeid, fh)
    }

    /// Makes a directory durable on the host.
    pub fn fsyncdir(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<(), Errno> {
        let dir = self.handles.dir(nodeid, fh)?;
        let fd = rustix::io::dup(&dir.listing.lock().fd)?;
        if datasync {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }
    }

    /// Feeds entries from the cookie `offset` on to `sink` until it answers
    /// false (that entry is then not taken and comes again) or the directory
    /// ends. For READDIRPLUS the sink itself calls `lookup` (never for "." and
    /// ".."); it must not list the same handle.
    pub fn readdir(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        sink: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<(), Errno> {
        let dir = self.handles.dir(nodeid, fh)?;
        let parent_ino = dir.parent_ino;
        let mut fed = |mut item: DirItem<'_>| {
            if let (Some(ino), b"..") = (parent_ino, item.name.to_bytes()) {
                item.ino = ino;
            }
            sink(item)
        };
        dir.listing.lock().feed(offset, &mut fed, &self.listing)
    }
}

impl Listing {
    fn feed(&mut self, offset: u64, sink: Sink<'_>, budget: &Arc<Budget>) -> Result<(), Errno> {
        let offset = match self.rest.take() {
            Some(mut rest) if rest.from == offset => {
                if !rest.feed(sink) {
                    self.rest = Some(rest);
                    return Ok(());
                }
                rest.from
            }
            _ => offset,
        };
        let skip_to = match self.position == Some(offset) {
            true => None,
            false => self.go_to(offset)?,
        };
        self.feed_from_host(offset, skip_to, sink, budget)
    }

    /// Has the host read on from a cookie, or from the start, where everything
    /// before the cookie that is returned is to be skipped. Cookies of NFS and
    /// of FUSE servers may have the highest bit set, and Linux lets nobody seek
    /// to those.
    fn go_to(&mut self, offset: u64) -> Result<Option<u64>, Errno> {
        self.position = None;
        match rustix::fs::seek(&self.fd, SeekFrom::Start(offset)) {
            Ok(_) => Ok(None),
            Err(Errno::INVAL) if i64::try_from(offset).is_err() => {
                rustix::fs::seek(&self.fd, SeekFrom::Start(0))?;
                Ok(Some(offset))
            }
            Err(errno) => Err(errno),
        }
    }

    /// `EINVAL` if the cookie to skip to is that of no entry.
    fn feed_from_host(
        &mut self,
        mut offset: u64,
        mut skip_to: Option<u64>,
        sink: Sink<'_>,
        budget: &Arc<Budget>,
    ) -> Result<(), Errno> {
        self.position = None;
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER_BYTES];
        let mut host = RawDir::new(&self.fd, &mut buffer);
        while let Some(entry) = host.next() {
            let entry = entry?;
            let item = item_of(&entry);
            let next = item.offset;
            if skip_to.is_some() {
                skip_to = skip_to.filter(|cookie| *cookie != next);
                continue;
            }
            if !sink(item) {
                let keep = Keep::first(offset, item);
                (self.position, self.rest) = keep.rest_of(&mut host, budget)?;
                return Ok(());
            }
            offset = next;
        }
        if skip_to.is_some() {
            return Err(Errno::INVAL);
        }
        self.position = Some(offset);
        Ok(())
    }
}

impl Rest {
    /// Hands entries out; false if the sink wants no more. `from` follows.
    fn feed(&mut self, sink: Sink<'_>) -> bool {
        while let Some(item) = self.items.get(self.next) {
            let Some(name) = self.names.get(item.name..) else {
                break;
            };
            let Ok(name) = CStr::from_bytes_until_nul(name) else {
                break;
            };
            let (ino, offset, typ) = (item.ino, item.offset, item.typ);
            let item = DirItem {
                ino,
                offset,
                typ,
                name,
            };
            if !sink(item) {
                return false;
            }
            self.from = offset;
            self.next += 1;
        }
        true
    }
}

/// Collects what is left in the buffer.
struct Keep {
    from: u64,
    items: Vec<RestItem>,
    names: Vec<u8>,
}

impl Keep {
    fn first(from: u64, item: DirItem<'_>) -> Keep {
        let mut keep = Keep {
            from,
            items: Vec::new(),
            names: Vec::new(),
        };
        keep.push(item);
        keep
    }

    fn push(&mut self, item: DirItem<'_>) {
        self.items.push(RestItem {
            ino: item.ino,
            offset: item.offset,
            typ: item.typ,
            name: self.names.len(),
        });
        self.names.extend_from_slice(item.name.to_bytes_with_nul());
    }

    /// The host's position and the rest, if the budget has room for it.
    fn rest_of(
        mut self,
        host: &mut RawDir<'_, &OwnedFd>,
        budget: &Arc<Budget>,
    ) -> Result<(Option<u64>, Option<Rest>), Errno> {
        while !host.is_buffer_empty() {
            match host.next() {
                Some(entry) => self.push(item_of(&entry?)),
                None => break,
            }
        }
        let position = self.items.last().map(|item| item.offset);
        self.items.shrink_to_fit();
        self.names.shrink_to_fit();
        let bytes = self.names.len() + self.items.len() * size_of::<RestItem>();
        let rest = budget.take(bytes).map(|share| Rest {
            from: self.from,
            items: self.items,
            next: 0,
            names: self.names,
            _share: share,
        });
        Ok((position, rest))
    }
}

fn item_of<'e>(entry: &'e RawDirEntry<'_>) -> DirItem<'e> {
    DirItem {
        ino: entry.ino(),
        offset: entry.next_entry_cookie(),
        typ: match entry.file_type() {
            FileType::Unknown => 0,
            // DT_* are the type bits of a mode, shifted down.
            kind => kind.as_raw_mode() >> 12,
        },
        name: entry.file_name(),
    }
}
