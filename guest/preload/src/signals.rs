//! Signals of threads.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use libc::sigset_t;

use crate::real;

/// Signals that a thread gets for what it does itself; blocked, they end the
/// process.
const FAULTS: [libc::c_int; 4] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL];

/// This thread's mask as it was, put back on drop.
pub(crate) struct Blocked(Option<sigset_t>);

/// Blocks everything but faults in this thread, and in those that it starts.
pub(crate) fn block_all_but_faults() -> Blocked {
    let mut set = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: the first call initialises the set, the others change it.
    let set = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in FAULTS {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        set.assume_init()
    };
    let mut old = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: one set is read and one written.
    let failed = unsafe { real::pthread_sigmask(libc::SIG_SETMASK, &set, old.as_mut_ptr()) };
    // SAFETY: a call that succeeded has written it.
    Blocked((failed == 0).then(|| unsafe { old.assume_init() }))
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let Some(old) = &self.0 else { return };
        // SAFETY: the set is read.
        unsafe { real::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
    }
}
