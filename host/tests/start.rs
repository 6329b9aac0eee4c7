//! How the daemon is started: by a service manager, by a group's members, by
//! command lines of virtiofsd, with its log in syslog.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{DAEMON, Daemon, PATIENCE, assert_serves, eventually, on_disk};
use daxwindow_guest::session::{Session, SessionOptions};
use rustix::process::{Pid, Signal, kill_process};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A daemon that is started in a way of its own; killed on drop.
struct Started(Child);

impl Started {
    /// Ends it in order.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it runs");
        assert!(self.0.wait().expect("our child").success());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program with its sockets passed as by systemd: from 3 on.
fn activate(sockets: &[&UnixListener], change: impl FnOnce(&mut Command)) -> Child {
    // Without close-on-exec, which is what passing takes.
    let given: Vec<_> = sockets
        .iter()
        .map(|socket| rustix::io::dup(socket).expect("duplicate"))
        .collect();
    let moved: Vec<String> = given
        .iter()
        .enumerate()
        .map(|(index, fd)| format!("exec {}<&{}", index + 3, fd.as_raw_fd()))
        .collect();
    let count = given.len();
    let script = format!(
        "{}; LISTEN_FDS={count} LISTEN_PID=$$ exec \"$0\" \"$@\"",
        moved.join("; ")
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script, DAEMON]);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    change(&mut command);
    command.spawn().expect("it starts")
}

fn connect(socket: &Path) -> std::sync::Arc<Session> {
    let options = SessionOptions {
        memory_bytes: 16 << 20,
        timeout: PATIENCE,
        ..SessionOptions::new(socket)
    };
    // The client before may not have been let go yet.
    let mut session = None;
    eventually("a session", || {
        session = Session::connect(options.clone()).ok();
        session.is_some()
    });
    session.expect("just made")
}

/// As under a socket unit: nothing names the sockets, and guests attach.
#[test]
fn sockets_that_were_passed_are_served() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for sockets");
    let told = dir.path().join("notify");
    let paths = ["one", "two"].map(|name| dir.path().join(name));
    let manager = UnixDatagram::bind(&told).expect("bind");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let [one, two] = paths
        .each_ref()
        .map(|path| UnixListener::bind(path).expect("listens"));
    let daemon = Started(activate(&[&one, &two], |command| {
        let share = text(share.path());
        command.args(["--shared-dir", share, "--num-request-queues", "2"]);
        command.env("NOTIFY_SOCKET", &told).stderr(Stdio::null());
    }));
    drop((one, two));
    let mut said = [0; 64];
    let len = manager.recv(&mut said).expect("told in time");
    assert!(said[..len].starts_with(b"READY=1\n"), "{:?}", &said[..len]);
    // One after the other, and both at a time.
    assert_serves(&connect(&paths[0]));
    let guests = paths.each_ref().map(|path| connect(path));
    for guest in &guests {
        assert_serves(guest);
    }
    drop(guests);
    daemon.end();
    let mut last = String::new();
    let mut seen = Vec::new();
    while last != "STOPPING=1\n" {
        let len = manager.recv(&mut said).expect("told in time");
        last = String::from_utf8_lossy(&said[..len]).into_owned();
        seen.push(last.clone());
    }
    assert!(
        seen.contains(&"STATUS=2 shares, 2 guests\n".to_owned()),
        "{seen:?}"
    );
    assert!(
        paths.iter().all(|path| path.exists()),
        "they are their maker's"
    );
}

#[test]
fn what_was_passed_and_cannot_be_served_is_named() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for sockets");
    let one = UnixListener::bind(dir.path().join("s")).expect("listens");
    let child = activate(&[&one], |command| {
        command.args(["--shared-dir", text(share.path())]);
        command
            .args(["--socket-group", "root"])
            .stderr(Stdio::piped());
    });
    let output = child.wait_with_output().expect("our child");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("SocketGroup="), "{error}");
    // Passed to somebody else, as the process number tells: not for us.
    let output = Command::new(DAEMON)
        .args(["--shared-dir", text(share.path())])
        .envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--socket-path"), "{error}");
}

#[test]
fn a_group_may_connect_when_it_is_named() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &[]);
    let mode = |daemon: &Daemon| {
        let meta = fs::metadata(daemon.socket()).expect("there");
        (meta.permissions().mode() & 0o777, meta.gid())
    };
    let own = rustix::process::getegid().as_raw();
    assert_eq!(mode(&daemon), (0o700, own));
    let group = group_number("daemon");
    let daemon = Daemon::start(share.path(), &["--socket-group", "daemon"]);
    eventually("the group is let in", || mode(&daemon) == (0o770, group));
}

