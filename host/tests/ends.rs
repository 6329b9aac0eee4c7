//! What ends the daemon, and what does not: its client's end, as with
//! virtiofsd, signals, limits; and what whoever has started it can tell then.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use common::{
    DAEMON, Daemon, PATIENCE, assert_serves, attach, children_of, eventually, in_memory, on_disk,
    open, serving, write_by_request,
};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_shared::fuse::SetattrIn;
use daxwindow_shared::fuse::flags::SetattrValid;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A daemon that is started as its manager would; killed on drop.
struct Started {
    child: Child,
    _share: TempDir,
    _place: TempDir,
    socket: PathBuf,
}

impl Started {
    /// By `command`, which gets the flags; it listens.
    fn by(mut command: Command, flags: &[&str]) -> Started {
        let (share, place) = (on_disk(), tempfile::tempdir().expect("a directory"));
        let socket = place.path().join("s");
        command.args(["--shared-dir", text(share.path())]);
        if !flags.iter().any(|flag| flag.starts_with("--fd")) {
            command.args(["--socket-path", text(&socket)]);
        }
        command.args(flags).stdin(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().expect("starts");
        let started = Started {
            child,
            _share: share,
            _place: place,
            socket,
        };
        let given = flags.iter().any(|flag| flag.starts_with("--fd"));
        eventually("it listens", || given || started.socket.exists());
        started
    }

    fn connect(&self, socket: &Path) -> std::sync::Arc<Session> {
        let options = SessionOptions {
            memory_bytes: 16 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(socket)
        };
        // The file is there a moment before it listens.
        let mut session = None;
        eventually("a session", || {
            session = Session::connect(options.clone()).ok();
            session.is_some()
        });
        session.expect("just made")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Waits for its end, and for that of every process of it.
    fn ended(&mut self, processes: &[u32]) -> ExitStatus {
        let mut status = None;
        eventually("the daemon ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        let there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        eventually("none of it is left", || !processes.iter().any(there));
        status.expect("just seen")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_daemon_that_is_started_as_virtiofsd_is_ends_with_its_client() {
    for flags in [&[][..], &["--sandbox", "none"], &["--sandbox", "chroot"]] {
        let mut daemon = Started::by(Command::new(DAEMON), flags);
        let session = daemon.connect(&daemon.socket.clone());
        assert_serves(&session);
        let processes = children_of(daemon.child.id());
        assert!(daemon.is_running(), "{flags:?}");
        drop(session);
        assert!(daemon.ended(&processes).success(), "{flags:?}");
        let left = [
            daemon.socket.clone(),
            daemon.socket.with_added_extension("pid"),
        ];
        assert_eq!(left.map(|path| path.exists()), [false; 2], "{flags:?}");
    }
}

#[test]
fn a_daemon_that_got_its_socket_as_a_descriptor_ends_with_its_client() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("listen");
    let listener = UnixListener::bind(&path).expect("listens");
    let given = rustix::io::dup(&listener).expect("without close-on-exec");
    drop(listener);
    let fd = format!("--fd={}", given.as_raw_fd());
    let mut daemon = Started::by(Command::new(DAEMON), &[&fd]);
    drop(given);
    let session = daemon.connect(&path);
    assert_serves(&session);
    let processes = children_of(daemon.child.id());
    drop(session);
    assert!(daemon.ended(&processes).success());
    assert!(path.exists(), "the file is its maker's");
}

#[test]
fn a_client_that_goes_without_a_word_was_a_client() {
    let mut daemon = Started::by(Command::new(DAEMON), &[]);
    // The file is there a moment before it listens.
    eventually("it listens", || UnixStream::connect(&daemon.socket).is_ok());
    assert!(daemon.ended(&[]).success());
}

/// It is let in at the earliest moment there is.
#[test]
fn a_client_that_came_and_went_before_the_daemon_began_was_a_client() {
    for _ in 0..5 {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("listen");
        let listener = UnixListener::bind(&path).expect("listens");
        drop(UnixStream::connect(&path).expect("waits"));
        let given = rustix::io::dup(&listener).expect("without close-on-exec");
        let fd = format!("--fd={}", given.as_raw_fd());
        let mut daemon = Started::by(Command::new(DAEMON), &[&fd]);
        drop(given);
        assert!(daemon.ended(&[]).success());
    }
}

#[test]
fn of_once_and_keep_serving_the_last_counts() {
    let share = on_disk();
    let mut daemon = Daemon::start(share.path(), &["--once", "--keep-serving"]);
    drop(attach(&daemon));
    common::assert_serves_next(&daemon);
    assert!(daemon.is_running());
    let mut daemon = Daemon::start(share.path(), &["--once"]);
    drop(attach(&daemon));
    assert!(daemon.wait().success());
    let log = daemon.log();
    assert!(log.contains("the daemon ends"), "{log}");
    assert!(!log.contains("next client"), "nobody is waited for: {log}");
}

/// A lock of fcntl(2) belongs to a process and goes with any close of the file
/// there. libvirt leaves the one on its pid file to the process that it has
/// started, and kills no other than who has it.
#[test]
fn a_lock_that_the_daemon_was_started_with_stays_with_its_main_process() {
    for flags in [
        &["--dax", "always"][..],
        &["--dax", "never"],
        &["--sandbox", "chroot"],
        &["--sandbox", "none"],
    ] {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("pid");
        File::create(&path).expect("a file");
        // What is executed keeps process, descriptor and lock.
        let script = "use Fcntl; $^F = 255; open(F, '+<', shift) or die; \
                      my $lock = pack('ssx4qqlx4', F_WRLCK, 0, 0, 0, 0); \
                      fcntl(F, F_SETLK, $lock) or die; exec @ARGV";
        let mut command = Command::new("perl");
        command.args(["-e", script, text(&path), DAEMON]);
        let mut daemon = Started::by(command, flags);
        let session = daemon.connect(&daemon.socket.clone());
        assert_serves(&session);
        let main = daemon.child.id();
        assert_eq!(owner_of_lock(&path), Some(main), "{flags:?}");
        let others = children_of(main);
        for other in &others {
            assert!(!has_open(*other, &path), "{flags:?}: {other}");
        }
        assert_ne!(others.contains(&serving(main)), flags.contains(&"none"));
        daemon.signal(Signal::TERM);
        assert!(daemon.ended(&others).success());
        assert_eq!(owner_of_lock(&path), None);
    }
}

/// By /proc/locks, as `MAJOR:MINOR:INODE` has it.
fn owner_of_lock(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(path).expect("there").ino();
    let locks = std::fs::read_to_string("/proc/locks").expect("procfs");
    let line = locks.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.any(|word| word.split(':').nth(2) == Some(&inode.to_string()))
    })?;
    line.split_whitespace().nth(4)?.parse().ok()
}

fn has_open(pid: u32, path: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut descriptors = descriptors.into_iter().flatten().flatten();
    descriptors.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

/// What a closed terminal and a key send. With the signals' default actions,
/// which a process started in the background may not have.
#[test]
fn sighup_and_sigquit_end_the_daemon_in_order() {
    for signal in [Signal::HUP, Signal::QUIT] {
        for sandbox in ["namespace", "chroot", "none"] {
            let mut command = Command::new("env");
            command.args(["--default-signal=HUP,QUIT", DAEMON]);
            let flags = ["--keep-serving", "--sandbox", sandbox];
            let mut daemon = Started::by(command, &flags);
            let session = daemon.connect(&daemon.socket.clone());
            assert_serves(&session);
            let processes = children_of(daemon.child.id());
            daemon.signal(signal);
            let status = daemon.ended(&processes);
            assert!(status.success(), "{signal:?} {sandbox}: {status}");
            assert!(!daemon.socket.exists(), "{signal:?} {sandbox}");
        }
    }
}

#[test]
fn a_sighup_that_nohup_has_the_daemon_ignore_is_ignored() {
    for sandbox in ["namespace", "none"] {
        let mut command = Command::new("env");
        command.args(["--ignore-signal=HUP", DAEMON]);
        let mut daemon = Started::by(command, &["--sandbox", sandbox]);
        let session = daemon.connect(&daemon.socket.clone());
        daemon.signal(Signal::HUP);
        // Handed on in order: the counters are logged after it was heeded.
        daemon.signal(Signal::USR1);
        assert_serves(&session);
        let began = Instant::now();
        while began.elapsed().as_millis() < 200 {
            assert!(daemon.is_running(), "{sandbox}");
            assert_serves(&session);
        }
    }
}

/// `RLIMIT_FSIZE` is in blocks of 1024 bytes to a shell.
#[test]
fn a_write_past_the_limit_of_a_file_is_efbig_and_ends_nobody() {
    for sandbox in ["namespace", "chroot", "none"] {
        let share = in_memory();
        std::fs::write(share.path().join("file"), b"short").expect("a file");
        let mut command = Command::new("bash");
        command.args(["-c", "ulimit -f 2048; exec \"$@\"", "bash", DAEMON]);
        let flags = ["--dax", "never", "--sandbox", sandbox];
        let mut daemon = Daemon::start_by(command, share.path(), &flags);
        let session = attach(&daemon);
        let (entry, handle) = open(&session, "file", libc::O_RDWR).expect("open");
        let at = (entry.nodeid, handle.fh);
        let error = write_by_request(&session, at, 10 << 20, b"far").expect_err("past the limit");
        assert_eq!(error.errno(), Errno::FBIG, "{sandbox}");
        let set = SetattrIn {
            valid: SetattrValid::SIZE.bits(),
            size: 10 << 20,
            ..SetattrIn::default()
        };
        let error = session.setattr(entry.nodeid, &set).expect_err("as well");
        assert_eq!(error.errno(), Errno::FBIG, "{sandbox}");
        assert_eq!(write_by_request(&session, at, 0, b"near").expect("room"), 4);
        assert!(daemon.is_running(), "{sandbox}");
    }
}
