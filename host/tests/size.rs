//! Files that grow and shrink under the guest's mappings.

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Daemon, PAGE, RANGE, assert_same, guest, host_bytes, in_memory, make_file, on_disk, pattern,
    read_all, word,
};
use daxwindow_guest::{Access, Error, Guest};
use tempfile::TempDir;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "64M"];

/// A share on each kind of file system.
fn shares() -> [TempDir; 2] {
    [on_disk(), in_memory()]
}

#[test]
fn growth_is_seen_through_ranges_already_mapped() {
    for share in shares() {
        let path = share.path().join("file");
        make_file(&path, 6, 4097);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        let view = file.map(0, RANGE, Access::ReadWrite).expect("view");
        let mut got = vec![0; 4097];
        view.read(0, &mut got).expect("what there is");
        assert_same(&got, &pattern(6, 0, 4097), "before");
        common::assert_truncated(view.read(8192, &mut [0; 1]));
        let setups = guest.stats().setups;

        let mut host = OpenOptions::new().append(true).open(&path).expect("open");
        let more = pattern(6, 4097, 1 << 20);
        host.write_all(&more).expect("append");
        let mut got = vec![0; 1 << 20];
        view.read(4097, &mut got).expect("what the host added");
        assert_same(&got, &more, "grown by the host");

        let end = 4097 + (1 << 20);
        let more = pattern(6, end as u64, 100_000);
        assert_eq!(file.write_at(&more, end as u64).expect("grow"), more.len());
        let mut got = vec![0; more.len()];
        view.read(end, &mut got).expect("what the guest added");
        assert_same(&got, &more, "grown by the guest");
        assert_eq!(guest.stats().setups, setups, "nothing was mapped anew");
    }
}

#[test]
fn truncation_by_the_guest_is_an_error_behind_the_new_end() {
    for share in shares() {
        let path = share.path().join("file");
        make_file(&path, 2, 3 * RANGE as usize);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let file = guest.open("file", Access::ReadWrite).expect("open");
        let view = file.map(0, 3 * RANGE, Access::ReadWrite).expect("view");
        let mut whole = vec![0; 3 * RANGE as usize];
        view.read(0, &mut whole).expect("mapped");
        let new_end = RANGE + 100;
        file.truncate(new_end).expect("truncate");
        assert_eq!(std::fs::metadata(&path).expect("stat").len(), new_end);
        let mut got = vec![0; new_end as usize];
        view.read(0, &mut got).expect("what is left");
        assert_same(&got, &pattern(2, 0, new_end as usize), "what is left");
        common::assert_truncated(view.read(RANGE as usize + PAGE as usize, &mut [0; 1]));
        common::assert_truncated(view.write(2 * RANGE as usize, b"lost"));
        assert_eq!(file.read_at(&mut [0; 10], 2 * RANGE).expect("at end"), 0);
        // Longer again: zeros, and the old bytes are gone.
        file.truncate(3 * RANGE).expect("truncate");
        view.read(0, &mut whole).expect("all of it");
        assert!(whole[new_end as usize..].iter().all(|byte| *byte == 0));
        view.write(2 * RANGE as usize, b"kept").expect("write");
        assert_eq!(host_bytes(&path, 2 * RANGE, 4), b"kept");
    }
}

/// Truncates and refills a file until told to stop.
fn truncate_for_ever(path: &Path, size: usize, stop: &AtomicBool) -> u32 {
    let bytes = pattern(3, 0, size);
    let host = OpenOptions::new().write(true).open(path).expect("open");
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        let keep = word(11, times) % size as u64;
        host.set_len(keep).expect("truncate");
        host.set_len(0).expect("truncate");
        host.write_all_at(&bytes, 0).expect("refill");
        times += 1;
    }
    times as u32
}

/// So that a failed reader ends the test, and the truncations with it.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A copy that raced a truncation: bytes of the file, or zeros.
fn assert_of_the_file(got: &[u8], offset: u64) {
    let want = pattern(3, offset, got.len());
    let mut pairs = got.iter().zip(&want);
    assert!(pairs.all(|(g, w)| g == w || *g == 0), "a byte of nowhere");
}

#[test]
fn truncation_by_the_host_during_copies_is_never_a_crash() {
    for share in shares() {
        let size = 2 * RANGE as usize;
        let path = share.path().join("file");
        make_file(&path, 3, size);
        let daemon = Daemon::start(share.path(), &DAX);
        let guest = guest(&daemon);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            let host = scope.spawn(|| truncate_for_ever(&path, size, &stop));
            let reader = scope.spawn(|| read_under_truncation(&guest, size));
            let viewer = scope.spawn(|| view_under_truncation(&guest, size));
            let shortened = reader.join().expect("no panic") + viewer.join().expect("no panic");
            stop.store(true, Ordering::Relaxed);
            let times = host.join().expect("no panic");
            assert!(times > 0);
            assert!(shortened > 0, "{times} truncations went unseen");
        });
        // Undisturbed, all is well.
        let file = guest.open("file", Access::Read).expect("open");
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(3, 0, size),
            "after",
        );
    }
}

fn read_under_truncation(guest: &Guest, size: usize) -> u32 {
    let file = guest.open("file", Access::Read).expect("open");
    let mut buf = vec![0; size];
    let mut shortened = 0;
    for _ in 0..150 {
        match file.read_at(&mut buf, 0) {
            Ok(got) => {
                assert_of_the_file(&buf[..got], 0);
                shortened += u32::from(got < size);
            }
            Err(Error::Truncated { .. }) => shortened += 1,
            Err(error) => panic!("{error}"),
        }
    }
    shortened
}

fn view_under_truncation(guest: &Guest, size: usize) -> u32 {
    let file = guest.open("file", Access::ReadWrite).expect("open");
    let view = file.map(0, size as u64, Access::ReadWrite).expect("view");
    let mut buf = vec![0; size];
    let mut shortened = 0;
    for _ in 0..150 {
        match view.read(0, &mut buf) {
            Ok(()) => assert_of_the_file(&buf, 0),
            Err(Error::Truncated { .. }) => shortened += 1,
            Err(error) => panic!("{error}"),
        }
        // Zeros, so that readers cannot tell them from a hole.
        match view.write(size - 4096, &[0; 4096]) {
            Ok(()) => {}
            Err(Error::Truncated { .. }) => shortened += 1,
            Err(error) => panic!("{error}"),
        }
    }
    shortened
}
