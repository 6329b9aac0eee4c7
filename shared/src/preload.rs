//! What the daemon and the library that is preloaded into a VMM say to each
//! other before the first map.
//!
//! 1. The VMM connects to a vhost-user socket. The library gives the VMM's end
//!    of that connection an abstract name that begins with [`MARK`]. Servers
//!    of other kinds do not look at their client's name.
//! 2. The daemon sees the name, and before its first reply it sends one
//!    [`Preamble`] with two descriptors: a stream socket, over which it will
//!    send SHMEM_MAP and SHMEM_UNMAP ([`shmem`](crate::shmem), each with
//!    REPLY_ACK), and the window's memfd. The library takes the preamble out
//!    of what the VMM reads.
//! 3. At FUSE_INIT the daemon asks the VMM to map the first
//!    [`Preamble::window_bytes`] of the memfd as the whole window. The library
//!    sees that `mmap`, and maps ranges of files over it from then on.
//!
//! Behind the window's bytes the memfd holds [`Notes`], which the library
//! writes and the daemon reads: by `pwrite` and `pread`, a field at a time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How the abstract name of a VMM's end of a connection begins; the zero byte
/// in front of it is not counted. What follows makes it unique.
pub const MARK: &[u8] = b"daxwindow-preload-1/";

/// How a [`Preamble`] begins. No reply of a vhost-user back end does, since
/// no request has such a number.
pub const MAGIC: [u8; 16] = *b"\xffdaxwindow-whole";

/// What the daemon sends before its first reply, with two descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Preamble {
    /// [`MAGIC`].
    pub magic: [u8; 16],
    /// Bytes of the window; the memfd is longer by [`Notes`].
    pub window_bytes: u64,
}
const _: () = assert!(size_of::<Preamble>() == 24);

/// What the library tells, in the memfd from [`Preamble::window_bytes`] on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Notes {
    /// Who else looks into guest memory, or has: [`OTHER_BACK_END`], [`PINNED`];
    /// and whether its own processors are [`KVM`]'s.
    pub others: u64,
    /// Pages behind the end of their file that a processor of the guest met,
    /// and that show zeros since.
    pub mended_pages: u64,
    /// Of these, those that show the file again because it has grown.
    pub regrown_pages: u64,
    /// How often a device was refused because it would look into guest memory
    /// while files are mapped. A VMM may try one device several times.
    pub refused_devices: u64,
}
const _: () = assert!(size_of::<Notes>() == 32);

/// [`Notes::others`]: a vhost-user back end of another kind, which maps guest
/// memory by its descriptors and so sees no file in the window.
pub const OTHER_BACK_END: u64 = 1 << 0;
/// [`Notes::others`]: a device that pins guest memory (VFIO, IOMMUFD, vDPA),
/// and so keeps what was in the window before.
pub const PINNED: u64 = 1 << 1;
/// [`Notes::others`]: the guest's processors are KVM's. Without it they are most
/// likely an emulator's, which may run its translation of code that was mapped
/// in the window before.
pub const KVM: u64 = 1 << 2;

/// What the memfd ends with, behind [`Notes`]: so a daemon knows a window when
/// it is in the memory table that another daemon's VMM shares with it.
pub const WINDOW_MAGIC: [u8; 16] = *b"daxwindow-memfd\0";

/// Bytes of the memfd behind the window's.
pub const TAIL_BYTES: u64 = (size_of::<Notes>() + WINDOW_MAGIC.len()) as u64;
