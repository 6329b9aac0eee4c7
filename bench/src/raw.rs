//! The one place of this crate that touches raw memory: mappings of its own,
//! loads from views, userfaultfd, the two system calls that tell what the
//! page cache holds, and the one that makes handles of names.
//!
//! Law: every address that reaches the kernel or a load comes from a
//! [`Region`] or a [`Source`] and has passed that value's bounds check.
//! Loads from shared file mappings go through raw pointers, never through
//! `&[u8]`: other processes may write the bytes meanwhile.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use daxwindow_guest::View;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, UserfaultfdFlags};

/// Bytes of a page of this machine.
pub(crate) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// Address space owned by this value; unmapped on drop.
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a Region is an address range; all access to it is by system calls
// or by the raw loads of Source, which tolerate concurrent changes.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Private anonymous memory without reservation of swap.
    pub(crate) fn anonymous(len: usize) -> io::Result<Region> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a null hint without MAP_FIXED replaces nothing.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        Ok(Region::own(start.cast(), len))
    }

    /// The first `len` bytes of `file`, shared and read-only.
    pub(crate) fn of_file(file: &File, len: usize) -> io::Result<Region> {
        // SAFETY: a null hint without MAP_FIXED replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        Ok(Region::own(start.cast(), len))
    }

    fn own(start: *mut u8, len: usize) -> Region {
        let start = NonNull::new(start).unwrap_or(NonNull::dangling());
        Region { start, len }
    }

    /// Replaces `len` bytes at `at` by a shared read-only mapping of `file`.
    pub(crate) fn map_file(
        &self,
        at: usize,
        file: &File,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        let to = self.check(at, len)?;
        // SAFETY: `to..to+len` lies in this region, which this value owns,
        // so MAP_FIXED replaces nothing of anybody else.
        unsafe {
            rustix::mm::mmap(
                to.cast(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset,
            )?;
        }
        Ok(())
    }

    /// Replaces `len` bytes at `at` by a second mapping of what
    /// `from[from_at..]` shows; that must be a shared mapping.
    pub(crate) fn alias(
        &self,
        at: usize,
        from: &Region,
        from_at: usize,
        len: usize,
    ) -> io::Result<()> {
        let to = self.check(at, len)?;
        let source = from.check(from_at, len)?;
        // SAFETY: both ranges lie in regions that are borrowed here; an old
        // size of zero leaves the source in place, and the target is ours.
        unsafe {
            rustix::mm::mremap_fixed(source.cast(), 0, len, MremapFlags::MAYMOVE, to.cast())?;
        }
        Ok(())
    }

    /// A reader of the whole region.
    pub(crate) fn source(&self) -> Source<'_> {
        Source {
            start: self.start.as_ptr(),
            len: self.len,
            owner: PhantomData,
        }
    }

    fn check(&self, at: usize, len: usize) -> io::Result<*mut u8> {
        match at.checked_add(len) {
            // SAFETY: `at <= self.len`, so the result is in or one past the region.
            Some(end) if end <= self.len => Ok(unsafe { self.start.as_ptr().add(at) }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this value owns the range and nothing borrows it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Memory to copy out of or to touch: a mapping of the host's or a guest's view.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    start: *const u8,
    len: usize,
    owner: PhantomData<&'a ()>,
}

// SAFETY: loads only; the owner outlives 'a.
unsafe impl Send for Source<'_> {}

impl<'a> Source<'a> {
    /// A guest's view, read by plain loads as a program would.
    pub(crate) fn view(view: &'a View) -> Source<'a> {
        Source {
            start: view.as_ptr(),
            len: view.len(),
            owner: PhantomData,
        }
    }

    /// Bytes that can be read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies `out.len()` bytes from `at`. Panics out of bounds.
    pub(crate) fn copy(&self, at: usize, out: &mut [u8]) {
        let end = at.checked_add(out.len());
        assert!(end.is_some_and(|end| end <= self.len), "copy out of bounds");
        // SAFETY: the range was just checked, the owner keeps it mapped for
        // 'a, and `out` is a distinct exclusive buffer.
        unsafe { ptr::copy_nonoverlapping(self.start.add(at), out.as_mut_ptr(), out.len()) };
        // Nobody may look at the bytes; they are copied all the same.
        std::hint::black_box(out);
    }

    /// Loads one byte. Panics out of bounds.
    pub(crate) fn touch(&self, at: usize) -> u8 {
        assert!(at < self.len, "touch out of bounds");
        // SAFETY: the offset was just checked and the owner keeps it mapped.
        unsafe { self.start.add(at).read_volatile() }
    }
}

/// What the page cache holds of a whole file, in bytes: cachestat where the
/// kernel has it (6.5 and later), mincore elsewhere.
pub(crate) fn cached_bytes(file: &File) -> io::Result<u64> {
    match cachestat(file.as_fd()) {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)
            ) =>
        {
            mincore(file)
        }
        answer => answer,
    }
}

fn cachestat(fd: BorrowedFd<'_>) -> io::Result<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    // struct cachestat_range { off, len }; length 0 means to the end.
    let range = [0u64; 2];
    // struct cachestat: cached, dirty, writeback, evicted, recently evicted.
    let mut pages = [0u64; 5];
    // SAFETY: both pointers name live arrays of the sizes the kernel defines.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            fd.as_raw_fd(),
            range.as_ptr(),
            pages.as_mut_ptr(),
            0u32,
        )
    };
    match result {
        0 => Ok(pages[0] * page_bytes() as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mincore(file: &File) -> io::Result<u64> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if len == 0 {
        return Ok(0);
    }
    let region = Region::of_file(file, len)?;
    let mut pages = vec![0u8; len.div_ceil(page_bytes())];
    // SAFETY: the range is the region just mapped; the vector has a byte a page.
    let result = unsafe { libc::mincore(region.start.as_ptr().cast(), len, pages.as_mut_ptr()) };
    match result {
        0 => Ok(pages.iter().filter(|p| **p & 1 == 1).count() as u64 * page_bytes() as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A userfaultfd for faults of user space only, which needs no privilege.
pub(crate) struct Faults {
    fd: OwnedFd,
}

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFD_API: u64 = 0xaa;
const UFFD_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_USER_MODE_ONLY: u32 = 1;

impl Faults {
    /// Opens one and agrees on the interface.
    pub(crate) fn open() -> io::Result<Faults> {
        let flags = UserfaultfdFlags::CLOEXEC
            | UserfaultfdFlags::NONBLOCK
            | UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: the descriptor does nothing until a range is registered.
        let fd = unsafe { rustix::mm::userfaultfd(flags)? };
        // struct uffdio_api { api, features, ioctls }
        let mut api = [UFFD_API, 0, 0];
        ioctl(&fd, UFFDIO_API, api.as_mut_ptr().cast())?;
        Ok(Faults { fd })
    }

    /// Missing pages of `region` fault here from now on.
    pub(crate) fn register(&self, region: &Region) -> io::Result<()> {
        let start = region.start.as_ptr() as u64;
        // struct uffdio_register { start, len, mode, ioctls }
        let mut register = [start, region.len as u64, UFFD_REGISTER_MODE_MISSING, 0];
        ioctl(&self.fd, UFFDIO_REGISTER, register.as_mut_ptr().cast())
    }

    /// Lets the threads that wait in `len` bytes at `at` try again.
    pub(crate) fn wake(&self, region: &Region, at: usize, len: usize) -> io::Result<()> {
        let start = region.check(at, len)? as u64;
        // struct uffdio_range { start, len }
        let mut range = [start, len as u64];
        ioctl(&self.fd, UFFDIO_WAKE, range.as_mut_ptr().cast())
    }

    /// The next fault's offset in `region`; none when nothing waits.
    pub(crate) fn next(&self, region: &Region) -> io::Result<Option<usize>> {
        // struct uffd_msg: event u8 at 0, page fault address u64 at 16.
        let mut message = [0u8; 32];
        match rustix::io::read(&self.fd, &mut message) {
            Ok(32) if message[0] == UFFD_EVENT_PAGEFAULT => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let address = u64::from_ne_bytes(message[16..24].try_into().unwrap_or_default());
        let at = address.wrapping_sub(region.start.as_ptr() as u64) as usize;
        Ok((at < region.len).then_some(at))
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Room for a `struct file_handle` with as many bytes as Linux ever puts into
/// one (`MAX_HANDLE_SZ`).
#[repr(C)]
struct HandleRoom {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

/// Has the kernel make the handle of what a name in a directory stands for, a
/// symbolic link itself. Only that it can, and how long it takes, matters
/// here.
pub(crate) fn name_to_handle(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut room = HandleRoom {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: `dir` is open and `name` ends in NUL. The kernel writes a header
    // and at most `room.bytes` bytes behind it, which are there, and one int.
    let answer = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            ptr::from_mut(&mut room).cast(),
            &mut mount,
            0,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: private to this file; each caller passes an array laid out as
    // the kernel's struct of that request, alive for the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_alias_shows_the_file_and_the_bounds_hold() -> io::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&[7u8; 8192])?;
        let mapped = Region::of_file(&file, 8192)?;
        let target = Region::anonymous(8192)?;
        target.alias(4096, &mapped, 0, 4096)?;
        assert_eq!(target.source().touch(4096), 7);
        assert_eq!(target.source().touch(0), 0);
        assert!(target.alias(8192, &mapped, 0, 4096).is_err());
        assert!(target.map_file(usize::MAX, &file, 0, 4096).is_err());
        Ok(())
    }

    #[test]
    fn a_name_that_is_not_there_has_no_handle() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let dir = File::open(directory.path())?;
        let error = name_to_handle(dir.as_fd(), c"nothing").expect_err("nothing");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        Ok(())
    }

    #[test]
    fn mincore_agrees_with_cachestat_on_a_written_file() -> io::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&vec![1u8; 1 << 20])?;
        assert_eq!(mincore(&file)?, 1 << 20);
        assert_eq!(cached_bytes(&file)?, 1 << 20);
        Ok(())
    }
}
