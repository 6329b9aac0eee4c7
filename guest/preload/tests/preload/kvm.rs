//! KVM, for which a stand-in loads a byte where a guest's processor would.

use crate::daemon::{self, MIB, PAGE, until};
use crate::{Daemon, Vmm, page, pages};

const RANGE: u64 = 2 * MIB;

/// What so many processors load at page `n`.
fn run(vmm: &mut Vmm, n: u64, processors: usize) -> String {
    vmm.ask(&format!("run fs {} {processors}", n * PAGE))
}

fn each(byte: u8, processors: usize) -> String {
    vec![byte.to_string(); processors].join(" ")
}

#[test]
fn a_processor_that_meets_the_end_of_a_file_goes_on() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let [file, other] = [pages(512), pages(512)];
    assert_eq!(daemon.map(&other, 0), 0);
    assert_eq!(daemon.map(&file, RANGE), 0);
    assert_eq!(run(&mut vmm, 512 + 300, 1), each(page(300), 1));
    file.set_len(100 * PAGE).expect("truncated");
    assert_eq!(run(&mut vmm, 512 + 300, 1), each(0, 1));
    assert_eq!(daemon.notes().mended_pages, 412);
    assert_eq!(run(&mut vmm, 512 + 99, 1), each(page(99), 1));
    assert_eq!(run(&mut vmm, 511, 1), each(page(511), 1));
    // Shorter still, before what was mended.
    file.set_len(PAGE).expect("truncated");
    assert_eq!(run(&mut vmm, 512 + 1, 1), each(0, 1));
    assert_eq!(daemon.notes().mended_pages, 511);
    (1..512).for_each(|n| daemon::write_page(&file, n));
    for n in [1, 99, 100, 511] {
        until("it is shown again", || {
            run(&mut vmm, 512 + n, 1) == each(page(n), 1)
        });
    }
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn processors_that_meet_it_at_once_all_go_on() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    for round in 0..8 {
        let file = pages(512);
        assert_eq!(daemon.map(&file, round % 4 * RANGE), 0);
        file.set_len(0).expect("truncated");
        assert_eq!(run(&mut vmm, round % 4 * 512 + 77, 4), each(0, 4));
    }
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_processor_whose_page_somebody_else_has_mended_goes_on() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(512), 0), 0);
    let loaded = vmm.ask(&format!("run-failing-once fs {}", 7 * PAGE));
    assert_eq!((loaded, daemon.notes().mended_pages), (each(page(7), 1), 0));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn parts_of_files_are_looked_through() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let [file, other] = [pages(8), pages(8)];
    assert_eq!(daemon.map_part(&file, 0, 0, 4 * PAGE, 0), 0);
    assert_eq!(daemon.map_part(&other, 4 * PAGE, 4 * PAGE, 4 * PAGE, 0), 0);
    file.set_len(2 * PAGE).expect("truncated");
    assert_eq!(run(&mut vmm, 3, 1), each(0, 1));
    assert_eq!(run(&mut vmm, 1, 1), each(page(1), 1));
    assert_eq!(run(&mut vmm, 4, 1), each(page(4), 1));
    assert_eq!(daemon.notes().mended_pages, 2);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn where_nothing_is_lost_the_error_is_the_vmms() {
    let mut vmm = Vmm::with_devices();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let fault = format!("errno {}", libc::EFAULT);
    // Just behind the window, where QEMU leaves a page that is no memory.
    let behind = daemon::WINDOW / PAGE;
    assert_eq!(run(&mut vmm, behind, 1), fault);
    assert_eq!(daemon.map(&pages(512), 0), 0);
    assert_eq!(run(&mut vmm, behind, 1), fault);
    assert_eq!(daemon.notes().mended_pages, 0);
    assert_eq!(vmm.end_well(), "");
}