/// A group's number by /etc/group.
fn group_number(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").expect("a system with groups");
    let line = groups
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")));
    let number = line.and_then(|line| line.split(':').nth(2));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

#[test]
fn a_command_line_of_an_old_virtiofsd_still_starts() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let socket = dir.path().join("s");
    let options = format!(
        "source={},cache=none,xattr,no_posix_lock",
        text(share.path())
    );
    let args = ["--socket", text(&socket), "-o", &options, "-f", "-d"];
    let daemon = Started(
        Command::new(DAEMON)
            .arg("--keep-serving")
            .args(args)
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts"),
    );
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    assert_serves(&connect(&socket));
    daemon.end();
}

#[test]
fn capabilities_are_printed_and_nothing_is_served() {
    let output = Command::new(DAEMON)
        .arg("--print-capabilities")
        .output()
        .expect("it runs");
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["type"], "fs");
    assert!(value["features"].is_array());
}

/// In a mount namespace of its own, whose /dev has a log that the test reads.
#[test]
fn a_log_in_syslog() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for sockets");
    let (log, socket) = (dir.path().join("log"), dir.path().join("s"));
    let syslog = UnixDatagram::bind(&log).expect("bind");
    syslog.set_read_timeout(Some(PATIENCE)).expect("set");
    let script = "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 \
        && ln -s \"$0\" /dev/log && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "bash", "-c", script, text(&log), "", DAEMON])
        .args(["--socket-path", text(&socket), "--shared-dir"])
        .args([
            text(share.path()),
            "--dax",
            "never",
            "--syslog",
            "--keep-serving",
        ])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut daemon = Started(command.spawn().expect("it starts"));
    let received = |what: &str| {
        let mut message = [0; 1024];
        loop {
            let len = syslog.recv(&mut message).expect("a message in time");
            let text = String::from_utf8_lossy(&message[..len]).into_owned();
            if text.contains(what) {
                return text;
            }
        }
    };
    // Facility user and severity notice or informational.
    let text = received("waiting for a client");
    assert!(
        text.starts_with("<13>") || text.starts_with("<14>"),
        "{text}"
    );
    assert!(text.contains("daxwindowd["), "{text}");
    assert_serves(&connect(&socket));
    received("session begins");
    let mut stderr = daemon.0.stderr.take().expect("piped");
    daemon.end();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut rest).expect("read");
    assert_eq!(rest, "", "nothing on standard error");
}

#[test]
fn without_syslog_only_warnings_and_errors_are_on_standard_error() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for the socket");
    let socket = dir.path().join("s");
    let script = "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "bash", "-c", script, "", DAEMON])
        .args(["--socket-path", text(&socket), "--shared-dir"])
        .args([
            text(share.path()),
            "--dax",
            "never",
            "--syslog",
            "--keep-serving",
        ])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut daemon = Started(command.spawn().expect("it starts"));
    let mut stderr = daemon.0.stderr.take().expect("piped");
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    // Who is served is sure that signals are heeded.
    assert_serves(&connect(&socket));
    daemon.end();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut text).expect("read");
    assert!(
        text.contains("--syslog") && text.contains("/dev/log"),
        "{text}"
    );
    assert!(
        !text.contains("INFO"),
        "nobody's terminal is for that: {text}"
    );
}

/// Shares that come and go are told to the service manager, guests too.
#[test]
fn the_service_manager_is_told_of_shares_that_come_and_go() {
    let share = on_disk();
    let dir = tempfile::tempdir().expect("a directory for sockets");
    let told = dir.path().join("notify");
    let manager = UnixDatagram::bind(&told).expect("bind");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let hear = || {
        let mut said = [0; 64];
        let len = manager.recv(&mut said).expect("told in time");
        String::from_utf8_lossy(&said[..len]).into_owned()
    };
    let mut command = Command::new(DAEMON);
    command.args(["--socket-dir", text(dir.path())]);
    command.env("NOTIFY_SOCKET", &told).stderr(Stdio::null());
    let daemon = Started(command.spawn().expect("starts"));
    assert_eq!(hear(), "READY=1\nSTATUS=0 shares, 0 guests\n");
    let ctl = |words: &[&str]| {
        let mut command = Command::new(DAEMON);
        command.args(["ctl", "--socket-dir", text(dir.path())]);
        let output = command.args(words).output().expect("starts");
        assert!(output.status.success(), "{output:?}");
    };
    ctl(&["add", "--name", "one", "--shared-dir", text(share.path())]);
    assert_eq!(hear(), "STATUS=1 shares, 0 guests\n");
    let session = connect(&dir.path().join("one.sock"));
    assert_eq!(hear(), "STATUS=1 shares, 1 guests\n");
    drop(session);
    assert_eq!(hear(), "STATUS=1 shares, 0 guests\n");
    ctl(&["remove", "--name", "one"]);
    assert_eq!(hear(), "STATUS=0 shares, 0 guests\n");
    daemon.end();
    assert_eq!(hear(), "STOPPING=1\n");
}
