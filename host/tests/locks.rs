//! Locks between two guests, each with a daemon of its own, on one directory.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::wire::{Message, args, ask};
use common::{Daemon, assert_serves, attach, in_memory, make_file, open};
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::flags::LkFlags;
use daxwindow_shared::fuse::{FileLock, FlushIn, LkIn, LkOut, Opcode, ReleaseIn};
use tempfile::TempDir;
use zerocopy::FromBytes;

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const NONE: u32 = libc::F_UNLCK as u32;
const END: u64 = i64::MAX as u64;
const BUSY: i32 = libc::EAGAIN;
const NO_FLAGS: LkFlags = LkFlags::empty();

/// A guest with its own daemon and one open file.
struct Party {
    session: Arc<Session>,
    node: u64,
    fh: u64,
    // Last: it ends when its guest has gone.
    daemon: Daemon,
}

impl Party {
    fn new(share: &TempDir) -> Party {
        let daemon = Daemon::start(share.path(), &["--locks"]);
        let session = attach(&daemon);
        let (file, handle) = open(&session, "db", libc::O_RDWR).expect("open");
        Party {
            session,
            node: file.nodeid,
            fh: handle.fh,
            daemon,
        }
    }

    fn message(&self, opcode: Opcode, owner: u64, typ: u32, flags: LkFlags) -> Message {
        let body = LkIn {
            fh: self.fh,
            owner,
            lk: FileLock {
                start: 0,
                end: END,
                typ,
                pid: 42,
            },
            lk_flags: flags.bits(),
            padding: 0,
        };
        Message::new(opcode as u32, self.node, args(body))
    }

    fn lock(&self, owner: u64, typ: u32, flags: LkFlags) -> i32 {
        let message = self.message(Opcode::Setlk, owner, typ, flags);
        ask(&self.session, &message).errno
    }

    /// SETLKW, and how long it took.
    fn wait(&self, owner: u64, typ: u32, flags: LkFlags) -> (i32, Duration) {
        let message = self.message(Opcode::Setlkw, owner, typ, flags);
        let began = Instant::now();
        (ask(&self.session, &message).errno, began.elapsed())
    }
}

fn two_parties() -> (TempDir, Party, Party) {
    let share = in_memory();
    make_file(&share.path().join("db"), 1, 8192);
    let (one, two) = (Party::new(&share), Party::new(&share));
    (share, one, two)
}

#[test]
fn two_guests_exclude_each_other() {
    let (_share, one, two) = two_parties();
    for flags in [NO_FLAGS, LkFlags::FLOCK] {
        assert_eq!(one.lock(1, WRITE, flags), 0);
        assert_eq!(two.lock(1, READ, flags), BUSY);
        assert_eq!(one.lock(1, READ, flags), 0);
        assert_eq!(two.lock(1, READ, flags), 0);
        assert_eq!(two.lock(1, WRITE, flags), BUSY);
        for party in [&one, &two] {
            assert_eq!(party.lock(1, NONE, flags), 0);
        }
    }
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), 0);
    let getlk = two.message(Opcode::Getlk, 1, READ, NO_FLAGS);
    let answer = ask(&two.session, &getlk);
    let found = LkOut::read_from_bytes(&answer.body).expect("a lock").lk;
    assert_eq!((found.start, found.end, found.typ), (0, END, WRITE));
}

