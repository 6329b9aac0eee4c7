//! Lines with descriptors over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors that a line may bring.
const MAX_DESCRIPTORS: usize = 4;
/// Bytes asked for at a time.
const STEP_BYTES: usize = 16 << 10;

/// Sends `line`, and the descriptors with its first byte.
///
/// # Errors
///
/// What the kernel says, or `InvalidInput` for too many descriptors or an
/// empty line.
pub fn send_line(
    socket: &UnixStream,
    line: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let message = SendAncillaryMessage::ScmRights(descriptors);
    if line.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(ErrorKind::InvalidInput.into());
    }
    if !descriptors.is_empty() && !control.push(message) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let first = [IoSlice::new(line)];
    let sent = loop {
        match sendmsg(socket, &first, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            done => break done?,
        }
    };
    let rest = line.get(sent..).unwrap_or_default();
    io::Write::write_all(&mut &*socket, rest)
}

/// Takes a line, without its line break, and what descriptors came with it.
///
/// # Errors
///
/// `TimedOut` if it is not complete after `patience`, `InvalidData` for a line
/// longer than `max_bytes`, one that does not end, or too many descriptors,
/// which are closed.
pub fn take_line(
    socket: &UnixStream,
    max_bytes: usize,
    patience: Duration,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let deadline = Instant::now() + patience;
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match take_some(socket, &mut line, &mut descriptors) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
            Ok(0) => return Err(bad("the line does not end")),
            Ok(_) => {}
        }
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok((line, descriptors));
        }
        if line.len() >= max_bytes {
            return Err(bad("the line is too long"));
        }
    }
}

fn take_some(
    socket: &UnixStream,
    line: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut step = vec![0; STEP_BYTES];
    let mut place = [IoSliceMut::new(&mut step)];
    let got = recvmsg(socket, &mut place, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(bad("too many descriptors"));
    }
    line.extend_from_slice(step.get(..got.bytes).unwrap_or_default());
    Ok(got.bytes)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("a pair")
    }

    #[test]
    fn a_line_brings_its_descriptors() {
        let (ours, theirs) = pair();
        let file = File::open("/dev/null").expect("there");
        // Longer than what is taken at once.
        let mut line = vec![b'x'; 100_000];
        line.push(b'\n');
        let sender = std::thread::spawn(move || {
            let sent = [file.as_fd(), file.as_fd()];
            send_line(&ours, &line, &sent).expect("sent");
        });
        let (got, descriptors) = take_line(&theirs, 1 << 20, PATIENCE).expect("a line");
        sender.join().expect("sent");
        assert!(got.len() == 100_000 && got.iter().all(|byte| *byte == b'x'));
        assert_eq!(descriptors.len(), 2);
        for fd in &descriptors {
            let flags = rustix::io::fcntl_getfd(fd).expect("open");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn what_is_too_long_too_slow_or_too_much_is_refused() {
        let kind = |result: io::Result<(Vec<u8>, Vec<OwnedFd>)>| result.expect_err("bad").kind();
        let (ours, theirs) = pair();
        send_line(&ours, b"half a line", &[]).expect("sent");
        let late = take_line(&theirs, 100, Duration::from_millis(20));
        assert_eq!(kind(late), ErrorKind::TimedOut);
        let (ours, theirs) = pair();
        send_line(&ours, &[b'x'; 200], &[]).expect("sent");
        assert_eq!(
            kind(take_line(&theirs, 100, PATIENCE)),
            ErrorKind::InvalidData
        );
        let (ours, theirs) = pair();
        send_line(&ours, b"no end", &[]).expect("sent");
        drop(ours);
        assert_eq!(
            kind(take_line(&theirs, 100, PATIENCE)),
            ErrorKind::InvalidData
        );

        let (ours, theirs) = pair();
        let file = File::open("/dev/null").expect("there");
        let many = [file.as_fd(); MAX_DESCRIPTORS + 1];
        let refused = send_line(&ours, b"x\n", &many).expect_err("no room");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        // Two lots of descriptors with one line.
        send_line(&ours, b"x", &many[..3]).expect("sent");
        send_line(&ours, b"x\n", &many[..3]).expect("sent");
        assert_eq!(
            kind(take_line(&theirs, 100, PATIENCE)),
            ErrorKind::InvalidData
        );
    }
}
