//! A process that keeps one privilege for one purpose, and talks to the
//! daemon by messages alone.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ::caps::{Capability, CapsHashSet};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::thread::UnshareFlags;

use super::seccomp::Seccomp;
use super::sys::{self, Fork};
use super::{calls, caps, root};

/// Makes a process that does `work` and then ends; it ends with this one at
/// the latest. Of what is open it has the descriptors `keep` and the standard
/// ones. Answers the other end of its line of messages. Must be called
/// before there is a thread.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn spawn(
    name: &CStr,
    keep: &[RawFd],
    work: impl FnOnce(OwnedFd),
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // It is never seen under this one's name.
    let own_name = rustix::thread::name()?;
    rustix::thread::set_name(name)?;
    let forked = sys::fork();
    if !matches!(forked, Ok(Fork::Child)) {
        rustix::thread::set_name(&own_name)?;
        return forked.map(|_| ours);
    }
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // Signals from the terminal are for the daemon.
    let _ = setsid();
    #[allow(unsafe_code)]
    // SAFETY: this process ends below without a return to those who own the
    // descriptors closed here, and runs no destructor of theirs.
    unsafe {
        sys::close_all_but(&[&[theirs.as_raw_fd()], keep].concat());
    }
    std::mem::forget(ours);
    work(theirs);
    std::process::exit(0)
}

/// A process that has left all but what it needs.
pub(crate) struct Alone(());

impl Alone {
    /// Leaves the host's mounts, network and IPC, and every capability but
    /// `CAP_SYS_ADMIN`. For a process that [`spawn`] made, before it has a
    /// thread.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn with_sys_admin() -> io::Result<Alone> {
        sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC)?;
        root::pivot_into_nothing()?;
        let keep: CapsHashSet = [Capability::CAP_SYS_ADMIN].into();
        caps::keep_only(&keep).map_err(io::Error::other)?;
        Ok(Alone(()))
    }

    /// Allows, to all threads there are, no more system calls than padding
    /// files takes; nothing can be opened.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn pads_only(self, seccomp: Seccomp) -> io::Result<()> {
        rustix::thread::set_no_new_privs(true)?;
        calls::padding()
            .refused(libc::SYS_socket)
            .enforce(seccomp)
            .map_err(io::Error::other)
    }
}
