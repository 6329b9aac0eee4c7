//! The userfaultfd device: open, register, wake, read.
//!
//! Owns the descriptor and the wire layout of its calls and messages. The
//! crate of that name is not used, because it builds its bindings with
//! libclang; what is needed here is four ioctls.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::ioctl::{Opcode, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::window::{Area, Staged};

const MAGIC: u8 = 0xaa;
const API_VERSION: u64 = 0xaa;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const MODE_MISSING: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMAP: u8 = 0x14;
const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
/// `UFFD_USER_MODE_ONLY`: what a process without privileges may ask for.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Api>() == 24);

/// `struct uffdio_range`.
#[repr(C)]
struct RangeArg {
    start: u64,
    len: u64,
}
const _: () = assert!(size_of::<RangeArg>() == 16);

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Register>() == 32);

/// `struct uffd_msg`; the three words are the arguments of the event.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    arguments: [u64; 3],
}
const _: () = assert!(size_of::<Message>() == 32);

const UFFDIO_API: Opcode = opcode::read_write::<Api>(MAGIC, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(MAGIC, 0x00);
// The header defines this one with the wrong direction, and so must we.
const UFFDIO_WAKE: Opcode = opcode::read::<RangeArg>(MAGIC, 0x02);

/// What happened in registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A thread waits for a page at this address.
    Fault {
        /// What was touched; its page.
        address: usize,
        /// Whether by a store.
        write: bool,
    },
    /// Registered memory was moved here; whoever moved it went on when this
    /// was read.
    Moved {
        /// Where it is now.
        to: usize,
    },
    /// Nothing that was asked for.
    Other,
}

/// Most events taken in one read.
const BATCH: usize = 16;

/// An open userfaultfd that also reports moves.
pub(super) struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens one; without privilege, one that cannot serve faults from inside
    /// system calls.
    pub(super) fn open() -> io::Result<Uffd> {
        let flags = UserfaultfdFlags::CLOEXEC;
        // SAFETY: creating the descriptor affects no memory; what may be
        // registered with it is up to `register`.
        let fd = unsafe { userfaultfd(flags).or_else(|_| userfaultfd(flags | USER_MODE_ONLY))? };
        let uffd = Uffd { fd };
        let mut api = Api {
            api: API_VERSION,
            features: FEATURE_EVENT_REMAP,
            ioctls: 0,
        };
        uffd.ioctl(UFFDIO_API, &mut api)?;
        if api.features & FEATURE_EVENT_REMAP == 0 {
            let what = "this kernel's userfaultfd does not follow mremap";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(uffd)
    }

    /// Has accesses to absent pages of `area`, which must be anonymous,
    /// reported.
    pub(super) fn register(&self, area: &Area) -> io::Result<()> {
        self.register_range(area.address(), area.len())
    }

    /// As [`register`](Self::register), before the memory is anywhere. The
    /// registration moves with it.
    pub(super) fn register_staged(&self, staged: &Staged) -> io::Result<()> {
        self.register_range(staged.address(), staged.len())
    }

    fn register_range(&self, start: usize, len: usize) -> io::Result<()> {
        let mut argument = Register {
            range: RangeArg {
                start: start as u64,
                len: len as u64,
            },
            mode: MODE_MISSING,
            ioctls: 0,
        };
        self.ioctl(UFFDIO_REGISTER, &mut argument)
    }

    /// Lets those who wait in `start..start + len` try again.
    pub(super) fn wake(&self, start: usize, len: usize) -> io::Result<()> {
        let mut range = RangeArg {
            start: start as u64,
            len: len as u64,
        };
        self.ioctl(UFFDIO_WAKE, &mut range)
    }

    /// Waits for events and hands each to `each`.
    pub(super) fn read(&self, mut each: impl FnMut(Event)) -> io::Result<()> {
        let mut messages = [Message::default(); BATCH];
        let bytes = size_of_val(&messages);
        // SAFETY: the buffer is plain old data and as long as said.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), bytes) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for message in messages.iter().take(got / size_of::<Message>()) {
            each(message.decode());
        }
        Ok(())
    }

    fn ioctl<T>(&self, request: Opcode, argument: &mut T) -> io::Result<()> {
        // SAFETY: every caller in this file passes the struct that its
        // request number was computed from, so the kernel reads and writes
        // inside it. The requests change no memory contents.
        let done = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                request as _,
                std::ptr::from_mut(argument),
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Message {
    fn decode(&self) -> Event {
        let [flags, address, _] = self.arguments;
        let [_, to, _] = self.arguments;
        match self.event {
            EVENT_PAGEFAULT => Event::Fault {
                address: address as usize,
                write: flags & PAGEFAULT_FLAG_WRITE != 0,
            },
            EVENT_REMAP => Event::Moved { to: to as usize },
            _ => Event::Other,
        }
    }
}
