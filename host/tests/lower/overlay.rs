//! overlayfs below a VMM that maps writable only: what a guest maps is never the
//! layer that a writer leaves behind, and what it only reads is not copied.

use std::path::PathBuf;
use std::sync::Arc;

use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{Access, Guest, GuestOptions};
use daxwindow_shared::shmem::MapRequest;
use rustix::io::Errno;

use crate::common::{Daemon, assert_same, attach_with, guest, options, pattern, read_all};
use crate::layers::{Layers, write_on_host};

/// Maps writable or not at all, as QEMU does with a region for each range.
struct WritableOnly;

impl WindowHook for WritableOnly {
    fn on_map(&self, map: &MapRequest) -> Verdict {
        match map.writable {
            true => Verdict::Serve,
            false => Verdict::Refuse(Errno::ACCESS),
        }
    }
}

fn writable_only_guest(daemon: &Daemon) -> Guest {
    let tuning = Tuning {
        hook: Some(Arc::new(WritableOnly)),
        ..Tuning::default()
    };
    let session = attach_with(daemon, tuning);
    Guest::over(session, &GuestOptions::new(options(daemon))).expect("a guest")
}

const SIZE: usize = (1 << 20) + 5;

#[test]
fn what_is_only_mapped_writable_is_read_without_dax_and_not_copied() {
    let layers = Layers::mount(SIZE);
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = writable_only_guest(&daemon);
    for (seed, name) in [(1, "data"), (2, "program")] {
        let file = guest.open(name, Access::Read).expect("open");
        assert!(!file.is_dax());
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(seed, 0, SIZE),
            name,
        );
        assert_eq!(
            layers.copied(),
            Vec::<PathBuf>::new(),
            "{name} was only read"
        );
    }
    for name in ["data", "program"] {
        write_on_host(&layers.path("merged").join(name), b"HOST", 5000);
        let file = guest.open(name, Access::Read).expect("open");
        let mut got = [0; 4];
        file.read_at(&mut got, 5000).expect("read");
        assert_eq!(&got, b"HOST", "{name}");
    }
}

#[test]
fn what_is_mapped_for_who_asks_for_all_is_the_file_that_is_written() {
    let layers = Layers::mount(SIZE);
    let flags = ["--dax", "always", "--dax-window", "16M"];
    let daemon = Daemon::start(&layers.path("merged"), &flags);
    let guest = writable_only_guest(&daemon);
    for (seed, name) in [(1, "data"), (2, "program")] {
        let file = guest.open(name, Access::Read).expect("open");
        assert!(file.is_dax());
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(seed, 0, SIZE),
            name,
        );
        let view = file.map(0, SIZE as u64, Access::Read).expect("mapped");
        // By a program of the host, then by the guest.
        write_on_host(&layers.path("merged").join(name), b"HOST", 5000);
        let mut got = [0; 4];
        view.read(5000, &mut got).expect("loaded");
        assert_eq!(&got, b"HOST", "{name}");
        let writer = guest.open(name, Access::ReadWrite).expect("open");
        writer.write_at(b"GUEST", 70_000).expect("written");
        let mut got = [0; 5];
        view.read(70_000, &mut got).expect("loaded");
        assert_eq!(&got, b"GUEST", "{name}");
        let end = writer.append(b"the end").expect("appended");
        let mut got = [0; 7];
        file.read_at(&mut got, end)
            .expect("read behind the old end");
        assert_eq!(&got, b"the end", "{name}");
    }
}

#[test]
fn each_close_after_a_store_moves_the_time() {
    let layers = Layers::mount(SIZE);
    let flags = ["--dax", "always", "--dax-window", "16M"];
    let daemon = Daemon::start(&layers.path("merged"), &flags);
    let guest = guest(&daemon);
    for turn in 0..3 {
        let before = std::time::SystemTime::now();
        let file = guest.open("data", Access::ReadWrite).expect("open");
        file.write_at(b"text", 5000).expect("stored");
        drop(file);
        let attributes = layers.path("merged/data").metadata().expect("there");
        let modified = attributes.modified().expect("a time");
        assert!(modified >= before, "time {turn}");
    }
}

#[test]
fn a_read_only_share_leaves_the_lower_layer_where_it_is() {
    let layers = Layers::mount(SIZE);
    let flags = ["--readonly", "--dax", "always", "--dax-window", "16M"];
    let daemon = Daemon::start(&layers.path("merged"), &flags);
    let guest = guest(&daemon);
    for (seed, name) in [(1, "data"), (2, "program")] {
        let file = guest.open(name, Access::Read).expect("open");
        assert!(file.is_dax());
        assert_same(
            &read_all(&file).expect("read"),
            &pattern(seed, 0, SIZE),
            name,
        );
    }
    assert_eq!(layers.copied(), Vec::<PathBuf>::new());
}
