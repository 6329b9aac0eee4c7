//! A guest that keeps to no rule beside one that does, in one daemon: every
//! operation of the good one stays right, whatever the other does or however
//! it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use daxwindow_guest::test_utils::RawDescriptor;
use daxwindow_guest::{Session, SessionOptions};
use daxwindow_shared::fuse::{Opcode, ROOT_ID, RemoveMappingOne};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use tempfile::TempDir;

use crate::common::wire::{Message, ROOM, ask_with};
use crate::common::{
    Daemon, PATIENCE, RANGE, assert_same, assert_serves, attach_soon, eventually, in_memory,
    make_file, open, pattern, read_by_request, walk, write_by_request,
};

use super::vmm::{ELSEWHERE, Vmm, WINDOW};

const BYTES: usize = 3 * RANGE as usize / 2;
/// Rounds that the good guest does while the other is at it.
const ROUNDS: u64 = 5;
/// Tells this test, run again as a process of its own, where to attach.
const TOLD: &str = "DAXWINDOW_TEST_GUEST";

/// A daemon with two shares of one directory, and a good guest at work on the
/// second.
struct Scene {
    good: Good,
    socket: PathBuf,
    share: TempDir,
    _place: TempDir,
    // Last: it ends when its guests have gone.
    daemon: Daemon,
}

/// A guest whose every operation must succeed with the right bytes.
struct Good {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn session(socket: &Path, dax: bool) -> Arc<Session> {
    let options = SessionOptions {
        memory_bytes: 8 << 20,
        timeout: PATIENCE,
        dax,
        ..SessionOptions::new(socket)
    };
    Session::connect(options).expect("a session")
}

impl Good {
    fn start(socket: &Path) -> Good {
        let session = session(socket, true);
        let (rounds, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (rounds.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                round(&session, count.load(Ordering::SeqCst));
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Good {
            rounds,
            stop,
            thread: Some(thread),
        }
    }

    /// Waits until it has done some rounds more.
    #[track_caller]
    fn goes_on(&self) {
        let until = self.rounds.load(Ordering::SeqCst) + ROUNDS;
        eventually("the good guest goes on", || {
            let failed = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!failed, "the good guest was harmed");
            self.rounds.load(Ordering::SeqCst) >= until
        });
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().expect("running").join();
        ended.expect("every operation was right");
    }
}

/// Names, data both ways, and a range of the window.
fn round(session: &Session, seed: u64) {
    let (entry, handle) = session
        .create(ROOT_ID, b"mine", libc::O_RDWR as u32, 0o600)
        .expect("created");
    let file = (entry.nodeid, handle.fh);
    let bytes = pattern(seed, 0, 70_000);
    assert_eq!(
        write_by_request(session, file, 0, &bytes).expect("written"),
        70_000
    );
    let got = read_by_request(session, file, 0, 70_000).expect("read");
    assert_same(&got, &bytes, "what was written");
    session.release(file.0, file.1).expect("released");
    session.unlink(ROOT_ID, b"mine").expect("removed");
    walk(session, "mine").expect_err("gone");
    session.forget(file.0, 1);

    let (entry, handle) = open(session, "good", libc::O_RDONLY).expect("opened");
    session
        .setup_mapping(entry.nodeid, FileOffset(0), WindowOffset(0), RANGE, false)
        .expect("mapped");
    session
        .remove_mapping(&[RemoveMappingOne {
            moffset: 0,
            len: RANGE,
        }])
        .expect("unmapped");
    let got = read_by_request(session, (entry.nodeid, handle.fh), 1 << 20, 4096).expect("read");
    assert_same(&got, &pattern(7, 1 << 20, 4096), "the host's file");
    session.release(entry.nodeid, handle.fh).expect("released");
    session.forget(entry.nodeid, 1);
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        make_file(&share.path().join("good"), 7, BYTES);
        make_file(&share.path().join("file"), 1, BYTES);
        let socket = place.path().join("good.sock");
        let told = [
            "--socket-path",
            socket.to_str().expect("UTF-8"),
            "--dax",
            "always",
        ];
        let daemon = Daemon::start(share.path(), &[&told, flags].concat());
        daemon.expect_log("waiting for a client", 2);
        let good = Good::start(&socket);
        good.goes_on();
        Scene {
            good,
            socket,
            share,
            _place: place,
            daemon,
        }
    }

