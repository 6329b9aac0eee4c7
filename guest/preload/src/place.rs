//! Where the VMM maps a window's memfd, and that it takes it away.
//!
//! Laws: a call that concerns no window of ours is made as it is; a place is
//! forgotten before it is unmapped or mapped over, and adopted only when the
//! whole window was mapped in one call.
#![allow(unsafe_code)]

use libc::{c_int, c_void, off_t};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use crate::fault;
use crate::interpose::borrowed;
use crate::lines::{Cause, say};
use crate::real;
use crate::slot::{self, Slot};

/// Where windows begin, so that huge pages of a file can be mapped huge.
const ALIGN_BYTES: usize = 2 << 20;
/// How much longer than the window the VMM's reservation for it may be.
const MOST_SPARE_BYTES: usize = 64 << 10;

/// What an `mmap` asks for.
#[derive(Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) at: *mut c_void,
    pub(crate) len: usize,
    pub(crate) prot: c_int,
    pub(crate) flags: c_int,
    pub(crate) fd: c_int,
    pub(crate) offset: off_t,
}

impl Wish {
    /// # Safety
    /// As for `mmap`.
    pub(crate) unsafe fn make(self) -> *mut c_void {
        // SAFETY: the caller's promise.
        unsafe {
            real::mmap(
                self.at,
                self.len,
                self.prot,
                self.flags,
                self.fd,
                self.offset,
            )
        }
    }

    fn has(self, flag: c_int) -> bool {
        self.flags & flag != 0
    }

    /// Whether it may be what the VMM makes room for a window by.
    fn is_reservation(self) -> bool {
        let fits = |slot: &Slot| {
            slot.is_served()
                && self
                    .len
                    .checked_sub(slot.bytes())
                    .is_some_and(|spare| spare <= MOST_SPARE_BYTES)
        };
        self.at.is_null()
            && self.prot == libc::PROT_NONE
            && self.has(libc::MAP_ANONYMOUS)
            && self.has(libc::MAP_PRIVATE)
            && slot::taken().any(fits)
    }

    /// Windows whose memfd it may map, whole.
    fn candidates(self) -> impl Iterator<Item = &'static Slot> {
        // MAP_SHARED_VALIDATE has both bits.
        let is_shared = self.has(libc::MAP_SHARED) && !self.has(libc::MAP_ANONYMOUS);
        let fits = move |slot: &&Slot| {
            is_shared && self.offset == 0 && slot.is_served() && slot.bytes() == self.len
        };
        slot::taken().filter(fits)
    }

    /// The window whose memfd it maps.
    fn window(self) -> Option<&'static Slot> {
        let stat = fstat(borrowed(self.fd)?).ok()?;
        self.candidates().find(|slot| slot.is_memfd(&stat))
    }
}

/// Makes an `mmap` while there are windows.
///
/// # Safety
/// As for `mmap`.
pub(crate) unsafe fn map(wish: Wish) -> *mut c_void {
    if wish.is_reservation()
        && let Some(aligned) = reserve_aligned(wish)
    {
        return aligned;
    }
    let mapped = match wish.has(libc::MAP_FIXED) {
        true => slot::without_places(wish.at.addr(), wish.len, || {
            // SAFETY: the caller's promise.
            unsafe { wish.make() }
        }),
        // SAFETY: the caller's promise.
        false => unsafe { wish.make() },
    };
    if mapped != libc::MAP_FAILED && wish.candidates().next().is_some() {
        slot::settled(|| {
            if let Some(slot) = wish.window() {
                adopt(slot, mapped);
            }
        });
    }
    mapped
}

/// Makes an `munmap` while there are windows.
///
/// # Safety
/// As for `munmap`.
pub(crate) unsafe fn unmap(at: *mut c_void, len: usize) -> c_int {
    slot::without_places(at.addr(), len, || {
        // SAFETY: the caller's promise.
        unsafe { real::munmap(at, len) }
    })
}

/// A reservation on a boundary that suits huge pages; none if there is no room.
fn reserve_aligned(wish: Wish) -> Option<*mut c_void> {
    let page = rustix::param::page_size();
    let len = wish.len.checked_next_multiple_of(page)?;
    let padded = len.checked_add(ALIGN_BYTES)?;
    let flags = MapFlags::from_bits_retain(wish.flags as u32);
    let nowhere = std::ptr::null_mut();
    // SAFETY: a fresh mapping at an address that the kernel chooses replaces
    // nothing.
    let raw = unsafe { mm::mmap_anonymous(nowhere, padded, ProtFlags::empty(), flags) };
    let raw = raw.ok()?;
    let head = raw.addr().next_multiple_of(ALIGN_BYTES) - raw.addr();
    let start = raw.wrapping_byte_add(head);
    let cut = |at: *mut c_void, len: usize| match len {
        0 => Ok(()),
        // SAFETY: before or behind what is returned, in the mapping just made,
        // which nobody else knows of. What cannot be cut off is only lost.
        _ => unsafe { mm::munmap(at, len) },
    };
    let _: Result<(), Errno> = cut(raw, head);
    let _: Result<(), Errno> = cut(start.wrapping_byte_add(len), padded - head - len);
    Some(start)
}

/// The VMM has mapped the whole window at `place`.
fn adopt(slot: &Slot, place: *mut c_void) {
    fault::install();
    let mut space = slot.space.lock();
    slot.forget(&mut space);
    // SAFETY: the VMM has just mapped the window's memfd there, as many bytes as
    // the window has, because the daemon asked it to, for what files are to be
    // mapped over; `without_places` forgets the place before it is given back.
    let adopted = unsafe { space.set_place(place.expose_provenance()) };
    drop(space);
    if let Err(error) = adopted {
        say(
            Cause::Place,
            format_args!("a window's place cannot be used: {error}"),
        );
    }
}
