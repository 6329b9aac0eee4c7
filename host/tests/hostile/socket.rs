//! Anything but a VMM on the vhost-user socket.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::common::{
    Daemon, PATIENCE, assert_serves, assert_serves_next, attach_soon, in_memory, pattern, word,
};

/// Connects once the client before has been let go.
fn connect(daemon: &Daemon) -> UnixStream {
    drop(attach_soon(daemon));
    // The next accept may still be of a doorman: then the stream ends at once.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stream = UnixStream::connect(daemon.socket()).expect("listening");
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("timeout");
        if !is_over(&stream) {
            return stream;
        }
        assert!(Instant::now() < deadline, "never let in");
    }
}

/// Whether the daemon has closed the stream. Waits for the time-out of reads.
fn is_over(mut stream: &UnixStream) -> bool {
    let mut reply = [0; 4096];
    loop {
        match stream.read(&mut reply) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn random_bytes_cost_their_connection_alone() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &[]);
    for seed in 0..24u64 {
        let mut stream = connect(&daemon);
        let len = (word(seed, 1) % 6000) as usize;
        // The daemon may have had enough before all is sent.
        let _ = stream.write_all(&pattern(seed, 0, len));
        drop(stream);
    }
    assert_serves_next(&daemon);
}

#[test]
fn half_a_message_ends_with_its_connection() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &[]);
    for bytes in [
        &message(1, 1, &[])[..7],
        &message(5, 1, &[0; 100])[..60],
        &header(2, 1, 4096)[..],
        &header(2, 1, u32::MAX)[..],
        &[],
    ] {
        let mut stream = connect(&daemon);
        let _ = stream.write_all(bytes);
        drop(stream);
        assert_serves_next(&daemon);
    }
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .iter()
        .flat_map(|n| n.to_ne_bytes())
        .collect()
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    [&header(request, flags, body.len() as u32), body].concat()
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags).is_ok()
}

fn memfd() -> OwnedFd {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("noise", flags).expect("memfd");
    rustix::fs::ftruncate(&fd, 1 << 20).expect("ftruncate");
    fd
}

/// Request numbers of the vhost-user protocol, and some that are none.
const REQUESTS: u64 = 48;
/// GET_PROTOCOL_FEATURES and what goes before it, so that the rest is heard.
fn negotiate(stream: &UnixStream) {
    // SET_OWNER, GET_FEATURES, SET_FEATURES, and the same of the protocol.
    send(stream, &message(3, 1, &[]), &[]);
    send(stream, &message(1, 1, &[]), &[]);
    let virtio = (1u64 << 32 | 1 << 30 | 1 << 29 | 1 << 28).to_ne_bytes();
    send(stream, &message(2, 1, &virtio), &[]);
    send(stream, &message(15, 1, &[]), &[]);
    let protocol =
        (1u64 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 22).to_ne_bytes();
    send(stream, &message(16, 1, &protocol), &[]);
}

#[test]
fn random_messages_cost_their_connection_alone() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &[]);
    let fd = memfd();
    for seed in 0..60u64 {
        let stream = connect(&daemon);
        negotiate(&stream);
        for step in 0..200u64 {
            let dice = word(seed, step);
            let request = 1 + (dice % REQUESTS) as u32;
            let flags = 1 | if dice & 1 << 20 == 0 { 0 } else { 8 };
            let len = match dice >> 24 & 7 {
                0 => (dice >> 32) as usize % 300,
                1 => 0,
                // Of about the right size for many.
                2..5 => 8,
                5 => 40,
                6 => 24,
                _ => 12,
            };
            // Small numbers reach further than noise.
            let body: Vec<u8> = pattern(dice, 0, len)
                .chunks(4)
                .flat_map(|four| match four[0] % 3 {
                    0 => four.to_vec(),
                    _ => [four[0] % 4, 0, 0, 0][..four.len()].to_vec(),
                })
                .collect();
            let fds = [fd.as_fd(), fd.as_fd(), fd.as_fd()];
            let fds = &fds[..(dice >> 40 & 3) as usize];
            if !send(&stream, &message(request, flags, &body), fds) {
                break;
            }
        }
        drop(stream);
    }
    assert_serves_next(&daemon);
    let log = daemon.log();
    assert!(!log.contains("a defect"), "{log}");
}

#[test]
fn a_client_that_says_nothing_keeps_others_out_and_nothing_else() {
    let share = in_memory();
    let mut daemon = Daemon::start(share.path(), &[]);
    let silent = connect(&daemon);
    let second = UnixStream::connect(daemon.socket()).expect("listening");
    second.set_read_timeout(Some(PATIENCE)).expect("timeout");
    assert!(is_over(&second), "turned away");
    drop(silent);
    assert_serves(&attach_soon(&daemon));
    // And it does not keep the daemon from ending.
    let _silent = connect(&daemon);
    assert!(daemon.terminate().success());
}
