//! The two sides of a descriptor chain: a bounded [`Reader`] over the bytes
//! the guest sends and a bounded [`Writer`] over the room it leaves for the
//! reply.
//!
//! Laws: every byte touched lies in a [`VolatileSlice`] that the memory map
//! has handed out; file data goes straight between the file and those slices,
//! or, where the kernel may keep hold of them for as long as somebody else
//! takes to answer, by a buffer (`bounce`); a chain that is malformed in any way is refused whole, before a byte of it
//! is used. One whose descriptors do not all resolve has a [`Hole`]: only what
//! lies before it can be used, which is the header and room for an error. What
//! was read is real: pages that vanished meanwhile make it `EFAULT`. This is
//! the only module of the server with `unsafe` code.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::fs::Readiness;
use crate::sigbus;

use super::{RequestQueue, bounce};

/// Most buffers that one `preadv` or `pwritev` takes (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// Pieces of one side that need no allocation: a request's header, arguments
/// and names, or a reply's, with a few pages of data.
const FEW: usize = 6;

/// Why a chain is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// The chain loops, leaves its table, or adds up to more than 4 GiB.
    #[error("the chain has no proper end")]
    Endless,
}

/// A descriptor that does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("descriptor at {addr:#x} of {len:#x} bytes {why}")]
pub struct Hole {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Why not.
    pub why: Unresolved,
}

/// Why a descriptor does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// It names memory that the guest does not have.
    #[error("is outside guest memory: {0}")]
    Outside(GuestMemoryError),
    /// The memory table may be out of date there.
    #[error("is in a window whose maps are not announced")]
    Stale,
}

/// A chain whose descriptors were looked up.
#[derive(Default)]
pub struct Sides<'m> {
    /// What the guest sends, up to the hole if that is on this side.
    pub reader: Reader<'m>,
    /// Room for the reply, up to the hole.
    pub writer: Writer<'m>,
    /// The first descriptor that does not resolve.
    pub hole: Option<Hole>,
    /// Guest physical address of the reply's header, if that is in one piece,
    /// for who answers later.
    pub reply_at: Option<u64>,
}

/// Bytes of a reply's header.
const HEADER_BYTES: u32 = size_of::<daxwindow_shared::fuse::OutHeader>() as u32;

/// Slices of guest memory in order.
#[derive(Default)]
struct Segments<'m> {
    slices: SmallVec<[VolatileSlice<'m>; FEW]>,
    bytes: usize,
    /// Something is missing behind these bytes.
    ends_early: bool,
}

impl<'m> Segments<'m> {
    fn push(&mut self, slice: VolatileSlice<'m>) {
        // At most 4 GiB per chain (checked by the iterator over descriptors).
        self.bytes = self.bytes.saturating_add(slice.len());
        self.slices.push(slice);
    }

    /// Adds all of a descriptor, or nothing from here on.
    fn add(
        &mut self,
        mem: &'m GuestMemoryMmap,
        addr: GuestAddress,
        len: u32,
    ) -> Result<(), GuestMemoryError> {
        if len == 0 || self.ends_early {
            return Ok(());
        }
        match mem.get_slice(addr, len as usize) {
            Ok(slice) => self.push(slice),
            Err(_) => self.add_pieces(mem, addr, len)?,
        }
        Ok(())
    }

    /// Adds a descriptor that does not lie in one region of memory.
    #[cold]
    fn add_pieces(
        &mut self,
        mem: &'m GuestMemoryMmap,
        addr: GuestAddress,
        len: u32,
    ) -> Result<(), GuestMemoryError> {
        let pieces: Result<SmallVec<[_; FEW]>, _> = mem.get_slices(addr, len as usize).collect();
        self.ends_early = pieces.is_err();
        for slice in pieces? {
            self.push(slice);
        }
        Ok(())
    }

