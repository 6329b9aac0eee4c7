//! The status socket and `--print-session`.

mod common;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{
    DAEMON, Daemon, PATIENCE, RANGE, assert_serves, attach, attach_plain, eventually, in_memory,
    make_file, on_disk, options, walk,
};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_host::status::document::{SCHEMA, ShareStatus, Status};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use tempfile::TempDir;

/// A daemon with a status socket.
struct Scene {
    daemon: Daemon,
    share: TempDir,
    place: TempDir,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        make_file(&share.path().join("file"), 1, 5 << 20);
        let status = place.path().join("status");
        let told = ["--status-socket", status.to_str().expect("UTF-8")];
        let daemon = Daemon::start(share.path(), &[&told, flags].concat());
        Scene {
            daemon,
            share,
            place,
        }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("status")
    }

    fn raw(&self) -> String {
        let mut socket = UnixStream::connect(self.path()).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("end of stream");
        text
    }

    fn document(&self) -> Status {
        let text = self.raw();
        assert!(text.ends_with("}\n"), "one line: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Of the only share.
    fn status(&self) -> ShareStatus {
        let mut document = self.document();
        assert_eq!(document.shares.len(), 1);
        document.shares.remove(0)
    }

    /// Asked as a person asks.
    fn page(&self) -> String {
        let output = print_session(&self.path(), &[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

fn print_session(path: &Path, extra: &[&str]) -> Output {
    Command::new(DAEMON)
        .arg("--print-session")
        .arg(path)
        .args(extra)
        .stdin(Stdio::null())
        .output()
        .expect("the daemon starts")
}

fn map_range(session: &Session, nodeid: u64, offset: u64) {
    session
        .setup_mapping(
            nodeid,
            FileOffset(offset),
            WindowOffset(offset),
            RANGE,
            true,
        )
        .expect("mapped");
}

fn verdict(status: &ShareStatus) -> (&str, &str) {
    (&status.dax.verdict, &status.dax.reason)
}

#[test]
fn a_guest_with_a_window_is_reported_with_what_it_did() {
    let flags = ["--dax", "always", "--dax-window", "64M", "--no-slot-limit"];
    let scene = Scene::new(&flags);
    let session = attach(&scene.daemon);
    let file = walk(&session, "file").expect("found");
    for offset in [0, RANGE, 0] {
        map_range(&session, file.nodeid, offset);
    }
    let error = session.setup_mapping(file.nodeid, FileOffset(0), WindowOffset(1), RANGE, true);
    error.expect_err("unaligned");
    let document = scene.document();
    assert_eq!(document.schema, SCHEMA);
    assert_eq!(document.daemon.pid, scene.daemon.main_pid());
    assert_eq!(document.common.guests, 1);
    let status = scene.status();
    assert_eq!(verdict(&status), ("on", "every-file"));
    assert_eq!(
        status.share.directory,
        scene.share.path().to_str().expect("UTF-8")
    );
    assert!(status.front_end.connected && status.front_end.has_channel);
    assert!(status.front_end.memory_regions >= 1);
    assert!(status.session.live && status.session.live_seconds >= Some(0.0));
    assert!(status.session.guest_dax.is_some());
    assert_eq!(
        (status.window.asked_bytes, status.window.offered_bytes),
        (64 << 20, 64 << 20)
    );
    // The guest library maps with a plain mmap.
    let capabilities = status.capabilities.expect("learned");
    let able = |name: &str| {
        capabilities
            .iter()
            .find(|c| c.name == name)
            .expect(name)
            .yes
    };
    assert!(able("past-end-of-file") && able("read-only-fd") && able("map-over-map"));
    assert!(able("partial-unmap") && !able("padded") && !able("announced"));
    assert!(capabilities.iter().all(|c| !c.consequence.is_empty()));
    let m = &status.mappings;
    assert_eq!(
        (m.live_ranges, m.live_bytes, m.live_inodes),
        (2, 2 * RANGE, 1)
    );
    assert_eq!((m.setups, m.hits), (3, 1));
    assert_eq!(m.refusals.get("window-range"), Some(&1), "{m:?}");
    assert_eq!(m.setup.count, 3);
    assert!(m.setup.p50_us > 0.0 && m.setup.p50_us <= m.setup.p999_us);
    assert_eq!(m.setup.buckets_us.iter().map(|b| b.1).sum::<u64>(), 3);
    let setups = &status.requests.by_opcode["Setupmapping"];
    assert_eq!((setups.count, setups.errors), (4, 1));

    let page = scene.page();
    for words in [
        "DAX                  ON: every regular file",
        "2 ranges, 4 MiB",
        "1 window-range",
    ] {
        assert!(page.contains(words), "no {words:?} in\n{page}");
    }
    let json = print_session(&scene.path(), &["--json"]).stdout;
    let again: Status = serde_json::from_slice(&json).expect("the document");
    assert_eq!(again.shares[0].mappings.setups, 3);

    drop(session);
    eventually("the front end is gone", || {
        !scene.status().front_end.connected
    });
    let status = scene.status();
    assert_eq!(verdict(&status), ("unknown", "no-session"));
    assert!(!status.session.live && status.capabilities.is_none());
    assert_eq!(
        (status.mappings.live_ranges, status.mappings.setups),
        (0, 3)
    );
}

/// A guest that sends by two queues is served by two.
#[test]
fn requests_are_counted_by_queue() {
    let scene = Scene::new(&["--dax", "never", "--num-request-queues", "2"]);
    let two = SessionOptions {
        request_queues: 2,
        ..options(&scene.daemon)
    };
    let session = Session::connect(two).expect("a session");
    std::thread::scope(|scope| {
        // Each thread has a queue, by turns that other tests take part in.
        for _ in 0..32 {
            scope.spawn(|| (0..10).for_each(|_| assert_serves(&session)));
        }
    });
    eventually("all are counted", || {
        let queues = scene.status().queues.by_number;
        let requests: Vec<u64> = queues.iter().map(|queue| queue.requests).collect();
        assert_eq!(requests.len(), 3);
        requests[1] >= 10 && requests[2] >= 10 && requests[1] + requests[2] > 320
    });
    let page = scene.page();
    assert!(page.contains("\nqueues"), "{page}");
}

#[test]
fn without_a_guest_what_is_known_is_said() {
    let scene = Scene::new(&["--dax-window", "4G"]);
    let status = scene.status();
    assert_eq!(verdict(&status), ("unknown", "no-session"));
    assert!(!status.front_end.connected && !status.session.live);
    assert_eq!(status.window.asked_bytes, 4 << 30);
    assert!(status.window.offered_bytes < 4 << 30);
    assert!(status.window.less_because.is_some(), "{:?}", status.window);
    let page = scene.page();
    assert!(
        page.contains("not connected") && page.contains("512 MiB"),
        "{page}"
    );

    for (flags, reason) in [
        (["--dax", "never"], "mode"),
        (["--dax-window", "0"], "no-window"),
    ] {
        let scene = Scene::new(&flags);
        assert_eq!(verdict(&scene.status()), ("off", reason));
        let session = attach_plain(&scene.daemon);
        assert_serves(&session);
        let status = scene.status();
        assert_eq!(verdict(&status), ("off", reason));
        assert_eq!(status.session.guest_dax.as_deref(), Some("none"));
        assert!(scene.page().starts_with("DAX                  OFF: "));
    }
}

#[test]
fn a_guest_without_a_channel_is_why_there_is_no_dax() {
    let scene = Scene::new(&["--dax", "always"]);
    let session = attach_plain(&scene.daemon);
    assert_serves(&session);
    let status = scene.status();
    assert_eq!(verdict(&status), ("off", "no-channel"));
    assert!(!status.front_end.has_channel);
    assert_eq!(status.requests.by_opcode["Init"].count, 1);
}

#[test]
fn askers_who_do_not_read_hold_nothing_up() {
    let scene = Scene::new(&["--dax", "always", "--dax-window", "64M"]);
    let session = attach(&scene.daemon);
    let file = walk(&session, "file").expect("found");
    let began = Instant::now();
    // As many as may wait, and more; some go at once, some send instead.
    let silent: Vec<UnixStream> = (0..12)
        .map(|_| UnixStream::connect(scene.path()).expect("it listens"))
        .collect();
    for _ in 0..50 {
        drop(UnixStream::connect(scene.path()));
    }
    for client in &silent[..4] {
        use std::io::Write;
        client.set_nonblocking(true).expect("nonblocking");
        let mut client = client;
        while client.write(&[0x55; 65536]).is_ok_and(|n| n > 0) {}
    }
    for turn in 0..20 {
        let offset = turn % 2 * RANGE;
        map_range(&session, file.nodeid, offset);
        assert_serves(&session);
    }
    assert_eq!(scene.status().mappings.setups, 20);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    drop(silent);
    assert_eq!(scene.status().mappings.live_ranges, 2);
}

#[test]
fn the_file_is_the_owners_is_replaced_when_stale_and_goes() {
    let mut scene = Scene::new(&[]);
    let mode = std::fs::metadata(scene.path())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");

    // Taken: refused, by its own name, and nothing of the first is touched.
    let share = on_disk();
    let place = tempfile::tempdir().expect("a directory");
    let second = Command::new(DAEMON)
        .arg("--socket-path")
        .arg(place.path().join("s"))
        .arg("--shared-dir")
        .arg(share.path())
        .arg("--status-socket")
        .arg(scene.path())
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(
        text.contains("--status-socket") && text.contains("in use"),
        "{text}"
    );
    assert!(!place.path().join("s").exists(), "it cleaned up");
    assert_eq!(scene.document().schema, SCHEMA);

    scene.daemon.kill();
    assert!(scene.path().exists(), "nobody cleaned up");
    // The processes of a daemon that is killed end one after the other.
    eventually("nobody listens", || {
        let output = print_session(&scene.path(), &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        let failed = output.status.code() == Some(1) && text.contains("--print-session");
        failed && text.contains("refused")
    });

    let status = scene.path();
    let told = ["--status-socket", status.to_str().expect("UTF-8")];
    let mut next = Daemon::start(share.path(), &told);
    assert_eq!(scene.document().daemon.pid, next.main_pid());
    let began = Instant::now();
    assert!(next.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!status.exists(), "the file went with the daemon");
}
