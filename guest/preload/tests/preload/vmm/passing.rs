//! Calls that are not about a window, in a process that dies of any other
//! system call.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

use super::Things;
use super::calls::{self, PAGE, checked};

/// What the calls below are made of, and what a thread needs to say that it is
/// done, and to end.
const ALLOWED: [libc::c_long; 12] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_ioctl,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_rseq,
    libc::SYS_exit,
];

/// This thread may make these calls alone.
fn allow_only(calls: &[libc::c_long]) -> io::Result<()> {
    let statement = |code: u32, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // The call's number is what a filter is given first.
    let mut filter = vec![statement(BPF_LD | BPF_W | BPF_ABS, 0)];
    for (n, call) in calls.iter().enumerate() {
        let mut equal = statement(BPF_JMP | BPF_JEQ | BPF_K, *call as u32);
        equal.jt = (calls.len() - n) as u8;
        filter.push(equal);
    }
    filter.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_KILL_PROCESS));
    filter.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program lives until the call has copied it.
    unsafe {
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) as isize)?;
        let mode = libc::SECCOMP_MODE_FILTER;
        checked(libc::prctl(libc::PR_SET_SECCOMP, mode, &program) as isize)?;
    }
    Ok(())
}

/// Makes calls of all kinds on a thread of its own.
pub(super) fn pass_through(things: &Things) -> io::Result<()> {
    let file = tempfile::tempfile()?;
    file.set_len(4 * PAGE as u64)?;
    let (one, other) = UnixStream::pair()?;
    let old = things.sockets.values().next();
    let calls = || -> io::Result<()> {
        allow_only(&ALLOWED)?;
        let own = calls::map_own(0, 8 * PAGE)?;
        calls::unmap(own, 8 * PAGE)?;
        let shared = calls::map_file(file.as_fd(), 4 * PAGE)?;
        calls::unmap(shared, 4 * PAGE)?;
        calls::send(&one, b"text", None)?;
        calls::receive(&other, &mut [0; 4], 0)?;
        // A connection of which all is known.
        if let Some(old) = old {
            calls::send(old, b"text", None)?;
        }
        let mut bytes = 0;
        // SAFETY: the request writes a number.
        let asked = unsafe { libc::ioctl(3, libc::FIONREAD, &mut bytes) };
        let _ = asked;
        // SAFETY: the sets are read.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::sigaction(libc::SIGUSR1, std::ptr::null(), std::ptr::null_mut());
        }
        Ok(())
    };
    let (said, hears) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let result = calls();
            said.send(result).expect("somebody hears");
        });
    });
    hears.recv().expect("said")
}
