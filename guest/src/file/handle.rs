//! An open file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{Attr, SetattrIn};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::inodes::{Node, OpenNode};
use super::{Access, Metadata, refused};
use crate::error::{Error, Result};
use crate::fault::View;
use crate::mapper::prefetch::ReadPattern;
use crate::mapper::{Mapper, Pin};
use crate::session::Session;

/// Bytes of a buffer for requests that carry data.
const BUFFER_BYTES: usize = 1 << 20;

/// What of a read or a write lies in one range.
struct Part {
    /// Offset in the file.
    offset: u64,
    /// Offset in the range.
    inside: u64,
    /// Bytes of the read or write before it.
    done: usize,
    len: usize,
}

impl Part {
    /// The part that follows the first `done` bytes of `len` at `offset`.
    fn at(offset: u64, done: usize, len: usize, range_bytes: u64) -> Part {
        let offset = offset + done as u64;
        let inside = offset % range_bytes;
        Part {
            offset,
            inside,
            done,
            len: (len - done).min((range_bytes - inside) as usize),
        }
    }

    /// Its place in the caller's buffer.
    fn bytes(&self) -> Range<usize> {
        self.done..self.done + self.len
    }
}

/// An open file. Closed on drop.
pub struct File {
    open: Arc<OpenNode>,
    fh: u64,
    access: Access,
    pattern: Mutex<ReadPattern>,
}

impl File {
    pub(super) fn new(open: OpenNode, fh: u64, access: Access) -> File {
        File {
            open: Arc::new(open),
            fh,
            access,
            pattern: Mutex::default(),
        }
    }

    fn node(&self) -> &Node {
        &self.open.node
    }

    fn nodeid(&self) -> u64 {
        self.node().nodeid()
    }

    fn session(&self) -> &Session {
        &self.open.shared.session
    }

    /// The mapper, if this file is mapped.
    fn mapper(&self) -> Option<&Mapper> {
        let mapper = self.open.shared.mapper.as_ref();
        mapper.filter(|_| self.node().dax)
    }

    /// Attributes, asked for now.
    pub fn metadata(&self) -> Result<Metadata> {
        self.refresh().map(Metadata::from)
    }

    /// Asks for the attributes, and takes note of the size.
    fn refresh(&self) -> Result<Attr> {
        self.open.shared.refresh(self.node(), Some(self.fh))
    }

    /// Whether reads of this file go through the window.
    pub fn is_dax(&self) -> bool {
        self.mapper().is_some()
    }

