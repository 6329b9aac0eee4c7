//! Many guests of one daemon: sockets from the start and at run time, and what
//! they have in common. Needs root for nothing.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use common::wire::{Message, args, ask};
use common::{
    DAEMON, Daemon, PAGE, PATIENCE, RANGE, assert_serves, eventually, in_memory, make_file,
    on_disk, open, walk,
};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_host::status::document::Status;
use daxwindow_shared::fuse::flags::LkFlags;
use daxwindow_shared::fuse::{FileLock, LkIn, Opcode, ROOT_ID};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use tempfile::TempDir;

/// A daemon with a directory of sockets, and nothing shared yet but at the
/// socket that every test daemon has.
struct Scene {
    daemon: Daemon,
    share: TempDir,
    place: TempDir,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        let (dir, status) = (place.path(), place.path().join("status"));
        let told = [
            "--socket-dir",
            dir.to_str().expect("UTF-8"),
            "--status-socket",
            status.to_str().expect("UTF-8"),
        ];
        let daemon = Daemon::start(share.path(), &[&told, flags].concat());
        Scene {
            daemon,
            share,
            place,
        }
    }

    fn ctl(&self, words: &[&str]) -> Output {
        ctl(self.place.path(), words)
    }

    /// Adds a share and answers where it listens.
    fn add(&self, name: &str, directory: &Path, extra: &[&str]) -> PathBuf {
        let directory = directory.to_str().expect("UTF-8");
        let words = ["add", "--name", name, "--shared-dir", directory];
        let text = good(self.ctl(&[&words, extra].concat()));
        let path = PathBuf::from(text.trim_end());
        assert_eq!(path, self.place.path().join(format!("{name}.sock")));
        path
    }

    fn status(&self) -> Status {
        let output = Command::new(DAEMON)
            .arg("--print-session")
            .arg(self.place.path().join("status"))
            .arg("--json")
            .output()
            .expect("starts");
        serde_json::from_slice(&output.stdout).expect("a document")
    }
}

