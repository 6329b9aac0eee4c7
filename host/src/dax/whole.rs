//! The window in one piece: the VMM maps one memfd as the whole window, and a
//! library that is preloaded into it maps ranges of files over that, by a
//! channel of its own ([`daxwindow_shared::preload`]).
//!
//! Law: the way is taken only while nobody else looks into guest memory by
//! other means than the VMM's address space; whoever does sees no file there.

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use daxwindow_shared::preload::{
    MAGIC, Notes, OTHER_BACK_END, PINNED, Preamble, TAIL_BYTES, WINDOW_MAGIC,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::{FromZeros, IntoBytes};

use super::capabilities::ProbeError;
use super::channel::Channel;
use super::front_end::FrontEndError;

/// How a VMM's window is to be mapped (`--dax-mapping`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mapping {
    /// Map the window in one piece where libdaxwindow_preload.so is preloaded
    /// into the VMM and only the VMM and the kernel look into guest memory,
    /// else as with ranges. The window is no larger than with ranges.
    #[default]
    Auto,
    /// Map the window in one piece, of any size, or give no file DAX.
    Whole,
    /// Let the VMM map each range of 2M itself.
    Ranges,
}

impl Mapping {
    /// Why the window is not in one piece as long as no library is known.
    pub(super) fn without_library(self) -> NotWhole {
        match self {
            Mapping::Ranges => NotWhole::Chosen,
            Mapping::Auto | Mapping::Whole => NotWhole::NoLibrary,
        }
    }
}

/// Why the window is not in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWhole {
    /// The operator's choice.
    #[error("--dax-mapping ranges")]
    Chosen,
    /// The VMM runs without the library.
    #[error("libdaxwindow_preload.so is not preloaded into the VMM")]
    NoLibrary,
    /// The library is there, and the guest has not mounted the share.
    #[error("the guest has not mounted the share")]
    NoSession,
    /// It maps guest memory by its descriptors.
    #[error(
        "another vhost-user back end looks into guest memory, and would see zeros for files in \
         the window"
    )]
    OtherBackEnd,
    /// It keeps the pages that were there before.
    #[error("a device pins guest memory (VFIO, vDPA), and would see zeros for files in the window")]
    Pinned,
    /// The VMM did not map the memfd.
    #[error("the VMM did not map the window's memfd: {0}")]
    Region(FrontEndError),
    /// The window did not appear in the memory table.
    #[error("the VMM did not announce the window's memfd")]
    NotAnnounced,
    /// The library failed the trial.
    #[error("the preloaded library failed the trial: {0}")]
    Trial(ProbeError),
    /// The library is there, and is no plain mmap.
    #[error("the preloaded library cannot map over maps and past the end of files")]
    NoPlainMmap,
}

/// The library's end of one client, and what it is told to map over.
pub(super) struct Whole {
    pub(super) channel: Arc<Channel>,
    pub(super) memfd: Arc<OwnedFd>,
    pub(super) bytes: u64,
    /// The VMM may have the memfd mapped as the window.
    pub(super) is_region_mapped: AtomicBool,
    /// The ranges in the ledger are the library's.
    pub(super) is_in_force: AtomicBool,
}

impl Whole {
    /// Makes a memfd for a window of `bytes` and a channel, and sends them to
    /// the library by the connection's end.
    ///
    /// # Errors
    ///
    /// What the kernel lacks.
    pub(super) fn send(
        connection: &UnixStream,
        bytes: u64,
        patience: Duration,
    ) -> io::Result<Whole> {
        let memfd = memfd(bytes)?;
        let (ours, theirs) = UnixStream::pair()?;
        let channel = Channel::new(ours, patience)?;
        send_preamble(connection, bytes, &[theirs.as_fd(), memfd.as_fd()])?;
        Ok(Whole {
            channel: Arc::new(channel),
            memfd: Arc::new(memfd),
            bytes,
            is_region_mapped: AtomicBool::new(false),
            is_in_force: AtomicBool::new(false),
        })
    }