    /// The error for what lies past the end: `otherwise`, unless there would
    /// be more.
    fn lack(&self, otherwise: Errno) -> Errno {
        match self.ends_early {
            true => Errno::FAULT,
            false => otherwise,
        }
    }

    /// The pieces of `count` bytes from `offset` on, as far as there are any.
    fn pieces(&self, offset: usize, count: usize) -> impl Iterator<Item = VolatileSlice<'m>> {
        let mut skip = offset;
        let mut left = count;
        self.slices.iter().filter_map(move |slice| {
            let start = skip.min(slice.len());
            skip -= start;
            let len = (slice.len() - start).min(left);
            left -= len;
            if len == 0 {
                return None;
            }
            slice.subslice(start, len).ok()
        })
    }

    /// Answers the bytes copied; `EFAULT` if some were not there.
    fn copy_out(&self, offset: usize, buf: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        let faults = sigbus::faults();
        for piece in self.pieces(offset, buf.len()) {
            done += piece.copy_to(&mut buf[done..]);
        }
        no_more_than(faults)?;
        Ok(done)
    }

    /// `EFAULT` if some bytes had no place.
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        let faults = sigbus::faults();
        for piece in self.pieces(offset, bytes.len()) {
            piece.copy_from(&bytes[done..]);
            done += piece.len();
        }
        no_more_than(faults)
    }

    /// Buffers for at most [`IOV_MAX`] pieces; neighbours in memory become one.
    fn iovecs(&self, offset: usize, count: usize) -> SmallVec<[libc::iovec; FEW]> {
        let mut out: SmallVec<[libc::iovec; FEW]> = SmallVec::new();
        for piece in self.pieces(offset, count) {
            let base = piece.ptr_guard_mut().as_ptr();
            let full = out.len() == IOV_MAX;
            match out.last_mut() {
                Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == base.cast() => {
                    last.iov_len += piece.len();
                }
                _ if full => break,
                _ => out.push(libc::iovec {
                    iov_base: base.cast(),
                    iov_len: piece.len(),
                }),
            }
        }
        out
    }

    /// Calls `step(buffers, bytes done)` until `count` bytes are done or it
    /// answers 0. An error after the first byte ends the transfer short,
    /// except where `all_or_fault`: there a buffer that is not there fails it.
    fn transfer(
        &self,
        offset: usize,
        count: usize,
        all_or_fault: bool,
        mut step: impl FnMut(&[libc::iovec], usize) -> isize,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        while done < count {
            let buffers = self.iovecs(offset.saturating_add(done), count - done);
            if buffers.is_empty() {
                break;
            }
            match usize::try_from(step(&buffers, done)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) => match last_errno() {
                    Errno::INTR => {}
                    errno if done == 0 => return Err(errno),
                    Errno::FAULT if all_or_fault => return Err(Errno::FAULT),
                    _ => break,
                },
            }
        }
        Ok(done)
    }
}

/// `EFAULT` if guest memory has vanished under this thread since.
fn no_more_than(faults: u64) -> Result<(), Errno> {
    match sigbus::faults() == faults {
        true => Ok(()),
        false => Err(Errno::FAULT),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Position of byte `done` of a transfer that starts at `offset` in the file;
/// negative (which the kernel refuses) if there is no such position.
fn position(offset: u64, done: usize) -> libc::off_t {
    offset
        .checked_add(done as u64)
        .and_then(|at| libc::off_t::try_from(at).ok())
        .unwrap_or(-2)
}

/// How WRITE data reach the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At this offset.
    At(u64),
    /// At the end of the file as it is at that moment.
    Append,
}

/// What a read does that has to wait.
#[derive(Clone, Copy)]
pub struct Waits<'a> {
    /// Whether the file can tell.
    pub readiness: &'a Readiness,
    /// Who hears of it.
    pub queue: &'a dyn RequestQueue,
    /// The file is read past the page cache, so by a buffer.
    pub is_direct: bool,
}

/// What the guest sends, read once from front to back.
#[derive(Default)]
pub struct Reader<'m> {
    segments: Segments<'m>,
    position: usize,
}

