//! Requests that take long, and all the others, which must not notice: on a
//! share with a file system below it that answers nothing for a while.
//!
//! Needs /dev/fuse and the right to mount.

#[path = "../common/mod.rs"]
mod common;

#[path = "../driver/mod.rs"]
mod driver;
mod lower;
mod padded;
mod status;
#[allow(dead_code, reason = "other test programs use the rest")]
#[path = "../hostile/vmm.rs"]
mod vmm;
mod withdrawn;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daxwindow_guest::session::{Order, Pipeline};
use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Result, Session, SessionOptions};
use daxwindow_host::status::document::{Queue, Queues, Status};
use daxwindow_shared::fuse::{AttrOut, GetattrIn, Opcode, ROOT_ID};
use daxwindow_shared::shmem::MapRequest;
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use common::{
    Daemon, PATIENCE, RANGE, assert_same, assert_serves, attach_soon, eventually, in_memory,
    make_file, on_disk, open, options, pattern, read_by_request, walk, write_by_request,
};
use lower::{FROZEN, LEN, Lower, SLOW};

const PIECE: u32 = 4096;
/// The queue that the guest sends to.
const QUEUE: usize = 1;

struct Scene {
    session: Option<Arc<Session>>,
    // Before the daemon: it cannot even be killed while it is stuck.
    lower: Lower,
    daemon: Daemon,
    _share: TempDir,
    place: TempDir,
}

impl Scene {
    fn new(flags: &[&str]) -> Scene {
        Scene::with_queues(1, flags)
    }

    fn with_queues(request_queues: usize, flags: &[&str]) -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        make_file(&share.path().join("file"), 5, 64 << 10);
        std::fs::create_dir(share.path().join("below")).expect("a mount point");
        let lower = Lower::mount(&share.path().join("below"));
        let status = place.path().join("status");
        let told = [
            "--dax",
            "never",
            "--status-socket",
            status.to_str().expect("UTF-8"),
        ];
        let daemon = Daemon::start(share.path(), &[&told, flags].concat());
        let session = Session::connect(SessionOptions {
            request_queues,
            ..options(&daemon)
        });
        Scene {
            session: Some(session.expect("a session")),
            daemon,
            lower,
            _share: share,
            place,
        }
    }

    fn session(&self) -> &Arc<Session> {
        self.session.as_ref().expect("connected")
    }

    fn queues(&self) -> Queues {
        queues_of(&self.place.path().join("status"))
    }

    fn queue(&self) -> Queue {
        self.queues().by_number[QUEUE].clone()
    }

    fn open(&self, name: &str) -> (u64, u64) {
        let (entry, handle) = open(self.session(), name, libc::O_RDWR).expect("open");
        (entry.nodeid, handle.fh)
    }

    /// Reads of the slow file, each in a thread and at a place of its own.
    fn slow_reads(&self, count: usize) -> Vec<JoinHandle<Result<Vec<u8>>>> {
        let file = self.open(&format!("below/{SLOW}"));
        let read = |index: usize| {
            let session = Arc::clone(self.session());
            let offset = index as u64 * u64::from(PIECE);
            std::thread::spawn(move || read_by_request(&session, file, offset, PIECE as usize))
        };
        (0..count).map(read).collect()
    }

    /// Everything that a guest does all day, so many times; the 99th
    /// percentile of the time that one request takes.
    fn others_go_on(&self, rounds: usize) -> Duration {
        others_go_on(self.session(), rounds)
    }
}

/// What the status document says at this socket.
fn queues_of(status: &Path) -> Queues {
    let mut socket = UnixStream::connect(status).expect("listens");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("a document");
    let mut status: Status = serde_json::from_str(&text).expect("a document");
    status.shares.remove(0).queues
}

fn others_go_on(session: &Session, rounds: usize) -> Duration {
    let (entry, handle) = open(session, "file", libc::O_RDWR).expect("open");
    let file = (entry.nodeid, handle.fh);
    let mut taken = Vec::with_capacity(3 * rounds);
    let mut timed = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        taken.push(began.elapsed());
    };
    for round in 0..rounds as u64 {
        timed(&mut || assert_serves(session));
        timed(&mut || {
            walk(session, "file").expect("there");
        });
        let offset = round % 16 * 4096;
        let mut got = Vec::new();
        timed(&mut || {
            got = read_by_request(session, file, offset, 4096).expect("read");
        });
        assert_same(&got, &pattern(5, offset, 4096), "another file");
    }
    taken.sort_unstable();
    taken[taken.len() * 99 / 100]
}

