//! A log that cannot be written: its reader is gone or frozen, its disk full,
//! syslog does not take messages. The share is served all the same.

mod common;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::sync::Arc;

use common::{DAEMON, PATIENCE, RANGE, assert_serves, eventually, make_file, on_disk, open};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A daemon with a log of its own; killed on drop.
struct Scene {
    child: Child,
    share: TempDir,
    place: TempDir,
}

impl Scene {
    fn start(mut command: Command, log: impl Into<Stdio>, flags: &[&str]) -> Scene {
        let share = on_disk();
        make_file(&share.path().join("file"), 1, RANGE as usize);
        let place = tempfile::tempdir().expect("a directory");
        command
            .arg("--keep-serving")
            .arg("--socket-path")
            .arg(place.path().join("s"))
            .arg("--shared-dir")
            .arg(share.path())
            .args(["--dax", "always", "--log-level", "debug"])
            .args(flags);
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        let child = command.stderr(log).spawn().expect("starts");
        // The command keeps the other end of its log, else.
        drop(command);
        Scene {
            child,
            share,
            place,
        }
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("s")
    }

    /// A client is served, for which the daemon logs what it does.
    fn serves(&self) {
        let options = SessionOptions {
            memory_bytes: 16 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(self.socket())
        };
        let mut session: Option<Arc<Session>> = None;
        eventually("a client is served", || {
            session = Session::connect(options.clone()).ok();
            session.is_some()
        });
        let session = session.expect("just made");
        assert_serves(&session);
        let (entry, _) = open(&session, "file", libc::O_RDWR).expect("open");
        let mapped =
            session.setup_mapping(entry.nodeid, FileOffset(0), WindowOffset(0), RANGE, true);
        mapped.expect("padded and mapped");
        session.destroy().expect("DESTROY is answered");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Several clients are served, counters logged, and the end is in order.
    fn goes_on_to_the_end(&mut self) {
        for _ in 0..3 {
            self.serves();
            self.signal(Signal::USR1);
        }
        self.signal(Signal::TERM);
        let mut status = None;
        eventually("the daemon ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(0));
        assert!(!self.socket().exists(), "cleaned up");
        assert!(self.share.path().join("file").exists());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SANDBOXES: [&[&str]; 2] = [&["--sandbox", "namespace"], &["--sandbox", "none"]];

fn daemon() -> Command {
    Command::new(DAEMON)
}

/// Of which the daemon gets what it is given only.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

/// As `daxwindowd 2>&1 | head -1` leaves it.
#[test]
fn a_log_whose_reader_has_gone_costs_no_client_its_share() {
    for flags in SANDBOXES {
        let (read, write) = pipe();
        let mut scene = Scene::start(daemon(), write, flags);
        let mut line = [0; 1];
        let got = rustix::io::read(&read, &mut line).expect("it logs");
        assert_eq!(got, 1);
        drop(read);
        scene.goes_on_to_the_end();
    }
}

#[test]
fn a_log_on_a_full_disk_costs_no_client_its_share() {
    for flags in SANDBOXES {
        let full = File::options().write(true).open("/dev/full");
        let mut scene = Scene::start(daemon(), full.expect("a device"), flags);
        scene.goes_on_to_the_end();
    }
}

#[test]
fn a_log_on_a_terminal_that_is_closed_costs_no_client_its_share() {
    for flags in SANDBOXES {
        let [master, terminal] = terminal();
        let mut scene = Scene::start(daemon(), terminal, flags);
        scene.serves();
        drop(master);
        scene.goes_on_to_the_end();
    }
}

/// A new terminal: its master's side, and its own.
fn terminal() -> [OwnedFd; 2] {
    let mut sides = [-1; 2];
    let [master, own] = &mut sides;
    let (name, settings, size) = (null_mut(), null_mut(), null_mut());
    // SAFETY: the two numbers are written; no name, settings or size are given.
    let made = unsafe { libc::openpty(master, own, name, settings, size) };
    assert_eq!(made, 0);
    // SAFETY: open, as just made, and nobody else's.
    let [master, own] = sides.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // The daemon must not have the master's side.
    let flags = rustix::io::FdFlags::CLOEXEC;
    rustix::io::fcntl_setfd(&master, flags).expect("set");
    rustix::io::fcntl_setfd(&own, flags).expect("set");
    [master, own]
}

/// As a pager that is stopped, or a shell that waits for something else.
#[test]
fn a_log_whose_reader_is_frozen_holds_up_no_client() {
    for flags in SANDBOXES {
        let (read, write) = pipe();
        let mut scene = Scene::start(daemon(), write, flags);
        scene.serves();
        fill(&read);
        scene.goes_on_to_the_end();
        // What was there before is whole.
        let mut text = Vec::new();
        File::from(read).read_to_end(&mut text).expect("read");
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("waiting for a client"), "{text}");
    }
}

/// Writes to a pipe until it takes no more, by a description of its own, so
/// that nobody else's is changed.
fn fill(read: &OwnedFd) {
    let path = format!("/proc/self/fd/{}", read.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = rustix::fs::open(path, flags, Mode::empty()).expect("the pipe");
    let mut write = File::from(write);
    // Page by page, and what is left of the last one byte by byte.
    for step in [4096, 1] {
        let full = loop {
            if let Err(error) = write.write_all(&vec![b'.'; step]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }
}

/// A log daemon that is stopped: its socket takes a few messages and no more.
#[test]
fn a_syslog_that_takes_no_messages_holds_up_no_client() {
    for flags in SANDBOXES {
        for full_from_the_start in [true, false] {
            let dir = tempfile::tempdir().expect("a directory");
            let log = dir.path().join("log");
            let syslog = UnixDatagram::bind(&log).expect("bind");
            let fill = || {
                let other = UnixDatagram::unbound().expect("a socket");
                other.set_nonblocking(true).expect("set");
                while other.send_to(b"another's", &log).is_ok() {}
            };
            if full_from_the_start {
                fill();
            }
            let flags = [flags, &["--syslog", "--log-level", "info"]].concat();
            let mut scene = Scene::start(with_dev(&log), Stdio::null(), &flags);
            if !full_from_the_start {
                let mut message = [0; 1024];
                syslog.recv(&mut message).expect("it logs there");
                scene.serves();
                fill();
            }
            scene.goes_on_to_the_end();
        }
    }
}

/// In a mount namespace of its own, whose /dev/log is `log`.
fn with_dev(log: &Path) -> Command {
    let script = "touch \"$0.fuse\" && mount --bind /dev/fuse \"$0.fuse\" \
        && mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 \
        && touch /dev/fuse && mount --bind \"$0.fuse\" /dev/fuse \
        && ln -s \"$0\" /dev/log && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script]);
    command.arg(log).arg(DAEMON);
    command
}
