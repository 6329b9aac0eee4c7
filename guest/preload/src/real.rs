//! The functions of the C library that this one stands in front of: those
//! that the next library in the order of loading has.
//!
//! Laws: each is looked up once, when the library is loaded; whoever calls
//! before that looks it up himself. Nothing here allocates.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_ulong, c_void, msghdr, off_t, sigaction as Action, sigset_t, size_t};
use libc::{sockaddr, socklen_t, ssize_t};

macro_rules! real {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, else $none:expr;)*) => {
        mod found {
            use super::*;
            $(#[allow(non_upper_case_globals)]
            pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());)*
        }

        $($(#[$doc])*
        ///
        /// # Safety
        /// As for the C library's.
        pub(crate) unsafe fn $name($($arg: $ty),*) -> $ret {
            type Function = unsafe extern "C" fn($($ty),*) -> $ret;
            const NAME: &CStr = as_c_str(concat!(stringify!($name), "\0"));
            let found = look_up(&found::$name, NAME);
            if found.is_null() {
                set_errno(libc::ENOSYS);
                return $none;
            }
            // SAFETY: the C library's function of that name has this type.
            let function = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
            // SAFETY: the caller's promise.
            unsafe { function($($arg),*) }
        })*

        /// Looks all of them up.
        pub(crate) fn look_up_all() {
            $(look_up(&found::$name, as_c_str(concat!(stringify!($name), "\0")));)*
        }
    };
}

real! {
    /// `connect(2)`.
    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int, else -1;
    /// `sendmsg(2)`.
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t, else -1;
    /// `recvmsg(2)`.
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t, else -1;
    /// `mmap(2)`, whose 64-bit form is the same function.
    fn mmap(at: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, offset: off_t)
        -> *mut c_void, else libc::MAP_FAILED;
    /// `munmap(2)`.
    fn munmap(at: *mut c_void, len: size_t) -> c_int, else -1;
    /// `ioctl(2)`, with the one argument that a call can have.
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int, else -1;
    /// `sigaction(2)`.
    fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int, else -1;
    /// `sigprocmask(2)`.
    fn sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int, else -1;
    /// `pthread_sigmask(3)`, which returns an errno.
    fn pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int,
        else libc::ENOSYS;
}

const fn as_c_str(name: &str) -> &CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name ends with its only zero byte"),
    }
}

fn look_up(place: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    // Relaxed: the pointer leads to code, which was there before.
    let known = place.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: `name` is a string that ends with a zero byte.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    place.store(found, Ordering::Relaxed);
    found
}

/// This thread's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: the C library returns a valid pointer to a number of this
    // thread's.
    unsafe { *libc::__errno_location() }
}

/// Sets this thread's `errno`.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = errno };
}
