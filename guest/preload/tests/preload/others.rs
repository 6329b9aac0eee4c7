//! Who else looks into guest memory.

use daxwindow_shared::preload::{Notes, OTHER_BACK_END, PINNED};

use crate::daemon::{FEATURES, MIB, WINDOW, until};
use crate::{Daemon, Vmm, page, pages};

const RANGE: u64 = 2 * MIB;

/// VFIO_SET_IOMMU, IOMMU_IOAS_ALLOC, VHOST_VDPA_GET_DEVICE_ID and SET_STATUS.
const SET_UPS: [&str; 4] = ["3b66", "3b81", "8004af70", "4001af72"];
/// What the stand-in answers to them.
const DONE: &str = "77";

fn errno(errno: i32) -> String {
    format!("errno {errno}")
}

/// Has the front end connect to a back end of another kind, which answers.
fn foreign(vmm: &mut Vmm, name: &'static str) -> (Daemon, String) {
    let mut server = Daemon::new(name);
    server.connect(vmm);
    vmm.tell(&format!("features {name}"));
    server.first_message();
    server.answer(FEATURES);
    let answer = vmm.answer();
    (server, answer)
}

/// Lines on stderr that a refusal leaves.
fn is_one_line(stderr: &str) -> bool {
    stderr.starts_with("daxwindow: ") && stderr.contains("ranges") && stderr.lines().count() == 1
}

#[test]
fn another_back_end_gets_what_it_would_have_got_and_keeps_files_out() {
    let mut vmm = Vmm::start();
    let (other, answer) = foreign(&mut vmm, "blk");
    assert_eq!(answer, FEATURES.to_string());
    other.answer(9);
    assert_eq!(vmm.ask("answer blk"), "9");
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.notes().others, OTHER_BACK_END);
    assert_eq!(daemon.map(&pages(1), 0), libc::EPERM);
    assert_eq!(vmm.byte("fs", 0), 0);
    assert_eq!(daemon.unmap(0, WINDOW), 0);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn another_back_end_that_comes_while_nothing_is_mapped_keeps_files_out() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(daemon.unmap(0, RANGE), 0);
    let (_other, answer) = foreign(&mut vmm, "blk");
    assert_eq!(answer, FEATURES.to_string());
    assert_eq!(daemon.notes().others, OTHER_BACK_END);
    assert_eq!(daemon.map(&pages(1), 0), libc::EPERM);
    assert_eq!(vmm.ask("close blk"), "ok");
    // For ever: it may have kept what it has seen.
    assert_eq!(daemon.map(&pages(1), 0), libc::EPERM);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn another_back_end_that_comes_while_files_are_mapped_is_refused() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    // Less than a range counts as well.
    assert_eq!(daemon.map_part(&file, 0, 4096, 4096, 0), 0);
    for n in 1..3 {
        let (_other, answer) = foreign(&mut vmm, "blk");
        assert_eq!(answer, errno(libc::ECONNABORTED));
        let notes = daemon.notes();
        assert_eq!((notes.others, notes.refused_devices), (0, n));
    }
    assert_eq!(daemon.map(&file, RANGE), 0);
    assert_eq!(vmm.byte("fs", 4096), page(0));
    assert_eq!(daemon.unmap(RANGE, RANGE), 0);
    assert_eq!(daemon.unmap(4096, 4096), 0);
    // What is left of a range is forgotten a moment after it is unmapped.
    until("the next one is let in", || {
        foreign(&mut vmm, "blk").1 == FEATURES.to_string()
    });
    assert_eq!(daemon.map(&file, 0), libc::EPERM);
    let stderr = vmm.end_well();
    assert!(is_one_line(&stderr), "{stderr}");
}

#[test]
fn a_daemon_of_ours_keeps_no_files_out_and_gets_the_memfds() {
    let mut vmm = Vmm::start();
    let [first, second] = ["a", "b"].map(|name| Daemon::with_window(&mut vmm, name));
    assert_eq!(first.map(&pages(1), 0), 0);
    assert_eq!(vmm.ask("send-memfd b a"), "ok");
    assert_eq!(second.map(&pages(1), 0), 0);
    assert_eq!(vmm.ask("send-memfd a b"), "ok");
    assert_eq!([first.notes(), second.notes()], [Notes::default(); 2]);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn the_memfd_goes_to_nobody_else_while_files_are_mapped() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    // Connected, and not known to be vhost-user.
    let mut other = Daemon::new("x");
    other.connect(&mut vmm);
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.ask("send-memfd x fs"), errno(libc::EPERM));
    assert_eq!(daemon.notes().refused_devices, 1);
    assert_eq!(daemon.unmap(0, RANGE), 0);
    assert_eq!(vmm.ask("send-memfd x fs"), "ok");
    assert_eq!(daemon.notes().others, OTHER_BACK_END);
    assert_eq!(daemon.map(&pages(1), 0), libc::EPERM);
    let stderr = vmm.end_well();
    assert!(is_one_line(&stderr), "{stderr}");
}

#[test]
fn a_device_that_pins_memory_keeps_files_out() {
    for request in SET_UPS {
        let mut vmm = Vmm::with_devices();
        assert_eq!(vmm.ask(&format!("ioctl {request}")), DONE);
        let daemon = Daemon::with_window(&mut vmm, "fs");
        assert_eq!(daemon.notes().others, PINNED);
        assert_eq!(daemon.map(&pages(1), 0), libc::EPERM);
        assert_eq!(vmm.ask(&format!("pin vfio fs 0 {WINDOW}")), DONE);
        assert_eq!(vmm.ask("pin-memfd fs"), DONE);
        assert_eq!(vmm.end_well(), "");
    }
}

#[test]
fn a_device_that_pins_memory_is_refused_while_files_are_mapped() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    for request in SET_UPS {
        assert_eq!(vmm.ask(&format!("ioctl {request}")), errno(libc::EPERM));
    }
    for way in ["vfio", "iommufd"] {
        // The window's last page, and what follows it.
        let order = format!("pin {way} fs {} {MIB}", WINDOW - 4096);
        assert_eq!(vmm.ask(&order), errno(libc::EPERM));
        assert_eq!(vmm.ask(&format!("pin-elsewhere {way}")), DONE);
    }
    assert_eq!(vmm.ask("pin-memfd fs"), errno(libc::EPERM));
    let notes = daemon.notes();
    assert_eq!((notes.others, notes.refused_devices), (0, 7));
    assert_eq!(daemon.map(&pages(1), RANGE), 0);
    let stderr = vmm.end_well();
    assert!(is_one_line(&stderr), "{stderr}");
}

#[test]
fn other_requests_are_the_kernels() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(1), 0), 0);
    // TCGETS, VFIO_GET_API_VERSION, KVM_GET_API_VERSION of /dev/null.
    for request in ["5401", "3b64", "ae00"] {
        assert_eq!(vmm.ask(&format!("ioctl {request}")), errno(libc::ENOTTY));
    }
    assert_eq!(daemon.notes(), Notes::default());
    assert_eq!(vmm.end_well(), "");
}
