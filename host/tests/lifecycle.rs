//! Beginnings and ends: of sessions, of clients, of the daemon.

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{
    DAEMON, Daemon, PATIENCE, RANGE, assert_same, assert_serves, assert_serves_next, attach,
    attach_soon, eventually, guest, host_bytes, in_memory, make_file, on_disk, open, options,
    pattern, read_by_request, walk, word, write_by_request,
};
use daxwindow_guest::{Access, Error, Guest, GuestOptions, Session, SessionOptions};
use daxwindow_shared::fuse::ROOT_ID;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

const FLAGS: [&str; 4] = ["--dax", "always", "--dax-window", "64M"];

/// Twenty files, all looked up, opened and mapped by `session`.
fn occupy(session: &Session) -> Vec<(u64, u64)> {
    let open = |number: u64| {
        let (entry, handle) = open(session, &number.to_string(), libc::O_RDWR).expect("open");
        session
            .setup_mapping(
                entry.nodeid,
                FileOffset(0),
                WindowOffset(number * RANGE),
                RANGE,
                true,
            )
            .expect("mapped");
        (entry.nodeid, handle.fh)
    };
    let opened = (0..20).map(open).collect();
    session.opendir(ROOT_ID, 0).expect("opendir");
    opened
}

fn furnished() -> TempDir {
    let share = in_memory();
    for number in 0..20u64 {
        make_file(&share.path().join(number.to_string()), number, 10_000);
    }
    share
}

fn live(session: &Session) -> u64 {
    session.device().expect("vhost-user").server_stats().live
}

/// Everything that `session` had is gone, at the daemon and in the window.
fn assert_nothing_left(daemon: &Daemon, session: &Session, share: &TempDir, old: &[(u64, u64)]) {
    let place = share.path().to_str().expect("UTF-8");
    // The root itself.
    eventually("files are closed", || daemon.open_files_on(place) == 1);
    eventually("the window is empty", || live(session) == 0);
    for &(nodeid, fh) in old {
        let error = session.getattr(nodeid, None).expect_err("forgotten");
        assert!([Errno::NOENT, Errno::STALE, Errno::BADF].contains(&error.errno()));
        let error = read_by_request(session, (nodeid, fh), 0, 10).expect_err("closed");
        assert_eq!(error.errno(), Errno::BADF);
        session
            .setup_mapping(nodeid, FileOffset(0), WindowOffset(0), RANGE, false)
            .expect_err("forgotten");
    }
}

#[test]
fn destroy_leaves_nothing() {
    let share = furnished();
    let daemon = Daemon::start(share.path(), &FLAGS);
    let session = attach(&daemon);
    let old = occupy(&session);
    assert_eq!(live(&session), 20);
    session.destroy().expect("DESTROY");
    assert_eq!(live(&session), 0, "before the reply");
    let error = session.lookup(ROOT_ID, b"0").expect_err("no session");
    assert_eq!(error.errno(), Errno::NOTCONN);
    session.reinit().expect("INIT");
    assert_nothing_left(&daemon, &session, &share, &old);
    occupy(&session);
}

#[test]
fn a_second_init_begins_from_nothing() {
    let share = furnished();
    let daemon = Daemon::start(share.path(), &FLAGS);
    let session = attach(&daemon);
    for _ in 0..5 {
        let old = occupy(&session);
        session.reinit().expect("INIT");
        assert_nothing_left(&daemon, &session, &share, &old);
    }
    occupy(&session);
}

#[test]
fn a_device_reset_leaves_nothing() {
    let share = furnished();
    let daemon = Daemon::start(share.path(), &FLAGS);
    let session = attach(&daemon);
    for _ in 0..5 {
        let old = occupy(&session);
        session.reset_device().expect("reset and INIT");
        assert_nothing_left(&daemon, &session, &share, &old);
    }
    occupy(&session);
}

/// Opens, maps and reads one of the files.
fn work_once(session: &Session, number: u64, slot: u64) -> daxwindow_guest::Result<()> {
    let (entry, handle) = open(session, &number.to_string(), libc::O_RDWR)?;
    session.setup_mapping(
        entry.nodeid,
        FileOffset(0),
        WindowOffset(slot * RANGE),
        RANGE,
        true,
    )?;
    let bytes = read_by_request(session, (entry.nodeid, handle.fh), 0, 10_000)?;
    assert_same(&bytes, &pattern(number, 0, 10_000), "under resets");
    Ok(())
}

