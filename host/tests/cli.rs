//! The daemon as a command: flags, exit codes, messages, socket files.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use common::{DAEMON, Daemon, PATIENCE, assert_serves_next, eventually, on_disk};
use rustix::process::{Pid, Signal, kill_process};

/// Runs the daemon with flags that it must refuse.
fn refused(flags: &[&str]) -> Output {
    let mut child = Command::new(DAEMON)
        .args(flags)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let deadline = Instant::now() + PATIENCE;
    eventually("the daemon refuses and ends", || {
        let ended = child.try_wait().expect("our child").is_some();
        if !ended && Instant::now() + PATIENCE / 4 > deadline {
            let _ = child.kill();
        }
        ended
    });
    child.wait_with_output().expect("output")
}

#[track_caller]
fn assert_refused(flags: &[&str], code: i32, words: &[&str]) {
    let output = refused(flags);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{flags:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{flags:?}: no {word:?} in {text}");
    }
    assert!(!text.contains("panicked"), "{flags:?}: {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn bad_flags_are_named_and_end_with_2() {
    let dir = on_disk();
    let share = text(dir.path());
    let base = ["--socket-path", "/nowhere/s", "--shared-dir", share];
    let cases: [(&[&str], &str); 10] = [
        (&["--tag", ""], "--tag"),
        (&["--tag", "a\nb"], "--tag"),
        (
            &["--tag", "a-tag-that-is-longer-than-the-36-bytes"],
            "--tag",
        ),
        (&["--num-request-queues", "0"], "--num-request-queues"),
        (&["--num-request-queues", "64"], "--num-request-queues"),
        (&["--dax-window", "3M"], "--dax-window"),
        (&["--dax-window", "lots"], "--dax-window"),
        (&["--dax-window", "18446744073709551616"], "--dax-window"),
        (&["--dax", "often"], "--dax"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (extra, word) in cases {
        assert_refused(&[&base, extra].concat(), 2, &[word]);
    }
    assert_refused(&[], 2, &["--socket-path", "--shared-dir"]);
    assert_refused(&["--shared-dir", share], 2, &["--socket-path"]);
}

#[test]
fn a_bad_log_level_is_named() {
    let dir = on_disk();
    let socket = dir.path().join("s");
    let flags = ["--socket-path", text(&socket), "--shared-dir", "/"];
    let bad = ["--log-level", "host=loud"];
    assert_refused(&[&flags[..], &bad].concat(), 1, &["loud"]);
    assert!(!socket.exists());
}

#[test]
fn help_and_version_end_with_0() {
    for (flag, word) in [("--help", "--shared-dir"), ("--version", "daxwindowd")] {
        let output = refused(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains(word));
    }
}

#[test]
fn a_share_that_is_no_directory_is_named() {
    let dir = on_disk();
    let socket = dir.path().join("s");
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    for (share, cause) in [
        (&missing, "No such file or directory"),
        (&file, "share the one that the file is in"),
    ] {
        for sandbox in ["namespace", "none"] {
            let flags = ["--socket-path", text(&socket), "--shared-dir", text(share)];
            let flags = [&flags[..], &["--sandbox", sandbox]].concat();
            assert_refused(&flags, 1, &["--shared-dir", text(share), cause]);
            let left = socket.exists() || pid_file(&socket).exists();
            assert!(!left, "nothing is left behind");
        }
    }
}

#[test]
fn a_socket_path_that_cannot_be_is_named() {
    let dir = on_disk();
    let share = text(dir.path());
    let long = format!("/tmp/{}", "s".repeat(120));
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").expect("a file");
    for (socket, words) in [
        (long.as_str(), ["--socket-path", "125 bytes"]),
        ("/nonexistent/s", ["--socket-path", "/nonexistent/s"]),
        (text(&file), ["--socket-path", "not a socket"]),
        (share, ["--socket-path", "not a socket"]),
    ] {
        assert_refused(&["--socket-path", socket, "--shared-dir", share], 1, &words);
    }
    assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
}

#[test]
fn a_socket_in_use_is_refused_and_its_owner_goes_on() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &[]);
    let socket = daemon.socket();
    let flags = [
        "--socket-path",
        text(socket),
        "--shared-dir",
        text(share.path()),
    ];
    let owner = format!("process id {}", daemon.main_pid());
    assert_refused(&flags, 1, &["--socket-path", "in use", &owner]);
    assert!(socket.exists(), "the first daemon's socket stays");
    assert_eq!(pid_beside(socket), Some(daemon.main_pid()));
    assert_serves_next(&daemon);
    // Of one that leaves no word beside it, it is said that there is one.
    std::fs::remove_file(pid_file(socket)).expect("removed");
    assert_refused(&flags, 1, &["--socket-path", "in use, another daemon"]);
    assert!(!pid_file(socket).exists(), "who was refused leaves nothing");
}

fn pid_file(socket: &Path) -> PathBuf {
    socket.with_added_extension("pid")
}

/// The number beside a socket.
fn pid_beside(socket: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(pid_file(socket)).ok()?;
    text.strip_suffix('\n')?.parse().ok()
}

/// As beside virtiofsd's; however the daemon is confined, it is the process
/// that an operator can signal, and the file goes when it ends.
#[test]
fn the_process_to_signal_is_named_beside_the_socket() {
    let share = on_disk();
    let place = tempfile::tempdir().expect("a directory");
    let (second, sockets) = (place.path().join("second"), text(place.path()));
    let flags = ["--socket-path", text(&second)];
    for sandbox in ["namespace", "none"] {
        for extra in [&[][..], &["--socket-dir", sockets]] {
            let flags = [&flags, &["--sandbox", sandbox], extra].concat();
            let mut daemon = Daemon::start(share.path(), &flags);
            daemon.expect_log("waiting for a client", 2);
            let control = place.path().join("control.sock");
            let mut files = vec![daemon.socket().to_owned(), second.clone()];
            files.extend((!extra.is_empty()).then_some(control));
            for socket in &files {
                assert_eq!(pid_beside(socket), Some(daemon.main_pid()), "{flags:?}");
            }
            let pid = pid_beside(&second).and_then(|pid| Pid::from_raw(pid as i32));
            kill_process(pid.expect("a process"), Signal::TERM).expect("signal");
            assert!(daemon.wait().success(), "{flags:?}");
            for socket in &files {
                let there = (socket.exists(), pid_file(socket).exists());
                assert_eq!(there, (false, false), "{flags:?}: {socket:?}");
            }
        }
    }
    // Whatever ends the process that serves.
    let mut daemon = Daemon::start(share.path(), &flags);
    let serving = Pid::from_raw(daemon.pid() as i32).expect("a process");
    kill_process(serving, Signal::KILL).expect("signal");
    assert!(!daemon.wait().success());
    let left = std::fs::read_dir(place.path()).expect("there").count();
    assert!(left == 0 && !pid_file(daemon.socket()).exists());

    // What somebody else put there is not a daemon's to replace.
    std::fs::write(pid_file(&second), "precious").expect("written");
    let flags = [&flags, &["--shared-dir", text(share.path())][..]].concat();
    assert_refused(
        &flags,
        1,
        &["--socket-path", "second", ".pid", "process id"],
    );
    assert_eq!(
        std::fs::read(pid_file(&second)).expect("there"),
        b"precious"
    );
}

#[test]
fn a_stale_socket_is_replaced() {
    let share = on_disk();
    let mut killed = Daemon::start(share.path(), &[]);
    killed.kill();
    assert!(killed.socket().exists(), "nobody cleaned up");
    assert_eq!(pid_beside(killed.socket()), Some(killed.main_pid()));
    let mut next = Command::new(DAEMON)
        .arg("--keep-serving")
        .arg("--socket-path")
        .arg(killed.socket())
        .arg("--shared-dir")
        .arg(share.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    eventually("somebody listens again", || {
        std::os::unix::net::UnixStream::connect(killed.socket()).is_ok()
    });
    assert_eq!(pid_beside(killed.socket()), Some(next.id()));
    kill_process(Pid::from_child(&next), Signal::INT).expect("signal");
    assert!(next.wait().expect("our child").success());
    assert!(!killed.socket().exists(), "cleaned up this time");
    assert!(!pid_file(killed.socket()).exists());
}

#[test]
fn another_socket_in_its_place_is_not_removed() {
    let share = on_disk();
    let mut daemon = Daemon::start(share.path(), &[]);
    std::fs::remove_file(daemon.socket()).expect("remove");
    let _other = UnixListener::bind(daemon.socket()).expect("bind");
    assert!(daemon.terminate().success());
    assert!(daemon.socket().exists(), "it was not the daemon's");
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() {
    let share = on_disk();
    let daemon = Daemon::start(share.path(), &[]);
    assert_serves_next(&daemon);
    assert!(!daemon.log().contains('\u{1b}'), "{:?}", daemon.log());
}

/// As a service manager starts it: with a socket that listens, and another
/// that wants to be told.
#[test]
fn an_inherited_socket_is_served_and_the_service_manager_told() {
    let share = on_disk();
    let dir = on_disk();
    let (path, told) = (dir.path().join("listen"), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&told).expect("bind");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let listener = UnixListener::bind(&path).expect("listens");
    // Without close-on-exec, which is what inheriting takes.
    let given = rustix::io::dup(&listener).expect("duplicate");
    drop(listener);
    let fd = given.as_raw_fd().to_string();
    let mut daemon = Command::new(DAEMON)
        .args(["--keep-serving", "--fd", &fd])
        .args(["--shared-dir", text(share.path())])
        .env("NOTIFY_SOCKET", &told)
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    drop(given);
    let mut said = [0; 64];
    let len = manager.recv(&mut said).expect("told in time");
    assert_eq!(said[..len], *b"READY=1\nSTATUS=1 shares, 0 guests\n");
    let hear = || {
        let mut said = [0; 64];
        let len = manager.recv(&mut said).expect("told in time");
        String::from_utf8_lossy(&said[..len]).into_owned()
    };
    let client = std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
    assert_eq!(hear(), "STATUS=1 shares, 1 guests\n");
    drop(client);
    assert_eq!(hear(), "STATUS=1 shares, 0 guests\n");
    assert!(!pid_file(&path).exists(), "who made the socket knows whom");
    kill_process(Pid::from_child(&daemon), Signal::TERM).expect("signal");
    assert!(daemon.wait().expect("our child").success());
    assert_eq!(hear(), "STOPPING=1\n");
    assert!(path.exists(), "the file is its maker's");

    let flags = ["--fd", "0", "--shared-dir", text(share.path())];
    assert_refused(&flags, 1, &["--fd 0", "not an inherited Unix socket"]);
    let flags = ["--fd", "3", "--socket-path", "/s", "--shared-dir", "/"];
    assert_refused(&flags, 2, &["--fd", "--socket-path"]);
}

/// As virtiofsd, for who waits for the process to end; else the next guest is
/// served.
#[test]
fn with_once_the_daemon_ends_with_its_last_guest() {
    let share = on_disk();
    let place = tempfile::tempdir().expect("a directory");
    let second = place.path().join("second");
    let flags = ["--once", "--socket-path", text(&second)];
    let mut daemon = Daemon::start(share.path(), &flags);
    daemon.expect_log("waiting for a client", 2);
    let one = common::attach(&daemon);
    let options = daxwindow_guest::session::SessionOptions {
        memory_bytes: 16 << 20,
        ..daxwindow_guest::session::SessionOptions::new(&second)
    };
    let two = daxwindow_guest::session::Session::connect(options).expect("a session");
    drop(one);
    daemon.expect_log("client disconnected", 1);
    common::assert_serves(&two);
    assert!(daemon.is_running(), "one is still there");
    drop(two);
    assert!(daemon.wait().success());
    assert!(daemon.log().contains("--once"), "{}", daemon.log());
    assert!(!daemon.socket().exists() && !second.exists(), "cleaned up");
}
