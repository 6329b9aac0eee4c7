//! Address space that somebody else reserved: where it is comes, changes and
//! goes.
//!
//! Laws: nothing is mapped over the place except under the space's lock, and
//! the owner takes the lock to say that the place is gone before it gives it to
//! anybody else, so that no mapping ever lands in what is no window any more;
//! the lock is held for a system call or two, never while a file is opened or
//! mapped; taking it allocates nothing and may be done in a signal handler of a
//! thread that does not hold it.

use std::ffi::c_void;
use std::hint::spin_loop;
use std::io;
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};

use super::staged::{Failure, Staged};

/// Address space of somebody else's for a [`Window`](crate::Window) to map in;
/// see [`Window::adopt`](crate::Window::adopt).
pub struct AdoptedSpace {
    locked: AtomicBool,
    /// Address of the first byte; zero while there is no place.
    base: AtomicUsize,
    bytes: AtomicUsize,
    /// Counts the changes of `base`.
    epoch: AtomicU64,
    tenant: &'static dyn Tenant,
}

/// Who wants to know what is mapped in an adopted space. Called under the
/// space's lock, on the thread that serves the back end: no call may wait or
/// allocate.
pub trait Tenant: Sync {
    /// Whether a file may be mapped now.
    ///
    /// # Errors
    ///
    /// What the back end is answered with.
    fn may_map(&self, space: &SpaceGuard<'_>) -> Result<(), Errno> {
        let _ = space;
        Ok(())
    }

    /// What was at `at..at + len` is gone; a file is there now, or nothing.
    fn replaced(&self, space: &SpaceGuard<'_>, at: usize, len: usize, by_file: bool) {
        let _ = (space, at, len, by_file);
    }
}

/// The space, locked.
pub struct SpaceGuard<'a> {
    space: &'a AdoptedSpace,
}

/// Times that a lock is tried before others get the processor.
const SPINS: u32 = 64;
/// For how long, and so a thread of a high priority does not keep the one that
/// it waits for from running.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000,
};

impl AdoptedSpace {
    /// Without a place, and of no size before a window adopts it.
    pub const fn new(tenant: &'static dyn Tenant) -> AdoptedSpace {
        AdoptedSpace {
            locked: AtomicBool::new(false),
            base: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            tenant,
        }
    }

