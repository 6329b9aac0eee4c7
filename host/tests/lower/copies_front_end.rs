//! Front ends that do not map the copy of a file, while a guest opens it for
//! writing: the guest hears of it, and never reads what was there before from a
//! file that it has opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Guest, GuestOptions};
use daxwindow_shared::shmem::MapRequest;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::common::{
    Daemon, assert_same, assert_serves, assert_serves_next, attach_with, eventually, open, options,
    pattern, read_all, write_by_request,
};
use crate::copies::{IN_EACH, SIZE, mapped};
use crate::layers::Layers;

/// Does something else with the second map from now on, if it is told to.
#[derive(Default)]
struct SecondFails {
    verdict: Mutex<Option<Verdict>>,
    maps: AtomicUsize,
}

impl SecondFails {
    fn begin(&self, verdict: Verdict) {
        self.maps.store(0, Ordering::SeqCst);
        *self.verdict.lock() = Some(verdict);
    }

    fn end(&self) {
        *self.verdict.lock() = None;
    }
}

impl WindowHook for SecondFails {
    fn on_map(&self, _: &MapRequest) -> Verdict {
        let number = self.maps.fetch_add(1, Ordering::SeqCst);
        match *self.verdict.lock() {
            Some(verdict) if number == 1 => verdict,
            _ => Verdict::Serve,
        }
    }
}

struct Scene {
    // In the order in which they end.
    guest: Guest,
    daemon: Daemon,
    _layers: Layers,
    hook: Arc<SecondFails>,
}

fn scene() -> Scene {
    let layers = Layers::mount(SIZE);
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let hook = Arc::new(SecondFails::default());
    let tuning = Tuning {
        hook: Some(hook.clone()),
        ..Tuning::default()
    };
    let session = attach_with(&daemon, tuning);
    let guest = Guest::over(session, &GuestOptions::new(options(&daemon))).expect("a guest");
    Scene {
        guest,
        daemon,
        _layers: layers,
        hook,
    }
}

#[test]
fn a_refusal_fails_the_open_and_the_next_one_tries_again() {
    let scene = scene();
    let session = scene.guest.session();
    let reader = mapped(&scene.guest, "data", 1);
    let before = scene.daemon.open_files_on("data");
    scene.hook.begin(Verdict::Refuse(Errno::NOMEM));
    let refused = open(session, "data", libc::O_RDWR).expect_err("one range was not mapped");
    assert_eq!(refused.errno(), Errno::IO);
    assert!(
        scene.daemon.open_files_on("data") <= before + 1,
        "no handle is left"
    );
    scene.hook.end();
    let (entry, handle) = open(session, "data", libc::O_RDWR).expect("opened");
    let mut want = pattern(1, 0, SIZE);
    for offset in IN_EACH {
        let to = (entry.nodeid, handle.fh);
        write_by_request(session, to, offset, b"SENT").expect("written");
        want[offset as usize..][..4].copy_from_slice(b"SENT");
    }
    assert_same(&read_all(&reader).expect("read"), &want, "data");
}

#[test]
fn a_front_end_that_closes_its_channel_fails_the_open() {
    let scene = scene();
    let session = scene.guest.session();
    let _reader = mapped(&scene.guest, "data", 1);
    scene.hook.begin(Verdict::HangUp);
    for _ in 0..2 {
        let refused = open(session, "data", libc::O_RDWR).expect_err("nobody maps the copy");
        assert_eq!(refused.errno(), Errno::IO);
    }
    // What has nothing mapped is served.
    open(session, "program", libc::O_RDWR).expect("opened");
    assert_serves(session);
    drop(_reader);
    let Scene { guest, daemon, .. } = scene;
    drop(guest);
    assert_serves_next(&daemon);
}

#[test]
fn a_front_end_that_never_answers_holds_up_one_request_until_it_goes() {
    let scene = scene();
    let session = Arc::clone(scene.guest.session());
    let reader = mapped(&scene.guest, "data", 1);
    scene.hook.begin(Verdict::Ignore);
    let opener = {
        let session = Arc::clone(&session);
        std::thread::spawn(move || open(&session, "data", libc::O_RDWR).map(drop))
    };
    eventually("the front end is asked for the copy", || {
        scene.hook.maps.load(Ordering::SeqCst) > 1
    });
    assert_serves(&session);
    session.abandon();
    assert!(opener.join().expect("no panic").is_err());
    drop(reader);
    let Scene { guest, daemon, .. } = scene;
    drop((guest, session));
    assert_serves_next(&daemon);
}
