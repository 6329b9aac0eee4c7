//! Requests about the window that no guest mapper would send.

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::{Opcode, ROOT_ID, RemoveMappingOne, SetupMappingIn};

use crate::common::wire::{Message, args, ask};
use crate::common::{RANGE, assert_serves};
use crate::samples::{Scene, removal, setup};

const WINDOW: u64 = 16 << 20;

fn try_setup(session: &Session, nodeid: u64, setup: SetupMappingIn) -> i32 {
    let message = Message::new(Opcode::Setupmapping as u32, nodeid, args(setup));
    ask(session, &message).errno
}

fn live(scene: &Scene) -> u64 {
    scene
        .session
        .device()
        .expect("vhost-user")
        .server_stats()
        .live
}

#[test]
fn mappings_outside_the_window_or_the_file_are_refused() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    let window: [(u64, u64, &str); 9] = [
        (WINDOW, RANGE, "behind the window"),
        (WINDOW - RANGE, 2 * RANGE, "across its end"),
        (u64::MAX - RANGE + 1, RANGE, "up to the last byte there is"),
        (u64::MAX - 4095, RANGE, "overflowing"),
        (0, u64::MAX, "everything"),
        (0, u64::MAX - 4095, "everything, aligned"),
        (1, RANGE, "an unaligned start"),
        (0, 4097, "an unaligned length"),
        (0, 0, "nothing"),
    ];
    for (moffset, len, what) in window {
        let bad = SetupMappingIn {
            moffset,
            len,
            ..good
        };
        assert_eq!(try_setup(&scene.session, file, bad), libc::EINVAL, "{what}");
    }
    let in_file: [(u64, &str); 5] = [
        (1, "an unaligned offset"),
        (u64::MAX, "the last byte there is"),
        (u64::MAX - 4095, "overflowing"),
        (i64::MAX as u64 - 4095, "past what a file can have"),
        (1 << 63, "negative"),
    ];
    for (foffset, what) in in_file {
        let bad = SetupMappingIn { foffset, ..good };
        assert_eq!(try_setup(&scene.session, file, bad), libc::EINVAL, "{what}");
    }
    for flags in [4, 8, 1 << 63, u64::MAX] {
        let bad = SetupMappingIn { flags, ..good };
        let errno = try_setup(&scene.session, file, bad);
        assert_eq!(errno, libc::EINVAL, "flags {flags:#x}");
    }
    assert_eq!(live(&scene), 0, "nothing was mapped on the way");
    assert_eq!(try_setup(&scene.session, file, good), 0);
    assert_eq!(live(&scene), 1);
}

#[test]
fn only_regular_files_are_mapped() {
    let scene = Scene::new();
    let fifo = scene
        .session
        .mknod(ROOT_ID, b"fifo", libc::S_IFIFO | 0o600, 0)
        .expect("a FIFO");
    for nodeid in [ROOT_ID, scene.dir, scene.link, fifo.nodeid, 0, u64::MAX] {
        let (nodeid, setup) = setup(nodeid);
        assert_ne!(try_setup(&scene.session, nodeid, setup), 0, "node {nodeid}");
    }
    assert_eq!(live(&scene), 0);
    assert_serves(&scene.session);
}

#[test]
fn the_handle_of_a_setup_does_not_matter() {
    let scene = Scene::new();
    for fh in [0, scene.dh, u64::MAX] {
        let (file, good) = setup(scene.file);
        let setup = SetupMappingIn { fh, ..good };
        assert_eq!(try_setup(&scene.session, file, setup), 0, "handle {fh}");
    }
}

#[test]
fn removal_counts_that_lie_are_refused_and_remove_nothing() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    assert_eq!(try_setup(&scene.session, file, good), 0);
    let one = (0, RANGE);
    for (count, ranges) in [
        (0, &[one][..]),
        (1, &[]),
        (2, &[one]),
        (1, &[one, one]),
        (u32::MAX, &[one]),
        (1 << 28, &[one]),
        (4097, &[one]),
    ] {
        let bad = removal(count, ranges);
        let errno = ask(&scene.session, &bad).errno;
        assert_eq!(errno, libc::EINVAL, "{count} for {}", ranges.len());
    }
    assert_eq!(live(&scene), 1, "still mapped");
    assert_eq!(ask(&scene.session, &removal(0, &[])).errno, 0, "of nothing");
    assert_eq!(ask(&scene.session, &removal(1, &[one])).errno, 0);
    assert_eq!(live(&scene), 0);
}

#[test]
fn one_bad_range_spoils_its_batch_and_nothing_else() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    assert_eq!(try_setup(&scene.session, file, good), 0);
    for bad in [
        (WINDOW, RANGE),
        (1, RANGE),
        (0, 0),
        (0, u64::MAX),
        (u64::MAX - 4095, 8192),
    ] {
        let batch = removal(2, &[(0, RANGE), bad]);
        assert_eq!(ask(&scene.session, &batch).errno, libc::EINVAL, "{bad:?}");
        assert_eq!(live(&scene), 1, "{bad:?}");
    }
}

#[test]
fn removal_of_what_was_never_mapped_harms_nothing() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    assert_eq!(try_setup(&scene.session, file, good), 0);
    let never = removal(1, &[(4 * RANGE, RANGE)]);
    for _ in 0..3 {
        let errno = ask(&scene.session, &never).errno;
        assert!(errno == 0 || errno == libc::EINVAL, "{errno}");
    }
    // Mapped and not, in one range.
    assert_eq!(ask(&scene.session, &removal(1, &[(0, WINDOW)])).errno, 0);
    assert_eq!(live(&scene), 0);
    assert_eq!(ask(&scene.session, &removal(1, &[(0, RANGE)])).errno, 0);
    assert_serves(&scene.session);
}

#[test]
fn a_file_mapped_thousandfold_is_removed_exactly() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    let pages = WINDOW / 4096;
    for page in 0..pages {
        let one = SetupMappingIn {
            moffset: page * 4096,
            // Every other one shows another place, so that none can be joined.
            foffset: page % 2 * 4096,
            len: 4096,
            ..good
        };
        assert_eq!(try_setup(&scene.session, file, one), 0, "page {page}");
    }
    for page in (0..pages).step_by(2) {
        let one = RemoveMappingOne {
            moffset: page * 4096,
            len: 4096,
        };
        scene.session.remove_mapping(&[one]).expect("mapped");
    }
    assert_eq!(live(&scene), pages / 2);
    scene.session.destroy().expect("DESTROY");
    assert_eq!(live(&scene), 0, "nothing is left behind");
}

#[test]
fn setup_and_removal_at_once_from_many_threads_leave_nothing() {
    let scene = Scene::new();
    let (file, good) = setup(scene.file);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let session = &scene.session;
            scope.spawn(move || {
                for round in 0..200u64 {
                    let moffset = (thread + round) % 8 * RANGE;
                    let flags = 2 + round % 2;
                    let setup = SetupMappingIn {
                        moffset,
                        flags,
                        ..good
                    };
                    assert_eq!(try_setup(session, file, setup), 0);
                    let errno = ask(session, &removal(1, &[(moffset, RANGE)])).errno;
                    assert_eq!(errno, 0);
                }
            });
        }
    });
    assert_eq!(ask(&scene.session, &removal(1, &[(0, WINDOW)])).errno, 0);
    assert_eq!(live(&scene), 0);
}
