//! Requests under way and requests that wait: a guest that has as many as it
//! may gets errors, and its neighbour in the same daemon does not notice.

mod common;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use common::wire::{Message, ROOM, args, ask, check};
use common::{
    Daemon, PATIENCE, assert_serves, attach, eventually, in_memory, make_file, open,
    read_by_request, write_by_request,
};
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_host::status::document::{Queues, Status};
use daxwindow_shared::fuse::{FileLock, LkIn, Opcode, ROOT_ID};
use rustix::io::Errno;
use tempfile::TempDir;

/// A daemon with two guests, the neighbour holding the lock that the other is
/// to wait for.
struct Scene {
    greedy: File,
    neighbour: File,
    place: TempDir,
    _share: TempDir,
    // Last: it ends when its guests have gone.
    _daemon: Daemon,
}

/// A guest and its open file.
struct File {
    session: Arc<Session>,
    node: u64,
    fh: u64,
}

impl File {
    fn of(session: Arc<Session>) -> File {
        let (entry, handle) = open(&session, "db", libc::O_RDWR).expect("opened");
        File {
            session,
            node: entry.nodeid,
            fh: handle.fh,
        }
    }

    fn lock(&self, opcode: Opcode, owner: u64, typ: i32) -> Message {
        let body = LkIn {
            fh: self.fh,
            owner,
            lk: FileLock {
                start: 0,
                end: i64::MAX as u64,
                typ: typ as u32,
                pid: 42,
            },
            ..LkIn::default()
        };
        Message::new(opcode as u32, self.node, args(body))
    }

    fn set(&self, typ: i32) -> i32 {
        ask(&self.session, &self.lock(Opcode::Setlk, 1, typ)).errno
    }

    /// Asks for the lock, and answers when there is an answer.
    fn wait(&self, owner: u64) -> std::thread::JoinHandle<i32> {
        let message = self.lock(Opcode::Setlkw, owner, libc::F_WRLCK);
        let session = self.session.clone();
        std::thread::spawn(move || {
            let bytes = message.bytes();
            let reply = session.raw(1, &[&bytes], ROOM).expect("handed back");
            check(&reply, message.header.unique)
                .expect("an answer")
                .errno
        })
    }
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        make_file(&share.path().join("db"), 1, 8192);
        let (second, status) = (place.path().join("second"), place.path().join("status"));
        let own = [
            "--locks",
            "--socket-path",
            second.to_str().expect("UTF-8"),
            "--status-socket",
            status.to_str().expect("UTF-8"),
        ];
        let daemon = Daemon::start(share.path(), &[&own, flags].concat());
        daemon.expect_log("waiting for a client", 2);
        let options = SessionOptions {
            memory_bytes: 16 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(&second)
        };
        let neighbour = File::of(Session::connect(options).expect("a session"));
        let greedy = File::of(attach(&daemon));
        assert_eq!(neighbour.set(libc::F_WRLCK), 0);
        Scene {
            greedy,
            neighbour,
            place,
            _share: share,
            _daemon: daemon,
        }
    }

    /// Of the greedy one and of its neighbour.
    fn queues(&self) -> [Queues; 2] {
        let path: PathBuf = self.place.path().join("status");
        let socket = UnixStream::connect(path).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        let status: Status = serde_json::from_reader(socket).expect("a document");
        let mut shares = status.shares;
        // The one named after the second socket is the neighbour's.
        shares.sort_by_key(|share| share.share.name.starts_with("second"));
        let of = |index: usize| shares[index].queues.clone();
        [of(0), of(1)]
    }

    /// Everything as ever, with nothing refused.
    #[track_caller]
    fn assert_neighbour_is_unharmed(&self, round: u64) {
        let File { session, node, fh } = &self.neighbour;
        let at = (*node, *fh);
        let bytes = round.to_le_bytes();
        assert_eq!(
            write_by_request(session, at, 100, &bytes).expect("written"),
            8
        );
        assert_eq!(read_by_request(session, at, 100, 8).expect("read"), bytes);
        session.mkdir(ROOT_ID, b"mine", 0o755).expect("made");
        session.rmdir(ROOT_ID, b"mine").expect("removed");
        assert_eq!(self.neighbour.set(libc::F_RDLCK), 0);
        assert_eq!(self.neighbour.set(libc::F_WRLCK), 0);
        let [_, mine] = self.queues();
        assert_eq!((mine.refused_in_flight, mine.refused_waits), (0, 0));
    }
}

