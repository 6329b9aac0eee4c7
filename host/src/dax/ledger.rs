//! Which file range is where in the window: plain bookkeeping, no I/O.
//!
//! Laws: extents never overlap; every extent is one map as the front end knows
//! it (or, with a byte-granular front end, part of one); an inode's files
//! stay open no longer than it has extents, and no more than so many in all;
//! they are closed by the caller: that may take as long as their file system
//! likes, and is not for a lock.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::window::WindowRange;

use super::source::Generation;

/// One mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the window.
    pub range: WindowRange,
    /// Which inode.
    pub nodeid: u64,
    /// Start in the file, bytes.
    pub file_offset: u64,
    /// Stores are allowed.
    pub writable: bool,
    /// Of which of the files that the inode stands for in turn.
    pub generation: Generation,
    /// False when the front end gave no answer: it may or may not be mapped.
    pub confirmed: bool,
}

impl Extent {
    /// Whether `range` of the window shows `file_offset` of `nodeid` already.
    pub fn shows(&self, range: &WindowRange, nodeid: u64, file_offset: u64) -> bool {
        let within = range.start().0.wrapping_sub(self.range.start().0);
        self.confirmed
            && self.range.contains(range)
            && self.nodeid == nodeid
            && self.file_offset.checked_add(within) == Some(file_offset)
    }

    /// Whether something else than the file of `generation` may be there.
    pub fn is_stale(&self, generation: Generation) -> bool {
        self.generation != generation || !self.confirmed && generation != Generation::SOLE
    }

    /// The part of the extent in `range`, which lies inside it.
    fn part(&self, range: WindowRange) -> Extent {
        let skipped = range.start().0.saturating_sub(self.range.start().0);
        Extent {
            range,
            file_offset: self.file_offset.saturating_add(skipped),
            ..*self
        }
    }
}

/// A file that is kept open.
#[derive(Debug)]
struct Kept {
    fd: Arc<OwnedFd>,
    generation: Generation,
}

/// Files of one mapped inode, kept open while it has extents.
#[derive(Debug)]
struct InodeUse {
    extents: usize,
    read_only: Option<Kept>,
    read_write: Option<Kept>,
    /// Size of the file when it was mapped last.
    bytes: Option<u64>,
    /// No extent is of an earlier file than this; none is in doubt, or this is
    /// [`Generation::NONE`].
    oldest: Generation,
}

impl InodeUse {
    fn new() -> InodeUse {
        InodeUse {
            extents: 0,
            read_only: None,
            read_write: None,
            bytes: None,
            oldest: Generation::SOLE,
        }
    }

    fn files(self) -> impl Iterator<Item = Arc<OwnedFd>> {
        let kept = self.read_only.into_iter().chain(self.read_write);
        kept.map(|kept| kept.fd)
    }

    fn slot(&mut self, writable: bool) -> &mut Option<Kept> {
        match writable {
            true => &mut self.read_write,
            false => &mut self.read_only,
        }
    }
}

/// All live extents of one guest.
#[derive(Debug)]
pub struct Ledger {
    extents: BTreeMap<u64, Extent>,
    inodes: HashMap<u64, InodeUse>,
    bytes: u64,
    /// Files that are not needed any more.
    unused: Vec<Arc<OwnedFd>>,
    /// Files that are kept open, and how many may be.
    files: usize,
    max_files: usize,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::new(usize::MAX)
    }
}

impl Ledger {
    /// Nothing is mapped. Of the files that will be, at most `max_files` are
    /// kept open; others are opened again for each map.
    pub fn new(max_files: usize) -> Ledger {
        Ledger {
            extents: BTreeMap::new(),
            inodes: HashMap::new(),
            bytes: 0,
            unused: Vec::new(),
            files: 0,
            max_files,
        }
    }

    /// Files kept open.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of live extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of inodes with extents.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Extents of one inode.
    pub fn extents_of(&self, nodeid: u64) -> usize {
        self.inodes.get(&nodeid).map_or(0, |inode| inode.extents)
    }

