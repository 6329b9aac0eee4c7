//! `sigaction`, `pthread_sigmask`, `sigprocmask`.

use libc::{c_int, sigaction as Action, sigset_t};

use crate::{fault, real, signals};

/// Keeps SIGBUS for the library, and gives the VMM what is not the library's.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const Action,
    old: *mut Action,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        match signal {
            libc::SIGBUS => fault::sigaction(new, old),
            _ => real::sigaction(signal, new, old),
        }
    }
}

/// Leaves SIGBUS out of what is blocked.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pthread_sigmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let allowed = signals::allowed(how, set);
        real::pthread_sigmask(how, allowed.as_ref().map_or(set, |set| set), old)
    }
}

/// The same by its other name.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sigprocmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let allowed = signals::allowed(how, set);
        real::sigprocmask(how, allowed.as_ref().map_or(set, |set| set), old)
    }
}