    /// Waits for the lock. It is not recursive.
    pub fn lock(&self) -> SpaceGuard<'_> {
        let mut spins = 0;
        // Acquire: pairs with the release in `drop`.
        while self.locked.swap(true, Ordering::Acquire) {
            spins += 1;
            match spins % SPINS {
                0 => pause(),
                _ => spin_loop(),
            }
        }
        SpaceGuard { space: self }
    }

    /// Where the place is now, and how many bytes it has. Without the lock it
    /// may be gone before the caller looks at it.
    pub fn place(&self) -> Option<(usize, usize)> {
        // Acquire: pairs with the release in `set_place`.
        match self.base.load(Ordering::Acquire) {
            0 => None,
            base => Some((base, self.bytes.load(Ordering::Relaxed))),
        }
    }

    /// Whether `address` lies in the place, which may be gone at once.
    pub fn holds(&self, address: usize) -> bool {
        self.place()
            .is_some_and(|(base, bytes)| address.wrapping_sub(base) < bytes)
    }

    /// Counts the places that there were, and those that are gone.
    pub fn epoch(&self) -> u64 {
        // Acquire: who sees a number sees the place of that time.
        self.epoch.load(Ordering::Acquire)
    }

    /// Says how long the place will be.
    pub(super) fn set_bytes(&self, bytes: usize) -> io::Result<()> {
        let space = self.lock();
        if space.place().is_some() {
            return Err(Errno::BUSY.into());
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn set_base(&self, base: usize) {
        self.base.store(base, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

fn pause() {
    // A signal may end it early.
    let _: NanosleepRelativeResult = nanosleep(&PAUSE);
}

impl SpaceGuard<'_> {
    /// The space that is locked.
    pub fn space(&self) -> &AdoptedSpace {
        self.space
    }

    /// Where the place is and how many bytes it has; it stays there as long as
    /// this guard lives.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.space.place()
    }

    /// The window is at `address` from now on, and nothing is mapped there:
    /// what shows there replaces what was. The place before is forgotten.
    ///
    /// # Errors
    ///
    /// The kernel's, and for an address that is no page's. There is no place
    /// then.
    ///
    /// # Safety
    ///
    /// As many bytes as the window has, from `address` on, are mapped and may
    /// be replaced by any thread at any time, until
    /// [`forget_place`](Self::forget_place) or another `set_place` returns.
    pub unsafe fn set_place(&mut self, address: usize) -> io::Result<()> {
        self.forget_place();
        let bytes = self.space.bytes.load(Ordering::Relaxed);
        if address == 0 || !address.is_multiple_of(rustix::param::page_size()) || bytes == 0 {
            return Err(Errno::INVAL.into());
        }
        // SAFETY: the caller's promise.
        unsafe { map_nothing(with_exposed_provenance_mut(address), bytes)? };
        self.space.set_base(address);
        Ok(())
    }

    /// The window has no place from now on. What is mapped stays there, for
    /// the owner to unmap.
    pub fn forget_place(&mut self) {
        if self.space.place().is_some() {
            self.space.set_base(0);
        }
    }

    fn may_map(&self) -> Result<(), Errno> {
        self.space.tenant.may_map(self)
    }

    fn replaced(&self, at: usize, len: usize, by_file: bool) {
        self.space.tenant.replaced(self, at, len, by_file);
    }
}

impl Drop for SpaceGuard<'_> {
    fn drop(&mut self) {
        self.space.locked.store(false, Ordering::Release);
    }
}

/// Puts over `target` what an adopted space shows where nothing is mapped:
/// zeros that take no memory, and no stores, which could take some.
///
/// # Safety
///
/// `len` bytes from `target` on belong to the caller.
unsafe fn map_nothing(target: *mut c_void, len: usize) -> rustix::io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the caller's promise.
    unsafe { mm::mmap_anonymous(target, len, ProtFlags::READ, flags)? };
    Ok(())
}

/// Where `at..at + len` of a locked space is, if it has a place.
fn target(space: &SpaceGuard<'_>, at: usize, len: usize) -> io::Result<Option<*mut c_void>> {
    let Some((base, bytes)) = space.place() else {
        return Ok(None);
    };
    // The window may be an earlier one, of another size.
    match at.checked_add(len).is_some_and(|end| end <= bytes) {
        true => Ok(Some(with_exposed_provenance_mut(base + at))),
        false => Err(Errno::INVAL.into()),
    }
}

/// Moves `staged` over `at` in a locked space, if its tenant lets it.
pub(super) fn place_staged(
    space: &mut SpaceGuard<'_>,
    at: usize,
    staged: Staged,
) -> io::Result<()> {
    let len = staged.len();
    let target = target(space, at, len)?.ok_or(Errno::NXIO)?;
    space.may_map()?;
    // SAFETY: `target` checked that the range lies in the place, for which
    // whoever set it vouches as long as the space is locked.
    let failure = match unsafe { staged.move_over_adopted(target) } {
        Ok(()) => {
            space.replaced(at, len, true);
            return Ok(());
        }
        Err(failure) => failure,
    };
    if failure.lost {
        space.forget_place();
    }
    Err(failure.error)
}

/// Takes away what is mapped there. Where there is no place, there is nothing.
pub(super) fn place_nothing(space: &mut SpaceGuard<'_>, at: usize, len: usize) -> io::Result<()> {
    let Some(target) = target(space, at, len)? else {
        return Ok(());
    };
    // SAFETY: as in `place_staged`. No file is asked, and what takes no stores
    // is not accounted for, so the kernel unmaps only what it can replace.
    if let Err(errno) = unsafe { map_nothing(target, len) } {
        // SAFETY: as above.
        let failure = unsafe { Failure::after_adopted(errno, target, len) };
        if failure.lost {
            space.forget_place();
        }
        return Err(failure.error);
    }
    space.replaced(at, len, false);
    Ok(())
}

impl std::fmt::Debug for AdoptedSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdoptedSpace")
            .field("place", &self.place())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SpaceGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SpaceGuard").field(self.space).finish()
    }
}