    fn end(self) {
        self.good.goes_on();
        assert!(self.socket.exists());
        self.good.end();
    }
}

/// A VMM that comes back again and again, and leaves a request to map without an
/// answer each time, costs nobody anything, the next guest of its own share
/// included.
#[test]
fn channels_that_are_kept_open_take_no_window_from_anybody() {
    let scene = Scene::new(&[]);
    let kept: Vec<_> = (0..300)
        .map(|_| Vmm::leave_unanswered(&scene.daemon))
        .collect();
    let own = attach_soon(&scene.daemon);
    assert!(own.inode_dax());
    drop(own);
    scene.good.goes_on();
    scene.good.end();
    eventually("the neighbour's next guest has a window", || {
        let next = SessionOptions {
            memory_bytes: 8 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(&scene.socket)
        };
        Session::connect(next).is_ok_and(|next| next.inode_dax())
    });
    drop(kept);
}

/// Each file that is mapped takes a descriptor of the guest's own part, and each
/// map one of its own number, whatever its front end bears.
#[test]
fn maps_of_many_files_leave_a_neighbour_its_descriptors() {
    const PIECE: u64 = 4096;
    let scene = Scene::new(&["--rlimit-nofile", "2000"]);
    let many = scene.share.path().join("many");
    std::fs::create_dir(&many).expect("made");
    for name in 0..3000 {
        std::fs::write(many.join(name.to_string()), [1; PIECE as usize]).expect("written");
    }
    let greedy = attach_soon(&scene.daemon);
    let directory = walk(&greedy, "many").expect("there").nodeid;
    let map = |name: u64| {
        let found = greedy.lookup(directory, name.to_string().as_bytes())?;
        greedy.setup_mapping(
            found.nodeid,
            FileOffset(0),
            WindowOffset(name * PIECE),
            PIECE,
            true,
        )
    };
    let mapped = (0..3000).take_while(|name| map(*name).is_ok()).count();
    assert!(mapped > 100, "{mapped} were mapped");
    scene.good.goes_on();
    for name in 0..50 {
        let name = format!("new-{name}");
        std::fs::write(scene.share.path().join(&name), name.as_bytes()).expect("written");
    }
    scene.good.end();
    let neighbour = session(&scene.socket, true);
    for name in 0..50 {
        open(&neighbour, &format!("new-{name}"), libc::O_RDWR).expect("looked up and opened");
    }
    assert!(greedy.lookup(directory, b"0").is_ok(), "it goes on itself");
}

#[test]
fn memory_that_vanishes_is_its_own_guests_loss() {
    let scene = Scene::new(&[]);
    let mut vmm = Vmm::connect(&scene.daemon, true);
    let file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.set_len(RANGE).expect("sized");
    vmm.add_memory(ELSEWHERE, RANGE, &file);
    let good = vmm.request(Opcode::Statfs, ROOT_ID, &[]);
    file.set_len(0).expect("empty");
    for turn in 0..200 {
        let lost = ELSEWHERE + turn % 100 * 4096;
        // A header that is not there, and a reply that cannot be put.
        assert_eq!(vmm.give(&[(lost, 40, false), (lost + 64, 96, true)]), 0);
        assert_eq!(vmm.give(&[good, (lost, 4096, true)]), 0);
    }
    scene.good.goes_on();
    // Its own memory, the rings in it, all at once: that guest is lost.
    vmm.ram.set_len(0).expect("empty");
    vmm.kick(0);
    vmm.kick(1);
    scene.good.goes_on();
    drop(vmm);
    assert_serves(&attach_soon(&scene.daemon));
    scene.end();
}

#[test]
fn bad_rings_and_bad_requests_are_its_own_guests_loss() {
    let scene = Scene::new(&[]);
    let hostile = attach_soon(&scene.daemon);
    for opcode in 0..64 {
        for body in [&b""[..], &[0xff; 8], &[0; 200], &[0x41; 5000]] {
            let mut message = Message::new(opcode, u64::from(opcode), body);
            // INIT and DESTROY end the session of who sends them.
            if opcode == Opcode::Init as u32 || opcode == Opcode::Destroy as u32 {
                message.header.len = 1;
            }
            let _ = ask_with(&hostile, &message, ROOM);
        }
    }
    for addr in [0, WINDOW, ELSEWHERE, u64::MAX - 4096] {
        let wild = [RawDescriptor {
            addr,
            len: u32::MAX,
            flags: 0xffff,
            next: 0xffff,
        }];
        let _ = hostile.raw_descriptors(1, &wild, std::time::Duration::from_millis(200));
    }
    scene.good.goes_on();
    drop(hostile);

    // A ring that claims more than it holds.
    let vmm = Vmm::connect(&scene.daemon, false);
    let [table, used, avail] = vmm.driver.rings();
    for garbage in [table, used, avail] {
        vmm.put(garbage, &[0xa5; 64]);
        vmm.kick(1);
    }
    scene.good.goes_on();
    let _ = vmm.stop(1);
    drop(vmm);
    assert_serves(&attach_soon(&scene.daemon));
    scene.end();
}

/// What one guest holds is an equal part at most; beyond, an error for it.
#[test]
fn inodes_and_descriptors_are_spent_up_to_an_equal_part() {
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path().to_str().expect("UTF-8").to_owned();
    let scene = Scene::new(&["--socket-dir", &dir, "--max-shares", "4096"]);
    for number in 0..3000 {
        let path = scene.share.path().join(format!("f{number}"));
        std::fs::write(path, "x").expect("a file");
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let part = limit.maximum.unwrap_or(1 << 20) / 4096;
    let hostile = attach_soon(&scene.daemon);
    let before = scene.daemon.open_files() as u64;
    let (mut known, mut open_files, mut errors) = (0, 0, 0);
    for number in 0..3000 {
        let name = format!("f{number}");
        match hostile.lookup(ROOT_ID, name.as_bytes()) {
            Ok(entry) => {
                known += 1;
                match hostile.open(entry.nodeid, libc::O_RDONLY as u32) {
                    Ok(_) => open_files += 1,
                    Err(_) => errors += 1,
                }
            }
            Err(_) => errors += 1,
        }
    }
    assert!(
        known > 0 && open_files > 0 && errors > 0,
        "{known}, {open_files}, {errors}"
    );
    // Others have files open for a moment.
    eventually("no more descriptors are held than its part", || {
        scene.daemon.open_files() as u64 <= before + part
    });
    scene.good.goes_on();
    drop(hostile);
    eventually("what it held is given back", || {
        (scene.daemon.open_files() as u64) < before + 8
    });
    scene.end();
}

#[test]
fn nonsense_on_a_socket_and_clients_that_come_and_go_harm_no_other() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let scene = Scene::new(&[]);
    for turn in 0..40 {
        let mut client = UnixStream::connect(scene.daemon.socket()).expect("it listens");
        let nonsense = [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0; 12]];
        let _ = client.write_all(nonsense[turn % 4]);
    }
    scene.good.goes_on();
    assert_serves(&attach_soon(&scene.daemon));
    scene.end();
}

