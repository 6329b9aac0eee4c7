//! SIGBUS, as a program of its own handles it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libc::{c_int, c_void, siginfo_t};

use super::calls;

/// Says that it was called, and ends the program.
extern "C" fn handler(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let said = b"\n@handled\n";
    // SAFETY: both calls are allowed in a handler.
    unsafe {
        libc::write(1, said.as_ptr().cast(), said.len());
        libc::_exit(0);
    }
}

/// Installs a handler of the program's own.
pub(super) fn handle() -> io::Result<()> {
    // SAFETY: all zero but for these is an action.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let failed = libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        calls::checked(failed as isize).map(drop)
    }
}

/// Leaves it to the kernel, what becomes of it.
pub(super) fn handle_by_default() -> io::Result<()> {
    // SAFETY: all zero is the default action.
    unsafe {
        let action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        let failed = libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        calls::checked(failed as isize).map(drop)
    }
}

/// What the C library says is installed.
pub(super) fn installed() -> io::Result<String> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call writes the action.
    let action = unsafe {
        let asked = libc::sigaction(libc::SIGBUS, std::ptr::null(), action.as_mut_ptr());
        calls::checked(asked as isize)?;
        action.assume_init()
    };
    Ok(format!("{:#x} {:#x}", action.sa_sigaction, action.sa_flags))
}

/// Loads where a file of the program's own has ended.
pub(super) fn fault_elsewhere() -> io::Result<u8> {
    let file = tempfile::tempfile()?;
    file.set_len(calls::PAGE as u64)?;
    let address = calls::map_file(file.as_fd(), calls::PAGE)?;
    file.set_len(0)?;
    Ok(calls::load(address))
}

/// Blocks every signal; whether SIGBUS is blocked then.
pub(super) fn block_all(by: &str) -> io::Result<String> {
    let mut all = MaybeUninit::uninit();
    // SAFETY: the set is written, and then read.
    let failed = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        let all = all.assume_init();
        match by {
            "pthread_sigmask" => {
                libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut())
            }
            "sigprocmask" => libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut()),
            _ => panic!("{by}"),
        }
    };
    calls::checked(failed as isize)?;
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = u64::from_str_radix(mask.expect("a mask").trim(), 16).expect("hex");
    let is_blocked = |signal: c_int| mask & (1 << (signal - 1)) != 0;
    Ok(format!(
        "{} {}",
        is_blocked(libc::SIGBUS),
        is_blocked(libc::SIGTERM)
    ))
}