#[test]
fn a_reset_under_load_is_survived() {
    let share = furnished();
    let flags = [&FLAGS[..], &["--num-request-queues", "2"]].concat();
    let daemon = Daemon::start(share.path(), &flags);
    let options = SessionOptions {
        request_queues: 2,
        ..options(&daemon)
    };
    let session = Session::connect(options).expect("a session");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (session, stop) = (&session, &stop);
            scope.spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let number = word(thread, turn) % 20;
                    // Any request may meet the reset and fail, but not be
                    // lost.
                    if let Err(error) = work_once(session, number, 20 + thread) {
                        let lost = matches!(error, Error::TimedOut { .. });
                        assert!(!lost, "{error}");
                    }
                }
            });
        }
        for _ in 0..20 {
            session.reset_device().expect("reset and INIT");
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    session.reset_device().expect("reset and INIT");
    assert_nothing_left(&daemon, &session, &share, &[]);
    occupy(&session);
}

#[test]
fn the_next_client_finds_nothing_of_the_last() {
    let share = furnished();
    let daemon = Daemon::start(share.path(), &FLAGS);
    let place = share.path().to_str().expect("UTF-8");
    let idle = daemon.open_files();
    for round in 0..10 {
        let session = attach_soon(&daemon);
        let old = occupy(&session);
        if round % 2 == 0 {
            session.abandon();
        }
        drop(session);
        eventually("the client's files are closed", || {
            daemon.open_files_on(place) == 1
        });
        eventually("all descriptors are closed", || daemon.open_files() == idle);
        let guest_memory = "daxwindow-guest-memory";
        assert_eq!(daemon.maps_of(guest_memory), 0, "guest memory is unmapped");
        let next = attach_soon(&daemon);
        for (nodeid, _) in old {
            next.getattr(nodeid, None).expect_err("not this client's");
        }
    }
}

#[test]
fn a_second_client_is_turned_away_with_a_message() {
    let share = furnished();
    let daemon = Daemon::start(share.path(), &FLAGS);
    let session = attach(&daemon);
    for times in 1..4 {
        let mut second = UnixStream::connect(daemon.socket()).expect("listening");
        second.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let end = second.read(&mut [0; 1]).expect("an end, not a silence");
        assert_eq!(end, 0);
        daemon.expect_log("a second client was turned away", times);
        assert_serves(&session);
    }
    let error = Session::connect(options(&daemon)).expect_err("busy");
    assert!(
        matches!(error, Error::Disconnected | Error::Local { .. }),
        "{error}"
    );
    occupy(&session);
}

#[test]
fn sigterm_and_sigint_end_the_daemon_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let share = furnished();
        let mut idle = Daemon::start(share.path(), &[]);
        idle.signal(signal);
        assert!(idle.wait().success());
        assert!(!idle.socket().exists(), "the socket is removed");

        let mut busy = Daemon::start(share.path(), &FLAGS);
        let session = attach(&busy);
        let old = occupy(&session);
        let started = Instant::now();
        busy.signal(signal);
        assert!(busy.wait().success());
        assert!(started.elapsed() < Duration::from_secs(5), "at once");
        assert!(!busy.socket().exists());
        assert!(busy.log().contains("ended by a signal"), "{}", busy.log());
        let error = session.getattr(old[0].0, None).expect_err("gone");
        assert!(matches!(error, Error::Disconnected), "{error}");
    }
}

