//! What a guest can write into the log.

use std::time::Instant;

use daxwindow_shared::fuse::{InitIn, KERNEL_VERSION, Opcode};

use crate::common::wire::{Message, args, ask};
use crate::common::{Daemon, assert_serves, attach_plain, in_memory};
use crate::samples::init;

/// Lines of each kind that may be logged in ten seconds, and the one that says
/// how many were held back.
const MOST: u64 = 51;
/// Kinds of lines that INIT and DESTROY may cause.
const KINDS: u64 = 8;

#[test]
fn sessions_that_begin_again_and_again_do_not_fill_the_log() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let session = attach_plain(&daemon);
    let began = Instant::now();
    let too_old = InitIn {
        major: KERNEL_VERSION,
        minor: 1,
        ..InitIn::default()
    };
    let too_old = Message::new(Opcode::Init as u32, 0, args(too_old));
    for _ in 0..10_000 {
        assert_eq!(ask(&session, &too_old).errno, libc::EPROTO);
    }
    let destroy = Message::new(Opcode::Destroy as u32, 0, []);
    for _ in 0..1000 {
        assert_eq!(ask(&session, &init()).errno, 0);
        assert_eq!(ask(&session, &destroy).errno, 0);
    }
    assert_eq!(ask(&session, &init()).errno, 0);
    assert_serves(&session);
    let most = (began.elapsed().as_secs() / 10 + 2) * MOST * KINDS;
    let lines = daemon.log().lines().count() as u64;
    assert!((10..most).contains(&lines), "{lines} lines, at most {most}");
}