    /// All extents, by window offset.
    pub fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents.values()
    }

    /// All extents of one inode.
    pub fn ranges_of(&self, nodeid: u64) -> Vec<Extent> {
        let of_inode = self
            .extents
            .values()
            .filter(|extent| extent.nodeid == nodeid);
        of_inode.copied().collect()
    }

    /// The extents that share a byte with `range`, by window offset.
    pub fn overlapping(&self, range: &WindowRange) -> Vec<Extent> {
        let (start, end) = (range.start().0, range.end().0);
        let before = self
            .extents
            .range(..start)
            .next_back()
            .map(|(_, extent)| extent);
        let within = self.extents.range(start..end).map(|(_, extent)| extent);
        before
            .into_iter()
            .chain(within)
            .filter(|extent| extent.range.overlaps(range))
            .copied()
            .collect()
    }

    /// Adds an extent, cutting away whatever it covers.
    pub fn insert(&mut self, extent: Extent) {
        self.remove(&extent.range);
        self.add(extent);
    }

    /// Notes that what is in `range` may or may not be mapped.
    pub fn mark_unconfirmed(&mut self, range: &WindowRange) {
        for extent in self.overlapping(range) {
            self.set_confirmed(&extent, false);
        }
    }

    fn set_confirmed(&mut self, extent: &Extent, confirmed: bool) {
        if let Some(extent) = self.extents.get_mut(&extent.range.start().0) {
            extent.confirmed = confirmed;
            let inode = self.inodes.get_mut(&extent.nodeid);
            if let Some(inode) = inode.filter(|_| !confirmed) {
                inode.oldest = Generation::NONE;
            }
        }
    }

    /// Removes `range`; extents that reach beyond it are cut.
    pub fn remove(&mut self, range: &WindowRange) {
        for old in self.overlapping(range) {
            self.extents.remove(&old.range.start().0);
            let (left, right) = old.range.around(range);
            // The remainders first, so that the inode's files stay open.
            for part in [left, right].into_iter().flatten() {
                self.add(old.part(part));
            }
            self.forget(&old);
        }
    }

    /// Removes everything and returns it.
    pub fn take(&mut self) -> Vec<Extent> {
        for inode in std::mem::take(&mut self.inodes).into_values() {
            self.unused.extend(inode.files());
        }
        self.bytes = 0;
        self.files = 0;
        std::mem::take(&mut self.extents).into_values().collect()
    }

    /// The extents of the inode that may show something else than its file of
    /// `generation`.
    pub fn stale(&mut self, nodeid: u64, generation: Generation) -> Vec<Extent> {
        let Some(inode) = self.inodes.get_mut(&nodeid) else {
            return Vec::new();
        };
        if inode.oldest == generation {
            return Vec::new();
        }
        let of_inode = self
            .extents
            .values()
            .filter(|extent| extent.nodeid == nodeid);
        let stale = of_inode.filter(|extent| extent.is_stale(generation));
        let stale: Vec<Extent> = stale.copied().collect();
        if stale.is_empty() {
            inode.oldest = generation;
        }
        stale
    }

    /// A file of the inode that is open already, if it is of `generation`:
    /// read-write for `writable`, read-only otherwise.
    pub fn file(
        &self,
        nodeid: u64,
        writable: bool,
        generation: Generation,
    ) -> Option<Arc<OwnedFd>> {
        let inode = self.inodes.get(&nodeid)?;
        let kept = match writable {
            true => &inode.read_write,
            false => &inode.read_only,
        };
        let kept = kept.as_ref()?;
        (kept.generation == generation).then(|| kept.fd.clone())
    }

    /// Keeps the file of this extent, `fd`, for its inode's next map, if the
    /// inode has extents and there is room. One of another generation is kept no
    /// more.
    pub fn keep_file(&mut self, extent: &Extent, fd: Arc<OwnedFd>) {
        let (writable, generation) = (extent.writable, extent.generation);
        let Some(inode) = self.inodes.get_mut(&extent.nodeid) else {
            self.unused.push(fd);
            return;
        };
        let other = inode.slot(!writable);
        if let Some(old) = other.take_if(|kept| kept.generation != generation) {
            self.unused.push(old.fd);
            self.files = self.files.saturating_sub(1);
        }
        let slot = inode.slot(writable);
        if slot.is_none() {
            if self.files >= self.max_files {
                self.unused.push(fd);
                return;
            }
            self.files += 1;
        }
        let replaced = slot.replace(Kept { fd, generation });
        self.unused.extend(replaced.map(|kept| kept.fd));
    }

    /// Notes the size of the inode's file, if the inode has extents.
    pub fn note_bytes(&mut self, nodeid: u64, bytes: u64) {
        if let Some(inode) = self.inodes.get_mut(&nodeid) {
            inode.bytes = Some(bytes);
        }
    }

    /// Size of the inode's file when it was mapped last, if that was noted.
    pub fn bytes_of(&self, nodeid: u64) -> Option<u64> {
        self.inodes.get(&nodeid)?.bytes
    }

    /// Keeps no file open for the next map of its inode.
    pub fn release_files(&mut self) {
        for inode in self.inodes.values_mut() {
            let kept = [inode.read_only.take(), inode.read_write.take()];
            let kept = kept.into_iter().flatten();
            self.unused.extend(kept.map(|kept| kept.fd));
        }
        self.files = 0;
    }

    /// Hands over the files that are not needed any more, to be closed.
    pub fn unused(&mut self) -> Vec<Arc<OwnedFd>> {
        std::mem::take(&mut self.unused)
    }

    fn add(&mut self, extent: Extent) {
        self.bytes = self.bytes.saturating_add(extent.range.len());
        let inode = self.inodes.entry(extent.nodeid);
        let inode = inode.or_insert_with(InodeUse::new);
        inode.extents += 1;
        inode.oldest = inode.oldest.min(match extent.confirmed {
            true => extent.generation,
            false => Generation::NONE,
        });
        self.extents.insert(extent.range.start().0, extent);
    }

    fn forget(&mut self, extent: &Extent) {
        self.bytes = self.bytes.saturating_sub(extent.range.len());
        if let Some(inode) = self.inodes.get_mut(&extent.nodeid) {
            inode.extents = inode.extents.saturating_sub(1);
            if inode.extents == 0 {
                let inode = self.inodes.remove(&extent.nodeid);
                let files = inode.into_iter().flat_map(InodeUse::files);
                let before = self.unused.len();
                self.unused.extend(files);
                let closed = self.unused.len() - before;
                self.files = self.files.saturating_sub(closed);
            }
        }
    }
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod tests;
