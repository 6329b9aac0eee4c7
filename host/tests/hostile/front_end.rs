//! A VMM that refuses maps, lies about them, says nothing, or hangs up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Session, SessionOptions};
use daxwindow_shared::fuse::RemoveMappingOne;
use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::shmem::MapRequest;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::common::{
    Daemon, RANGE, assert_serves, assert_serves_next, attach_soon, eventually, in_memory,
    make_file, open, options, pattern, read_by_request, walk,
};

/// What the front end does from now on.
#[derive(Clone, Copy)]
enum Mood {
    Serve,
    Refuse,
    Pretend,
    Ignore,
    HangUp,
    /// Sits on the message, and answers it in the end.
    Slow,
    /// Sits on the message until the mood changes, and serves it then.
    Brood,
}

#[derive(Default)]
struct Moody {
    mood: AtomicU8,
    broods: AtomicBool,
}

impl Moody {
    fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::SeqCst) == mood as u8
    }

    fn verdict(&self) -> Verdict {
        match self.mood.load(Ordering::SeqCst) {
            m if m == Mood::Serve as u8 => Verdict::Serve,
            m if m == Mood::Refuse as u8 => Verdict::Refuse(Errno::NOMEM),
            m if m == Mood::Pretend as u8 => Verdict::Pretend,
            m if m == Mood::Ignore as u8 => Verdict::Ignore,
            m if m == Mood::HangUp as u8 => Verdict::HangUp,
            m if m == Mood::Brood as u8 => {
                self.broods.store(true, Ordering::SeqCst);
                eventually("it cheers up", || !self.is(Mood::Brood));
                Verdict::Serve
            }
            _ => {
                std::thread::sleep(Duration::from_millis(300));
                Verdict::Serve
            }
        }
    }
}

impl WindowHook for Moody {
    fn on_map(&self, _: &MapRequest) -> Verdict {
        self.verdict()
    }

    fn on_unmap(&self, _: &MapRequest) -> Verdict {
        self.verdict()
    }
}

struct Scene {
    moody: Arc<Moody>,
    session: Arc<Session>,
    share: TempDir,
    daemon: Daemon,
}

const LEN: usize = 300_000;

fn scene(at_init: Mood) -> Scene {
    scene_with(at_init, 2, &[])
}

fn scene_with(at_init: Mood, request_queues: usize, flags: &[&str]) -> Scene {
    let share = in_memory();
    make_file(&share.path().join("file"), 3, LEN);
    let queues = request_queues.to_string();
    let window = [
        "--dax",
        "always",
        "--dax-window",
        "16M",
        "--num-request-queues",
        &queues,
    ];
    let daemon = Daemon::start(share.path(), &[&window, flags].concat());
    let moody = Arc::new(Moody::default());
    moody.set(at_init);
    let options = SessionOptions {
        request_queues,
        ..options(&daemon)
    };
    let tuning = Tuning {
        hook: Some(moody.clone()),
        ..Tuning::default()
    };
    let session = Session::connect_with(options, tuning).expect("a session");
    Scene {
        moody,
        session,
        share,
        daemon,
    }
}

impl Scene {
    fn node(&self) -> u64 {
        walk(&self.session, "file").expect("file").nodeid
    }

    fn setup(&self, slot: u64) -> daxwindow_guest::Result<()> {
        self.session.setup_mapping(
            self.node(),
            FileOffset(0),
            WindowOffset(slot * RANGE),
            RANGE,
            true,
        )
    }

    fn remove(&self, slot: u64) -> daxwindow_guest::Result<()> {
        self.session.remove_mapping(&[RemoveMappingOne {
            moffset: slot * RANGE,
            len: RANGE,
        }])
    }

    /// The share is served without the window.
    fn assert_reads(&self) {
        let (entry, handle) = open(&self.session, "file", libc::O_RDONLY).expect("open");
        let read = read_by_request(&self.session, (entry.nodeid, handle.fh), 0, LEN);
        assert!(read.expect("read") == pattern(3, 0, LEN));
    }

    fn live(&self) -> u64 {
        self.session
            .device()
            .expect("vhost-user")
            .server_stats()
            .live
    }
}

#[test]
fn one_that_refuses_from_the_start_gets_no_dax() {
    let scene = scene(Mood::Refuse);
    assert!(!scene.session.inode_dax());
    scene.daemon.expect_log("dax: off", 1);
    scene.assert_reads();
    let error = scene.setup(0).expect_err("no window");
    assert_eq!(error.errno(), Errno::OPNOTSUPP);
    // With better manners at the next INIT there is DAX.
    scene.moody.set(Mood::Serve);
    scene.session.reinit().expect("INIT");
    assert!(scene.session.inode_dax());
    scene.setup(0).expect("mapped");
}

#[test]
fn one_that_lies_from_the_start_gets_no_dax() {
    let scene = scene(Mood::Pretend);
    assert!(!scene.session.inode_dax());
    scene.daemon.expect_log("dax: off", 1);
    scene.assert_reads();
}

