//! The SIGBUS handler, and the ways of mapping over guest memory.
//!
//! Laws: what runs in the handler is async-signal-safe (atomics, raw system
//! calls); a fault that is not in a watched range goes to whoever was asked
//! before, with the process as it was; zeros need no more mappings than
//! the kernel will give.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use libc::{c_int, c_void, sigaction, siginfo_t};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegion;

use super::table::Table;

/// Where guest memory is.
pub(super) static TABLE: Table = Table::new();
/// What was replaced by zeros; one for each of so many guests, and one in so
/// many shares it.
pub(super) static FAULTED: [Faulted; 64] = [const { Faulted::new() }; 64];
/// Most pages of one guest that are replaced one by one, two mappings each, of
/// the 65,530 that the process may have for all its guests; further ones take
/// their range with them.
const MAX_PIECES: usize = 256;
/// Address of mappings that are there to be given up, or zero.
static RESERVE: AtomicUsize = AtomicUsize::new(0);
/// How many mappings those are, of a page each.
const RESERVE_PAGES: usize = 16;

/// What was replaced by zeros and is not mapped again.
pub(super) struct Faulted {
    /// There is something.
    pub(super) raised: AtomicBool,
    /// So many pages, and ranges.
    pub(super) pieces: AtomicUsize,
}

impl Faulted {
    const fn new() -> Faulted {
        Faulted {
            raised: AtomicBool::new(false),
            pieces: AtomicUsize::new(0),
        }
    }
}
/// What SIGBUS did before. Set before our handler is.
static PREVIOUS: OnceLock<sigaction> = OnceLock::new();

thread_local! {
    /// Plain memory of the thread: no destructor, no lazy start.
    static FAULTS: AtomicU64 = const { AtomicU64::new(0) };
    /// How many of them somebody has taken note of.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// How often a fault in an unknown place looks again, a millisecond apart:
/// memory is in use a moment before it is watched. A fault that stays unknown
/// ends the process anyway.
const LOOKS: u32 = 200;

/// Pages that vanished under this thread.
pub(super) fn faults() -> u64 {
    // The handler runs on this thread, so that the compiler alone could
    // reorder it.
    compiler_fence(Ordering::SeqCst);
    let faults = FAULTS.with(|faults| faults.load(Ordering::Relaxed));
    compiler_fence(Ordering::SeqCst);
    faults
}

/// Those not taken before.
pub(super) fn take_faults() -> u64 {
    let faults = faults();
    faults.wrapping_sub(TAKEN.replace(faults))
}

/// Takes SIGBUS over; once.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        refill();
        let _ = PREVIOUS.set(exchange(None)?);
        exchange(Some(&ours())).map(drop)
    };
    INSTALLED
        .get_or_init(|| install().map_err(|error: io::Error| error.raw_os_error().unwrap_or(0)))
        .map_err(io::Error::from_raw_os_error)
}

/// On the alternate stack where the thread has one. The signal stays blocked
/// meanwhile, so a fault of the handler's own ends the process.
fn ours() -> sigaction {
    action(
        on_sigbus as *const () as usize,
        libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART,
    )
}

fn action(handler: usize, flags: c_int) -> sigaction {
    // SAFETY: all zeros is a valid `sigaction`: an empty mask, no restorer.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action
}

/// Sets what SIGBUS does, or leaves it; answers what it did.
fn exchange(new: Option<&sigaction>) -> io::Result<sigaction> {
    let mut old = action(libc::SIG_DFL, 0);
    // SAFETY: both point to a `sigaction` of ours or are null; the handler in
    // `new` is `on_sigbus` or SIG_DFL.
    match unsafe { libc::sigaction(libc::SIGBUS, new.map_or(null(), |n| n), &mut old) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO;
    // a SIGBUS has the address field. errno is the thread's own.
    let (code, address, errno) = unsafe {
        let errno = *libc::__errno_location();
        ((*info).si_code, (*info).si_addr() as usize, errno)
    };
    if code == libc::BUS_ADRERR && zero_fill(address) {
        // SAFETY: as above; the interrupted code may be about to look at it.
        unsafe { *libc::__errno_location() = errno };
    } else {
        pass_on(signal, info, context, code);
    }
}

/// Puts zeros where the faulting page was. False if that is no guest memory,
/// or the kernel has no room for even one more mapping.
fn zero_fill(address: usize) -> bool {
    let mut found = TABLE.find(address);
    for _ in 0..LOOKS {
        if found.is_some() {
            break;
        }
        wait_a_millisecond();
        found = TABLE.find(address);
    }
    let Some((slot, watched)) = found else {
        return false;
    };
    // A page of its own splits a mapping in three, and their number is
    // limited; the whole range in one piece needs no more than there are. But
    // at the limit the kernel refuses even that: a page in the middle may have
    // taken one more than there should be (`do_mmap` looks before it unmaps).
    // The remainder is below the number of flags.
    let faulted = &FAULTED[slot.flag.load(Ordering::Relaxed) % FAULTED.len()];
    let piecewise = faulted.pieces.fetch_add(1, Ordering::Relaxed) < MAX_PIECES;
    let replace = libc::MAP_FIXED;
    let covered = (piecewise && map_zeros(watched.page(address), replace))
        || map_zeros(watched.range.clone(), replace)
        || (release_reserve() && map_zeros(watched.range, replace));
    if !covered {
        return false;
    }
    // Release pairs with the Acquire in `remap`: who sees the flag maps after
    // us. First the slot's, since the other is taken first.
    slot.faulted.store(true, Ordering::Release);
    faulted.raised.store(true, Ordering::Release);
    FAULTS.with(|faults| faults.fetch_add(1, Ordering::Relaxed));
    true
}

fn wait_a_millisecond() {
    let pause = libc::timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    // SAFETY: reads one timespec of ours; async-signal-safe.
    unsafe { libc::nanosleep(&pause, null_mut()) };
}

/// A raw call: the C library's `mmap` is not promised to be safe here.
/// MAP_NORESERVE also keeps the mapping from growing into a neighbour.
/// `place`: MAP_FIXED, or MAP_FIXED_NOREPLACE where only a hole is filled.
fn map_zeros(range: Range<usize>, place: libc::c_int) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | place;
    // SAFETY: `range` is whole pages inside a watched range, hence inside a
    // mapping of guest memory that is alive, because somebody touches it.
    // Nobody holds references into guest memory, and its bytes may change at
    // any time.
    let mapped = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            range.start,
            range.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    mapped as usize == range.start
}

