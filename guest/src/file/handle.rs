//! An open file.

use std::sync::Arc;

use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{Attr, SetattrIn};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::inodes::{Node, OpenNode};
use super::{Access, refused};
use crate::error::{Error, Result};
use crate::fault::View;
use crate::mapper::prefetch::ReadPattern;
use crate::mapper::{Effort, Mapper, Pin};
use crate::session::Session;

/// Bytes of a buffer for requests that carry data.
const BUFFER_BYTES: usize = 1 << 20;

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
    pub fn metadata(&self) -> Result<Attr> {
        self.open.shared.refresh(self.node(), Some(self.fh))
    }

    /// Whether reads of this file go through the window.
    pub fn is_dax(&self) -> bool {
        self.mapper().is_some()
    }

    /// Reads at `offset`; short only at end of file. If the file shrinks on
    /// the host meanwhile: [`Error::Truncated`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let Some(mapper) = self.mapper() else {
            return self.read_plain(buf, offset);
        };
        let len = self.readable(offset, buf.len())?;
        let out = buf.get_mut(..len).unwrap_or_default();
        self.each_range(mapper, offset, len, false, |pin, at, done, step| {
            pin.copy_out(at, &mut out[done..done + step])
        })?;
        self.read_ahead(mapper, offset, len as u64);
        Ok(len)
    }

    /// Writes at `offset`: inside the file through the window, the part that
    /// makes it grow by request. Short only if the daemon takes less.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.check_writable()?;
        let Some(mapper) = self.mapper() else {
            return self.write_plain(buf, offset);
        };
        let end = offset
            .checked_add(buf.len() as u64)
            .ok_or_else(|| refused("write", Errno::FBIG))?;
        if end > self.size()? {
            self.metadata()?;
        }
        let inside = self.node().inode.size().saturating_sub(offset);
        let inside = buf.len().min(usize::try_from(inside).unwrap_or(usize::MAX));
        self.each_range(mapper, offset, inside, true, |pin, at, done, step| {
            pin.copy_in(at, &buf[done..done + step])
        })?;
        match buf.get(inside..) {
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
        let offset = self.metadata()?.size;
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
        self.node().learn(&attr);
        Ok(())
    }

    /// Makes what was written durable on the host, be it written through the
    /// window, through a view or by request.
    pub fn sync(&self) -> Result<()> {
        self.session().fsync(self.nodeid(), self.fh, false)
    }

    /// A faulted view of `len` bytes at `offset` (any alignment).
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
            self.metadata()?;
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
            self.metadata()?;
        }
        Ok(self.node().inode.size())
    }

    /// How much of a read lies inside the file; a read past the end known
    /// asks again.
    fn readable(&self, offset: u64, len: usize) -> Result<usize> {
        let mut size = self.size()?;
        if offset.saturating_add(len as u64) > size {
            size = self.metadata()?.size;
        }
        let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok(len.min(inside))
    }

    /// Pins range after range of `offset..offset + len`, one at a time, and
    /// has `copy` move (offset in the range, bytes done before, bytes now).
    fn each_range(
        &self,
        mapper: &Mapper,
        offset: u64,
        len: usize,
        writable: bool,
        mut copy: impl FnMut(&Pin<'_>, u64, usize, usize) -> Result<(), usize>,
    ) -> Result<()> {
        let bytes = mapper.range_bytes();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = at % bytes;
            let step = (len - done).min((bytes - inside) as usize);
            let pin = mapper
                .acquire(&self.node().inode, at / bytes, writable, Effort::Wait)?
                .ok_or_else(|| refused("map", Errno::AGAIN))?;
            copy(&pin, inside, done, step).map_err(|copied| {
                self.node().doubt();
                Error::Truncated {
                    offset: at.saturating_add(copied as u64),
                }
            })?;
            done += step;
        }
        Ok(())
    }

    /// Has ranges mapped ahead, if this read follows the last one.
    fn read_ahead(&self, mapper: &Mapper, offset: u64, len: u64) {
        let depth = mapper.prefetch_ranges();
        // Whoever finds it locked reads in parallel, which is no order.
        let Some(mut pattern) = self.pattern.try_lock().filter(|_| depth > 0 && len > 0) else {
            return;
        };
        let wanted = pattern.on_read(offset, len, mapper.range_bytes(), depth);
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

impl Drop for File {
    fn drop(&mut self) {
        let result = self.session().release(self.nodeid(), self.fh);
        if let Err(e) = result {
            tracing::debug!("closing a file: {e}");
        }
    }
}