impl Reader<'_> {
    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.segments.bytes - self.position
    }

    /// Fills `buf`, or reads nothing and answers `EINVAL` if there is not
    /// enough, `EFAULT` if what is there cannot be read.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<(), Errno> {
        if buf.len() > self.remaining() {
            return Err(self.segments.lack(Errno::INVAL));
        }
        self.position += self.segments.copy_out(self.position, buf)?;
        Ok(())
    }

    /// Reads one wire struct.
    pub fn read_value<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes the next `count` bytes to `file`, straight from guest memory,
    /// and answers how many were written: fewer if the rest is not there.
    pub fn write_to(
        &mut self,
        file: &File,
        placement: Placement,
        count: usize,
    ) -> Result<usize, Errno> {
        let count = count.min(self.remaining());
        let fd = file.as_raw_fd();
        let done = self
            .segments
            .transfer(self.position, count, false, |buffers, done| {
                let (offset, flags) = match placement {
                    Placement::At(offset) => (position(offset, done), 0),
                    Placement::Append => (0, libc::RWF_APPEND),
                };
                // SAFETY: each buffer is a piece of a VolatileSlice in
                // `self.segments`, whose lifetime keeps the mapping alive; the
                // kernel only reads them; their number is at most IOV_MAX. `fd` is
                // open for as long as `file` is borrowed.
                unsafe { libc::pwritev2(fd, buffers.as_ptr(), buffers.len() as i32, offset, flags) }
            })?;
        self.position += done;
        Ok(done)
    }

    /// The same by a buffer.
    pub fn write_by_buffer(
        &mut self,
        file: &File,
        placement: Placement,
        count: usize,
    ) -> Result<usize, Errno> {
        let count = count.min(self.remaining());
        let done = bounce::write(file, placement, count, |done, buffer| {
            self.segments.copy_out(self.position + done, buffer)
        })?;
        self.position += done;
        Ok(done)
    }
}

/// Room for the reply.
#[derive(Default)]
pub struct Writer<'m> {
    segments: Segments<'m>,
}

impl Writer<'_> {
    /// Bytes of room.
    pub fn capacity(&self) -> usize {
        self.segments.bytes
    }

    /// Places `bytes` at `offset`, or nothing and `EOVERFLOW` if they do not
    /// fit; `EFAULT` if the room is not there.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        match offset.checked_add(bytes.len()) {
            Some(end) if end <= self.capacity() => self.segments.copy_in(offset, bytes),
            _ => Err(self.segments.lack(Errno::OVERFLOW)),
        }
    }

    /// Reads up to `count` bytes at `file_offset` of `file` straight into
    /// guest memory from `offset` on. Less than `count` means end of file (or
    /// of the room), never that the guest's buffer was not there: it would
    /// take that for the end of the file. That is `EFAULT`.
    ///
    /// With `waits`, what is in the page cache is read first, and the rest
    /// after the word that it takes long; by a buffer where the kernel may keep
    /// hold of guest memory for as long as somebody else takes to answer.
    pub fn read_from(
        &self,
        offset: usize,
        file: &File,
        file_offset: u64,
        count: usize,
        waits: Option<Waits<'_>>,
    ) -> Result<usize, Errno> {
        let by_buffer = || waits.filter(|w| w.is_direct || w.readiness.is_remote());
        if let Some(waits) = by_buffer() {
            return self.read_by_buffer(offset, file, file_offset, count, waits);
        }
        let fd = file.as_raw_fd();
        let done = self
            .segments
            .transfer(offset, count, true, |buffers, done| {
                let read = |flags| {
                    // SAFETY: each buffer is a piece of a VolatileSlice in
                    // `self.segments`, whose lifetime keeps the mapping alive; it is
                    // guest memory, which anybody may write at any time and nobody
                    // holds a reference into; their number is at most IOV_MAX. `fd` is
                    // open for as long as `file` is borrowed.
                    unsafe {
                        libc::preadv2(
                            fd,
                            buffers.as_ptr(),
                            buffers.len() as i32,
                            position(file_offset, done),
                            flags,
                        )
                    }
                };
                let Some(waits) = waits.filter(|waits| waits.readiness.can_try()) else {
                    return read(0);
                };
                let got = read(libc::RWF_NOWAIT);
                match got {
                    0.. => return got,
                    _ => match last_errno() {
                        Errno::AGAIN => waits.queue.takes_long(),
                        Errno::OPNOTSUPP => waits.readiness.cannot_try(file),
                        // Told once more, by who may wait.
                        _ => {}
                    },
                }
                match waits.readiness.is_remote() {
                    // Nothing was read yet.
                    true => 0,
                    false => read(0),
                }
            })?;
        match by_buffer() {
            Some(waits) if done == 0 => {
                self.read_by_buffer(offset, file, file_offset, count, waits)
            }
            _ => Ok(done),
        }
    }

    fn read_by_buffer(
        &self,
        offset: usize,
        file: &File,
        file_offset: u64,
        count: usize,
        waits: Waits<'_>,
    ) -> Result<usize, Errno> {
        waits.queue.takes_long();
        let count = count.min(self.capacity().saturating_sub(offset));
        bounce::read(file, file_offset, count, |done, bytes| {
            self.segments.copy_in(offset + done, bytes)
        })
    }
}

