//! The host's end of the ports: scripts go in, their output and exit status
//! come out, byte by byte as they were written.
//!
//! On the control port a script is `RUN token bytes` and a newline, then its
//! bytes. Both outputs end with the byte 0x1e, the token, a space, the status
//! and a newline. The token is drawn anew for each script, so output cannot
//! contain it by accident.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a wait looks whether it is still worth it.
pub(crate) const STEP: Duration = Duration::from_millis(200);
/// Longest `status\n`.
const MOST_STATUS_BYTES: usize = 16;

/// What a script wrote, and what it ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit status; 128 and more for signals, as shells have it.
    pub status: i32,
}

impl Output {
    /// The standard output of a script that must end with status 0.
    ///
    /// # Errors
    ///
    /// With both outputs, for any other status.
    pub fn ok(self) -> Result<String> {
        match self.status {
            0 => Ok(self.stdout),
            status => bail!("status {status}\n{}{}", self.stdout, self.stderr),
        }
    }
}

/// The connected ports.
pub(crate) struct Agent {
    control: UnixStream,
    out: UnixStream,
    err: UnixStream,
    scripts: u64,
}

/// Tells whether it is worth to wait on.
pub(crate) trait Alive {
    fn alive(&mut self) -> bool;
}

impl<F: FnMut() -> bool> Alive for F {
    fn alive(&mut self) -> bool {
        self()
    }
}

impl Agent {
    /// Waits for QEMU to connect all ports.
    pub(crate) fn accept(
        listeners: &[UnixListener; 3],
        deadline: Instant,
        alive: &mut dyn Alive,
    ) -> Result<Agent> {
        let mut streams = Vec::new();
        for listener in listeners {
            streams.push(accept(listener, deadline, alive)?);
        }
        let mut streams = streams.into_iter();
        match (streams.next(), streams.next(), streams.next()) {
            (Some(control), Some(out), Some(err)) => Ok(Agent {
                control,
                out,
                err,
                scripts: 0,
            }),
            _ => bail!("a port is missing"),
        }
    }

    /// Waits for the guest's first word and returns its kernel's release.
    pub(crate) fn ready(&mut self, deadline: Instant, alive: &mut dyn Alive) -> Result<String> {
        release(&read_line(&self.control, deadline, alive)?)
    }

    /// Runs `script` in the guest's shell; returns its status once both
    /// outputs are handed over.
    pub(crate) fn run(
        &mut self,
        script: &str,
        out: &mut (dyn Write + Send),
        err: &mut (dyn Write + Send),
        deadline: Instant,
        alive: &mut (dyn Alive + Send),
    ) -> Result<i32> {
        if script.is_empty() {
            return Ok(0);
        }
        let token = self.token();
        self.send(script, &token)?;
        let (from_out, from_err) = (&self.out, &self.err);
        let (out, err) = std::thread::scope(|scope| {
            let marker = marker(&token);
            let other = scope.spawn(move || copy(from_err, err, &marker, deadline, &mut || true));
            let status = copy(from_out, out, &self::marker(&token), deadline, alive);
            if status.is_err() {
                // The other copier would wait until the deadline.
                let _ = from_err.shutdown(std::net::Shutdown::Both);
                return (status, None);
            }
            (status, other.join().ok())
        });
        let status = out?;
        match err {
            Some(Ok(_)) => Ok(status),
            Some(Err(error)) => Err(error),
            None => bail!("the copying thread panicked"),
        }
    }

    /// Starts `script` in the guest's shell and waits for nothing. Whoever
    /// does that to anything but a reboot has no use for this agent any more.
    pub(crate) fn start(&mut self, script: &str) -> Result<()> {
        let token = self.token();
        self.send(script, &token)
    }

    fn send(&mut self, script: &str, token: &str) -> Result<()> {
        let message = format!("RUN {token} {}\n{script}", script.len());
        self.control
            .write_all(message.as_bytes())
            .context("send a script to the guest")
    }

    /// Waits for the first word of a guest that boots again, and forgets what
    /// was written before that.
    pub(crate) fn ready_again(
        &mut self,
        deadline: Instant,
        alive: &mut dyn Alive,
    ) -> Result<String> {
        let release = self.ready(deadline, alive)?;
        forget(&self.out)?;
        forget(&self.err)?;
        Ok(release)
    }

