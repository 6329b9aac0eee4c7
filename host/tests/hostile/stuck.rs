//! VMMs that keep threads of the daemon for as long as they like: in a
//! descriptor that takes no more signals, in memory that is not there yet. It
//! costs nobody but them.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use daxwindow_shared::fuse::{Opcode, ROOT_ID};
use rustix::fs::OFlags;
use rustix::process::Signal;
use tempfile::TempDir;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::common::{Daemon, assert_serves, attach_soon, eventually, in_memory};
use crate::driver::SIZE;

use super::mute::{LEN, Mute};
use super::vmm::{ELSEWHERE, FREE, Vmm};

/// Requests that keep a thread each.
const REQUESTS: usize = 6;
fn start() -> (TempDir, Daemon) {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--num-request-queues", "1"]);
    (share, daemon)
}

/// The next client is served, and the daemon ends when it is told to.
fn assert_goes_on_and_ends(mut daemon: Daemon) {
    assert_serves(&attach_soon(&daemon));
    assert!(daemon.terminate().success());
}

/// Offers requests whose signals nobody takes.
fn ask_without_listening(vmm: &mut Vmm, call: &EventFd) {
    vmm.signal_by(1, call);
    let request = vmm.request(Opcode::Statfs, ROOT_ID, &[]);
    let (at, _, _) = vmm.reply_buffer();
    for _ in 0..REQUESTS {
        assert_eq!(vmm.give(&[request, (at, 4096, true)]), 96);
    }
}

#[test]
fn a_call_descriptor_that_is_full_keeps_nobody_but_its_own_queue() {
    let (_share, daemon) = start();
    let mut vmm = Vmm::connect(&daemon, true);
    let call = EventFd::new(0).expect("an eventfd");
    call.write(u64::MAX - 1).expect("filled");
    ask_without_listening(&mut vmm, &call);
    // Not even a stop waits for it longer than for anything else.
    assert!(vmm.stop(1).is_some(), "stopped");
    drop(vmm);
    assert_goes_on_and_ends(daemon);
}

#[test]
fn a_client_that_goes_with_its_call_descriptor_full_is_followed_by_the_next() {
    let (_share, daemon) = start();
    let mut vmm = Vmm::connect(&daemon, true);
    let call = EventFd::new(0).expect("an eventfd");
    call.write(u64::MAX - 1).expect("filled");
    ask_without_listening(&mut vmm, &call);
    drop(vmm);
    assert_goes_on_and_ends(daemon);
}

#[test]
fn a_pipe_that_is_full_keeps_nobody() {
    let (_share, daemon) = start();
    let mut vmm = Vmm::connect(&daemon, true);
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).expect("set");
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, OFlags::empty()).expect("cleared");
    // SAFETY: the number of an open descriptor that nobody else owns any more.
    let call = unsafe { EventFd::from_raw_fd(OwnedFd::from(writer).into_raw_fd()) };
    ask_without_listening(&mut vmm, &call);
    drop(vmm);
    assert_goes_on_and_ends(daemon);
}

/// Where a ring's parts are, far enough from each other that no read of one
/// brings the next.
const PARTS: [u64; 3] = [ELSEWHERE, ELSEWHERE + (2 << 20), ELSEWHERE + (4 << 20)];

fn rings(parts: [u64; 3]) -> VringConfigData {
    let [table, used, available] = parts.map(|gpa| gpa + (1 << 44));
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: table,
        used_ring_addr: used,
        avail_ring_addr: available,
        log_addr: None,
    }
}

/// A client whose memory is a file that a FUSE server does not give, gone
/// without leaving anything mapped.
fn assert_memory_is_gone(daemon: &Daemon, mute: &Mute) {
    assert_serves(&attach_soon(daemon));
    eventually("it is not mapped any more", || {
        daemon.maps_of(mute.name()) == 0
    });
    eventually("it is not open any more", || {
        let open = daemon.open_targets();
        !open.iter().any(|path| path.ends_with(mute.name()))
    });
}

