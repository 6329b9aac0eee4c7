//! A guest under somebody's hands: the terminal is raw while it runs and as
//! it was afterwards.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::accel::Accel;
use super::kit::Kit;
use super::machine::{CONSOLE_SOCKET, Machine, Purpose, SHELL_SOCKET};
use super::options::{Dax, VmOptions};
use super::root::Init;
use super::script::Then;
use crate::cleanup::Scratch;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// docs/qemu.md, emulated guests.
const CODE_WARNING: &str = "without KVM, programs that run from the window go wrong once the guest \
     has used all of it: --dax inode keeps them out of it";

/// An interactive shell in a guest.
///
/// # Errors
///
/// When the guest does not start or ends badly.
pub fn shell(options: &VmOptions) -> Result<ExitCode> {
    let (rows, columns) = size().unwrap_or((24, 80));
    eprintln!("booting; leave with exit or Ctrl-]");
    let purpose = Purpose::Initramfs(Then::Shell { rows, columns });
    attached(options, &purpose, SHELL_SOCKET)
}

/// A guest whose root file system is the share.
///
/// # Errors
///
/// As [`shell`].
pub fn boot(options: &VmOptions, init: Option<String>) -> Result<ExitCode> {
    eprintln!(
        "booting from {}; Ctrl-] ends the guest",
        options.shares[0].directory.display()
    );
    let mut options = options.clone();
    let kind = std::env::var("TERM").unwrap_or_default();
    if let Some((rows, columns)) = size() {
        options
            .kernel_arguments
            .extend(terminal_words(rows, columns, &kind));
    }
    attached(
        &options,
        &Purpose::Root(Init::Console(init)),
        CONSOLE_SOCKET,
    )
}

/// Rows and columns of the terminal, if there is one.
fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Words of the kernel's command line that become init's environment: a
/// serial line tells nothing of the terminal at its other end.
fn terminal_words(rows: u16, columns: u16, kind: &str) -> Vec<String> {
    let mut words = vec![format!("LINES={rows}"), format!("COLUMNS={columns}")];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-+".contains(c);
    if !kind.is_empty() && kind.chars().all(plain) {
        words.push(format!("TERM={kind}"));
    }
    words
}

fn attached(options: &VmOptions, purpose: &Purpose, socket: &str) -> Result<ExitCode> {
    let kit = Kit::open(options.offline)?;
    let scratch = Scratch::for_sockets()?;
    let listener = UnixListener::bind(scratch.path().join(socket)).context("listen for QEMU")?;
    let mut machine = Machine::start(&kit, options, purpose, scratch)?;
    let always = options.shares.iter().any(|share| share.dax == Dax::Always);
    if always && machine.accel == Accel::Tcg {
        eprintln!("{CODE_WARNING}");
    }
    let accepted = accept(&listener, &mut machine);
    let stream = accepted.map_err(|e| machine.explain("QEMU did not start", &e))?;
    let escaped = {
        let _raw = Raw::enter()?;
        relay(&stream)?
    };
    if escaped {
        return Ok(ExitCode::SUCCESS);
    }
    match machine.qemu.wait(Duration::from_secs(10)) {
        Some(status) if status.success() => Ok(ExitCode::SUCCESS),
        _ => Err(machine.explain("the guest ended badly", &anyhow!("see below"))),
    }
}

fn accept(listener: &UnixListener, machine: &mut Machine) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while machine.alive() && Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("accept QEMU's connection"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(anyhow!("it did not connect the console"))
}

/// Copies both ways until the guest or the user ends it; true for the user.
fn relay(stream: &UnixStream) -> Result<bool> {
    let (mut to_guest, mut from_guest) = (stream, stream);
    let mut input_open = true;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let (keyboard, guest) = ready(stream, input_open)?;
        if guest {
            match from_guest.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    stdout().write_all(buffer.get(..count).unwrap_or_default())?;
                    stdout().flush()?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(false),
            }
        }
        if keyboard {
            let count = rustix::io::read(stdin(), &mut buffer)?;
            let typed = buffer.get(..count).unwrap_or_default();
            let (typed, escape) = until_escape(typed);
            to_guest.write_all(typed).context("pass the keyboard on")?;
            if escape {
                return Ok(true);
            }
            input_open = count > 0;
        }
    }
}

/// Which side has something: keyboard, guest.
fn ready(stream: &UnixStream, input_open: bool) -> Result<(bool, bool)> {
    let input = stdin();
    let mut fds = vec![PollFd::new(stream, PollFlags::IN)];
    if input_open {
        fds.push(PollFd::new(&input, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e).context("wait for keyboard and guest"),
    }
    let at = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
    Ok((at(1), at(0)))
}

fn until_escape(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == ESCAPE) {
        Some(at) => (typed.get(..at).unwrap_or_default(), true),
        None => (typed, false),
    }
}

/// A raw terminal; restored on drop.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> Result<Raw> {
        if !stdin().is_terminal() {
            return Ok(Raw { before: None });
        }
        let before = tcgetattr(stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("make the terminal raw")?;
        Ok(Raw {
            before: Some(before),
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), OptionalActions::Drain, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_learns_of_the_terminal() {
        let words = ["LINES=24", "COLUMNS=80", "TERM=xterm-256color"];
        assert_eq!(terminal_words(24, 80, "xterm-256color"), words);
        assert_eq!(terminal_words(24, 80, "a b=init"), words[..2]);
        assert_eq!(terminal_words(24, 80, ""), words[..2]);
    }

    #[test]
    fn the_escape_is_not_passed_on() {
        assert_eq!(until_escape(b"ls\n"), (&b"ls\n"[..], false));
        assert_eq!(until_escape(b"ls\x1dx"), (&b"ls"[..], true));
        assert_eq!(until_escape(b""), (&b""[..], false));
    }
}