    /// Reads at `offset`; short only at end of file. If the file shrinks on
    /// the host meanwhile: [`Error::Truncated`].
    ///
    /// Ranges that are in the window are copied from there. What is not is
    /// mapped while the window has room; later only if it is read in order or
    /// again and again, and otherwise asked for by FUSE_READ, so that a window
    /// that is too small costs nothing against none. `by_request` of
    /// [`MapperStats`](super::MapperStats) counts those reads.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let Some(mapper) = self.mapper() else {
            return self.read_plain(buf, offset);
        };
        let len = self.readable(offset, buf.len())?;
        let out = buf.get_mut(..len).unwrap_or_default();
        self.each_part(mapper, offset, len, false, |pin, part| {
            let out = &mut out[part.bytes()];
            let read = match pin {
                Some(pin) => pin.copy_out(part.inside, out),
                None => match self.read_plain(out, part.offset)? {
                    got if got < part.len => Err(got),
                    _ => Ok(()),
                },
            };
            self.whole(part, read)
        })?;
        self.read_ahead(mapper, offset, len as u64);
        Ok(len)
    }

    /// Writes at `offset`: inside the file through the window or, where that
    /// is full, by FUSE_WRITE, as [`read_at`](Self::read_at) does; the part
    /// that makes it grow by request. Short only if the daemon takes less.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.check_writable()?;
        let Some(mapper) = self.mapper() else {
            return self.write_plain(buf, offset);
        };
        let end = offset
            .checked_add(buf.len() as u64)
            .ok_or_else(|| refused("write", Errno::FBIG))?;
        if end > self.size()? {
            self.refresh()?;
        }
        let inside = self.node().inode.size().saturating_sub(offset);
        let inside = buf.len().min(usize::try_from(inside).unwrap_or(usize::MAX));
        let done = self.each_part(mapper, offset, inside, true, |pin, part| {
            let bytes = &buf[part.bytes()];
            match pin {
                Some(pin) => self.whole(part, pin.copy_in(part.inside, bytes)),
                None => self.write_plain(bytes, part.offset),
            }
        })?;
        match buf.get(inside..) {
            _ if done < inside => Ok(done),
            Some(rest) if !rest.is_empty() => {
                let more = self.write_plain(rest, offset + inside as u64)?;
                Ok(inside + more)
            }
            _ => Ok(inside),
        }
    }

    /// Writes at the end of the file as it is now; returns where. Appends of
    /// this guest follow one another; what other writers append at the same
    /// moment may be written over.
    pub fn append(&self, buf: &[u8]) -> Result<u64> {
        self.check_writable()?;
        let _alone = self.node().growing.lock();
        let offset = self.refresh()?.size;
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            match self.write_plain(rest, offset + done as u64)? {
                0 => return Err(refused("append", Errno::NOSPC)),
                more => done += more,
            }
        }
        Ok(offset)
    }

    /// Makes the file this long.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.check_writable()?;
        let set = SetattrIn {
            valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
            fh: self.fh,
            size,
            ..SetattrIn::default()
        };
        let _alone = self.node().growing.lock();
        let attr = self.session().setattr(self.nodeid(), &set)?;
        self.node().update(&attr);
        Ok(())
    }

    /// Makes what was written durable on the host, be it written through the
    /// window, through a view or by request.
    pub fn sync(&self) -> Result<()> {
        self.session().fsync(self.nodeid(), self.fh, false)
    }

    /// A faulted view of `len` bytes at `offset` (any alignment): memory that
    /// shows the file, whose ranges are mapped as they are touched.
    ///
    /// ```no_run
    /// use daxwindow_guest::{Access, Guest, SessionOptions};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guest = Guest::connect(SessionOptions::new("/run/fs.sock"))?;
    /// let file = guest.open("data", Access::ReadWrite)?;
    /// let view = file.map(0, file.metadata()?.len(), Access::ReadWrite)?;
    ///
    /// // Copies: a truncated file is an error.
    /// let mut header = [0; 16];
    /// view.read(0, &mut header)?;
    /// view.write(0, b"DAXW")?;
    ///
    /// // Or loads and stores, as with mmap: there it is a SIGBUS.
    /// let first = view.as_ptr();
    /// // SAFETY: the view has a byte, and lives; the host may change it.
    /// println!("{}", unsafe { first.read_volatile() });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// ENODEV without a window or userfaultfd, and for a file that is read by
    /// requests; EBADF for stores to a file opened for loads;
    /// [`Error::Invalid`] for a view without bytes.
    pub fn map(&self, offset: u64, len: u64, access: Access) -> Result<View> {
        if access == Access::ReadWrite {
            self.check_writable()?;
        }
        let shared = &self.open.shared;
        let (Some(mapper), Some(faults)) = (self.mapper(), &shared.faults) else {
            return Err(refused("map", Errno::NODEV));
        };
        let bytes = mapper.range_bytes();
        let end = offset.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or_else(|| Error::Invalid(format!("a view of {len} bytes")))?;
        let first = offset / bytes;
        let count = end.div_ceil(bytes) - first;
        let too_large = |_| refused("map", Errno::OVERFLOW);
        let len = usize::try_from(len).map_err(too_large)?;
        let skip = usize::try_from(offset % bytes).map_err(too_large)?;
        if !self.node().is_fresh() {
            self.refresh()?;
        }
        let writable = access == Access::ReadWrite;
        let ranges = faults.map(&self.node().inode, first, count, writable)?;
        Ok(View::new(
            ranges,
            skip,
            len,
            Box::new(Arc::clone(&self.open)),
        ))
    }

    fn check_writable(&self) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::Read => Err(refused("write", Errno::BADF)),
        }
    }

    /// The size, at most a second old.
    fn size(&self) -> Result<u64> {
        if !self.node().is_fresh() {
            self.refresh()?;
        }
        Ok(self.node().inode.size())
    }

    /// How much of a read lies inside the file; a read past the end known
    /// asks again.
    fn readable(&self, offset: u64, len: usize) -> Result<usize> {
        let mut size = self.size()?;
        if offset.saturating_add(len as u64) > size {
            size = self.refresh()?.size;
        }
        let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok(len.min(inside))
    }

    /// Has `transfer` move part after part of `offset..offset + len`, through
    /// a pinned range or, where the mapper gives none, by request. Returns the
    /// bytes moved, fewer than `len` only if `transfer` moved fewer.
    fn each_part(
        &self,
        mapper: &Mapper,
        offset: u64,
        len: usize,
        writable: bool,
        mut transfer: impl FnMut(Option<&Pin<'_>>, &Part) -> Result<usize>,
    ) -> Result<usize> {
        let bytes = mapper.range_bytes();
        let mut done = 0;
        while done < len {
            let part = Part::at(offset, done, len, bytes);
            let enters = || part.inside == 0 && !writable && self.is_next(offset);
            let inode = &self.node().inode;
            let index = part.offset / bytes;
            let pin = mapper.acquire_if_worth(inode, index, writable, part.len, enters)?;
            let moved = transfer(pin.as_ref(), &part)?;
            done += moved;
            if moved < part.len {
                break;
            }
        }
        Ok(done)
    }

    /// The length of a part that was moved; the error of one that a
    /// truncation cut short, which is the number of bytes before the cut.
    fn whole(&self, part: &Part, moved: Result<(), usize>) -> Result<usize> {
        match moved {
            Ok(()) => Ok(part.len),
            Err(moved) => {
                self.node().mark_stale();
                Err(Error::Truncated {
                    offset: part.offset.saturating_add(moved as u64),
                })
            }
        }
    }

    /// Whether a read here would follow the last one.
    fn is_next(&self, offset: u64) -> bool {
        let pattern = self.pattern.try_lock();
        pattern.is_some_and(|pattern| pattern.is_next(offset))
    }

    /// Has ranges mapped ahead, if this read follows the last one.
    fn read_ahead(&self, mapper: &Mapper, offset: u64, len: u64) {
        let depth = mapper.prefetch_ranges();
        // A thread that finds it locked reads in parallel, which is no order.
        let Some(mut pattern) = self.pattern.try_lock().filter(|_| depth > 0 && len > 0) else {
            return;
        };
        let wanted = pattern.on_read(offset, len, mapper.range_bytes(), depth, || {
            mapper.is_full()
        });
        drop(pattern);
        let size = self.node().inode.size();
        if let Some(ranges) = wanted
            && ranges.start.saturating_mul(mapper.range_bytes()) < size
        {
            mapper.ahead().map(&self.node().inode, ranges);
        }
    }

    fn read_plain(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        let mut dma = self.session().alloc(buf.len().clamp(1, BUFFER_BYTES))?;
        for chunk in buf.chunks_mut(BUFFER_BYTES) {
            let at = offset
                .checked_add(done as u64)
                .ok_or_else(|| refused("read", Errno::OVERFLOW))?;
            let len = chunk.len();
            let got = self
                .session()
                .read(self.nodeid(), self.fh, at, &mut dma, 0, len)?;
            let got = got.min(len);
            dma.copy_to(0, &mut chunk[..got]);
            done += got;
            if got < len {
                break;
            }
        }
        Ok(done)
    }

    fn write_plain(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        let mut dma = self.session().alloc(buf.len().clamp(1, BUFFER_BYTES))?;
        for chunk in buf.chunks(BUFFER_BYTES) {
            let at = offset
                .checked_add(done as u64)
                .ok_or_else(|| refused("write", Errno::FBIG))?;
            dma.copy_from(0, chunk);
            let put = self
                .session()
                .write(self.nodeid(), self.fh, at, &dma, 0, chunk.len())?;
            done += put;
            self.node().grew_to(at.saturating_add(put as u64));
            if put < chunk.len() {
                break;
            }
        }
        Ok(done)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("nodeid", &self.nodeid())
            .field("access", &self.access)
            .field("is_dax", &self.is_dax())
            .finish_non_exhaustive()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let result = self.session().release(self.nodeid(), self.fh);
        if let Err(e) = result {
            tracing::debug!("closing a file: {e}");
        }
    }
}
