//! SIGBUS: in a window it is mended, elsewhere it is the VMM's.
//!
//! Laws: from the first window on the library's handler stays installed, and
//! what the VMM installs is only noted, whatever comes first; the VMM sees its
//! own action when it asks, and its handler gets what is not about a window. A
//! thread blocks SIGBUS while it holds the lock of the noted action.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, sigaction as Action, siginfo_t};

use crate::lines::{Cause, say};
use crate::mend::{self, Outcome};
use crate::pages::Access;
use crate::real;
use crate::signals::{self, Blocked};

/// The VMM's action, while ours is installed.
struct Noted {
    locked: AtomicBool,
    action: UnsafeCell<MaybeUninit<Action>>,
    is_installed: UnsafeCell<bool>,
}

// SAFETY: the cells are used under the lock alone.
unsafe impl Sync for Noted {}

static NOTED: Noted = Noted {
    locked: AtomicBool::new(false),
    action: UnsafeCell::new(MaybeUninit::zeroed()),
    is_installed: UnsafeCell::new(false),
};

/// The noted action, locked.
struct Locked {
    _blocked: Blocked,
}

impl Locked {
    fn new() -> Locked {
        let blocked = signals::block_sigbus();
        // Acquire: pairs with the release in `drop`.
        while NOTED.locked.swap(true, Ordering::Acquire) {
            rustix::thread::sched_yield();
        }
        Locked { _blocked: blocked }
    }

    /// The VMM's action, if ours is installed.
    fn action(&mut self) -> Option<&mut Action> {
        // SAFETY: the lock is held, and the reference ends with its borrow. An
        // action that is all zero is a valid one.
        unsafe {
            let action = (*NOTED.action.get()).assume_init_mut();
            (*NOTED.is_installed.get()).then_some(action)
        }
    }

    fn installed(&mut self, old: Action) {
        // SAFETY: the lock is held.
        unsafe {
            (*NOTED.action.get()).write(old);
            *NOTED.is_installed.get() = true;
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        NOTED.locked.store(false, Ordering::Release);
    }
}

/// Installs the handler, the first time.
pub(crate) fn install() {
    let mut locked = Locked::new();
    if locked.action().is_some() {
        return;
    }
    let mut new = MaybeUninit::<Action>::zeroed();
    let mut old = MaybeUninit::<Action>::zeroed();
    // SAFETY: an action that is all zero is valid; the handler does only what is
    // allowed in one.
    let failed = unsafe {
        let action = new.assume_init_mut();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        real::sigaction(libc::SIGBUS, action, old.as_mut_ptr())
    };
    match failed {
        // SAFETY: a call that succeeded has written it.
        0 => locked.installed(unsafe { old.assume_init() }),
        _ => say(
            Cause::Handler,
            format_args!("a host that truncates files may end this VMM: no SIGBUS handler"),
        ),
    }
}

/// `sigaction` for SIGBUS.
///
/// # Safety
/// As for the C library's.
pub(crate) unsafe fn sigaction(new: *const Action, old: *mut Action) -> c_int {
    let mut locked = Locked::new();
    let Some(action) = locked.action() else {
        // SAFETY: the caller's promise.
        return unsafe { real::sigaction(libc::SIGBUS, new, old) };
    };
    let before = *action;
    // SAFETY: the caller's promise: each is null, or an action to be read or to
    // be written.
    unsafe {
        if let Some(new) = new.as_ref() {
            *action = *new;
        }
        if let Some(old) = old.as_mut() {
            *old = before;
        }
    }
    0
}

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = real::errno();
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid one.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let is_lost_page = code == libc::BUS_ADRERR;
    let outcome = match is_lost_page {
        true => mend::fault(address, access(context)),
        false => Outcome::NotOurs,
    };
    if outcome == Outcome::NotOurs {
        pass_on(signal, info, context);
    }
    real::set_errno(errno);
}

/// What the access would have done.
fn access(context: *mut c_void) -> Access {
    #[cfg(target_arch = "x86_64")]
    {
        /// In a page fault's error code: it was a store.
        const STORE: i64 = 1 << 1;
        // SAFETY: the kernel hands a SA_SIGINFO handler a valid context.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        match registers[libc::REG_ERR as usize] & STORE {
            0 => Access::Load,
            _ => Access::Store,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = context;
        Access::Any
    }
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let noted = {
        let mut locked = Locked::new();
        locked.action().map(|action| {
            let noted = *action;
            if noted.sa_flags & libc::SA_RESETHAND != 0 {
                action.sa_sigaction = libc::SIG_DFL;
            }
            noted
        })
    };
    let Some(action) = noted else { return };
    match action.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => by_default(signal, info, action.sa_sigaction),
        function => {
            // Where there is nothing to block there is nothing to put back, and
            // a handler may leave by `siglongjmp`, as QEMU's does.
            let _blocked = signals::block_also(&action.sa_mask);
            // SAFETY: the VMM says by SA_SIGINFO which of both types its handler
            // has, and the arguments are the kernel's.
            unsafe {
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    type Long = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                    std::mem::transmute::<usize, Long>(function)(signal, info, context);
                } else {
                    std::mem::transmute::<usize, extern "C" fn(c_int)>(function)(signal);
                }
            }
        }
    }
}

/// Ends the process, as the kernel does; but a signal that was sent may be
/// ignored.
fn by_default(signal: c_int, info: *mut siginfo_t, action: libc::sighandler_t) {
    // SAFETY: as in `handler`.
    let code = unsafe { (*info).si_code };
    let was_sent = code <= 0 || code == libc::BUS_MCEERR_AO;
    if was_sent && action == libc::SIG_IGN {
        return;
    }
    let mut default = MaybeUninit::<Action>::zeroed();
    // SAFETY: an action that is all zero but for this is valid. An access that
    // failed fails again and meets it.
    unsafe {
        default.assume_init_mut().sa_sigaction = libc::SIG_DFL;
        real::sigaction(signal, default.as_ptr(), std::ptr::null_mut());
        if was_sent {
            libc::raise(signal);
        }
    }
}
