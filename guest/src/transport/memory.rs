//! Guest memory: one sealed memfd, mapped once and shared with the device,
//! and the buffers handed out of it.
//!
//! Laws: every access is checked against the mapping, and no Rust reference to
//! shared bytes ever exists, only atomics and raw copies, because the device
//! may write at any time. Of this process, one thread at a time copies a byte:
//! callers outside this crate reach the bytes only through a [`DmaBuf`], which
//! owns its block and takes `&mut self` for stores; inside it, a slot's bytes
//! are its holder's, and ring words are only touched as atomics or under the
//! queue's lock. All `unsafe` of the transport is in this file.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::buddy::{Block, Buddy, PAGE_BYTES};

/// Guest physical address of the first byte of guest memory. Not zero, so
/// that a zeroed descriptor points nowhere.
pub(crate) const MEMORY_BASE: GuestAddr = GuestAddr(1 << 20);

/// A guest physical address, as descriptors carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// The address `bytes` further on.
    pub fn plus(self, bytes: u64) -> GuestAddr {
        GuestAddr(self.0.wrapping_add(bytes))
    }
}

/// The memory of this guest, shared with the device.
pub struct GuestMemory {
    base: NonNull<u8>,
    bytes: usize,
    file: OwnedFd,
    pool: Mutex<Buddy>,
}

// SAFETY: `base` is only dereferenced by the checked accessors below, which use
// atomics or raw copies and so may run on any thread.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; the allocator is behind a mutex.
unsafe impl Sync for GuestMemory {}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl GuestMemory {
    /// Allocates and maps `bytes`, rounded up to whole pages. The memfd is
    /// sealed against resizing, so the device cannot pull pages away.
    pub fn new(bytes: u64) -> io::Result<Arc<GuestMemory>> {
        let too_large = || io::Error::from(rustix::io::Errno::NOMEM);
        let bytes = usize::try_from(bytes.max(1)).map_err(|_| too_large())?;
        let bytes = bytes
            .checked_next_multiple_of(PAGE_BYTES)
            .ok_or_else(too_large)?;
        let pages = u32::try_from(bytes / PAGE_BYTES).map_err(|_| too_large())?;
        let file = sealed_memfd(bytes as u64)?;
        // SAFETY: a fresh mapping at an address the kernel chooses; nothing of
        // ours is replaced. The result is checked by rustix.
        let base = unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, flags, &file, 0)?
        };
        // SAFETY: the range was mapped by the line above. Huge pages are a
        // wish: a refusal changes nothing.
        let _ = unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast()).ok_or_else(too_large)?;
        let pool = Mutex::new(Buddy::new(pages));
        Ok(Arc::new(GuestMemory {
            base,
            bytes,
            file,
            pool,
        }))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The memfd behind it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where `addr` is in this process, as vhost-user names rings.
    pub fn host_addr(&self, addr: GuestAddr) -> u64 {
        self.at(addr, 0).as_ptr() as u64
    }

    /// Allocates at least `bytes`; `None` when nothing that large is free.
    /// Contents are whatever was there before.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Option<DmaBuf> {
        if bytes > self.bytes {
            return None;
        }
        let block = self.pool.lock().alloc(Buddy::order_of(bytes))?;
        let memory = Arc::clone(self);
        let region = Arc::new(Region {
            memory,
            block,
            lent: AtomicU32::new(0),
        });
        Some(DmaBuf { region, len: bytes })
    }

    /// Copies out of guest memory.
    ///
    /// # Panics
    /// If the range is not inside guest memory; callers pass addresses they
    /// allocated, never ones the device named.
    pub(crate) fn read(&self, addr: GuestAddr, out: &mut [u8]) {
        let from = self.at(addr, out.len());
        // SAFETY: `at` checked that `out.len()` bytes from `from` are mapped;
        // `out` is ordinary memory and cannot overlap the shared mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) }
    }

    /// Copies into guest memory.
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub(crate) fn write(&self, addr: GuestAddr, bytes: &[u8]) {
        let to = self.at(addr, bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) }
    }

    /// Reads one wire struct.
    pub(crate) fn load<T: FromBytes + IntoBytes>(&self, addr: GuestAddr) -> T {
        let mut value = T::new_zeroed();
        self.read(addr, value.as_mut_bytes());
        value
    }

    /// Writes one wire struct.
    pub(crate) fn store<T: IntoBytes + Immutable>(&self, addr: GuestAddr, value: &T) {
        self.write(addr, value.as_bytes());
    }

    /// A 16-bit word of a ring.
    ///
    /// # Panics
    /// If it is unaligned or outside guest memory.
    pub(crate) fn word(&self, addr: GuestAddr) -> &AtomicU16 {
        let word = self.at(addr, 2).as_ptr().cast::<u16>();
        assert!(word.is_aligned(), "{addr:?} is not aligned");
        // SAFETY: in bounds (`at`), aligned (above), alive as long as `self`;
        // this process touches ring words only as atomics.
        unsafe { AtomicU16::from_ptr(word) }
    }

    fn at(&self, addr: GuestAddr, len: usize) -> NonNull<u8> {
        let offset = addr
            .0
            .checked_sub(MEMORY_BASE.0)
            .and_then(|o| usize::try_from(o).ok());
        let offset = offset.filter(|o| o.checked_add(len).is_some_and(|end| end <= self.bytes));
        let Some(offset) = offset else {
            panic!("{addr:?} with {len} bytes is outside guest memory");
        };
        // SAFETY: `offset <= self.bytes`, the length of the mapping at `base`.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; buffers hold an `Arc` of `self`,
        // so none is left that could reach it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn sealed_memfd(bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("daxwindow-guest-memory", flags)?;
    rustix::fs::ftruncate(&file, bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// A block of guest memory, given back when the last holder lets go.
struct Region {
    memory: Arc<GuestMemory>,
    block: Block,
    /// Requests that were given up while the device may still use the block.
    lent: AtomicU32,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.memory.pool.lock().free(self.block);
    }
}

/// A buffer in guest memory that the device reads and writes without a copy;
/// freed on drop, unless a request that timed out still holds it, then when
/// the device gives that request back.
pub struct DmaBuf {
    region: Arc<Region>,
    len: usize,
}

impl DmaBuf {
    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it was allocated with zero bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device sees it.
    pub fn addr(&self) -> GuestAddr {
        let offset = u64::from(self.region.block.page) * PAGE_BYTES as u64;
        MEMORY_BASE.plus(offset)
    }

    /// Copies `out.len()` bytes out, from `at` on.
    ///
    /// # Panics
    /// If the range is not inside the buffer.
    pub fn copy_to(&self, at: usize, out: &mut [u8]) {
        self.check(at, out.len());
        self.region.memory.read(self.addr().plus(at as u64), out);
    }

    /// Copies `bytes` in, at `at`.
    ///
    /// # Panics
    /// If the range is not inside the buffer.
    pub fn copy_from(&mut self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        self.region.memory.write(self.addr().plus(at as u64), bytes);
    }

    /// The first byte in this process, for callers with unsafe code of their
    /// own; valid for `len` bytes while the buffer lives. The device may
    /// change the bytes at any time while a request is in flight.
    pub fn as_ptr(&self) -> *const u8 {
        self.as_mut_ptr()
    }

    /// As [`as_ptr`](Self::as_ptr).
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.region.memory.at(self.addr(), self.len).as_ptr()
    }

    /// Whether a request that was given up may still write here. Such a
    /// buffer is refused for further requests.
    pub fn is_lent(&self) -> bool {
        self.region.lent.load(Ordering::Acquire) != 0
    }

    /// Keeps the block from being reused until the returned hold is dropped.
    pub(crate) fn lend(&self) -> Lent {
        self.region.lent.fetch_add(1, Ordering::AcqRel);
        Lent(Arc::clone(&self.region))
    }

    fn check(&self, at: usize, len: usize) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {at} are outside a buffer of {}",
            self.len
        );
    }
}