    /// Asks the guest to unmount and to power off.
    pub(crate) fn end(&mut self) {
        let _ = self.control.write_all(b"END\n");
    }

    fn token(&mut self) -> String {
        use std::hash::{BuildHasher, Hasher, RandomState};
        self.scripts += 1;
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(self.scripts);
        let second = RandomState::new().build_hasher().finish();
        format!("{:016x}{second:016x}", hasher.finish())
    }
}

/// The next line that the guest says on its control port.
pub(crate) fn read_line(
    mut control: &UnixStream,
    deadline: Instant,
    alive: &mut dyn Alive,
) -> Result<String> {
    control.set_read_timeout(Some(STEP))?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        match control.read(&mut byte) {
            Ok(0) => bail!("the guest's control port closed"),
            Ok(_) => line.push(byte[0]),
            Err(e) if is_timeout(&e) => wait_on(deadline, alive)?,
            Err(e) => return Err(e).context("read the guest's control port"),
        }
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

/// The kernel's release, if a guest's first line says that it is ready.
pub(crate) fn release(line: &str) -> Result<String> {
    match line.split_once(' ') {
        Some(("READY", release)) => Ok(release.to_owned()),
        Some(("FAILED", why)) => bail!("in the guest: {}", why.trim()),
        _ => bail!("the guest says {line:?}"),
    }
}

/// Reads what is there. QEMU passes bytes on in the order they were written.
fn forget(mut stream: &UnixStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {}
    stream.set_nonblocking(false)?;
    Ok(())
}

fn marker(token: &str) -> Vec<u8> {
    format!("\x1e{token} ").into_bytes()
}

fn accept(listener: &UnixListener, deadline: Instant, alive: &mut dyn Alive) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait_on(deadline, alive)?,
            Err(e) => return Err(e).context("wait for QEMU to connect a port"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// Time is up, or who should answer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("time is up")]
    TimeUp,
    #[error("the guest's process has ended")]
    Gone,
}

pub(crate) fn wait_on(deadline: Instant, alive: &mut dyn Alive) -> Result<(), NoAnswer> {
    if !alive.alive() {
        return Err(NoAnswer::Gone);
    }
    match Instant::now() < deadline {
        true => Ok(()),
        false => Err(NoAnswer::TimeUp),
    }
}

/// Copies up to the marker and returns the status behind it.
fn copy(
    mut from: &UnixStream,
    to: &mut (dyn Write + Send),
    marker: &[u8],
    deadline: Instant,
    alive: &mut (dyn Alive + Send),
) -> Result<i32> {
    from.set_read_timeout(Some(STEP))?;
    let mut scan = Scan::new(marker);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Err(NoAnswer::Gone.into()),
            Ok(count) => {
                let status = scan.take(buffer.get(..count).unwrap_or_default(), to)?;
                if let Some(status) = status {
                    to.flush()?;
                    return Ok(status);
                }
            }
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e).context("read from the guest"),
        }
        wait_on(deadline, alive)?;
    }
}

/// Finds the marker in a stream that comes in pieces, and passes on what
/// cannot be part of it.
struct Scan<'a> {
    marker: &'a [u8],
    held: Vec<u8>,
}