fn finish(reads: Vec<JoinHandle<Result<Vec<u8>>>>) {
    for (index, read) in reads.into_iter().enumerate() {
        let got = read.join().expect("no panic").expect("answered in the end");
        let want = lower::bytes(index as u64 * u64::from(PIECE), PIECE);
        assert_same(&got, &want, "a read that took long");
    }
}

#[test]
fn stalled_reads_hold_up_nobody() {
    let scene = Scene::new(&[]);
    let calm = scene.others_go_on(100);
    for count in [1, 8, 32] {
        scene.lower.stall();
        let reads = scene.slow_reads(count);
        scene.lower.expect_held(count);
        let p99 = scene.others_go_on(300);
        assert_eq!(scene.lower.held(), count, "all of them still are");
        println!("{count} reads stalled: p99 of the others {p99:?}, {calm:?} before");
        assert!(p99 < Duration::from_millis(500), "{p99:?}");
        assert_eq!(scene.queue().under_way, count as u64);
        scene.lower.release();
        finish(reads);
        eventually("all are back", || scene.queue().under_way == 0);
    }
    let queue = scene.queue();
    assert!(queue.gave_way + queue.found_stuck >= 41, "{queue:?}");
    assert!((32..=64).contains(&queue.stand_ins_started), "{queue:?}");
    assert!(queue.longest_us > 1000.0, "{queue:?}");
    assert_eq!(queue.short_of_threads, 0, "{queue:?}");
}

#[test]
fn stalled_attributes_and_fsyncs_hold_up_nobody() {
    let scene = Scene::new(&[]);
    let frozen = walk(scene.session(), &format!("below/{FROZEN}"))
        .expect("there")
        .nodeid;
    let (slow, fh) = scene.open(&format!("below/{SLOW}"));
    scene.lower.stall();
    let session = Arc::clone(scene.session());
    let getattr = std::thread::spawn(move || session.getattr(frozen, None));
    scene.lower.expect_held(1);
    scene.others_go_on(50);
    let session = Arc::clone(scene.session());
    let fsync = std::thread::spawn(move || session.fsync(slow, fh, false));
    scene.lower.expect_held(2);
    scene.others_go_on(50);
    assert_eq!(scene.lower.held(), 2);
    scene.lower.release();
    assert_eq!(
        getattr.join().expect("no panic").expect("answered").size,
        LEN
    );
    fsync.join().expect("no panic").expect("answered");
    let queue = scene.queue();
    assert!(queue.found_stuck >= 1, "the attributes: {queue:?}");
    assert!(queue.gave_way >= 1, "the fsync: {queue:?}");
}

/// A VMM that takes its time over a map, and one over an fsync of all that was
/// just written.
/// Two queues full of short requests on one processor, served by one thread,
/// until that is stuck in a request of either.
#[test]
fn queues_that_one_thread_minds_are_not_held_up() {
    let scene = on_one_processor(|| Scene::with_queues(2, &["--num-request-queues", "2"]));
    let served_beside = || -> u64 {
        scene
            .queues()
            .by_number
            .iter()
            .map(|q| q.served_beside)
            .sum()
    };
    let mut pipeline = scene.session().pipeline(2, 16, 0).expect("a pipeline");
    for held in 0..3 {
        let reads = match held {
            0 => Vec::new(),
            _ => {
                scene.lower.stall();
                let reads = scene.slow_reads(held);
                scene.lower.expect_held(held);
                reads
            }
        };
        let before = served_beside();
        let began = Instant::now();
        // A few rounds may pass before the two threads meet.
        while served_beside() == before {
            assert!(began.elapsed() < PATIENCE, "{:?}", scene.queues());
            get_attributes(&mut pipeline, 2000);
        }
        assert_eq!(scene.lower.held(), held);
        scene.others_go_on(20);
        scene.lower.release();
        finish(reads);
    }
    let queues = scene.queues();
    assert!(queues.by_number.iter().all(|q| q.under_way == 0));
}