#[test]
fn sigterm_under_load_ends_it_too() {
    let share = furnished();
    let mut daemon = Daemon::start(share.path(), &FLAGS);
    let session = attach(&daemon);
    std::thread::scope(|scope| {
        for number in 0..3u64 {
            let session = &session;
            scope.spawn(move || {
                let node = walk(session, &number.to_string());
                let Ok(node) = node else { return };
                while session
                    .setup_mapping(
                        node.nodeid,
                        FileOffset(0),
                        WindowOffset(number * RANGE),
                        RANGE,
                        true,
                    )
                    .is_ok()
                {}
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(daemon.terminate().success(), "{}", daemon.log());
    });
}

/// What a writer did until its daemon died: words written, words synced.
/// Counts in `begun` when its first words are synced.
fn write_until_the_end(guest: &Guest, name: &str, seed: u64, begun: &AtomicU64) -> (u64, u64) {
    let file = guest.open(name, Access::ReadWrite).expect("open");
    let (mut written, mut synced) = (0, 0);
    loop {
        let bytes = word(seed, written).to_le_bytes();
        match file.append(&bytes) {
            Ok(at) => assert_eq!(at, written * 8),
            Err(error) => {
                assert!(matches!(error, Error::Disconnected), "{error}");
                return (written, synced);
            }
        }
        written += 1;
        if written % 16 == 0 {
            match file.sync() {
                Ok(()) => {
                    begun.fetch_add(u64::from(synced == 0), Ordering::Relaxed);
                    synced = written;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Disconnected), "{error}");
                    return (written, synced);
                }
            }
        }
    }
}

#[test]
fn a_killed_daemon_is_a_clean_error_and_loses_nothing() {
    let share = on_disk();
    make_file(&share.path().join("mapped"), 1, 3 * RANGE as usize);
    make_file(&share.path().join("cold"), 2, 3 * RANGE as usize);
    for name in ["0", "1", "2"] {
        std::fs::write(share.path().join(name), "").expect("a file");
    }
    let mut daemon = Daemon::start(share.path(), &FLAGS);
    let guest = guest(&daemon);
    let file = guest.open("mapped", Access::ReadWrite).expect("open");
    let view = file.map(0, 2 * RANGE, Access::ReadWrite).expect("view");
    let mut whole = vec![0; 2 * RANGE as usize];
    view.read(0, &mut whole).expect("mapped");
    view.write(100, b"by store").expect("write");
    let cold = guest.open("cold", Access::Read).expect("open");
    let cold_view = cold.map(0, 2 * RANGE, Access::Read).expect("view");

    let begun = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|seed| {
                let (guest, begun) = (&guest, &begun);
                scope.spawn(move || write_until_the_end(guest, &seed.to_string(), seed, begun))
            })
            .collect();
        eventually("all have synced", || begun.load(Ordering::Relaxed) == 3);
        daemon.kill();
        let died = Instant::now();
        for (seed, writer) in writers.into_iter().enumerate() {
            let (written, synced) = writer.join().expect("no panic");
            assert!(died.elapsed() < Duration::from_secs(5), "at once");
            assert!(synced > 0);
            let bytes = std::fs::read(share.path().join(seed.to_string())).expect("host");
            // Whatever was acknowledged is there, synced or not: the host's
            // kernel did not die.
            assert!(bytes.len() as u64 >= written * 8, "{written} written");
            let want = pattern(seed as u64, 0, written as usize * 8);
            assert_same(&bytes[..want.len()], &want, "acknowledged");
        }
    });
    assert!(!guest.session().is_connected());

    // What is mapped stays, and stores still reach the file.
    let mut again = vec![0; 2 * RANGE as usize];
    view.read(0, &mut again).expect("mapped pages stay");
    whole[100..108].copy_from_slice(b"by store");
    assert_same(&again, &whole, "mapped pages");
    view.write(200, b"later").expect("a store");
    assert_eq!(host_bytes(&share.path().join("mapped"), 200, 5), b"later");
    // What is not mapped is an error, and soon.
    let started = Instant::now();
    cold_view.read(0, &mut [0; 10]).expect_err("nobody maps it");
    cold.read_at(&mut [0; 10], RANGE)
        .expect_err("nobody maps it");
    guest.open("cold", Access::Read).expect_err("nobody there");
    file.sync().expect_err("nobody there");
    guest.metadata("cold").expect_err("nobody there");
    drop((view, cold_view, file, cold, guest));
    assert!(started.elapsed() < Duration::from_secs(5), "at once");

    // The next daemon serves the same files.
    let daemon = Daemon::start(share.path(), &FLAGS);
    let guest = common::guest(&daemon);
    let file = guest.open("mapped", Access::Read).expect("open");
    let mut byte = [0; 5];
    file.read_at(&mut byte, 200).expect("read");
    assert_eq!(&byte, b"later");
}