/// Resolves the descriptors of `chain` in `mem`, or refuses the chain. Where
/// `is_stale(address, bytes)` the memory table is not believed.
pub fn split<'m, M>(
    mem: &'m GuestMemoryMmap,
    chain: DescriptorChain<M>,
    is_stale: impl Fn(u64, u32) -> bool,
) -> Result<Sides<'m>, ChainError>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let mut sides = Sides::default();
    let mut saw_writable = false;
    // The iterator ends silently at whatever is wrong with a chain; a proper
    // end is a last descriptor that names no next one.
    let mut expects_more = true;
    for descriptor in chain {
        expects_more = descriptor.has_next();
        let (addr, len) = (descriptor.addr(), descriptor.len());
        let segments = if descriptor.is_write_only() {
            if !saw_writable && len >= HEADER_BYTES {
                sides.reply_at = Some(addr.0);
            }
            saw_writable = true;
            &mut sides.writer.segments
        } else if saw_writable {
            return Err(ChainError::Order);
        } else {
            &mut sides.reader.segments
        };
        let why = if len > 0 && is_stale(addr.0, len) {
            segments.ends_early = true;
            Some(Unresolved::Stale)
        } else {
            let added = segments.add(mem, addr, len);
            added.err().map(Unresolved::Outside)
        };
        if let Some(why) = why.filter(|_| sides.hole.is_none()) {
            let addr = addr.0;
            sides.hole = Some(Hole { addr, len, why });
        }
    }
    match expects_more {
        true => Err(ChainError::Endless),
        false => Ok(sides),
    }
}

/// Room for a header, and no more, at a place that [`Sides::reply_at`] named
/// before; none at all if it is there no more.
pub fn header_room(
    mem: &GuestMemoryMmap,
    at: u64,
    is_stale: impl Fn(u64, u32) -> bool,
) -> Writer<'_> {
    let mut writer = Writer::default();
    if !is_stale(at, HEADER_BYTES) {
        // What does not resolve leaves no room, which is answer enough.
        let _ = writer.segments.add(mem, GuestAddress(at), HEADER_BYTES);
    }
    writer
}

/// Reader and writer over plain buffers instead of guest memory.
pub fn over_buffers<'m>(request: &'m mut [u8], reply: &'m mut [u8]) -> Sides<'m> {
    let mut sides = Sides::default();
    sides.reader.segments.push(VolatileSlice::from(request));
    sides.writer.segments.push(VolatileSlice::from(reply));
    sides
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