    /// What the library has written down, whatever that is.
    pub(super) fn notes(&self) -> Notes {
        let mut notes = Notes::new_zeroed();
        match rustix::io::pread(&*self.memfd, notes.as_mut_bytes(), self.bytes) {
            Ok(_) => notes,
            Err(_) => Notes::default(),
        }
    }

    /// Whether somebody else looks into guest memory.
    ///
    /// # Errors
    ///
    /// Who.
    pub(super) fn check_others(&self) -> Result<(), NotWhole> {
        let others = self.notes().others;
        if others & OTHER_BACK_END != 0 {
            Err(NotWhole::OtherBackEnd)
        } else if others & PINNED != 0 {
            Err(NotWhole::Pinned)
        } else {
            Ok(())
        }
    }

    pub(super) fn is_in_force(&self) -> bool {
        self.is_in_force.load(SeqCst)
    }
}

/// Tells the library of a window of `bytes` (zero: there is none), with the
/// channel and the memfd.
///
/// # Errors
///
/// The kernel's.
pub(super) fn send_preamble(
    connection: &UnixStream,
    bytes: u64,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let preamble = Preamble {
        magic: MAGIC,
        window_bytes: bytes,
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = rustix::net::sendmsg(
        connection,
        &[IoSlice::new(preamble.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    match sent == size_of::<Preamble>() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// `bytes` for the window, [`Notes`] and [`WINDOW_MAGIC`], of fixed size.
fn memfd(bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("daxwindow", flags)?;
    let len = bytes.checked_add(TAIL_BYTES).ok_or(Errno::FBIG)?;
    rustix::fs::ftruncate(&memfd, len)?;
    let magic_at = bytes + size_of::<Notes>() as u64;
    rustix::io::pwrite(&memfd, &WINDOW_MAGIC, magic_at)?;
    rustix::fs::fcntl_add_seals(
        &memfd,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(memfd)
}

/// Whether a region of the memory table, `bytes` from `offset` on in `file`,
/// is a window in one piece: this daemon's or another's.
pub fn is_window(file: impl AsFd, offset: u64, bytes: u64) -> bool {
    // Only a memfd has seals, and answers whatever it is asked at once.
    if rustix::fs::fcntl_get_seals(&file).is_err() {
        return false;
    }
    let Some(magic_at) = offset
        .checked_add(bytes)
        .and_then(|end| end.checked_add(size_of::<Notes>() as u64))
    else {
        return false;
    };
    let mut magic = [0; WINDOW_MAGIC.len() + 1];
    let read = rustix::io::pread(&file, &mut magic, magic_at);
    read == Ok(WINDOW_MAGIC.len()) && magic.starts_with(&WINDOW_MAGIC)
}

const _: () = assert!(offset_of!(Notes, others) == 0);

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use zerocopy::FromBytes;

    const BYTES: u64 = 4 << 20;

    #[test]
    fn a_library_is_sent_a_channel_and_a_memfd_of_fixed_size() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let whole = Whole::send(&ours, BYTES, Duration::from_secs(5)).expect("sent");
        let mut bytes = [0; size_of::<Preamble>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &theirs,
            &mut [std::io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .expect("received");
        assert_eq!(received.bytes, bytes.len());
        let preamble = Preamble::read_from_bytes(&bytes).expect("whole");
        assert_eq!((preamble.magic, preamble.window_bytes), (MAGIC, BYTES));
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let [_channel, memfd] = &fds[..] else {
            panic!("{} descriptors", fds.len());
        };
        assert!(is_window(memfd, 0, BYTES) && !is_window(memfd, 0, BYTES / 2));
        assert_eq!(rustix::fs::ftruncate(memfd, 0), Err(Errno::PERM));
        // What the library writes is read, whoever it is.
        assert_eq!(whole.check_others(), Ok(()));
        rustix::io::pwrite(memfd, &PINNED.to_ne_bytes(), BYTES).expect("written");
        assert_eq!(whole.check_others(), Err(NotWhole::Pinned));
        let other = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&other, BYTES + TAIL_BYTES).expect("grown");
        assert!(!is_window(&other, 0, BYTES));
    }
}
