//! A socket that somebody attends to: one thread, one client at a time, until
//! it is dropped.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::logs::Throttle;

use super::socket::Socket;
use super::stop::{Stop, Wake, wait};

/// Its thread does not start.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: cannot start the thread that attends to it: {cause}")]
pub struct AttendError {
    flag: &'static str,
    cause: io::Error,
}

/// How long the end of a thread is waited for, which a client may hold up.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A socket that is attended to. Dropping it ends the thread and removes the
/// file.
#[derive(Debug)]
pub struct Attended {
    stop: Stop,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Attended {
    /// Has each client of `socket`, which `flag` named, attended to by `each`.
    /// `name` is what the log calls it.
    ///
    /// # Errors
    ///
    /// When the thread does not start.
    pub fn start(
        (flag, name): (&'static str, &'static str),
        socket: Socket,
        each: impl Fn(&UnixStream) -> io::Result<()> + Send + 'static,
    ) -> Result<Attended, AttendError> {
        let failed = |cause| AttendError { flag, cause };
        // A client may be gone before it is accepted.
        let nonblocking = socket.listener().set_nonblocking(true);
        let stop = nonblocking.and_then(|()| Stop::new()).map_err(failed)?;
        let heed = stop.clone();
        let (alive, ended) = channel();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                attend(name, &socket, &heed, each);
                drop(socket);
                drop(alive);
            })
            .map_err(failed)?;
        Ok(Attended { stop, ended })
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.stop.request();
        let _ = self.ended.recv_timeout(END_PATIENCE);
    }
}

fn attend(name: &str, socket: &Socket, stop: &Stop, each: impl Fn(&UnixStream) -> io::Result<()>) {
    let complaints = Throttle::new(Duration::from_secs(10));
    loop {
        match wait(socket.listener(), stop, None) {
            Ok(Wake::Client) => {}
            Ok(Wake::Over) => continue,
            Ok(Wake::Stop) => return,
            Err(error) => {
                tracing::error!(%error, "{name}: cannot wait for clients");
                return;
            }
        }
        let attended = match socket.listener().accept() {
            Ok((client, _)) => each(&client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Out of descriptors, most likely; do not spin on it.
                std::thread::sleep(Duration::from_millis(100));
                Err(error)
            }
        };
        if let (Err(error), Some(held_back)) = (attended, complaints.pass()) {
            tracing::warn!(%error, held_back, "{name}: a client was not answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_does_not_wait_for_a_client_that_is_never_answered() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("s");
        let socket = Socket::bind("--socket", &path).expect("free");
        let (answer, never) = channel::<()>();
        let (begun, began) = channel();
        let attended = Attended::start(("--socket", "test"), socket, move |_| {
            let _ = begun.send(());
            let _ = never.recv();
            Ok(())
        });
        let attended = attended.expect("a thread");
        let _client = UnixStream::connect(&path).expect("listens");
        began.recv().expect("a client");
        drop(attended);
        drop(answer);
    }
}