#[test]
fn one_that_refuses_later_fails_the_request_alone() {
    let scene = scene(Mood::Serve);
    assert!(scene.session.inode_dax());
    scene.setup(0).expect("mapped");
    scene.moody.set(Mood::Refuse);
    for slot in 1..4 {
        let error = scene.setup(slot).expect_err("refused");
        assert_eq!(error.errno(), Errno::IO);
    }
    let error = scene.remove(0).expect_err("refused");
    assert_eq!(error.errno(), Errno::IO);
    scene.assert_reads();
    scene.moody.set(Mood::Serve);
    // Nothing was forgotten: what is mapped can still be removed, exactly.
    assert_eq!(scene.live(), 1);
    scene.remove(0).expect("removed");
    assert_eq!(scene.live(), 0);
    scene.setup(1).expect("mapped");
}

#[test]
fn one_that_lies_later_cannot_upset_the_ledger() {
    let scene = scene(Mood::Serve);
    scene.moody.set(Mood::Pretend);
    scene.setup(0).expect("so it says");
    scene.moody.set(Mood::Serve);
    // It refuses to unmap what it never mapped.
    scene.remove(0).expect_err("it contradicts itself");
    // Something else in its place is mapped, and can be removed.
    let other =
        scene
            .session
            .setup_mapping(scene.node(), FileOffset(4096), WindowOffset(0), RANGE, true);
    other.expect("mapped over it");
    scene.remove(0).expect("removed");
    assert_eq!(scene.live(), 0);
    // Unmaps that did not happen: the next map replaces what is there.
    scene.setup(1).expect("mapped");
    scene.moody.set(Mood::Pretend);
    scene.remove(1).expect("so it says");
    scene.moody.set(Mood::Serve);
    scene.setup(1).expect("mapped over it");
    scene.assert_reads();
}

/// What needs the window waits, on whatever queue, and nothing else does; and no
/// time that passes takes the window away.
#[test]
fn one_that_hangs_costs_what_waits_for_it() {
    let scene = scene_with(Mood::Serve, 2, &["--front-end-timeout", "1"]);
    scene.setup(0).expect("mapped");
    scene.moody.set(Mood::Brood);
    let node = scene.node();
    std::thread::scope(|scope| {
        let map = |slot| {
            let session = &scene.session;
            move || {
                session.setup_mapping(node, FileOffset(0), WindowOffset(slot * RANGE), RANGE, true)
            }
        };
        let hung = scope.spawn(map(1));
        eventually("it is asked", || scene.moody.broods.load(Ordering::SeqCst));
        // The same range, another one, and one to remove.
        let waiting = [scope.spawn(map(1)), scope.spawn(map(2))];
        let removal = scope.spawn(|| scene.remove(0));
        scene.daemon.expect_log("has not answered", 1);
        for _ in 0..20 {
            scene.assert_reads();
        }
        assert!(!hung.is_finished() && waiting.iter().all(|other| !other.is_finished()));
        scene.moody.set(Mood::Serve);
        hung.join().expect("no panic").expect("mapped in the end");
        for other in waiting {
            other.join().expect("no panic").expect("mapped in the end");
        }
        removal
            .join()
            .expect("no panic")
            .expect("removed in the end");
    });
    assert_eq!(scene.live(), 2);
    scene.setup(3).expect("as before");
    scene.assert_reads();
    assert_serves_after(scene);
}

#[test]
fn one_that_hangs_at_init_delays_it() {
    let share = in_memory();
    make_file(&share.path().join("file"), 3, LEN);
    let flags = ["--dax", "always", "--front-end-timeout", "1"];
    let daemon = Daemon::start(share.path(), &flags);
    let moody = Arc::new(Moody::default());
    moody.set(Mood::Brood);
    std::thread::scope(|scope| {
        let session = scope.spawn(|| {
            let tuning = Tuning {
                hook: Some(moody.clone()),
                ..Tuning::default()
            };
            Session::connect_with(options(&daemon), tuning).expect("a session")
        });
        eventually("it is asked", || moody.broods.load(Ordering::SeqCst));
        daemon.expect_log("has not answered", 1);
        assert!(!session.is_finished());
        moody.set(Mood::Serve);
        assert!(session.join().expect("no panic").inode_dax());
    });
}

/// The bytes of a file that the front end refuses come by request, and nobody is
/// told to map it any more.
#[test]
fn one_that_refuses_a_file_takes_dax_from_that_file() {
    let scene = scene(Mood::Serve);
    make_file(&scene.share.path().join("other"), 4, LEN);
    let has_dax = |name| {
        let attr = walk(&scene.session, name).expect("there").attr;
        attr.flags & AttrFlags::DAX.bits() != 0
    };
    assert!(has_dax("file") && has_dax("other"));
    scene.moody.set(Mood::Refuse);
    let error = scene.setup(0).expect_err("refused");
    assert_eq!(error.errno(), Errno::IO);
    scene.moody.set(Mood::Serve);
    scene.assert_reads();
    assert!(!has_dax("file") && has_dax("other"));
    // A guest drops the inode then, and looks it up anew.
    scene.session.forget(scene.node(), u64::MAX);
    assert!(!has_dax("file") && has_dax("other"));
    scene.assert_reads();
}

