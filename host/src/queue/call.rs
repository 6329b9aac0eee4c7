//! What signals the guest: an eventfd of the VMM's, or a pipe.
//!
//! The VMM decides whether a write to it blocks, and may change that at any
//! time, since both have one file description. So a write comes with nothing
//! locked, and takes one system call: a pipe can be written to without waiting
//! whatever its flags are; an eventfd cannot, but blocks only while it holds
//! all signals that it can count. Whoever sleeps there is woken by reading it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Of something that has no positions: where it is.
const HERE: u64 = u64::MAX;
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// One queue's.
#[derive(Debug)]
pub(super) enum Call {
    Eventfd(File),
    Pipe(File),
    /// What user-mode-linux has.
    Socket(File),
}

impl Call {
    /// Anything else is refused: a write to it may block for ever.
    pub(super) fn new(file: File) -> io::Result<Call> {
        // A file system below it is not asked.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&file, c"", flags, StatxFlags::TYPE)?;
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            // Eventfds have no type.
            FileType::Unknown => Ok(Call::Eventfd(file)),
            FileType::Fifo => Ok(Call::Pipe(file)),
            FileType::Socket => Ok(Call::Socket(file)),
            _ => Err(io::Error::other(
                "the call descriptor is no eventfd, pipe or socket",
            )),
        }
    }

    /// Signals the guest. What is full already has told it.
    pub(super) fn signal(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        let written = match self {
            Call::Eventfd(file) => rustix::io::write(file, &one),
            Call::Pipe(file) => pwritev2(file, &[IoSlice::new(&one)], HERE, ReadWriteFlags::NOWAIT),
            Call::Socket(file) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                let none = &mut SendAncillaryBuffer::default();
                sendmsg(file, &[IoSlice::new(&one)], none, flags)
            }
        };
        match written {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes those whom the VMM keeps in [`signal`](Self::signal).
    pub(super) fn free(&self) {
        let Call::Eventfd(file) = self else {
            return;
        };
        let mut fds = [PollFd::new(file, PollFlags::OUT)];
        let _ = poll(&mut fds, Some(&NOW));
        if !fds[0].revents().contains(PollFlags::OUT) {
            let mut count = [0; 8];
            let buffer = &mut [IoSliceMut::new(&mut count)];
            // Somebody else may have read it meanwhile.
            let _ = preadv2(file, buffer, HERE, ReadWriteFlags::NOWAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn call(fd: impl Into<OwnedFd>) -> Arc<Call> {
        Arc::new(Call::new(File::from(fd.into())).expect("taken"))
    }

    #[test]
    fn a_full_eventfd_keeps_its_writer_until_it_is_freed() {
        let event = eventfd(0, EventfdFlags::empty()).expect("made");
        let full = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&event, &full).expect("written");
        let call = call(event);
        let writer = {
            let call = Arc::clone(&call);
            std::thread::spawn(move || call.signal())
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !writer.is_finished() {
            assert!(Instant::now() < deadline, "never woken");
            std::thread::sleep(Duration::from_millis(10));
            call.free();
        }
        writer.join().expect("no panic").expect("written");
        call.free();
        let mut count = [0; 8];
        let Call::Eventfd(file) = &*call else {
            unreachable!("it is one")
        };
        rustix::io::read(file, &mut count).expect("there");
        assert_eq!(u64::from_ne_bytes(count), 1, "the signal is not lost");
    }

    #[test]
    fn a_full_pipe_keeps_nobody() {
        let (mut reader, writer) = std::io::pipe().expect("made");
        let call = call(writer);
        // More than any pipe holds unless told to.
        (0..100_000).for_each(|_| call.signal().expect("written or full"));
        let mut one = [0; 8];
        reader.read_exact(&mut one).expect("there");
        assert_eq!(u64::from_ne_bytes(one), 1);
        drop(reader);
        assert!(call.signal().is_err(), "nobody to signal");
    }

    #[test]
    fn what_may_block_for_ever_is_refused() {
        assert!(Call::new(tempfile::tempfile().expect("a file")).is_err());
    }

    #[test]
    fn a_full_socket_keeps_nobody() {
        let (one, mut other) = std::os::unix::net::UnixStream::pair().expect("made");
        let call = call(one);
        (0..100_000).for_each(|_| call.signal().expect("written or full"));
        let mut first = [0; 8];
        other.read_exact(&mut first).expect("there");
        assert_eq!(u64::from_ne_bytes(first), 1);
    }
}
