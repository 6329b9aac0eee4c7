//! The process that stays outside: hands signals on, removes what the daemon
//! leaves in the file system, tells the service manager, and ends as the
//! serving process does.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use ::caps::{Capability, CapsHashSet};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, pidfd_open, pidfd_send_signal,
    setrlimit, waitpid,
};
use sd_notify::NotifyState;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::launch::Plan;
use super::{IsolationError, calls, caps, signals as held, sys};
use crate::listen::socket::SocketFile;
use crate::logs::writer;

/// To remove sockets from directories that are others'.
const KEPT: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_KILL];

/// What the serving process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Word {
    /// Signals have handlers, so none is lost any more.
    Heeding = b'h',
    /// Guests may come.
    Ready = b'r',
    /// Things have changed since.
    Status = b'u',
    /// It ends in order.
    Stopping = b's',
}

/// Longest line.
const MAX_LINE_BYTES: usize = 256;

impl Word {
    /// With what it says in a line.
    pub(super) fn as_line(self, summary: &str) -> Vec<u8> {
        let summary = summary.chars().filter(|c| !c.is_control());
        let summary: String = summary.take(MAX_LINE_BYTES / 8).collect();
        format!("{}{summary}\n", char::from(self as u8)).into_bytes()
    }

    fn of_line(line: &[u8]) -> Option<(Word, String)> {
        let (first, rest) = line.split_first()?;
        let word = [Word::Heeding, Word::Ready, Word::Status, Word::Stopping]
            .into_iter()
            .find(|word| *word as u8 == *first)?;
        let summary = String::from_utf8_lossy(rest);
        Some((word, summary.chars().filter(|c| !c.is_control()).collect()))
    }
}

/// Tells the service manager that asks for it by `NOTIFY_SOCKET`.
pub(super) fn tell_service_manager(word: Word, summary: &str) {
    let state = match word {
        Word::Heeding => return,
        Word::Ready => vec![NotifyState::Ready, NotifyState::Status(summary)],
        Word::Status => vec![NotifyState::Status(summary)],
        Word::Stopping => vec![NotifyState::Stopping],
    };
    if let Err(error) = sd_notify::notify(&state) {
        tracing::warn!(%error, "the service manager cannot be told: {word:?}");
    }
}

/// Looks after `pid` until it ends, and ends like it.
pub(super) fn supervise(pid: Pid, line: UnixStream, plan: Plan<'_>) -> ! {
    let end = attend(pid, line, &plan).unwrap_or_else(|error| {
        // What serves must not stay behind alone.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        writer::say(&format!("daxwindowd: {error}\n"));
        End::Code(1)
    });
    drop(plan.files);
    writer::flush();
    let code = match end {
        End::Code(code) => code,
        End::Signal(signal) => {
            // Does not return, if it can be done.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            128 + signal
        }
    };
    std::process::exit(code)
}

/// How a process ended.
enum End {
    Code(i32),
    Signal(i32),
}

fn attend(pid: Pid, mut line: UnixStream, plan: &Plan<'_>) -> Result<End, IsolationError> {
    let failed = |action| move |cause: std::io::Error| IsolationError::process(action, cause);
    let looking_after = failed("look after the serving process");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| looking_after(e.into()))?;
    let (read, write) = UnixStream::pair().map_err(looking_after)?;
    let keep = [&line, &read, &write].map(|socket| socket.as_raw_fd());
    let files = plan.files.iter().flat_map(SocketFile::descriptors);
    let files = files.map(|fd| fd.as_raw_fd());
    let files: Vec<_> = files.chain([pidfd.as_raw_fd()]).collect();
    // A lock of fcntl(2) on what this process was started with is lost once it
    // closes any descriptor of that file: libvirt's on its pid file is one.
    let keep = [&keep, &files[..], &plan.logs, &plan.strays].concat();
    #[allow(unsafe_code)]
    // SAFETY: this process ends in `supervise` without a return to those who
    // own the descriptors closed here, and runs no destructor of theirs.
    unsafe {
        sys::close_all_but(&keep);
    }
    let mut signals = SignalDelivery::with_pipe(read, write, SignalOnly, held::heeded())
        .map_err(looking_after)?;
    held::release()?;
    // What dies of a signal is the serving process, and this one only says so.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|e| looking_after(e.into()))?;
    let kept: CapsHashSet = KEPT.into_iter().collect();
    caps::keep_only(&kept)?;
    calls::supervising().enforce(plan.options.seccomp)?;

    let mut heeding = false;
    let mut waiting = Vec::new();
    let mut unread = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(signals.get_read(), PollFlags::IN),
            PollFd::new(&line, PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(looking_after(errno.into())),
        }
        let [_, said, ended] = fds.map(|fd| !fd.revents().is_empty());
        if said {
            heeding |= hear(&mut line, &mut unread);
        }
        waiting.extend(signals.pending());
        // The first process of a namespace gets no signal that it has no
        // handler for.
        if heeding {
            for signal in waiting.drain(..).filter_map(Signal::from_named_raw) {
                let _ = pidfd_send_signal(&pidfd, signal);
            }
        }
        if ended {
            hear(&mut line, &mut unread);
            return Ok(end_of(pid));
        }
    }
}

/// Takes what was said; whether signals are heeded now. Nothing more is heard
/// once the other side is closed. `unread` is the beginning of a line whose
/// end is still to come.
fn hear(line: &mut UnixStream, unread: &mut Vec<u8>) -> bool {
    let mut said = [0; 4 * MAX_LINE_BYTES];
    let _ = line.set_nonblocking(true);
    let got = match line.read(&mut said) {
        Ok(0) => {
            // Lest it wakes us again and again.
            if let Ok((silence, _)) = UnixStream::pair() {
                *line = silence;
            }
            0
        }
        Ok(got) => got,
        Err(_) => 0,
    };
    unread.extend_from_slice(&said[..got]);
    let mut heeding = false;
    while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = unread.drain(..=end).collect();
        if let Some((word, summary)) = Word::of_line(&line[..end]) {
            tell_service_manager(word, &summary);
            heeding |= word == Word::Heeding;
        }
    }
    heeding
}

fn end_of(pid: Pid) -> End {
    let status = match waitpid(Some(pid), WaitOptions::empty()) {
        Ok(Some((_, status))) => status,
        _ => return End::Code(1),
    };
    if let Some(code) = status.exit_status() {
        return End::Code(code);
    }
    let signal = status.terminating_signal().unwrap_or(0);
    let why = match signal {
        libc::SIGSYS => {
            ": it made a system call that is not on the list; --seccomp log has the kernel name it"
        }
        _ => "",
    };
    tracing::error!(signal, "the serving process was ended by a signal{why}");
    End::Signal(signal)
}