#[test]
fn one_that_is_slow_is_waited_for() {
    let scene = scene(Mood::Serve);
    scene.moody.set(Mood::Slow);
    scene.setup(0).expect("in the end");
    scene.remove(0).expect("in the end");
    assert_eq!(scene.live(), 0);
}

#[test]
fn one_that_closes_the_channel_keeps_its_requests() {
    let scene = scene(Mood::Serve);
    scene.setup(0).expect("mapped");
    scene.moody.set(Mood::HangUp);
    let started = Instant::now();
    assert_eq!(scene.setup(1).expect_err("hung up").errno(), Errno::IO);
    scene.setup(2).expect_err("gone");
    scene.remove(0).expect_err("gone");
    assert!(started.elapsed() < Duration::from_secs(2), "at once");
    scene.assert_reads();
    // A new session finds the channel gone and does without.
    scene.session.reinit().expect("INIT");
    assert!(!scene.session.inode_dax());
    scene.assert_reads();
    assert_serves_after(scene);
}

#[test]
fn one_that_hangs_while_its_client_goes_does_not_hold_up_the_next() {
    let scene = scene(Mood::Serve);
    scene.moody.set(Mood::Ignore);
    let node = scene.node();
    let session = scene.session.clone();
    let hung = std::thread::spawn(move || {
        session.setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true)
    });
    // The request is with the front end when the client goes.
    std::thread::sleep(Duration::from_millis(50));
    let started = Instant::now();
    scene.session.abandon();
    hung.join()
        .expect("no panic")
        .expect_err("the client is gone");
    let next = attach_soon(&scene.daemon);
    assert!(started.elapsed() < Duration::from_secs(3), "at once");
    assert!(next.inode_dax(), "and it has a window");
}

/// The wait is called off where the VMM wants the device back, and what it does
/// afterwards is undone before the next session begins.
#[test]
fn one_that_answers_after_a_reset_is_told_to_unmap() {
    let patient = ["--front-end-timeout", "60"];
    let scene = scene_with(Mood::Serve, 1, &patient);
    let node = scene.node();
    scene.moody.set(Mood::Brood);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| {
            scene
                .session
                .setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true)
        });
        eventually("it is asked", || scene.moody.broods.load(Ordering::SeqCst));
        let started = Instant::now();
        let reset = scope.spawn(|| scene.session.reset_device());
        hung.join().expect("no panic").expect_err("called off");
        // A device waits five seconds for what is under way.
        scene.daemon.expect_log("device reset", 1);
        assert!(started.elapsed() < Duration::from_secs(4), "at once");
        scene.moody.set(Mood::Serve);
        reset.join().expect("no panic").expect("a new session");
    });
    assert!(
        scene.session.inode_dax(),
        "the channel is as good as before"
    );
    assert_eq!(scene.live(), 0);
    scene.setup(1).expect("mapped");
    assert_eq!(scene.live(), 1);
    scene.assert_reads();
    assert_serves_after(scene);
}

/// Where nobody can stand in, the queue of a request that waits is held up with
/// it, and goes on with it.
#[test]
fn one_that_hangs_keeps_the_only_thread_and_gives_it_back() {
    let scene = scene_with(Mood::Serve, 1, &["--thread-pool-size", "0"]);
    scene.setup(0).expect("mapped");
    scene.moody.set(Mood::Brood);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| scene.setup(1));
        eventually("it is asked", || scene.moody.broods.load(Ordering::SeqCst));
        let reads = scope.spawn(|| scene.assert_reads());
        scene.moody.set(Mood::Serve);
        hung.join().expect("no panic").expect("mapped");
        reads.join().expect("no panic");
    });
    assert_eq!(scene.live(), 2);
    // The client may go while it is held up.
    scene.moody.broods.store(false, Ordering::SeqCst);
    scene.moody.set(Mood::Brood);
    let (session, node) = (scene.session.clone(), scene.node());
    let hung = std::thread::spawn(move || {
        session.setup_mapping(node, FileOffset(0), WindowOffset(2 * RANGE), RANGE, true)
    });
    eventually("it is asked", || scene.moody.broods.load(Ordering::SeqCst));
    scene.session.abandon();
    hung.join()
        .expect("no panic")
        .expect_err("the client is gone");
    scene.moody.set(Mood::Serve);
    assert_serves_next(&scene.daemon);
    assert!(attach_soon(&scene.daemon).inode_dax());
}

/// The next client is served, with a window.
fn assert_serves_after(scene: Scene) {
    assert_serves(&scene.session);
    scene.session.abandon();
    assert_serves_next(&scene.daemon);
    assert!(attach_soon(&scene.daemon).inode_dax());
}