/// So many GETATTRs of the root, as many in flight as there are places.
fn get_attributes(pipeline: &mut Pipeline, count: usize) {
    let args = [0u8; size_of::<GetattrIn>()];
    let args: [&[u8]; 1] = [&args];
    let order = Order {
        reply_bytes: size_of::<AttrOut>(),
        ..Order::new(Opcode::Getattr, ROOT_ID, &args)
    };
    let places = pipeline.depth();
    (0..places).for_each(|place| pipeline.submit(place, &order).expect("sent"));
    let mut left = count.saturating_sub(places);
    while pipeline.in_flight() > 0 {
        let mut free = Vec::new();
        let collected = pipeline.collect(|place, answer| {
            let attributes: AttrOut = answer.expect("answered").fixed();
            assert!(attributes.attr.ino > 0);
            free.push(place);
        });
        collected.expect("in time");
        for place in free.into_iter().take(left) {
            pipeline.submit(place, &order).expect("sent");
            left -= 1;
        }
    }
}

/// Starts what `start` starts on one of the processors.
fn on_one_processor<T>(start: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None).expect("known");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu));
    one.set(first.expect("a processor"));
    sched_setaffinity(None, &one).expect("bound");
    let started = start();
    sched_setaffinity(None, &all).expect("free");
    started
}

#[test]
fn slow_maps_and_large_fsyncs_hold_up_nobody() {
    let share = on_disk();
    make_file(&share.path().join("file"), 5, 64 << 10);
    make_file(&share.path().join("mapped"), 6, 4 << 20);
    let daemon = Daemon::start(share.path(), &["--dax", "always", "--dax-window", "16M"]);
    let hook = Arc::new(SlowMaps::default());
    let tuning = Tuning {
        hook: Some(hook.clone()),
        ..Tuning::default()
    };
    let session = Session::connect_with(options(&daemon), tuning).expect("a session");
    let mapped = walk(&session, "mapped").expect("there").nodeid;
    hook.stalled.store(true, SeqCst);
    let maps: Vec<_> = (0..2)
        .map(|slot| {
            let session = Arc::clone(&session);
            let at = slot * RANGE;
            std::thread::spawn(move || {
                session.setup_mapping(mapped, FileOffset(at), WindowOffset(at), RANGE, true)
            })
        })
        .collect();
    eventually("a map is under way", || hook.asked.load(SeqCst) > 0);
    others_go_on(&session, 50);
    assert!(maps.iter().all(|map| !map.is_finished()));
    hook.stalled.store(false, SeqCst);
    for map in maps {
        map.join().expect("no panic").expect("mapped");
    }

    let (entry, handle) = open(&session, "mapped", libc::O_RDWR).expect("open");
    let file = (entry.nodeid, handle.fh);
    let dirty = vec![7; 1 << 20];
    for piece in 0..64 {
        write_by_request(&session, file, piece << 20, &dirty).expect("written");
    }
    let syncing = Arc::clone(&session);
    let fsync = std::thread::spawn(move || syncing.fsync(file.0, file.1, false));
    let p99 = others_go_on(&session, 100);
    fsync.join().expect("no panic").expect("written back");
    println!("64 MiB written back: p99 of the others {p99:?}");
    assert!(p99 < Duration::from_millis(500), "{p99:?}");
}

/// Answers no map while it is told not to.
#[derive(Default)]
struct SlowMaps {
    stalled: AtomicBool,
    asked: AtomicU32,
}

impl WindowHook for SlowMaps {
    fn on_map(&self, _: &MapRequest) -> Verdict {
        if self.stalled.load(SeqCst) {
            self.asked.fetch_add(1, SeqCst);
            eventually("maps are answered again", || !self.stalled.load(SeqCst));
        }
        Verdict::Serve
    }

    fn on_unmap(&self, _: &MapRequest) -> Verdict {
        Verdict::Serve
    }
}

/// A device reset does not wait for what is stuck for longer than its
/// patience, and the session after it sees nothing of it.
#[test]
fn a_reset_with_requests_stuck_is_a_reset() {
    let scene = Scene::new(&[]);
    scene.lower.stall();
    let reads = scene.slow_reads(2);
    scene.lower.expect_held(2);
    scene.session().reset_device().expect("reset");
    for read in reads {
        assert!(
            read.join().expect("no panic").is_err(),
            "ended by the reset"
        );
    }
    scene.others_go_on(20);
    scene.lower.release();
    eventually("they are back", || scene.queue().under_way == 0);
    scene.others_go_on(20);
}

