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
        unsafe { trap::copy(dst, src, len) }
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

    // System V: rdi target, rsi source, rdx length; returns rax. In the body
    // rcx never is less than what is left: `rep movsb` keeps it exact when it
    // faults, and the loop takes 128 bytes off it once they are stored. So at
    // the fix-up, with or without a fault, rcx is the answer.
    //
    // The loop is for buffers that lie a little further into their page than
    // the source does: there `rep movsb` runs at a fifth of its speed on some
    // processors, because each load seems to wait for a store before it.
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
        "jmp daxwindow_guarded_copy_fixup",
        // The same with 32-byte registers, for at least 128 bytes.
        ".p2align 6",
        ".globl daxwindow_guarded_copy_avx",
        ".hidden daxwindow_guarded_copy_avx",
        ".type daxwindow_guarded_copy_avx,@function",
        "daxwindow_guarded_copy_avx:",
        "mov rcx, rdx",
        "2:",
        "vmovdqu ymm0, [rsi]",
        "vmovdqu ymm1, [rsi + 32]",
        "vmovdqu ymm2, [rsi + 64]",
        "vmovdqu ymm3, [rsi + 96]",
        "vmovdqu [rdi], ymm0",
        "vmovdqu [rdi + 32], ymm1",
        "vmovdqu [rdi + 64], ymm2",
        "vmovdqu [rdi + 96], ymm3",
        "sub rcx, 128",
        "add rsi, 128",
        "add rdi, 128",
        "cmp rcx, 128",
        "jae 2b",
        ".globl daxwindow_guarded_copy_avx_tail",
        ".hidden daxwindow_guarded_copy_avx_tail",
        "daxwindow_guarded_copy_avx_tail:",
        "rep movsb",
        ".globl daxwindow_guarded_copy_avx_end",
        ".hidden daxwindow_guarded_copy_avx_end",
        "daxwindow_guarded_copy_avx_end:",
        "vzeroupper",
        ".globl daxwindow_guarded_copy_fixup",
        ".hidden daxwindow_guarded_copy_fixup",
        "daxwindow_guarded_copy_fixup:",
        "mov rax, rcx",
        "ret",
        ".size daxwindow_guarded_copy, . - daxwindow_guarded_copy",
        ".popsection",
    );

    /// Shortest copy that the loop takes: a step moves this much.
    const AVX_BYTES: usize = 128;

    /// Copies; returns what was left. The handler must be installed.
    ///
    /// # Safety
    /// As for [`super::copy`].
    #[inline]
    pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
        if len >= AVX_BYTES && std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: the caller's promise; the processor has AVX and there
            // are bytes enough for the loop.
            unsafe { daxwindow_guarded_copy_avx(dst, src, len) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { daxwindow_guarded_copy(dst, src, len) }
        }
    }

    unsafe extern "sysv64" {
        fn daxwindow_guarded_copy(dst: *mut u8, src: *const u8, len: usize) -> usize;
        fn daxwindow_guarded_copy_avx(dst: *mut u8, src: *const u8, len: usize) -> usize;
        fn daxwindow_guarded_copy_avx_tail();
        fn daxwindow_guarded_copy_avx_end();
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
        let address = |label: unsafe extern "sysv64" fn()| label as *const () as usize;
        let body = address(daxwindow_guarded_copy_body);
        let fixup = address(daxwindow_guarded_copy_fixup);
        let avx = daxwindow_guarded_copy_avx as *const () as usize;
        let avx_tail = address(daxwindow_guarded_copy_avx_tail);
        let avx_end = address(daxwindow_guarded_copy_avx_end);
        // From the loop to its tail, which goes on byte by byte to where the
        // fault is; from there to the end, which leaves the registers tidy.
        let resume = match *at as usize {
            at if (avx..avx_tail).contains(&at) => avx_tail,
            at if (avx_tail..avx_end).contains(&at) => avx_end,
            at if (body..fixup).contains(&at) => fixup,
            _ => return pass_on(signal, info, context),
        };
        *at = resume as i64;
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
