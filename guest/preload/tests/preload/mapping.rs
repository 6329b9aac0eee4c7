//! Maps and unmaps over the channel, and where the window is.

use daxwindow_shared::shmem::MAP_WRITABLE;

use crate::daemon::{MIB, PAGE, WINDOW, until};
use crate::{Daemon, Vmm, page, pages};

const RANGE: u64 = 2 * MIB;

#[test]
fn a_daemon_knows_the_library_by_the_name_of_the_vmms_end() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    let name = daemon.connect(&mut vmm);
    assert!(Daemon::is_marked(&name), "{name:?}");
    let mut second = Daemon::new("fs2");
    let other = second.connect(&mut vmm);
    assert!(Daemon::is_marked(&other) && other != name, "{other:?}");
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn the_vmm_reads_what_it_would_have_read_without_the_preamble() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    // The answer is compared in there.
    daemon.begin(&mut vmm);
    daemon.answer(7);
    assert_eq!(vmm.ask("answer fs"), "7");
    until("a thread serves the window", || {
        vmm.ask("threads").contains("dax-window")
    });
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn files_are_mapped_and_unmapped() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(vmm.byte("fs", 0), 0);
    let file = pages(512);
    assert_eq!(daemon.map(&file, RANGE), 0);
    for n in [0, 1, 511] {
        assert_eq!(vmm.byte("fs", RANGE + n * PAGE), page(n));
    }
    assert_eq!(vmm.ask(&format!("store fs {RANGE} 99")), "ok");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).expect("read");
    assert_eq!(byte, [99]);
    assert_eq!(daemon.unmap(RANGE, RANGE), 0);
    assert_eq!(vmm.byte("fs", RANGE), 0);
    assert!(vmm.mapping("fs", RANGE).starts_with("r--p 0"));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_map_replaces_what_is_mapped_and_an_unmap_takes_a_part() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(512), 0), 0);
    let other = pages(600);
    assert_eq!(daemon.map_part(&other, 50 * PAGE, 0, RANGE, 0), 0);
    assert_eq!(vmm.byte("fs", 0), page(50));
    // A part in the middle, from another place of the file.
    assert_eq!(daemon.map_part(&other, 0, 8 * PAGE, 4 * PAGE, 0), 0);
    assert_eq!(vmm.byte("fs", 7 * PAGE), page(57));
    assert_eq!(vmm.byte("fs", 8 * PAGE), page(0));
    assert_eq!(vmm.byte("fs", 12 * PAGE), page(62));
    assert_eq!(daemon.unmap(9 * PAGE, PAGE), 0);
    let read = [8, 9, 10].map(|n| vmm.byte("fs", n * PAGE));
    assert_eq!(read, [page(0), 0, page(2)]);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn what_is_mapped_for_loads_takes_no_stores() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    std::fs::write(&path, [5; 4096]).expect("written");
    let read_only = std::fs::File::open(&path).expect("open");
    assert_eq!(
        daemon.map_part(&read_only, 0, 0, RANGE, MAP_WRITABLE),
        libc::EACCES
    );
    assert_eq!(daemon.map_part(&read_only, 0, 0, RANGE, 0), 0);
    assert_eq!(vmm.byte("fs", 0), 5);
    assert!(vmm.mapping("fs", 0).starts_with("r--s"));
    vmm.tell("store fs 0 1");
    let end = vmm.end();
    let signal = std::os::unix::process::ExitStatusExt::signal(&end.status);
    assert_eq!(signal, Some(libc::SIGSEGV), "{}", end.stderr);
    assert_eq!(std::fs::read(&path).expect("read")[0], 5);
}

#[test]
fn the_window_begins_where_huge_pages_can() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    daemon.begin(&mut vmm);
    let first = daemon.have_mapped(&mut vmm);
    let second = daemon.have_mapped_again(&mut vmm);
    assert_ne!(first, second);
    assert_eq!([first, second].map(|at| at as u64 % RANGE), [0, 0]);
}

#[test]
fn before_the_vmm_has_mapped_the_window_nothing_is_mapped_and_all_is_unmapped() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::new("fs");
    daemon.connect(&mut vmm);
    daemon.begin(&mut vmm);
    assert_eq!(daemon.map(&pages(1), 0), libc::ENXIO);
    assert_eq!(daemon.unmap(0, WINDOW), 0);
    daemon.have_mapped(&mut vmm);
    assert_eq!(daemon.unmap(0, WINDOW), 0);
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(vmm.byte("fs", 0), page(0));
}

#[test]
fn a_window_that_is_gone_is_not_mapped_into() {
    for order in ["unmap fs", "map-over fs"] {
        let mut vmm = Vmm::start();
        let daemon = Daemon::with_window(&mut vmm, "fs");
        let file = pages(512);
        assert_eq!(daemon.map(&file, 0), 0);
        assert_eq!(vmm.ask(order), "ok");
        assert_eq!(daemon.map(&file, RANGE), libc::ENXIO);
        assert_eq!(daemon.unmap(0, RANGE), 0);
        let left = match order {
            "unmap fs" => "- -",
            _ => "rw-p 0",
        };
        assert_eq!(vmm.mapping("fs", RANGE), left);
        // The next one is as good as the first.
        daemon.have_mapped_again(&mut vmm);
        assert_eq!(vmm.byte("fs", 0), 0);
        assert_eq!(daemon.map(&file, RANGE), 0);
        assert_eq!(vmm.byte("fs", RANGE), page(0));
        assert_eq!(vmm.end_well(), "");
    }
}

#[test]
fn two_windows_are_apart() {
    let mut vmm = Vmm::start();
    let [first, second] = ["a", "b"].map(|name| Daemon::with_window(&mut vmm, name));
    let [one, other] = [pages(512), pages(513)];
    assert_eq!(first.map(&one, 0), 0);
    assert_eq!(second.map_part(&other, PAGE, 0, RANGE, 0), 0);
    assert_eq!((vmm.byte("a", 0), vmm.byte("b", 0)), (page(0), page(1)));
    assert_eq!(vmm.ask("unmap a"), "ok");
    assert_eq!(vmm.byte("b", 0), page(1));
    assert_eq!(first.map(&one, 0), libc::ENXIO);
    assert_eq!(second.map(&one, 0), 0);
    assert_eq!(vmm.byte("b", 0), page(0));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn what_a_daemon_has_mapped_outlives_it() {
    let mut vmm = Vmm::start();
    let mut daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(daemon.map(&pages(512), 0), 0);
    daemon.die();
    assert_eq!(vmm.byte("fs", PAGE), page(1));
    let threads = |vmm: &mut Vmm| vmm.ask("threads").contains("dax-window");
    until("its thread ends", || !threads(&mut vmm));
    assert_eq!(vmm.byte("fs", PAGE), page(1));
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn no_map_lands_in_memory_that_was_a_window() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    vmm.tell("churn fs 100");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mapper = scope.spawn(|| {
            let mut errors = Vec::new();
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                for at in (0..WINDOW).step_by(RANGE as usize) {
                    errors.push(daemon.map(&file, at));
                }
            }
            errors.sort_unstable();
            errors.dedup();
            errors
        });
        let changed = vmm.answer();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let errors = mapper.join().expect("no panic");
        let allowed = [0, libc::ENXIO, libc::EAGAIN];
        assert!(
            errors.iter().all(|errno| allowed.contains(errno)),
            "{errors:?}"
        );
        assert_eq!(changed, "0");
    });
    assert_eq!(vmm.end_well(), "");
}