/// Over its budget a guest waits, and nothing is lost.
#[test]
fn a_guest_that_stalls_all_its_threads_waits_for_itself() {
    let scene = Scene::new(&["--thread-pool-size", "3"]);
    scene.lower.stall();
    let reads = scene.slow_reads(10);
    // One thread and three more.
    scene.lower.expect_held(4);
    let session = Arc::clone(scene.session());
    let other = std::thread::spawn(move || assert_serves(&session));
    eventually("it is noticed", || scene.queue().short_of_threads > 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(scene.lower.held(), 4);
    assert!(!other.is_finished());
    scene.lower.release();
    finish(reads);
    other.join().expect("served");
    // One for each that is away, and at most a spare beside the first two.
    let started = scene.queue().stand_ins_started;
    assert!((3..=4).contains(&started), "{started}");
    scene.others_go_on(20);
}

#[test]
fn without_a_pool_requests_follow_each_other() {
    let scene = Scene::new(&["--thread-pool-size", "0"]);
    scene.lower.stall();
    let reads = scene.slow_reads(3);
    scene.lower.expect_held(1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(scene.lower.held(), 1);
    scene.lower.release();
    finish(reads);
    assert_eq!(scene.queue().stand_ins_started, 0);
}

/// What is stuck in the kernel when its guest goes is given up: the next guest
/// is served, and so is a signal to end.
#[test]
fn threads_that_never_come_back_are_given_up() {
    let mut scene = Scene::new(&[]);
    scene.lower.stall();
    let reads = scene.slow_reads(3);
    scene.lower.expect_held(3);
    // The sockets go with the last session.
    scene.session().abandon();
    scene.session = None;
    for read in reads {
        assert!(read.join().expect("no panic").is_err(), "cut off");
    }
    let next = attach_soon(&scene.daemon);
    assert_serves(&next);
    let queues = scene.queues();
    assert_eq!(queues.threads_given_up, 3, "{queues:?}");
    scene.session = Some(next);
    scene.others_go_on(20);
    // They come back to a guest that is not theirs.
    scene.lower.release();
    eventually("they are back", || scene.queue().under_way == 0);
    scene.others_go_on(20);
    scene.lower.stall();
    let reads = scene.slow_reads(2);
    scene.lower.expect_held(2);
    // It does all that it has to, and ends; the kernel keeps what is left of
    // the process until the lower file system lets go.
    let began = Instant::now();
    scene.daemon.signal(Signal::TERM);
    scene.daemon.expect_log("ended by a signal", 1);
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    for read in reads {
        assert!(read.join().expect("no panic").is_err(), "cut off");
    }
    scene.lower.release();
    assert!(scene.daemon.wait().success());
}

/// Stand-ins end when they are not needed any more, and a daemon that does
/// nothing does not wake up.
#[test]
fn an_idle_daemon_has_one_thread_for_its_queues_and_sleeps() {
    let scene = Scene::new(&[]);
    let task = format!("/proc/{}/task", scene.daemon.pid());
    let names = || {
        let dir = std::fs::read_dir(&task).expect("procfs");
        let name = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("comm"));
        dir.filter_map(|entry| name(entry.ok()?).ok())
            .collect::<Vec<_>>()
    };
    let workers = || {
        names()
            .iter()
            .filter(|name| name.trim() == "worker")
            .count()
    };
    eventually("one is left", || workers() == 1);
    scene.lower.stall();
    let reads = scene.slow_reads(8);
    scene.lower.expect_held(8);
    assert!(workers() >= 8);
    scene.lower.release();
    finish(reads);
    eventually("stand-ins end", || workers() == 1);
    let switches = || {
        let dir = std::fs::read_dir(&task).expect("procfs");
        let of = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let line = text.lines().find(|line| line.starts_with("voluntary"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        dir.filter_map(|entry| of(entry.ok()?)).sum::<u64>()
    };
    std::thread::sleep(Duration::from_millis(100));
    let asleep = switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(), asleep, "somebody woke up");
}
