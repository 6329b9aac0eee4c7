//! The status socket: who connects gets one document and end of stream.
//!
//! One thread, one client at a time, nothing is read from it. A client that
//! does not take its document is dropped after [`PATIENCE`]; what it holds up
//! meanwhile is other askers, never a request.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::collect;
use crate::listen::attended::{AttendError, Attended};
use crate::listen::socket::{Socket, SocketError};
use crate::shares::Shares;

/// How long one client may take over its document.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// A status socket at `path` that nobody attends to yet.
///
/// # Errors
///
/// When the path is taken or no socket.
pub fn bind(path: &Path) -> Result<Socket, SocketError> {
    Socket::bind("--status-socket", path)
}

/// Tells who connects to `socket` of `shares`.
///
/// # Errors
///
/// When the thread does not start.
pub fn attend(socket: Socket, shares: &Arc<Shares>) -> Result<Attended, AttendError> {
    let shares = shares.clone();
    let names = ("--status-socket", "status");
    Attended::start(names, socket, move |client| tell(client, &shares))
}

fn tell(client: &UnixStream, shares: &Shares) -> io::Result<()> {
    let mut document = serde_json::to_vec(&collect::status(shares))?;
    document.push(b'\n');
    client.set_nonblocking(true)?;
    write_all_within(client, &document, PATIENCE)?;
    client.shutdown(Shutdown::Write)
}

/// Writes all of it, however slowly the other side reads, or fails in time.
fn write_all_within(mut client: &UnixStream, bytes: &[u8], patience: Duration) -> io::Result<()> {
    use std::io::Write;
    let deadline = Instant::now() + patience;
    let mut left = bytes;
    while !left.is_empty() {
        match client.write(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => left = left.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_writable(client, deadline)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_writable(client: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let left = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut fds = [PollFd::new(client, PollFlags::OUT)];
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn who_does_not_read_is_given_up_and_who_does_gets_all() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        // More than any socket buffer.
        let much = vec![7; 16 << 20];
        let began = Instant::now();
        let error = write_all_within(&ours, &much, Duration::from_millis(50));
        assert_eq!(error.expect_err("given up").kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(ours);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).expect("end of stream");

        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).map(|_| got)
        });
        write_all_within(&ours, &much, Duration::from_secs(60)).expect("taken");
        drop(ours);
        assert!(reader.join().expect("no panic").expect("read") == much);
    }

    #[test]
    fn who_has_gone_is_an_error_and_no_signal() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        drop(theirs);
        assert!(write_all_within(&ours, b"x", PATIENCE).is_err());
    }
}