/// The daemon does all that it has to, and ends; the kernel keeps what is left
/// of the process until the memory is there.
fn assert_ends(mut daemon: Daemon, mute: &Mute) {
    daemon.signal(Signal::TERM);
    daemon.expect_log("ended by a signal", 1);
    mute.release();
    assert!(daemon.wait().success());
}

fn add_memory(vmm: &Vmm, mute: &Mute) {
    vmm.add_memory(ELSEWHERE, LEN, &mute.open());
}

/// A thread of the daemon is stuck in memory of the ring, which it has locked.
fn lock_ring(vmm: &Vmm, mute: &Mute) {
    vmm.stop(1).expect("stopped");
    add_memory(vmm, mute);
    vmm.front.set_vring_base(1, 0).expect("taken");
    vmm.front.set_vring_addr(1, &rings(PARTS)).expect("taken");
    mute.mute();
    vmm.start_again(1);
    vmm.kick(1);
    eventually("a thread is stuck", || mute.held() > 0);
}

#[test]
fn a_ring_in_memory_that_never_comes_keeps_nobody_but_its_own_queue() {
    let ((_share, daemon), mute) = (start(), Mute::mount());
    let vmm = Vmm::connect(&daemon, true);
    lock_ring(&vmm, &mute);
    // With the ring locked; it is stopped and closed all the same.
    assert!(vmm.stop(1).is_some(), "stopped");
    drop(vmm);
    assert_memory_is_gone(&daemon, &mute);
    assert_ends(daemon, &mute);
}

#[test]
fn a_client_that_goes_while_its_ring_is_locked_is_followed_by_the_next() {
    let ((_share, daemon), mute) = (start(), Mute::mount());
    let vmm = Vmm::connect(&daemon, true);
    lock_ring(&vmm, &mute);
    drop(vmm);
    assert_memory_is_gone(&daemon, &mute);
    assert_ends(daemon, &mute);
}

#[test]
fn a_ring_that_is_set_up_in_memory_that_never_comes_is_refused() {
    let ((_share, daemon), mute) = (start(), Mute::mount());
    let vmm = Vmm::connect(&daemon, true);
    vmm.stop(1).expect("stopped");
    add_memory(&vmm, &mute);
    mute.mute();
    let set_up = vmm.front.set_vring_addr(1, &rings(PARTS));
    assert!(set_up.is_err(), "its used index cannot be read");
    drop(vmm);
    assert_memory_is_gone(&daemon, &mute);
    assert_ends(daemon, &mute);
}

#[test]
fn a_request_in_memory_that_never_comes_keeps_its_own_thread_alone() {
    let ((_share, daemon), mute) = (start(), Mute::mount());
    let mut vmm = Vmm::connect(&daemon, true);
    add_memory(&vmm, &mute);
    mute.mute();
    vmm.send(&[(ELSEWHERE, 40, false), (FREE, 4096, true)]);
    eventually("a thread is stuck", || mute.held() > 0);
    assert_eq!(vmm.ask(Opcode::Statfs, ROOT_ID, &[]).0, 0, "others go on");
    drop(vmm);
    assert_memory_is_gone(&daemon, &mute);
    assert_ends(daemon, &mute);
}

/// All guests' memory is in one list, which nobody may keep locked.
#[test]
fn memory_of_a_file_system_that_tells_nothing_of_itself_is_taken() {
    let ((_share, daemon), mute) = (start(), Mute::mount());
    let mut vmm = Vmm::connect(&daemon, true);
    mute.mute();
    add_memory(&vmm, &mute);
    assert_eq!(vmm.ask(Opcode::Statfs, ROOT_ID, &[]).0, 0);
    drop(vmm);
    assert_memory_is_gone(&daemon, &mute);
    assert_ends(daemon, &mute);
}
