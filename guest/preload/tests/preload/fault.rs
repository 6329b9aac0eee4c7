//! Files that end under a guest that reads them, and every other SIGBUS.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::daemon::{self, MIB, PAGE, until};
use crate::{Daemon, Vmm, page, pages};

const RANGE: u64 = 2 * MIB;

fn grow(file: &File, from: u64, to: u64) {
    (from..to).for_each(|n| daemon::write_page(file, n));
}

fn bytes<const N: usize>(vmm: &mut Vmm, pages: [u64; N]) -> [u8; N] {
    pages.map(|n| vmm.byte("fs", n * PAGE))
}

#[test]
fn where_a_file_has_ended_there_are_zeros_and_where_it_grew_there_is_the_file() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    assert_eq!(daemon.map(&file, 0), 0);
    for round in 1..4 {
        assert_eq!(bytes(&mut vmm, [0, 511]), [page(0), page(511)]);
        file.set_len(100 * PAGE).expect("truncated");
        assert_eq!(bytes(&mut vmm, [300, 511, 99]), [0, 0, page(99)]);
        // All that follows in the range at once, and what is read before it.
        assert_eq!(daemon.notes().mended_pages, round * 212);
        grow(&file, 100, 512);
        until("the file is shown again", || bytes(&mut vmm, [300]) != [0]);
        let all = [100, 299, 300, 400, 511];
        assert_eq!(bytes(&mut vmm, all), all.map(page));
        until("it is counted", || {
            daemon.notes().regrown_pages == round * 212
        });
    }
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_file_that_is_read_backwards_behind_its_end_is_mended_and_regrown() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    assert_eq!(daemon.map(&file, 0), 0);
    file.set_len(PAGE).expect("truncated");
    for n in (1..512).rev() {
        assert_eq!(bytes(&mut vmm, [n]), [0]);
    }
    assert_eq!(daemon.notes().mended_pages, 511);
    grow(&file, 1, 200);
    until("a part is shown again", || bytes(&mut vmm, [199]) != [0]);
    let part = [1, 2, 198, 199];
    assert_eq!(bytes(&mut vmm, part), part.map(page));
    assert_eq!(bytes(&mut vmm, [200, 511]), [0, 0]);
    grow(&file, 200, 512);
    until("all is shown again", || bytes(&mut vmm, [511]) != [0]);
    let all = [1, 199, 200, 511];
    assert_eq!(bytes(&mut vmm, all), all.map(page));
    assert_eq!(daemon.notes().regrown_pages, 511);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_file_that_ends_twice_is_mended_in_both_places() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    assert_eq!(daemon.map(&file, 0), 0);
    file.set_len(400 * PAGE).expect("truncated");
    assert_eq!(bytes(&mut vmm, [450]), [0]);
    file.set_len(200 * PAGE).expect("truncated");
    assert_eq!(bytes(&mut vmm, [250, 420, 199]), [0, 0, page(199)]);
    grow(&file, 200, 512);
    for n in [250, 420, 450] {
        until("it is shown again", || bytes(&mut vmm, [n]) == [page(n)]);
    }
    assert_eq!(bytes(&mut vmm, [511]), [page(511)]);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn small_parts_of_files_are_mended_page_by_page() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let [file, other] = [pages(8), pages(20)];
    assert_eq!(daemon.map_part(&other, 4 * PAGE, 4 * PAGE, 8 * PAGE, 0), 0);
    assert_eq!(daemon.map_part(&file, 0, 0, 4 * PAGE, 0), 0);
    file.set_len(PAGE).expect("truncated");
    assert_eq!(bytes(&mut vmm, [0, 2, 3, 4]), [page(0), 0, 0, page(4)]);
    assert_eq!(daemon.notes().mended_pages, 2);
    grow(&file, 1, 4);
    until("it is shown again", || {
        bytes(&mut vmm, [2, 3]) == [2, 3].map(page)
    });
    assert_eq!(bytes(&mut vmm, [4]), [page(4)]);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn what_is_mapped_over_zeros_stays_when_the_file_before_grows() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let [file, other] = [pages(512), pages(600)];
    assert_eq!(daemon.map(&file, 0), 0);
    file.set_len(0).expect("truncated");
    assert_eq!(bytes(&mut vmm, [10]), [0]);
    assert_eq!(
        daemon.map_part(&other, 70 * PAGE, 20 * PAGE, 10 * PAGE, 0),
        0
    );
    assert_eq!(daemon.unmap(40 * PAGE, 10 * PAGE), 0);
    grow(&file, 0, 512);
    let grown = [19, 30, 39, 50, 511];
    for n in grown {
        until("the rest is shown again", || {
            bytes(&mut vmm, [n]) == [page(n)]
        });
    }
    let replaced = [20, 29, 40, 49];
    assert_eq!(bytes(&mut vmm, replaced), [page(70), page(79), 0, 0]);
    assert_eq!(daemon.unmap(0, RANGE), 0);
    assert_eq!(bytes(&mut vmm, [10, 511]), [0, 0]);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn what_is_stored_behind_the_end_of_a_file_stays_out_of_it() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(512);
    assert_eq!(daemon.map(&file, 0), 0);
    file.set_len(PAGE).expect("truncated");
    assert_eq!(vmm.ask(&format!("store fs {} 7", 5 * PAGE)), "ok");
    assert_eq!(bytes(&mut vmm, [5, 6]), [7, 0]);
    assert_eq!(file.metadata().expect("metadata").len(), PAGE);
    assert_eq!(vmm.end_well(), "");
}