#[test]
fn flush_release_and_the_end_of_a_guest_free_its_locks() {
    let (_share, one, two) = two_parties();
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), 0);
    assert_eq!(one.lock(1, WRITE, LkFlags::FLOCK), 0);
    let flush = args(FlushIn {
        fh: one.fh,
        lock_owner: 1,
        ..FlushIn::default()
    });
    let flush = Message::new(Opcode::Flush as u32, one.node, flush);
    assert_eq!(ask(&one.session, &flush).errno, 0);
    assert_eq!(two.lock(1, WRITE, NO_FLAGS), 0);
    assert_eq!(two.lock(1, WRITE, LkFlags::FLOCK), BUSY);
    let release = args(ReleaseIn {
        fh: one.fh,
        ..ReleaseIn::default()
    });
    let release = Message::new(Opcode::Release as u32, one.node, release);
    assert_eq!(ask(&one.session, &release).errno, 0);
    assert_eq!(two.lock(1, WRITE, LkFlags::FLOCK), 0);

    let (file, handle) = open(&one.session, "db", libc::O_RDWR).expect("open");
    let one = Party {
        node: file.nodeid,
        fh: handle.fh,
        ..one
    };
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), BUSY);
    drop(two.session);
    two.daemon.expect_log("waiting for the next client", 1);
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), 0);
}

#[test]
fn a_wait_holds_up_no_other_request_and_ends_when_the_lock_is_free() {
    let (_share, one, two) = two_parties();
    for flags in [NO_FLAGS, LkFlags::FLOCK] {
        assert_eq!(one.lock(1, WRITE, flags), 0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| two.wait(1, WRITE, flags));
            for _ in 0..50 {
                assert_serves(&two.session);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!waiting.is_finished());
            assert_eq!(one.lock(1, NONE, flags), 0);
            let (errno, took) = waiting.join().expect("no panic");
            assert_eq!(errno, 0);
            assert!(took >= Duration::from_millis(50), "{took:?}");
        });
        assert_eq!(one.lock(1, READ, flags), BUSY, "it is taken");
        assert_eq!(two.lock(1, NONE, flags), 0);
    }
}

#[test]
fn too_many_waits_are_refused_and_all_end_with_the_session() {
    let (_share, one, two) = two_parties();
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), 0);
    std::thread::scope(|scope| {
        let two = &two;
        let waiting: Vec<_> = (0..80)
            .map(|owner| scope.spawn(move || two.wait(owner, WRITE, NO_FLAGS)))
            .collect();
        let refused = || waiting.iter().filter(|one| one.is_finished()).count();
        common::eventually("some are refused", || refused() >= 80 - 64);
        assert_serves(&two.session);
        // An INIT ends the session that they are of.
        two.session.reinit().expect("a new session");
        let outcomes: Vec<i32> = waiting
            .into_iter()
            .map(|one| one.join().expect("no panic").0)
            .collect();
        let refused = outcomes.iter().filter(|e| **e == libc::ENOLCK).count();
        let ended = outcomes.iter().filter(|e| **e == libc::ENOTCONN).count();
        assert!(refused >= 16 && ended >= 1, "{outcomes:?}");
        // The guest may have sent some of them in the new session only.
        assert!(outcomes.iter().all(|errno| *errno != 0), "{outcomes:?}");
    });
    assert_eq!(one.lock(1, NONE, NO_FLAGS), 0);
    assert_serves(&two.session);
}

#[test]
fn a_queue_that_stops_waits_for_no_lock() {
    let (_share, one, two) = two_parties();
    assert_eq!(one.lock(1, WRITE, NO_FLAGS), 0);
    std::thread::scope(|scope| {
        let message = two.message(Opcode::Setlkw, 1, WRITE, NO_FLAGS).bytes();
        let session = &two.session;
        // The reset may fail it before the answer is there.
        let waiting = scope.spawn(move || session.raw(1, &[&message], 100).map(drop));
        std::thread::sleep(Duration::from_millis(30));
        let began = Instant::now();
        session.reset_device().expect("a new session");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        drop(waiting);
    });
    assert_serves(&two.session);
}

#[test]
fn without_the_flag_locks_stay_in_the_guest() {
    let share = in_memory();
    make_file(&share.path().join("db"), 1, 8192);
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let (file, handle) = open(&session, "db", libc::O_RDWR).expect("open");
    let party = Party {
        session,
        node: file.nodeid,
        fh: handle.fh,
        daemon,
    };
    assert_eq!(party.lock(1, WRITE, NO_FLAGS), libc::ENOSYS);
}
