//! A copy that survives SIGBUS, and SIGSEGV as well.
//!
//! A page of a shared mapping whose file was truncated raises SIGBUS; a range
//! of the window that the back end unmaps against the rules, SIGSEGV. The
//! copy below runs in a known instruction range; a handler, installed once,
//! recognises that range by the interrupted instruction pointer and resumes
//! at the end of the routine, which returns how much was left. Every other
//! signal goes to whoever handled it before. Where no such routine exists,
//! the kernel copies for us (`process_vm_readv` on this process) and answers
//! EFAULT instead of a signal.
#![allow(unsafe_code)]

/// Copies `len` bytes; returns how many were *not* copied because a page of
/// either side had no file behind it.
///
/// # Safety
/// Both ranges must be mapped (pages past the end of a file are fine) with
/// the needed protection for the whole call, and must not overlap.
pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        trap::install();
        // SAFETY: the caller's promise; the handler is installed.
        unsafe { trap::daxwindow_guarded_copy(dst, src, len) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // SAFETY: the caller's promise.
        unsafe { copy_by_kernel(dst, src, len) }
    }
}

/// The portable form: the kernel copies within this process, page by page.
///
/// # Safety
/// As for [`copy`].
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) unsafe fn copy_by_kernel(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: getpid has no preconditions.
    let pid = unsafe { libc::getpid() };
    let mut done = 0;
    while done < len {
        let local = libc::iovec {
            iov_base: dst.wrapping_add(done).cast(),
            iov_len: len - done,
        };
        let remote = libc::iovec {
            iov_base: src.wrapping_add(done).cast_mut().cast(),
            iov_len: len - done,
        };
        // SAFETY: both vectors describe ranges the caller vouches for, and
        // the kernel answers EFAULT for pages that cannot be had.
        let copied = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        match usize::try_from(copied) {
            Ok(0) | Err(_) => break,
            Ok(copied) => done += copied,
        }
    }
    len - done
}

#[cfg(target_arch = "x86_64")]
mod trap {
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;

    use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

    // System V: rdi target, rsi source, rdx length; returns rax. `rep movsb`
    // keeps rcx, rsi and rdi exact when it faults, so at the fix-up rcx is
    // what is left, with or without a fault.
    std::arch::global_asm!(
        ".pushsection .text.daxwindow_guarded_copy,\"ax\",@progbits",
        ".p2align 6",
        ".globl daxwindow_guarded_copy",
        ".hidden daxwindow_guarded_copy",
        ".type daxwindow_guarded_copy,@function",
        "daxwindow_guarded_copy:",
        "mov rcx, rdx",
        ".globl daxwindow_guarded_copy_body",
        ".hidden daxwindow_guarded_copy_body",
        "daxwindow_guarded_copy_body:",
        "rep movsb",
        ".globl daxwindow_guarded_copy_fixup",
        ".hidden daxwindow_guarded_copy_fixup",
        "daxwindow_guarded_copy_fixup:",
        "mov rax, rcx",
        "ret",
        ".size daxwindow_guarded_copy, . - daxwindow_guarded_copy",
        ".popsection",
    );

    unsafe extern "sysv64" {
        pub(super) fn daxwindow_guarded_copy(dst: *mut u8, src: *const u8, len: usize) -> usize;
        fn daxwindow_guarded_copy_body();
        fn daxwindow_guarded_copy_fixup();
    }

    /// The signals caught, and who handled them before us. Written once,
    /// before our handler can run.
    static PREVIOUS: [(c_int, OnceLock<sigaction>); 2] = [
        (libc::SIGBUS, OnceLock::new()),
        (libc::SIGSEGV, OnceLock::new()),
    ];

    /// Installs the handler, the first time.
    #[inline]
    pub(super) fn install() {
        static DONE: OnceLock<()> = OnceLock::new();
        DONE.get_or_init(install_now);
    }

    #[cold]
    fn install_now() {
        for (signal, previous) in &PREVIOUS {
            install_one(*signal, previous);
        }
    }

    fn install_one(signal: c_int, previous: &OnceLock<sigaction>) {
        // SAFETY: plain queries and an installation of a handler that does
        // only what is allowed in one (it compares, sets a register, or calls
        // the handler that was there before).
        let failed = unsafe {
            let mut old = MaybeUninit::<sigaction>::zeroed();
            libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr());
            previous.get_or_init(|| old.assume_init());
            let mut new: sigaction = MaybeUninit::zeroed().assume_init();
            new.sa_sigaction = handler as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut new.sa_mask);
            libc::sigaction(signal, &new, std::ptr::null_mut())
        };
        if failed != 0 {
            // Copies still work; a truncation would end the process.
            tracing::error!("cannot install a handler of signal {signal}");
        }
    }

    extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel hands a valid ucontext_t to a SA_SIGINFO
        // handler, and nobody else uses it while the handler runs.
        let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
        let at = &mut registers[libc::REG_RIP as usize];
        let body = daxwindow_guarded_copy_body as *const () as usize;
        let fixup = daxwindow_guarded_copy_fixup as *const () as usize;
        if (body..fixup).contains(&(*at as usize)) {
            *at = fixup as i64;
            return;
        }
        pass_on(signal, info, context);
    }

    /// Does what would have been done without us.
    fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        let ours = PREVIOUS.iter().find(|(number, _)| *number == signal);
        let Some(previous) = ours.and_then(|(_, previous)| previous.get()) else {
            return;
        };
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // SAFETY: both calls are allowed in a handler. With the old
                // action back in place the faulting instruction runs again
                // and meets it; a signal that was sent is sent again.
                unsafe {
                    libc::sigaction(signal, previous, std::ptr::null_mut());
                    if (*info).si_code <= 0 {
                        libc::raise(signal);
                    }
                }
            }
            action if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: SA_SIGINFO says that the address is a function of
                // this type.
                let action: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(action) };
                action(signal, info, context);
            }
            action => {
                // SAFETY: without SA_SIGINFO the address is a function of
                // this type.
                let action: extern "C" fn(c_int) = unsafe { std::mem::transmute(action) };
                action(signal);
            }
        }
    }
}
