//! Connections that are none of a daemon's, and what they cost.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use crate::daemon::until;
use crate::{Daemon, Vmm, pages};

#[test]
fn only_stream_sockets_to_a_path_are_named() {
    let mut vmm = Vmm::start();
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();

    let abstract_name = format!("daxwindow-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    assert_eq!(
        vmm.ask(&format!("connect-abstract {abstract_name} a")),
        "ok"
    );
    let (_connection, peer) = listener.accept().expect("a client");
    assert!(peer.is_unnamed(), "{peer:?}");

    let receiver = UnixDatagram::bind(at("datagrams")).expect("a socket");
    let answer = vmm.ask(&format!("connect-datagram {}", at("datagrams")));
    assert_eq!(answer, "unnamed");
    drop(receiver);

    // What has a name keeps it.
    let listener = UnixListener::bind(at("stream")).expect("a socket");
    let order = format!("connect-bound {} {} b", at("own"), at("stream"));
    assert_eq!(vmm.ask(&order), "ok");
    let (_connection, peer) = listener.accept().expect("a client");
    assert_eq!(
        peer.as_pathname(),
        Some(directory.path().join("own").as_path())
    );
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_connection_that_fails_fails_as_before_and_may_be_tried_again() {
    let mut vmm = Vmm::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let order = format!("connect-twice {} fs", path.display());
    vmm.tell(&order);
    assert_eq!(vmm.answer(), format!("errno {}", libc::ENOENT));
    let mut daemon = Daemon::at(directory, "fs");
    vmm.tell("now");
    let name = daemon.accept();
    assert_eq!(vmm.answer(), "ok");
    assert!(Daemon::is_marked(&name));
    daemon.begin(&mut vmm);
    daemon.have_mapped(&mut vmm);
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_marked_connection_of_another_protocol_carries_what_it_carried() {
    let mut vmm = Vmm::start();
    let mut server = Daemon::new("x");
    server.connect(&mut vmm);
    assert_eq!(vmm.ask("send x hello"), "ok");
    let mut heard = [0; 5];
    server.connection().read_exact(&mut heard).expect("text");
    assert_eq!(&heard, b"hello");
    server.connection().write_all(&[7; 20]).expect("sent");
    assert_eq!(vmm.ask("answer x"), u64::from_ne_bytes([7; 8]).to_string());
    // Nobody that keeps files out.
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(daemon.notes().others, 0);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_number_that_is_another_connection_by_now_is_looked_at_anew() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::with_window(&mut vmm, "fs");
    daemon.connection = None;
    assert_eq!(vmm.ask("close fs"), "ok");
    // The same number, as a rule; it is no daemon's.
    assert_eq!(vmm.ask("pair p"), "ok");
    assert_eq!(vmm.ask("send-memfd p fs"), "ok");
    assert_eq!(daemon.notes().others, 1);
    until("no file is let in", || {
        daemon.map(&pages(1), 0) == libc::EPERM
    });
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn calls_that_are_not_about_a_window_make_no_other_system_call() {
    let mut vmm = Vmm::start();
    assert_eq!(vmm.ask("pass-through"), "ok");
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.ask("pass-through"), "ok");
    assert_eq!(vmm.end_well(), "");
}
