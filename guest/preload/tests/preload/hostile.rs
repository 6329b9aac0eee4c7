//! Daemons that break rules, go away, or say nothing.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use daxwindow_shared::preload::{MAGIC, Notes};
use daxwindow_shared::shmem::{MapMessage, SHMEM_MAP};
use zerocopy::IntoBytes;

use crate::daemon::{FEATURES, MIB, PAGE, WINDOW, memfd, preamble, send, until};
use crate::{Daemon, Vmm, page, pages};

const RANGE: u64 = 2 * MIB;

/// Has a daemon say `bytes` with `fds` before its first answer. The front end
/// has to get that answer; what was said on stderr.
fn heard(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> String {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    vmm.tell("features fs");
    daemon.first_message();
    send(daemon.connection(), bytes, fds);
    daemon.answer(FEATURES);
    assert_eq!(vmm.answer(), FEATURES.to_string());
    daemon.answer(5);
    assert_eq!(vmm.ask("answer fs"), "5");
    assert!(!vmm.ask("threads").contains("dax-window"));
    vmm.end_well()
}

#[test]
fn a_preamble_that_breaks_rules_is_taken_away_and_ignored() {
    let (_other_end, channel) = UnixStream::pair().expect("a pair");
    let datagrams = UnixDatagram::unbound().expect("a socket");
    let whole = memfd(WINDOW + size_of::<Notes>() as u64);
    let short = memfd(WINDOW + size_of::<Notes>() as u64 - 1);
    let null = File::open("/dev/null").expect("/dev/null");
    let cases: &[(u64, &[BorrowedFd<'_>])] = &[
        (WINDOW, &[]),
        (WINDOW, &[channel.as_fd()]),
        (WINDOW, &[channel.as_fd(), whole.as_fd(), whole.as_fd()]),
        (
            WINDOW,
            &[
                channel.as_fd(),
                whole.as_fd(),
                whole.as_fd(),
                null.as_fd(),
                null.as_fd(),
            ],
        ),
        (WINDOW, &[whole.as_fd(), channel.as_fd()]),
        (WINDOW, &[datagrams.as_fd(), whole.as_fd()]),
        (WINDOW, &[null.as_fd(), whole.as_fd()]),
        (WINDOW, &[channel.as_fd(), null.as_fd()]),
        (WINDOW, &[channel.as_fd(), short.as_fd()]),
        (WINDOW + PAGE, &[channel.as_fd(), whole.as_fd()]),
        (4 << 40, &[channel.as_fd(), whole.as_fd()]),
        (!(RANGE - 1), &[channel.as_fd(), whole.as_fd()]),
    ];
    for (bytes, fds) in cases {
        let stderr = heard(preamble(*bytes).as_bytes(), fds);
        let is_one_line = stderr.starts_with("daxwindow: ") && stderr.lines().count() == 1;
        assert!(
            is_one_line,
            "{bytes:#x}, {} descriptors: {stderr}",
            fds.len()
        );
    }
}

#[test]
fn a_daemon_without_a_window_of_this_kind_is_one_of_ours() {
    assert_eq!(heard(preamble(0).as_bytes(), &[]), "");
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    let mut second = Daemon::new("fs2");
    second.connect(&mut vmm);
    vmm.tell("features fs2");
    second.first_message();
    send(second.connection(), preamble(0).as_bytes(), &[]);
    second.answer(FEATURES);
    assert_eq!(vmm.answer(), FEATURES.to_string());
    assert_eq!(daemon.notes(), Notes::default());
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_preamble_that_is_cut_off_ends_nobody() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    vmm.tell("features fs");
    daemon.first_message();
    daemon.connection().write_all(&MAGIC).expect("sent");
    daemon.connection = None;
    assert_eq!(vmm.answer(), "end");
    assert_eq!(vmm.end_well().lines().count(), 1);
}

#[test]
fn a_daemon_that_goes_before_it_says_anything_is_seen_to_go() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    vmm.tell("features fs");
    daemon.first_message();
    daemon.connection = None;
    assert_eq!(vmm.answer(), "end");
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_vmm_that_does_not_wait_is_not_made_to_and_still_sees_no_preamble() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    let would_wait = format!("errno {}", libc::EAGAIN);
    assert_eq!(vmm.ask("ask-features fs"), "ok");
    assert_eq!(vmm.ask("answer-now fs"), would_wait);
    daemon.first_message();
    assert_eq!(vmm.ask("answer-now fs"), would_wait);
    daemon.offer();
    daemon.answer(FEATURES);
    assert_eq!(vmm.ask("answer-now fs"), FEATURES.to_string());
    daemon.have_mapped(&mut vmm);
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.byte("fs", 0), page(0));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_daemon_that_takes_no_replies_holds_up_nobody() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let mut second = Daemon::with_window(&mut vmm, "fs2");
    let message = MapMessage {
        len: RANGE,
        ..MapMessage::default()
    };
    let header = [SHMEM_MAP, 9, 40].map(u32::to_ne_bytes).concat();
    let bytes = [&header, message.as_bytes()].concat();
    daemon.channel().set_nonblocking(true).expect("mode");
    while daemon.channel().write_all(&bytes).is_ok() {}
    assert_eq!(vmm.byte("fs", 0), 0);
    assert_eq!(vmm.ask("unmap fs"), "ok");
    assert_eq!(second.map(&pages(1), 0), 0);
    assert_eq!(vmm.byte("fs2", 0), page(0));
    second.die();
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_daemon_that_never_says_anything_is_waited_for_by_nobody() {
    let mut vmm = Vmm::start();
    let mut silent = Daemon::new("silent");
    silent.connect(&mut vmm);
    silent.begin(&mut vmm);
    silent.have_mapped(&mut vmm);
    assert_eq!(vmm.byte("silent", 0), 0);
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.ask("unmap silent"), "ok");
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn messages_that_break_rules_are_refused_and_the_next_is_served() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    let null = File::open("/dev/null").expect("/dev/null");
    let refused = [
        daemon.map_part(&file, 0, WINDOW, RANGE, 0),
        daemon.map_part(&file, 0, WINDOW - RANGE, 2 * RANGE, 0),
        daemon.map_part(&file, 0, 1, RANGE, 0),
        daemon.map_part(&file, !(PAGE - 1), 0, RANGE, 0),
        daemon.map_part(&file, 0, 0, RANGE, 2),
        daemon.map_part(&null, 0, 0, RANGE, 0),
    ];
    let [invalid, access] = [libc::EINVAL, libc::EACCES];
    assert_eq!(
        refused,
        [invalid, invalid, invalid, invalid, invalid, access]
    );
    assert_eq!(daemon.map(&file, 0), 0);
    assert_eq!(vmm.byte("fs", PAGE), page(1));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_channel_that_breaks_the_protocol_is_closed_with_a_line() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    let giant = [SHMEM_MAP, 9, 1 << 20].map(u32::to_ne_bytes).concat();
    daemon.channel().write_all(&giant).expect("sent");
    until("the thread ends", || {
        !vmm.ask("threads").contains("dax-window")
    });
    assert_eq!(vmm.byte("fs", 0), page(0));
    let stderr = vmm.end_well();
    assert!(
        stderr.starts_with("daxwindow: the channel of a DAX window is closed"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
}

#[test]
fn a_daemon_that_dies_within_a_message_leaves_no_line() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::with_window(&mut vmm, "fs");
    daemon.channel().write_all(&[9, 0, 0]).expect("sent");
    daemon.die();
    until("the thread ends", || {
        !vmm.ask("threads").contains("dax-window")
    });
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn there_is_room_for_eight_windows_and_for_more_when_some_are_gone() {
    let mut vmm = Vmm::start();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut daemons = names.map(|name| Daemon::with_window(&mut vmm, name));
    let ninth = Daemon::with_window(&mut vmm, "i");
    // Nobody serves it, so that its channel is closed.
    let mut nothing = [0];
    let read = std::io::Read::read(&mut ninth.channel(), &mut nothing);
    assert_eq!(read.expect("closed"), 0);
    let file = pages(512);
    assert_eq!(daemons[3].map(&file, 0), 0);
    // A daemon that dies keeps its window as long as the VMM has it mapped.
    daemons[3].die();
    assert_eq!(vmm.byte("d", PAGE), page(1));
    assert_eq!(vmm.ask("unmap d"), "ok");
    until("its thread ends", || {
        vmm.ask("threads").matches("dax-window").count() == 7
    });
    for _ in 0..3 {
        let mut next = Daemon::with_window(&mut vmm, "j");
        assert_eq!(next.map(&file, 0), 0);
        assert_eq!(vmm.byte("j", PAGE), page(1));
        next.die();
        assert_eq!(vmm.ask("unmap j"), "ok");
        until("its thread ends", || {
            vmm.ask("threads").matches("dax-window").count() == 7
        });
    }
    let stderr = vmm.end_well();
    assert!(
        stderr.starts_with("daxwindow: a DAX window is not served"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
}
