//! Padded files of a lower file system that does not answer an open. All
//! shares of a daemon have one process that pads.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;

use daxwindow_guest::test_utils::Tuning;
use daxwindow_guest::{Result, Session, SessionOptions};
use daxwindow_shared::window::{FileOffset, WindowOffset};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{
    Daemon, RANGE, Strict, children_of, eventually, in_memory, make_file, name_of, options, walk,
};
use crate::lower::{Lower, OPENED};

/// Two guests of one daemon, each with a front end that needs padded files.
struct Scene {
    guests: Option<[Arc<Session>; 2]>,
    // Before the daemon, which cannot end while it is stuck.
    lower: Lower,
    daemon: Daemon,
    _share: TempDir,
    _place: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
        for name in ["a", "b", "c", "d"] {
            make_file(&share.path().join(name), 3, 5000);
        }
        std::fs::create_dir(share.path().join("below")).expect("a mount point");
        let lower = Lower::mount(&share.path().join("below"));
        let second = place.path().join("second");
        let socket = second.to_str().expect("UTF-8");
        let flags = ["--dax", "always", "--dax-window", "64M", "--socket-path"];
        let daemon = Daemon::start(share.path(), &[&flags[..], &[socket]].concat());
        let first = options(&daemon);
        let second = SessionOptions {
            socket: second,
            ..options(&daemon)
        };
        let guests = [first, second].map(|options| {
            let hook = Arc::new(Strict::default());
            let tuning = Tuning {
                hook: Some(hook.clone()),
                ..Tuning::default()
            };
            let session = Session::connect_with(options, tuning).expect("a session");
            assert!(hook.asked.load(SeqCst) > 0, "and needs padded files");
            session
        });
        Scene {
            guests: Some(guests),
            lower,
            daemon,
            _share: share,
            _place: place,
        }
    }

    fn guest(&self, index: usize) -> &Arc<Session> {
        &self.guests.as_ref().expect("connected")[index]
    }

    fn map(&self, guest: usize, name: &str, slot: u64) {
        let node = walk(self.guest(guest), name).expect("there").nodeid;
        let mapped = self.guest(guest).setup_mapping(
            node,
            FileOffset(0),
            WindowOffset(slot * RANGE),
            RANGE,
            true,
        );
        mapped.unwrap_or_else(|error| panic!("{name} of guest {guest}: {error}"));
    }

    /// The first guest maps a file whose open in the view is not answered.
    fn stall_an_open_of_the_view(&self) -> JoinHandle<Result<()>> {
        let below = |name: &str| format!("below/{name}");
        let node = walk(self.guest(0), &below(OPENED[1]))
            .expect("there")
            .nodeid;
        // As often as for a file that is mapped at once, of which the last
        // time is that of the view.
        walk(self.guest(0), &below(OPENED[0])).expect("there");
        let before = self.lower.opens();
        self.map(0, &below(OPENED[0]), 0);
        let opens = self.lower.opens() - before;
        assert!(opens >= 2, "{opens}");
        self.lower.stall_opens_after(opens - 1);
        let guest = Arc::clone(self.guest(0));
        let slow = std::thread::spawn(move || {
            guest.setup_mapping(node, FileOffset(0), WindowOffset(RANGE), RANGE, true)
        });
        self.lower.expect_held(1);
        slow
    }

    fn padding(&self) -> u32 {
        let children = children_of(self.daemon.main_pid());
        let mut padding = children.into_iter().filter(|pid| is_padding(*pid));
        padding.next().expect("a process that pads")
    }

    fn disconnect(&mut self) {
        for guest in self.guests.take().into_iter().flatten() {
            guest.abandon();
        }
    }
}

fn is_padding(pid: u32) -> bool {
    name_of(pid) == "daxwindowd-pad"
}

#[test]
fn a_file_that_is_slow_to_open_takes_padding_from_no_other() {
    let scene = Scene::new();
    let slow = scene.stall_an_open_of_the_view();
    scene.map(1, "a", 0);
    scene.map(0, "a", 2);
    scene.map(1, "b", 1);
    assert!(!slow.is_finished(), "it waits for its file system");
    scene.lower.release();
    slow.join().expect("no panic").expect("mapped after all");
    scene.map(1, "c", 2);
    scene.map(0, "d", 3);
}

#[test]
fn nothing_is_left_of_a_daemon_that_ends_while_a_padded_file_is_opened() {
    let mut scene = Scene::new();
    let (padding, serving) = (scene.padding(), scene.daemon.pid());
    let slow = scene.stall_an_open_of_the_view();
    scene.disconnect();
    slow.join().expect("no panic").expect_err("cut off");
    // Nobody waits for what does not answer, but the kernel.
    scene.daemon.signal(Signal::TERM);
    scene.daemon.expect_log("ended by a signal", 1);
    scene.lower.release();
    assert!(scene.daemon.wait().success());
    eventually("all of it ends", || {
        !is_padding(padding) && !name_of(serving).starts_with("daxwindowd")
    });
}

#[test]
fn nothing_is_left_of_a_daemon_that_is_killed_while_a_padded_file_is_opened() {
    let mut scene = Scene::new();
    let (padding, serving) = (scene.padding(), scene.daemon.pid());
    let slow = scene.stall_an_open_of_the_view();
    scene.daemon.signal(Signal::KILL);
    eventually("the process that pads ends", || !is_padding(padding));
    // Its end is that of the view, for those who still wait for it.
    scene.lower.release();
    assert_eq!(scene.daemon.wait().signal(), Some(libc::SIGKILL));
    eventually("the one that serves ends", || {
        !name_of(serving).starts_with("daxwindowd")
    });
    scene.disconnect();
    slow.join().expect("no panic").expect_err("cut off");
}