impl std::fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuf({:#x}, {} bytes)", self.addr().0, self.len)
    }
}

/// A hold on a buffer whose request was given up before the device was done.
pub(crate) struct Lent(Arc<Region>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_block_is_not_reused() {
        let memory = GuestMemory::new(8192).expect("memory");
        let buf = memory.alloc(4096).expect("first");
        let other = memory.alloc(4096).expect("second");
        let (addr, lent) = (buf.addr(), buf.lend());
        assert!(buf.is_lent() && !other.is_lent());
        drop(buf);
        assert!(memory.alloc(4096).is_none());
        drop(lent);
        assert_eq!(memory.alloc(4096).expect("free again").addr(), addr);
    }

    #[test]
    fn what_is_copied_in_comes_out_and_the_memfd_is_sealed() {
        let memory = GuestMemory::new(1 << 20).expect("memory");
        let mut buf = memory.alloc(10_000).expect("buffer");
        buf.copy_from(9_000, &[7; 1000]);
        let mut out = [0; 1000];
        buf.copy_to(9_000, &mut out);
        assert_eq!(out, [7; 1000]);
        assert!(rustix::fs::ftruncate(memory.file(), 0).is_err());
    }

    #[test]
    #[should_panic(expected = "outside guest memory")]
    fn addresses_outside_are_refused() {
        let memory = GuestMemory::new(4096).expect("memory");
        memory.read(MEMORY_BASE.plus(4090), &mut [0; 8]);
    }
}