impl<'a> Scan<'a> {
    fn new(marker: &'a [u8]) -> Scan<'a> {
        let held = Vec::new();
        Scan { marker, held }
    }

    fn take(&mut self, piece: &[u8], to: &mut dyn Write) -> Result<Option<i32>> {
        self.held.extend_from_slice(piece);
        let found = self
            .held
            .windows(self.marker.len())
            .position(|w| w == self.marker);
        let keep_from = found.unwrap_or_else(|| self.possible_start());
        to.write_all(&self.held[..keep_from])
            .context("pass on the guest's output")?;
        self.held.drain(..keep_from);
        to.flush()?;
        if found.is_none() {
            return Ok(None);
        }
        let status = &self.held[self.marker.len()..];
        match status.iter().position(|b| *b == b'\n') {
            Some(end) => {
                let text = String::from_utf8_lossy(&status[..end]).into_owned();
                Ok(Some(text.parse().context("the status of a script")?))
            }
            None if status.len() > MOST_STATUS_BYTES => bail!("a status without an end"),
            None => Ok(None),
        }
    }

    /// Where an unfinished marker may begin at the end of what is held.
    fn possible_start(&self) -> usize {
        let from = self.held.len().saturating_sub(self.marker.len() - 1);
        let starts = (from..self.held.len()).find(|at| self.marker.starts_with(&self.held[*at..]));
        starts.unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn scan(pieces: &[&[u8]]) -> (Vec<u8>, Option<i32>) {
        let (mut out, mut scan) = (Vec::new(), Scan::new(b"\x1etoken "));
        let mut status = None;
        for piece in pieces {
            status = scan.take(piece, &mut out).expect("well formed");
        }
        (out, status)
    }

    #[test]
    fn output_ends_at_the_marker_however_it_is_cut() {
        let whole = b"data\x1etok\x1etoken 7\n";
        for first in 0..whole.len() {
            for second in first..whole.len() {
                let pieces = [&whole[..first], &whole[first..second], &whole[second..]];
                assert_eq!(
                    scan(&pieces),
                    (b"data\x1etok".to_vec(), Some(7)),
                    "{first} {second}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_the_marker_is_passed_on_at_once() {
        assert_eq!(scan(&[b"abc"]), (b"abc".to_vec(), None));
        assert_eq!(scan(&[b"abc\x1eto"]), (b"abc".to_vec(), None));
        assert_eq!(scan(&[b"abc\x1eto", b"x"]), (b"abc\x1etox".to_vec(), None));
    }

    #[test]
    fn an_endless_status_is_an_error() {
        let mut scan = Scan::new(b"M");
        assert!(
            scan.take(b"M11111111111111111111111", &mut Vec::new())
                .is_err()
        );
    }

    /// A guest that runs scripts with the host's shell.
    fn pretender(control: UnixStream, mut out: UnixStream, mut err: UnixStream) {
        let mut reader = BufReader::new(control);
        let mut line = String::new();
        while reader.read_line(&mut line).expect("readable") > 0 {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[0] != "RUN" {
                return;
            }
            let mut script = vec![0; words[2].parse().expect("a number")];
            reader.read_exact(&mut script).expect("a script");
            let script = String::from_utf8(script).expect("utf-8");
            let done = std::process::Command::new("sh")
                .args(["-c", &script])
                .output();
            let done = done.expect("sh");
            let end = format!("\x1e{} {}\n", words[1], done.status.code().unwrap_or(255));
            for (port, data) in [(&mut out, done.stdout), (&mut err, done.stderr)] {
                port.write_all(&data).expect("written");
                port.write_all(end.as_bytes()).expect("written");
            }
            line.clear();
        }
    }

    fn agent() -> (Agent, std::thread::JoinHandle<()>) {
        let pair = || UnixStream::pair().expect("pair");
        let ((control, a), (out, b), (err, c)) = (pair(), pair(), pair());
        let guest = std::thread::spawn(move || pretender(a, b, c));
        let agent = Agent {
            control,
            out,
            err,
            scripts: 0,
        };
        (agent, guest)
    }

    #[test]
    fn scripts_run_one_after_the_other_with_both_outputs() {
        let (mut agent, guest) = agent();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut run = |script: &str| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let status = agent.run(script, &mut out, &mut err, deadline, &mut || true);
            (status.expect("ran"), out, err)
        };
        assert_eq!(
            run("printf a; printf b >&2; exit 3"),
            (3, b"a".to_vec(), b"b".to_vec())
        );
        assert_eq!(run("printf '\\036x\\n'"), (0, b"\x1ex\n".to_vec(), vec![]));
        let large = run("yes | head -c 300000").1;
        assert_eq!(large.len(), 300_000);
        agent.end();
        guest.join().expect("no panic");
    }

    #[test]
    fn a_guest_that_is_gone_or_late_is_an_error_soon() {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        let (out, _out) = UnixStream::pair().expect("pair");
        let (err, _err) = UnixStream::pair().expect("pair");
        let mut agent = Agent {
            control: ours,
            out,
            err,
            scripts: 0,
        };
        let soon = Instant::now() + Duration::from_millis(50);
        let late = agent.ready(soon, &mut || true).expect_err("late");
        assert_eq!(late.downcast_ref(), Some(&NoAnswer::TimeUp));
        let far = Instant::now() + Duration::from_secs(3600);
        let gone = agent.ready(far, &mut || false).expect_err("gone");
        assert_eq!(gone.downcast_ref(), Some(&NoAnswer::Gone));
    }
}
