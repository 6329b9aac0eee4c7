//! `mmap`, by both of its names, and `munmap`.

use libc::{c_int, c_void, off_t, size_t};

use crate::place::{self, Wish};
use crate::{real, slot};

/// Sees where a window is mapped, and gives it a good place.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let wish = Wish {
        at,
        len,
        prot,
        flags,
        fd,
        offset,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match slot::any() {
            true => place::map(wish),
            false => wish.make(),
        }
    }
}

/// The same by its other name.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap64(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(at, len, prot, flags, fd, offset) }
}

/// Sees that a window goes away.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(at: *mut c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        match slot::any() {
            true => place::unmap(at, len),
            false => real::munmap(at, len),
        }
    }
}
