//! Files for the window.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Access, AtFlags, OFlags, SeekFrom, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use vm_memory::{FileOffset, MmapRegion};

use super::inode::Inode;
use super::{HostInode, SharedDir};
use crate::dax::{Generation, MapFile, MapSource, NoDax, StoreRange};
use crate::procfd::ProcFd;

/// What may be opened for writing only to append, or not at all, whoever may
/// write it.
const FIXED: StatxAttributes = StatxAttributes::APPEND.union(StatxAttributes::VERITY);

impl SharedDir {
    /// Whether the file can be mapped shared; `writable`: by a descriptor that
    /// is open for writing. It is opened only where nothing else tells: on a
    /// server's file system.
    ///
    /// # Errors
    ///
    /// [`NoDax::NotWritable`], [`NoDax::CopiesUp`], [`NoDax::NotMappable`] and
    /// [`NoDax::Wasted`].
    pub fn mappable(&self, nodeid: u64, writable: bool) -> Result<(), NoDax> {
        if let Some(why) = self.unmappable(nodeid) {
            return Err(why);
        }
        let inode = self.inode(nodeid).map_err(|_| NoDax::NotMappable)?;
        if writable {
            self.opens_writable(&inode)
                .map_err(|_| NoDax::NotWritable)?;
        }
        match inode.mount() {
            mount if mount.copies_up() => Err(NoDax::CopiesUp),
            mount if mount.maps_every_file() => Ok(()),
            _ => self.try_to_map(&inode, writable),
        }
    }

    /// Whether the file could be opened for writing with no other effect, as
    /// far as that is told without doing so. Immutable files, read-only mounts
    /// and files of others are reasons why not.
    fn opens_writable(&self, inode: &Inode) -> Result<(), Errno> {
        let fd = inode.fd()?;
        let link = ProcFd::link(fd.as_fd());
        let flags = AtFlags::EACCESS;
        rustix::fs::accessat(self.proc.dir(), link.as_c_str(), Access::WRITE_OK, flags)?;
        let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        match stat.stx_attributes.intersects(FIXED) {
            true => Err(Errno::PERM),
            false => Ok(()),
        }
    }

    fn try_to_map(&self, inode: &Inode, writable: bool) -> Result<(), NoDax> {
        let (access, why) = match writable {
            true => (OFlags::RDWR, NoDax::NotWritable),
            false => (OFlags::RDONLY, NoDax::NotMappable),
        };
        let file = self.reopen(inode, access | OFlags::NONBLOCK);
        let start = FileOffset::new(File::from(file.map_err(|_| why)?), 0);
        let page = rustix::param::page_size();
        // No page of it is touched.
        let mapped = MmapRegion::<()>::build(Some(start), page, libc::PROT_READ, libc::MAP_SHARED);
        mapped.map(drop).map_err(|_| NoDax::NotMappable)
    }

    /// Whether there is a hole in the file; one that cannot be opened has none.
    pub fn has_hole(&self, nodeid: u64) -> bool {
        let hole = || {
            let inode = self.inode(nodeid)?;
            let file = self.reopen(&inode, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let first = rustix::fs::seek(&file, SeekFrom::Hole(0))?;
            Ok::<bool, Errno>(first < rustix::fs::seek(&file, SeekFrom::End(0))?)
        };
        hole().unwrap_or(false)
    }

    /// Where a file is copied to another layer when it is opened for writing,
    /// has that done: a mapping of the copy that was there before would show
    /// the old bytes for ever, on a front end that cannot replace it. Where
    /// nothing can be written, nothing is copied.
    fn copy_up(&self, inode: &Inode) -> Result<(), Errno> {
        if !inode.mount().copies_up() {
            return Ok(());
        }
        let opened = self
            .require_writable()
            .and_then(|()| self.reopen(inode, OFlags::WRONLY));
        match opened {
            Ok(_) | Err(Errno::ROFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Files that are mapped no more, of one session, and why.
#[derive(Debug, Default)]
pub(super) struct Unmappable(Mutex<HashMap<HostInode, NoDax>>);

impl Unmappable {
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Files of which this is remembered; over that it is found out once more.
const MOST_UNMAPPABLE: usize = 4096;

impl SharedDir {
    /// Why the file was found to be mapped no more. The node may be another than
    /// at the time: a guest drops an inode that has lost DAX.
    pub(super) fn unmappable(&self, nodeid: u64) -> Option<NoDax> {
        let known = self.unmappable.0.lock();
        match known.is_empty() {
            true => None,
            false => known.get(&self.host_inode(nodeid)?).copied(),
        }
    }

    fn withdraw(&self, nodeid: u64, why: NoDax) {
        let Some(inode) = self.host_inode(nodeid) else {
            return;
        };
        let mut known = self.unmappable.0.lock();
        if known.len() >= MOST_UNMAPPABLE {
            known.clear();
        }
        known.insert(inode, why);
        drop(known);
        self.inodes.withdraw_dax(nodeid);
    }
}

impl MapSource for SharedDir {
    fn refused(&self, nodeid: u64) {
        self.withdraw(nodeid, NoDax::NotMappable);
    }

    fn wasted(&self, nodeid: u64) {
        self.withdraw(nodeid, NoDax::Wasted);
    }

    /// Opens a regular file by its node, so that it may have no name, no
    /// permission bits and no open handle.
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno> {
        let inode = match writable {
            true => self.inode_to_change(nodeid)?,
            false => self.inode(nodeid)?,
        };
        inode.require_regular()?;
        let access = if writable {
            OFlags::RDWR
        } else {
            self.copy_up(&inode)?;
            OFlags::RDONLY
        };
        let fd = self.reopen(&inode, access)?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn open_to_follow(&self, nodeid: u64) -> Result<MapFile, Errno> {
        let inode = self.inode(nodeid)?;
        inode.require_regular()?;
        let fd = self.reopen(&inode, OFlags::RDONLY)?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn look(&self, nodeid: u64) -> Result<Generation, Errno> {
        self.look_at_layer(nodeid)
    }

    fn known(&self, nodeid: u64) -> Generation {
        self.known_layer(nodeid)
    }

    fn make_room(&self, range: &StoreRange, scarce: u64) -> Result<(), Errno> {
        if range.write {
            self.begin_stores(&*self.inode(range.nodeid)?)?;
        }
        self.allocate(range, scarce)
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        let inode = self.inode(nodeid)?;
        inode.require_regular()?;
        let stat = rustix::fs::fstat(inode.fd()?)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}