#[test]
fn a_guest_with_too_many_waits_is_refused_more_of_them() {
    let scene = Scene::new(&["--max-lock-waits", "2"]);
    let waits: Vec<_> = (0..10).map(|owner| scene.greedy.wait(owner)).collect();
    eventually("eight are refused", || scene.queues()[0].refused_waits == 8);
    // All but waiting goes on, for both.
    assert_serves(&scene.greedy.session);
    for round in 0..20 {
        scene.assert_neighbour_is_unharmed(round);
    }
    assert_eq!(scene.neighbour.set(libc::F_UNLCK), 0);
    // One gets it, and keeps the other waiting until it lets go.
    let mut outcomes = Vec::new();
    let (mut granted, mut left) = (None, waits);
    eventually("eight errors and a lock", || {
        let (done, rest): (Vec<_>, _) = std::mem::take(&mut left)
            .into_iter()
            .partition(std::thread::JoinHandle::is_finished);
        left = rest;
        outcomes.extend(done.into_iter().map(|one| one.join().expect("an answer")));
        granted = outcomes.iter().position(|errno| *errno == 0);
        outcomes.len() >= 9
    });
    assert!(granted.is_some(), "{outcomes:?}");
    let errors: Vec<_> = outcomes.iter().filter(|errno| **errno != 0).collect();
    assert_eq!(errors, [&libc::ENOLCK; 8]);
    for owner in 0..10 {
        let unlock = scene.greedy.lock(Opcode::Setlk, owner, libc::F_UNLCK);
        assert_eq!(ask(&scene.greedy.session, &unlock).errno, 0);
    }
    eventually("the last", || left.iter().all(|one| one.is_finished()));
    for last in left {
        assert_eq!(last.join().expect("an answer"), 0);
    }
}

#[test]
fn with_no_room_to_wait_a_lock_is_refused_at_once() {
    let scene = Scene::new(&["--max-lock-waits", "0"]);
    let wait = scene.greedy.wait(1);
    assert_eq!(wait.join().expect("an answer"), libc::ENOLCK);
    assert_eq!(scene.neighbour.set(libc::F_UNLCK), 0);
    assert_eq!(scene.greedy.wait(1).join().expect("an answer"), 0);
}

#[test]
fn a_guest_with_too_much_under_way_gets_errors_and_can_get_out_of_it() {
    let scene = Scene::new(&["--max-in-flight", "3"]);
    let greedy = &scene.greedy;
    let (other, spare) = open(&greedy.session, "db", libc::O_RDONLY).expect("opened");
    let waits: Vec<_> = (1..4).map(|owner| greedy.wait(owner)).collect();
    eventually("three are under way", || scene.queues()[0].in_flight == 3);

    let busy = |error: daxwindow_guest::Error| assert_eq!(error.errno(), Errno::BUSY);
    let session = &greedy.session;
    busy(session.getattr(ROOT_ID, None).expect_err("too many"));
    busy(session.lookup(ROOT_ID, b"db").expect_err("too many"));
    busy(session.mkdir(ROOT_ID, b"new", 0o755).expect_err("too many"));
    busy(read_by_request(session, (greedy.node, greedy.fh), 0, 8).expect_err("too many"));
    assert_eq!(greedy.wait(9).join().expect("an answer"), libc::EBUSY);
    assert_eq!(scene.queues()[0].refused_in_flight, 5);
    // What gives back is taken.
    session.release(other.nodeid, spare.fh).expect("released");
    session.flush(greedy.node, greedy.fh).expect("flushed");
    assert_eq!(greedy.set(libc::F_UNLCK), 0);
    assert_eq!(scene.queues()[0].refused_in_flight, 5);

    for round in 0..20 {
        scene.assert_neighbour_is_unharmed(round);
    }
    assert_eq!(scene.neighbour.set(libc::F_UNLCK), 0);
    for _ in 0..3 {
        for owner in 1..4 {
            let unlock = greedy.lock(Opcode::Setlk, owner, libc::F_UNLCK);
            assert_eq!(ask(session, &unlock).errno, 0);
        }
    }
    eventually("some come back", || scene.queues()[0].in_flight < 3);
    assert_serves(session);
    eventually("all come back", || {
        for owner in 1..4 {
            let unlock = greedy.lock(Opcode::Setlk, owner, libc::F_UNLCK);
            assert_eq!(ask(session, &unlock).errno, 0);
        }
        waits.iter().all(|one| one.is_finished())
    });
    for wait in waits {
        assert_eq!(wait.join().expect("an answer"), 0);
    }
    assert_eq!(scene.queues()[0].in_flight, 0);
}
