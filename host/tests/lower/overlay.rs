//! overlayfs below: what a guest maps is never the layer that a writer leaves
//! behind, and what it only reads is not copied.

use std::ffi::CString;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use daxwindow_guest::file::Access;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::common::{Daemon, assert_same, guest, make_file, on_disk, pattern, read_all};

const SIZE: usize = (1 << 20) + 5;

/// A lower layer with a file of data and a program; unmounted on drop.
struct Layers(TempDir);

impl Layers {
    fn mount() -> Layers {
        let layers = Layers(on_disk());
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(layers.path(name)).expect("a directory");
        }
        for (seed, name) in [(1, "lower/data"), (2, "lower/program")] {
            make_file(&layers.path(name), seed, SIZE);
        }
        let mode = Permissions::from_mode(0o755);
        std::fs::set_permissions(layers.path("lower/program"), mode).expect("set");
        let [lower, upper, work] =
            ["lower", "upper", "work"].map(|name| layers.path(name).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let options = CString::new(options).expect("no zero");
        let (at, flags) = (layers.path("merged"), MountFlags::empty());
        mount("overlay", &at, "overlay", flags, &*options).expect("mounted, which needs root");
        layers
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copied(&self) -> Vec<PathBuf> {
        let upper = std::fs::read_dir(self.path("upper")).expect("listed");
        upper.map(|entry| entry.expect("an entry").path()).collect()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let _ = unmount(self.path("merged"), UnmountFlags::DETACH);
    }
}

fn write_on_host(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all_at(bytes, at).expect("written");
}

#[test]
fn what_a_guest_reads_is_not_copied_and_what_others_write_is_read() {
    let layers = Layers::mount();
    let daemon = Daemon::start(&layers.path("merged"), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
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
    let layers = Layers::mount();
    let flags = ["--dax", "always", "--dax-window", "16M"];
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
    let layers = Layers::mount();
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
    let layers = Layers::mount();
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
