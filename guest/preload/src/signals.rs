//! Which signals a thread blocks.
//!
//! A SIGBUS that is blocked where an access causes it ends the process without
//! a handler, and QEMU blocks it in the threads of its processors. So the VMM
//! blocks everything but that.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use libc::{c_int, sigset_t};

use crate::real;

/// Signals that a thread gets for what it does itself.
const FAULTS: [c_int; 4] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL];

/// This thread's mask as it was, put back on drop.
pub(crate) struct Blocked(Option<sigset_t>);

fn empty() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn with(mut set: sigset_t, signal: c_int) -> sigset_t {
    // SAFETY: the set is one.
    unsafe { libc::sigaddset(&mut set, signal) };
    set
}

fn without(mut set: sigset_t, signal: c_int) -> sigset_t {
    // SAFETY: the set is one.
    unsafe { libc::sigdelset(&mut set, signal) };
    set
}

fn change(how: c_int, set: &sigset_t) -> Blocked {
    let mut old = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: one set is read and one written.
    let failed = unsafe { real::pthread_sigmask(how, set, old.as_mut_ptr()) };
    // SAFETY: a call that succeeded has written it.
    Blocked((failed == 0).then(|| unsafe { old.assume_init() }))
}

/// Blocks everything but faults in this thread, and in those that it starts.
pub(crate) fn block_all_but_faults() -> Blocked {
    let mut all = MaybeUninit::uninit();
    // SAFETY: the call initialises the set.
    let all = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    };
    change(libc::SIG_SETMASK, &FAULTS.into_iter().fold(all, without))
}

/// Blocks SIGBUS, for as long as its handler must not run.
pub(crate) fn block_sigbus() -> Blocked {
    change(libc::SIG_BLOCK, &with(empty(), libc::SIGBUS))
}

/// Blocks what a handler of the VMM's wants blocked, but not SIGBUS.
pub(crate) fn block_also(set: &sigset_t) -> Option<Blocked> {
    let set = without(*set, libc::SIGBUS);
    // SAFETY: the set is one.
    let has = |signal| unsafe { libc::sigismember(&set, signal) } == 1;
    let is_empty = !(1..=libc::SIGRTMAX()).any(has);
    (!is_empty).then(|| change(libc::SIG_BLOCK, &set))
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let Some(old) = &self.0 else { return };
        // SAFETY: the set is read.
        unsafe { real::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
    }
}

/// What the VMM is let block instead of `set`; none if that is all right.
///
/// # Safety
/// `set` is null or a set.
pub(crate) unsafe fn allowed(how: c_int, set: *const sigset_t) -> Option<sigset_t> {
    if how != libc::SIG_BLOCK && how != libc::SIG_SETMASK {
        return None;
    }
    // SAFETY: the caller's promise.
    let set = unsafe { set.as_ref() }?;
    // SAFETY: the set is one.
    let has_sigbus = unsafe { libc::sigismember(set, libc::SIGBUS) } == 1;
    has_sigbus.then(|| without(*set, libc::SIGBUS))
}
