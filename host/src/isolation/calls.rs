//! Which system calls each of the processes may make.

use super::seccomp::Allowed;

/// What every Rust program with threads makes, wherever it is.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Only ever of one's own: how abort and assertions end a process.
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What the threads of the device make.
const DEVICE: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// What requests make of the share.
const SHARE: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_open_by_handle_at,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Being somebody else for one call.
const IDENTITY: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getuid,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
];

/// `ioctl` commands of the standard library: TCGETS, FIONBIO, FIOCLEX.
const RUNTIME_IOCTLS: &[u32] = &[0x5401, 0x5421, 0x5451];
/// Those of requests: `FS_IOC_{GET,SET}FLAGS`, `FS_IOC_FS{GET,SET}XATTR`.
const SHARE_IOCTLS: &[u32] = &[0x8008_6601, 0x4008_6602, 0x801c_581f, 0x401c_5820];
/// `FUSE_DEV_IOC_BACKING_OPEN` and `_CLOSE` of linux/fuse.h.
const FUSE_IOCTLS: &[u32] = &[0x4010_e501, 0x4004_e502];
/// `PR_GET_AUXV`: how large a page is.
const PR_GET_AUXV: u32 = 0x4155_5856;

/// Of the runtime's calls those with arguments that matter: memory that is
/// never executable, threads and no processes, limits that are only read.
fn runtime() -> Allowed {
    let executable = libc::PROT_EXEC as u64;
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    Allowed::default()
        .calls(RUNTIME)
        .where_bits(libc::SYS_mmap, 2, executable, 0)
        .where_bits(libc::SYS_mprotect, 2, executable, 0)
        .where_bits(libc::SYS_clone, 0, thread | namespaces as u64, thread)
        .where_bits(libc::SYS_prlimit64, 2, u64::MAX, 0)
        .where_is(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_SET_NAME as u32,
                libc::PR_SET_VMA as u32,
                PR_GET_AUXV,
            ],
        )
        .where_is(libc::SYS_ioctl, 1, RUNTIME_IOCTLS)
        // Where it goes was decided before.
        .where_bits(libc::SYS_sendto, 4, u64::MAX, 0)
        .where_is(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u32])
}

/// The serving process.
pub(super) fn serving() -> Allowed {
    runtime()
        .calls(DEVICE)
        .calls(SHARE)
        .calls(IDENTITY)
        .where_is(libc::SYS_ioctl, 1, SHARE_IOCTLS)
}

/// And if it has nobody outside who removes sockets and talks to the service
/// manager.
pub(super) fn serving_alone() -> Allowed {
    serving()
        .calls(&[
            libc::SYS_connect,
            libc::SYS_sendto,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink,
        ])
        .where_is(libc::SYS_socket, 0, &[libc::AF_UNIX as u32])
}

/// The process that stays outside and looks after the serving one.
pub(super) fn supervising() -> Allowed {
    runtime()
        .calls(&[
            libc::SYS_connect,
            libc::SYS_newfstatat,
            libc::SYS_pidfd_send_signal,
            libc::SYS_sendto,
            libc::SYS_statx,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_wait4,
        ])
        .where_is(libc::SYS_socket, 0, &[libc::AF_UNIX as u32])
}

/// The process that pads files: opens nothing.
pub(super) fn padding() -> Allowed {
    runtime()
        .calls(&[libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_statx])
        .where_is(libc::SYS_ioctl, 1, FUSE_IOCTLS)
}