fn ctl(socket_dir: &Path, words: &[&str]) -> Output {
    Command::new(DAEMON)
        .arg("ctl")
        .arg("--socket-dir")
        .arg(socket_dir)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("starts")
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn refused(output: Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

fn session(socket: &Path, dax: bool) -> Arc<Session> {
    let options = SessionOptions {
        memory_bytes: 4 << 20,
        timeout: PATIENCE,
        dax,
        ..SessionOptions::new(socket)
    };
    Session::connect(options).expect("a session")
}

fn map(session: &Session, name: &str, ranges: std::ops::Range<u64>) {
    let file = walk(session, name).expect("found");
    for range in ranges {
        let at = range * RANGE;
        session
            .setup_mapping(file.nodeid, FileOffset(at), WindowOffset(at), RANGE, false)
            .expect("mapped");
    }
}

#[test]
fn each_socket_serves_a_guest_of_its_own() {
    let place = tempfile::tempdir().expect("a directory");
    let share = in_memory();
    let second = place.path().join("second.sock");
    // The same last component as the first's, which the test daemon chose.
    let third = place.path().join("s");
    let flags = ["--socket-path", second.to_str().expect("UTF-8")];
    let third_flag = ["--socket-path", third.to_str().expect("UTF-8")];
    let mut daemon = Daemon::start(share.path(), &[flags, third_flag].concat());
    daemon.expect_log("waiting for a client", 3);
    for name in ["share{name=s}", "share{name=second}", "share{name=s-3}"] {
        assert!(daemon.log().contains(name), "{}", daemon.log());
    }
    let sockets = [daemon.socket().to_owned(), second, third];
    let guests: Vec<_> = sockets.iter().map(|path| session(path, false)).collect();
    for guest in &guests {
        assert_serves(guest);
    }
    // What one creates the others see, and nodes are each guest's own.
    let (node, _) = guests[0]
        .create(ROOT_ID, b"f", libc::O_RDWR as u32, 0o644)
        .map(|(entry, open)| (entry.nodeid, open.fh))
        .expect("created");
    guests[0].getattr(node, None).expect("this guest's");
    for guest in &guests[1..] {
        guest.getattr(node, None).expect_err("not this guest's");
        let own = walk(guest, "f").expect("there").nodeid;
        guest.getattr(own, None).expect("its own");
    }
    daemon.signal(rustix::process::Signal::USR1);
    for name in ["s", "second", "s-3"] {
        let line = format!("share{{name={name}}}: daxwindow_host::fuse: live inodes=");
        eventually("its counters are logged", || daemon.log().contains(&line));
    }
    // One goes, the others do not care.
    let mut guests = guests.into_iter();
    drop(guests.next());
    daemon.expect_log("waiting for the next client", 1);
    for guest in guests {
        assert_serves(&guest);
    }
    assert!(daemon.terminate().success());
    assert!(sockets.iter().all(|path| !path.exists()), "files stay");
}

#[test]
fn shares_come_and_go_while_others_are_served() {
    let scene = Scene::new(&["--dax", "never"]);
    let (one, two) = (on_disk(), in_memory());
    make_file(&one.path().join("one"), 1, 1000);
    make_file(&two.path().join("two"), 2, 1000);
    let first = session(scene.daemon.socket(), false);

    let beside = |socket: &Path| socket.with_added_extension("pid");
    let a = scene.add("a", one.path(), &["--tag", "data", "--readonly"]);
    let pid = std::fs::read_to_string(beside(&a)).expect("there");
    assert_eq!(pid, format!("{}\n", scene.daemon.main_pid()));
    let guest_a = session(&a, false);
    assert!(walk(&guest_a, "one").is_ok() && walk(&guest_a, "two").is_err());
    let rofs = guest_a.mkdir(ROOT_ID, b"d", 0o755).expect_err("read-only");
    assert_eq!(rofs.errno(), rustix::io::Errno::ROFS);
    let b = scene.add("b", two.path(), &[]);
    let guest_b = session(&b, false);
    assert!(walk(&guest_b, "two").is_ok() && walk(&guest_b, "one").is_err());
    guest_b.mkdir(ROOT_ID, b"d", 0o755).expect("writable");

    let list = good(scene.ctl(&["list"]));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert!(
        lines[0].starts_with("a\tin use\t") && lines[0].contains("\tro\t"),
        "{list}"
    );
    assert!(
        lines[1].starts_with("b\tin use\t") && lines[1].contains("\trw\t"),
        "{list}"
    );
    let json = good(scene.ctl(&["list", "--json"]));
    assert!(json.contains("\"tag\": \"data\""), "{json}");

    // In use: refused; by force: that guest is disconnected and no other.
    refused(
        scene.ctl(&["remove", "--name", "a"]),
        &["guest is connected", "--force"],
    );
    assert!(walk(&guest_a, "one").is_ok() && a.exists());
    good(scene.ctl(&["remove", "--name", "a", "--force"]));
    assert!(!a.exists() && !beside(&a).exists(), "the files went");
    guest_a.getattr(ROOT_ID, None).expect_err("disconnected");
    assert_serves(&first);
    assert_serves(&guest_b);
    drop(guest_b);
    eventually("the guest of b has gone", || {
        scene.ctl(&["remove", "--name", "b"]).status.success()
    });
    refused(scene.ctl(&["remove", "--name", "b"]), &["no share b"]);
    assert_eq!(good(scene.ctl(&["list"])).lines().count(), 1);

    // The same name again, another directory; nothing is left open of before.
    let mut files = scene.daemon.open_targets();
    // The last connection to the control socket may be among them yet.
    eventually("it settles", || {
        let before = std::mem::replace(&mut files, scene.daemon.open_targets());
        std::thread::sleep(std::time::Duration::from_millis(20));
        before == files
    });
    for round in 0..4 {
        let directory = [one.path(), two.path()][round % 2];
        let path = scene.add("a", directory, &[]);
        let guest = session(&path, false);
        assert_eq!(walk(&guest, "one").is_ok(), round % 2 == 0);
        drop(guest);
        good(scene.ctl(&["remove", "--name", "a", "--force"]));
    }
    eventually("descriptors are closed", || {
        scene.daemon.open_targets() == files
    });
    assert_serves(&first);
}

#[test]
fn what_cannot_be_added_is_said_and_leaves_nothing() {
    let scene = Scene::new(&["--max-shares", "2"]);
    let directory = scene.share.path().to_str().expect("UTF-8").to_owned();
    let add = |name: &str, dir: &str| scene.ctl(&["add", "--name", name, "--shared-dir", dir]);
    refused(
        add("x", "/no/such/directory"),
        &["/no/such/directory", "No such file"],
    );
    let file = scene.share.path().join("file");
    std::fs::write(&file, "").expect("written");
    refused(
        add("x", file.to_str().expect("UTF-8")),
        &["file", "Not a directory", "share the one"],
    );
    for name in ["../x", "a/b", "", "control"] {
        let output = add(name, &directory);
        assert_eq!(output.status.code(), Some(2), "{name:?}: {output:?}");
    }
    good(add("x", &directory));
    refused(add("x", &directory), &["in use"]);
    refused(add("y", &directory), &["as many as there may be"]);
    let names: Vec<_> = std::fs::read_dir(scene.place.path())
        .expect("there")
        .map(|entry| entry.expect("there").file_name())
        .collect();
    let with_pid = "control and x, each with a process id, and status";
    assert_eq!(names.len(), 5, "{with_pid}: {names:?}");
    // A daemon without a directory of sockets takes no orders.
    let nobody = tempfile::tempdir().expect("a directory");
    refused(
        ctl(nobody.path(), &["list"]),
        &["--socket-dir", "control.sock"],
    );
}

#[test]
fn who_talks_nonsense_to_the_control_socket_is_answered_and_harms_nobody() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    let scene = Scene::new(&[]);
    let path = scene.place.path().join("control.sock");
    let mode = std::fs::metadata(&path)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
    let files = scene.daemon.open_targets();
    let add = br#"{"command":"add","name":"a","directory":"/","socket":"/a"}"#;
    for text in [
        &b"\n"[..],
        b"{}\n",
        b"[1]\n",
        &[add, &b"\n"[..]].concat(),
        b"\xff\n",
    ] {
        let mut client = UnixStream::connect(&path).expect("it listens");
        client.write_all(text).expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answered");
        assert!(
            answer.starts_with("{\"error\":") && answer.ends_with("}\n"),
            "{answer}"
        );
    }
    // Files that are not what they are said to be.
    let mut client = UnixStream::connect(&path).expect("it listens");
    let null = std::fs::File::open("/dev/null").expect("there");
    let line = [add, &b"\n"[..]].concat();
    let three = [std::os::fd::AsFd::as_fd(&null); 3];
    daxwindow_host::shares::descriptors::send_line(&client, &line, &three).expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("answered");
    assert!(answer.contains("no directory"), "{answer}");
    drop(client);
    // One who says nothing holds up the next for a moment only.
    let silent = UnixStream::connect(&path).expect("it listens");
    good(scene.ctl(&["list"]));
    drop(silent);
    eventually("descriptors are closed", || {
        scene.daemon.open_targets() == files
    });
}

#[test]
fn what_guests_have_in_common_is_counted() {
    let scene = Scene::new(&["--dax", "always", "--dax-window", "64M", "--no-slot-limit"]);
    let bytes = 8 * RANGE as usize;
    make_file(&scene.share.path().join("f"), 1, bytes);
    make_file(&scene.share.path().join("small"), 2, 5000);
    let directory = scene.share.path();
    let guests = [
        session(scene.daemon.socket(), true),
        session(&scene.add("b", directory, &[]), true),
        session(&scene.add("c", directory, &[]), true),
    ];
    assert_eq!(scene.status().common.mapped_bytes, 0);
    // Halves that overlap: 0..4, 2..6, 4..8.
    for (guest, from) in guests.iter().zip([0, 2, 4]) {
        map(guest, "f", from..from + 4);
    }
    // Counts as far as the file reaches: two pages.
    let small = walk(&guests[0], "small").expect("found").nodeid;
    guests[0]
        .setup_mapping(small, FileOffset(0), WindowOffset(5 * RANGE), RANGE, false)
        .expect("mapped");
    let status = scene.status();
    let common = &status.common;
    assert_eq!((status.shares.len(), common.guests), (3, 3));
    assert_eq!((common.files, common.shared_files), (2, 1));
    assert_eq!(common.mapped_bytes, 12 * RANGE + 2 * PAGE);
    assert_eq!(common.distinct_bytes, 8 * RANGE + 2 * PAGE);
    assert_eq!(common.saved_bytes, 4 * RANGE);
    assert_eq!(
        common.bytes_by_guests,
        [(1, 4 * RANGE + 2 * PAGE), (2, 4 * RANGE)]
    );
    let inode = std::os::unix::fs::MetadataExt::ino(
        &std::fs::metadata(scene.share.path().join("f")).expect("there"),
    );
    assert_eq!(common.top_files.len(), 1);
    assert_eq!(
        (common.top_files[0].inode, common.top_files[0].guests),
        (inode, 3)
    );
    let page = Command::new(DAEMON)
        .arg("--print-session")
        .arg(scene.place.path().join("status"))
        .output();
    let page = good(page.expect("starts"));
    for words in [
        "shares               3, guests connected to 3",
        "saved                8 MiB, by 1 files that more than one guest has mapped",
        "  by 2 guests        8 MiB",
        "--- b ---",
        "4 ranges, 8 MiB",
    ] {
        assert!(page.contains(words), "no {words:?} in\n{page}");
    }
    // One goes and takes what it had.
    let [first, second, third] = guests;
    drop(second);
    eventually("its mappings are gone", || {
        scene.status().common.mapped_bytes == 8 * RANGE + 2 * PAGE
    });
    let common = scene.status().common;
    assert_eq!((common.saved_bytes, common.guests), (0, 2));
    assert!(common.top_files.is_empty());
    drop((first, third));
}

#[test]
fn guests_of_one_daemon_exclude_each_other() {
    let scene = Scene::new(&["--locks"]);
    make_file(&scene.share.path().join("db"), 1, 8192);
    let second = scene.add("b", scene.share.path(), &[]);
    let guests = [
        session(scene.daemon.socket(), false),
        session(&second, false),
    ];
    let files = guests.each_ref().map(|guest| {
        let (file, handle) = open(guest, "db", libc::O_RDWR).expect("opened");
        (file.nodeid, handle.fh)
    });
    let lock = |guest: usize, kind: i32, flags: LkFlags| {
        let (node, fh) = files[guest];
        let body = LkIn {
            fh,
            // Both owners have the same number: each guest counts its own.
            owner: 1,
            lk: FileLock {
                start: 0,
                end: i64::MAX as u64,
                typ: kind as u32,
                pid: 42,
            },
            lk_flags: flags.bits(),
            padding: 0,
        };
        let message = Message::new(Opcode::Setlk as u32, node, args(body));
        ask(&guests[guest], &message).errno
    };
    for flags in [LkFlags::empty(), LkFlags::FLOCK] {
        assert_eq!(lock(0, libc::F_WRLCK, flags), 0);
        assert_eq!(lock(1, libc::F_RDLCK, flags), libc::EAGAIN);
        assert_eq!(lock(0, libc::F_RDLCK, flags), 0);
        assert_eq!(lock(1, libc::F_RDLCK, flags), 0);
        assert_eq!(lock(1, libc::F_WRLCK, flags), libc::EAGAIN);
        assert_eq!(lock(0, libc::F_UNLCK, flags), 0);
        assert_eq!(lock(1, libc::F_WRLCK, flags), 0);
        assert_eq!(lock(1, libc::F_UNLCK, flags), 0);
    }
    // A share that goes takes its guest's locks along.
    assert_eq!(lock(1, libc::F_WRLCK, LkFlags::empty()), 0);
    assert_eq!(lock(0, libc::F_WRLCK, LkFlags::empty()), libc::EAGAIN);
    good(scene.ctl(&["remove", "--name", "b", "--force"]));
    assert_eq!(lock(0, libc::F_WRLCK, LkFlags::empty()), 0);
}