#[test]
fn a_daemon_killed_while_a_fault_waits_ends_the_fault() {
    let share = in_memory();
    make_file(&share.path().join("file"), 1, 30 * RANGE as usize);
    for _ in 0..5 {
        let mut daemon = Daemon::start(share.path(), &["--dax-window", "8M"]);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::Read).expect("open");
        let view = file.map(0, 30 * RANGE, Access::Read).expect("view");
        let touched = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (view, touched) = (&view, &touched);
                scope.spawn(move || {
                    for turn in 0.. {
                        let at = word(thread, turn) % (30 * RANGE - 8);
                        let mut got = [0; 8];
                        match view.read(at as usize, &mut got) {
                            Ok(()) => assert_same(&got, &pattern(1, at, 8), "a fault"),
                            Err(_) => return,
                        }
                        touched.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            eventually("faults are served", || touched.load(Ordering::Relaxed) > 50);
            daemon.kill();
        });
    }
}

/// The part of the next test that runs in a process of its own: a guest that
/// works until it is killed.
fn client_that_is_killed(socket: &str) -> ! {
    let options = SessionOptions {
        memory_bytes: 16 << 20,
        ..SessionOptions::new(socket)
    };
    let guest = Guest::connect(GuestOptions::new(options)).expect("a guest");
    let open = |number: u64| {
        guest
            .open(number.to_string(), Access::ReadWrite)
            .expect("open")
    };
    let files: Vec<_> = (0..20).map(open).collect();
    for turn in 0u64.. {
        let file = &files[(word(1, turn) % 20) as usize];
        file.read_at(&mut [0; 9000], 0).expect("read");
        file.append(b"x").expect("append");
        if turn == 50 {
            println!("under load");
        }
    }
    unreachable!("killed before")
}

/// Descriptors that the daemon has open when it is done with starting, of
/// which it listens a moment before.
fn settled_files(daemon: &Daemon) -> usize {
    let mut last = (0, 0);
    eventually("it has started", || {
        let now = daemon.open_files();
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        last.1 == 20
    });
    last.0
}

#[test]
fn a_client_killed_under_load_leaves_the_daemon_ready() {
    const ROLE: &str = "DAXWINDOW_TEST_CLIENT_OF";
    if let Ok(socket) = std::env::var(ROLE) {
        client_that_is_killed(&socket);
    }
    let share = furnished();
    let place = share.path().to_str().expect("UTF-8");
    let daemon = Daemon::start(share.path(), &FLAGS);
    let idle = settled_files(&daemon);
    for _ in 0..5 {
        let mut client = Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "a_client_killed_under_load_leaves_the_daemon_ready",
            ])
            .arg("--nocapture")
            .env(ROLE, daemon.socket())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a client");
        let mut said = String::new();
        let mut stdout = client.stdout.take().expect("piped");
        while !said.contains("under load") {
            let mut more = [0; 256];
            let got = stdout.read(&mut more).expect("read");
            assert!(got > 0, "the client ended: {said}");
            said.push_str(&String::from_utf8_lossy(&more[..got]));
        }
        client.kill().expect("killed");
        client.wait().expect("our child");
        assert_serves_next(&daemon);
        eventually("nothing of it is left", || {
            daemon.open_files_on(place) == 1 && daemon.open_files() == idle
        });
    }
}

#[test]
fn what_one_daemon_wrote_the_next_one_serves() {
    let share = on_disk();
    let mut seen: Vec<(String, u64)> = Vec::new();
    for round in 0..3u64 {
        let daemon = Daemon::start(share.path(), &FLAGS);
        let session = attach(&daemon);
        for (name, seed) in &seen {
            let (entry, handle) = open(&session, name, libc::O_RDONLY).expect("still there");
            let bytes = read_by_request(&session, (entry.nodeid, handle.fh), 0, 5000);
            assert_same(&bytes.expect("read"), &pattern(*seed, 0, 4000), name);
        }
        let name = format!("round-{round}");
        let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
        let made = session.create(ROOT_ID, name.as_bytes(), flags, 0o644);
        let (entry, handle) = made.expect("create");
        let at = (entry.nodeid, handle.fh);
        let put = write_by_request(&session, at, 0, &pattern(round, 0, 4000));
        assert_eq!(put.expect("write"), 4000);
        seen.push((name, round));
    }
}

#[test]
fn starting_is_quick() {
    let share = on_disk();
    let started = Instant::now();
    let daemon = Daemon::start(share.path(), &[]);
    assert_serves(&attach(&daemon));
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(daemon);
    assert!(std::path::Path::new(DAEMON).exists());
}
