//! A VMM that is stopped for a while and goes on, as by a freezer of cgroups, a
//! checkpoint or a debugger, with readers and a window too small for what they
//! read. Between an acknowledgement and its announcement: `announced_test` of
//! the host's `dax`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Access, Guest, GuestOptions, Session, SessionOptions};
use daxwindow_shared::shmem::MapRequest;
use tempfile::TempDir;

use crate::common::{
    Daemon, RANGE, assert_same, assert_serves, in_memory, make_file, options, pattern, word,
};

/// Ranges of the file; the window has four.
const RANGES: u64 = 12;
/// Reads of one range before another's turn.
const AGAIN: u64 = 16;
/// Longer than any freeze.
const LONG: Duration = Duration::from_secs(300);

/// Lets the front end go on, or not.
#[derive(Default)]
struct Freezer {
    at_maps: AtomicBool,
    at_unmaps: AtomicBool,
    reached: AtomicU64,
}

impl Freezer {
    fn pass(&self, frozen: &AtomicBool) -> Verdict {
        if frozen.load(Ordering::SeqCst) {
            self.reached.fetch_add(1, Ordering::SeqCst);
            await_that(|| !frozen.load(Ordering::SeqCst));
        }
        Verdict::Serve
    }
}

impl WindowHook for Freezer {
    fn on_map(&self, _: &MapRequest) -> Verdict {
        self.pass(&self.at_maps)
    }

    fn on_unmap(&self, _: &MapRequest) -> Verdict {
        self.pass(&self.at_unmaps)
    }
}

fn await_that(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Scene {
    freezer: Arc<Freezer>,
    guest: Guest,
    session: Arc<Session>,
    reads: [AtomicU64; 4],
    stop: AtomicBool,
    _share: TempDir,
    daemon: Daemon,
}

impl Scene {
    fn new() -> Scene {
        let share = in_memory();
        make_file(&share.path().join("file"), 5, (RANGES * RANGE) as usize);
        let flags = ["--dax-window", "8M", "--num-request-queues", "3"];
        let daemon = Daemon::start(share.path(), &flags);
        let freezer = Arc::new(Freezer::default());
        let options = SessionOptions {
            request_queues: 3,
            timeout: LONG,
            ..options(&daemon)
        };
        let tuning = Tuning {
            hook: Some(freezer.clone()),
            ..Tuning::default()
        };
        let session = Session::connect_with(options.clone(), tuning).expect("a session");
        let guest = Guest::over(session.clone(), &GuestOptions::new(options)).expect("a guest");
        Scene {
            freezer,
            guest,
            session,
            reads: Default::default(),
            stop: AtomicBool::new(false),
            _share: share,
            daemon,
        }
    }

    /// Reads here and there through the window, and counts; of each range
    /// several times, since the library maps what is asked for again.
    fn read(&self, reader: usize) {
        let file = self.guest.open("file", Access::Read).expect("opened");
        for turn in 0.. {
            let range = word(reader as u64, turn / AGAIN) % RANGES;
            let at = range * RANGE + word(reader as u64, turn) % (RANGE - 9000);
            let mut got = vec![0; 9000];
            assert_eq!(file.read_at(&mut got, at).expect("read"), got.len());
            assert_same(&got, &pattern(5, at, got.len()), "through the window");
            self.reads[reader].fetch_add(1, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Each reader has read a few times more.
    fn await_reads(&self) {
        let before: Vec<u64> = self
            .reads
            .iter()
            .map(|r| r.load(Ordering::SeqCst))
            .collect();
        let all = self.reads.iter().zip(before);
        await_that(|| {
            all.clone()
                .all(|(now, before)| now.load(Ordering::SeqCst) > before + 5)
        });
    }

    /// Stops the front end at the next message of a kind, for so long.
    fn freeze(&self, kind: &AtomicBool, long: Duration) {
        let before = self.freezer.reached.load(Ordering::SeqCst);
        kind.store(true, Ordering::SeqCst);
        await_that(|| self.freezer.reached.load(Ordering::SeqCst) > before);
        let until = Instant::now() + long;
        while Instant::now() < until {
            // What needs no front end goes on.
            assert_serves(&self.session);
            std::thread::sleep(Duration::from_millis(50));
        }
        kind.store(false, Ordering::SeqCst);
        self.await_reads();
    }

    fn run(self, freezes: impl FnOnce(&Scene)) {
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..self.reads.len())
                .map(|reader| {
                    scope.spawn({
                        let scene = &self;
                        move || scene.read(reader)
                    })
                })
                .collect();
            self.await_reads();
            freezes(&self);
            self.stop.store(true, Ordering::SeqCst);
            for reader in readers {
                reader.join().expect("every read was right");
            }
        });
        let stats = self.guest.stats();
        assert_eq!(
            stats.setup_failures + stats.removal_failures,
            0,
            "{stats:?}"
        );
        assert!(stats.reclaimed > 0, "{stats:?}");
        assert!(!self.daemon.log().contains("dax: off"));
    }
}

#[test]
fn one_that_is_frozen_loses_nothing() {
    Scene::new().run(|scene| {
        for seconds in [1, 6] {
            let long = Duration::from_secs(seconds);
            scene.freeze(&scene.freezer.at_maps, long);
            scene.freeze(&scene.freezer.at_unmaps, long);
        }
    });
}

#[test]
fn one_that_is_frozen_for_a_minute_loses_nothing() {
    Scene::new().run(|scene| scene.freeze(&scene.freezer.at_maps, Duration::from_secs(60)));
}