/// Unmaps the reserve; false if it is gone already.
fn release_reserve() -> bool {
    let start = RESERVE.swap(0, Ordering::Relaxed);
    let bytes = RESERVE_PAGES * rustix::param::page_size();
    // SAFETY: the address of whole mappings of `refill`, which nobody else
    // uses, and by the swap nobody else unmaps; a raw call is async-signal-safe.
    start != 0 && unsafe { libc::syscall(libc::SYS_munmap, start, bytes) } == 0
}

/// Makes the reserve if it is not there: after something was put right. One
/// caller at a time.
pub(super) fn refill() {
    if RESERVE.load(Ordering::Relaxed) != 0 {
        return;
    }
    let page = rustix::param::page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let bytes = RESERVE_PAGES * page;
    // SAFETY: a new mapping where the kernel likes.
    let start = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        // At the limit: tried again when something is put right.
        return;
    }
    for odd in (1..RESERVE_PAGES).step_by(2) {
        // Neighbours that differ are mappings of their own.
        // SAFETY: a page inside the mapping just made, which nobody uses.
        unsafe { libc::mprotect(start.wrapping_byte_add(odd * page), page, libc::PROT_READ) };
    }
    RESERVE.store(start as usize, Ordering::Relaxed);
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, code: c_int) {
    let handler = PREVIOUS.get().map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    let flags = PREVIOUS.get().map_or(0, |p| p.sa_flags);
    let is_fault = (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code);
    match handler {
        // The kernel does not let a fault be ignored either.
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            let _ = exchange(Some(&action(libc::SIG_DFL, 0)));
            if !is_fault {
                // SAFETY: no memory is involved. It strikes when the handler
                // returns; a fault strikes by itself.
                unsafe { libc::raise(signal) };
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler with three arguments.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed as a handler with one argument.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Maps a region's file over it again, so that zeros put there go. `bytes`:
/// the region's, in whole pages.
pub(super) fn restore(region: &MmapRegion, bytes: usize) -> io::Result<()> {
    let Some(file) = region.file_offset() else {
        return Ok(());
    };
    let offset = libc::off_t::try_from(file.start()).map_err(io::Error::other)?;
    let fd = file.file().as_raw_fd();
    map_over(region, bytes, region.flags(), fd, offset)
}

/// Maps a file without a byte over a region of so many `bytes`, in whole
/// pages: as if all of it had vanished.
pub(super) fn map_nothing(region: &MmapRegion, bytes: usize) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    let fd = nothing()?.as_raw_fd();
    map_over(region, bytes, flags, fd, 0).or_else(|error| match release_reserve() {
        true => map_over(region, bytes, flags, fd, 0),
        false => Err(error),
    })
}

/// Nobody sees a hole: the new mapping is made elsewhere and moved.
fn map_over(
    region: &MmapRegion,
    bytes: usize,
    flags: c_int,
    fd: RawFd,
    offset: libc::off_t,
) -> io::Result<()> {
    // SAFETY: a new mapping where the kernel likes, of a descriptor that is
    // open: that of `region`, which is borrowed, or the one of `nothing`.
    let fresh = unsafe { libc::mmap(null_mut(), bytes, region.prot(), flags, fd, offset) };
    if fresh == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: `fresh` is ours and as long as `region`, which it replaces
    // whole; that range belongs to `region` as long as it is borrowed, and
    // nobody holds references into guest memory.
    let moved = unsafe { libc::mremap(fresh, bytes, bytes, flags, region.as_ptr()) };
    if moved == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // The kernel looks at the number of mappings before it unmaps the
        // region. Should it have failed later, the hole is filled before
        // another mapping gets it.
        let start = region.as_ptr() as usize;
        map_zeros(
            start..start.saturating_add(bytes),
            libc::MAP_FIXED_NOREPLACE,
        );
        // SAFETY: still ours, since it was not moved.
        unsafe { libc::munmap(fresh, bytes) };
        return Err(error);
    }
    Ok(())
}

/// A file without a byte, which stays so.
fn nothing() -> io::Result<&'static OwnedFd> {
    static NOTHING: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(nothing) = NOTHING.get() {
        return Ok(nothing);
    }
    let made = memfd_create("nothing", MemfdFlags::CLOEXEC)?;
    Ok(NOTHING.get_or_init(|| made))
}

/// Puts the file without a byte in the place of the region's, which is closed
/// thereby whoever still has the region.
pub(super) fn close_file(region: &MmapRegion) {
    let (Some(file), Ok(nothing)) = (region.file_offset(), nothing()) else {
        return;
    };
    // SAFETY: the number stays open, and the same `File`'s, throughout; that
    // file is used for nothing but to be mapped.
    unsafe {
        libc::dup3(
            nothing.as_raw_fd(),
            file.file().as_raw_fd(),
            libc::O_CLOEXEC,
        )
    };
}