/// In a process of its own: this test again, told where to attach.
#[test]
fn a_front_end_that_is_killed_takes_nobody_with_it() {
    if let Some(socket) = std::env::var_os(TOLD) {
        let session = session(Path::new(&socket), true);
        let (file, _) = open(&session, "file", libc::O_RDWR).expect("opened");
        session
            .setup_mapping(file.nodeid, FileOffset(0), WindowOffset(0), RANGE, true)
            .expect("mapped");
        println!("attached");
        loop {
            let _ = session.getattr(file.nodeid, None);
        }
    }
    let scene = Scene::new(&[]);
    let files = scene.daemon.open_files();
    for _ in 0..5 {
        let mut child = Command::new(std::env::current_exe().expect("this"))
            .args([
                "--exact",
                "neighbours::a_front_end_that_is_killed_takes_nobody_with_it",
                "--nocapture",
            ])
            .env(TOLD, scene.daemon.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let out = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let attached = std::io::BufRead::lines(out)
            .map_while(Result::ok)
            .any(|line| line.contains("attached"));
        child.kill().expect("killed");
        child.wait().expect("our child");
        assert!(attached, "it never attached");
        assert_serves(&attach_soon(&scene.daemon));
    }
    scene.good.goes_on();
    eventually("nothing of them is left", || {
        scene.daemon.open_files() <= files + 4
    });
    scene.end();
}