/// A file system that has no room left, with a sparse file of which two pages
/// hold data.
struct Full {
    directory: tempfile::TempDir,
    file: File,
}

const SECOND: u64 = 7;

impl Full {
    fn fill(directory: tempfile::TempDir) -> Full {
        let path = directory.path().join("sparse");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        let file = file.expect("a file");
        file.set_len(RANGE).expect("size");
        for n in [0, SECOND] {
            daemon::write_page(&file, n);
        }
        file.sync_all().expect("synced");
        let filler = File::create(directory.path().join("filler")).expect("a file");
        let mut room = 0;
        while filler.write_at(&[1; PAGE as usize], room * PAGE).is_ok() {
            room += 1;
        }
        let _ = filler.sync_all();
        Full { directory, file }
    }

    fn tmpfs() -> Full {
        let directory = tempfile::tempdir().expect("a directory");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", directory.path(), "tmpfs", flags, c"size=32k")
            .expect("a tmpfs (CAP_SYS_ADMIN)");
        Full::fill(directory)
    }

    /// On `image`, which is deleted when this is gone.
    fn ext4(image: &tempfile::NamedTempFile) -> Full {
        image.as_file().set_len(4 * MIB).expect("size");
        let directory = tempfile::tempdir().expect("a directory");
        let run = |command: &mut Command| {
            let output = command.output();
            let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {stderr}");
        };
        run(Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(image.path()));
        let mut mount = Command::new("mount");
        run(mount
            .args(["-o", "loop"])
            .arg(image.path())
            .arg(directory.path()));
        Full::fill(directory)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_tmpfs_has_lost_its_holes_and_nothing_else() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let full = Full::tmpfs();
    assert_eq!(daemon.map(&full.file, 0), 0);
    assert_eq!(bytes(&mut vmm, [5, SECOND, 0]), [0, page(SECOND), page(0)]);
    assert_eq!(daemon.notes().mended_pages, 2);
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_store_that_the_files_file_system_has_no_room_for_harms_the_guest_alone() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let image = tempfile::NamedTempFile::new().expect("a file");
    let full = Full::ext4(&image);
    assert_eq!(daemon.map(&full.file, 0), 0);
    let at = 5 * PAGE + 1;
    assert_eq!(vmm.ask(&format!("store fs {at} 7")), "ok");
    assert_eq!(
        bytes(&mut vmm, [0, 5, 6, SECOND]),
        [page(0), 0, 0, page(SECOND)]
    );
    assert_eq!((vmm.byte("fs", at), daemon.notes().mended_pages), (7, 1));
    let mut byte = [1];
    full.file.read_exact_at(&mut byte, at).expect("read");
    assert_eq!(byte, [0]);
    assert_eq!(vmm.end_well(), "");
    drop(full);
}

#[test]
fn files_end_grow_and_are_mapped_under_many_readers() {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let files: Vec<File> = (0..4).map(|_| pages(512)).collect();
    assert_eq!(vmm.ask("readers fs 3"), "ok");
    for round in 0..150u64 {
        let (file, at) = (&files[round as usize % 4], round % 8 * RANGE);
        assert_eq!(daemon.map(file, at), 0);
        let (end, before) = (round * 37 % 512, daemon.notes().mended_pages);
        file.set_len(end * PAGE).expect("truncated");
        match round % 6 {
            0 | 3 => assert_eq!(daemon.unmap(at, RANGE), 0),
            1 => until("a reader meets the end", || {
                daemon.notes().mended_pages > before
            }),
            _ => {}
        }
        grow(file, end, 512);
    }
    for (n, file) in files.iter().enumerate() {
        assert_eq!(daemon.map(file, n as u64 * RANGE), 0);
    }
    assert_eq!(vmm.ask("stop"), "0");
    for n in 0..4 * 512 {
        assert_eq!(bytes(&mut vmm, [n]), [page(n % 512)], "{n}");
    }
    assert_eq!(vmm.end_well(), "");
}

/// A front end with a window that has something mended in it, so that the
/// library's handler works.
fn mended() -> (Vmm, Daemon) {
    let mut vmm = Vmm::start();
    let daemon = Daemon::with_window(&mut vmm, "fs");
    let file = pages(1);
    assert_eq!(daemon.map(&file, 0), 0);
    assert_eq!(bytes(&mut vmm, [0, 1]), [page(0), 0]);
    assert_eq!(daemon.notes().mended_pages, 511);
    (vmm, daemon)
}

#[test]
fn the_vmms_handler_gets_what_is_not_in_a_window_if_it_comes_before_the_library() {
    let mut vmm = Vmm::start();
    assert_eq!(vmm.ask("handle-sigbus"), "ok");
    let installed = vmm.ask("installed");
    let daemon = Daemon::with_window(&mut vmm, "fs");
    assert_eq!(vmm.ask("installed"), installed);
    assert_eq!(daemon.map(&pages(1), 0), 0);
    assert_eq!(bytes(&mut vmm, [1]), [0]);
    assert_eq!(vmm.ask("fault-elsewhere"), "handled");
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn the_vmms_handler_gets_what_is_not_in_a_window_if_it_comes_after_the_library() {
    let (mut vmm, daemon) = mended();
    let before = vmm.ask("installed");
    assert_eq!(vmm.ask("handle-sigbus"), "ok");
    assert_ne!(vmm.ask("installed"), before);
    assert_eq!(daemon.map(&pages(1), RANGE), 0);
    assert_eq!(bytes(&mut vmm, [513]), [0]);
    assert_eq!(vmm.ask("fault-elsewhere"), "handled");
    assert_eq!(vmm.end_well(), "");
}

#[test]
fn a_signal_that_was_sent_reaches_the_vmms_handler() {
    let (mut vmm, _daemon) = mended();
    assert_eq!(vmm.ask("handle-sigbus"), "ok");
    assert_eq!(vmm.ask("raise-sigbus"), "handled");
}

#[test]
fn a_sigbus_elsewhere_ends_a_vmm_that_does_not_handle_it() {
    for order in ["fault-elsewhere", "raise-sigbus"] {
        let (mut vmm, _daemon) = mended();
        assert_eq!(vmm.ask("default-sigbus"), "ok");
        vmm.tell(order);
        let end = vmm.end();
        assert_eq!(
            end.status.signal(),
            Some(libc::SIGBUS),
            "{order}: {}",
            end.stderr
        );
    }
}

#[test]
fn the_vmm_blocks_every_signal_but_sigbus() {
    for by in ["pthread_sigmask", "sigprocmask"] {
        let (mut vmm, daemon) = mended();
        // SIGBUS, and another one.
        assert_eq!(vmm.ask(&format!("block-all {by}")), "false true");
        assert_eq!(daemon.map(&pages(1), RANGE), 0);
        assert_eq!(bytes(&mut vmm, [513]), [0]);
        assert_eq!(vmm.end_well(), "");
    }
}
