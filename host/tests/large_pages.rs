//! Large pages: what lies in the page cache in folios of 2 MiB is mapped by
//! page table entries of 2 MiB. Needs root, for a tmpfs of the test's own, and
//! a kernel with transparent huge pages.

mod common;

use std::ffi::CStr;
use std::ops::Range;
use std::path::Path;

use common::{Daemon, RANGE, assert_same, options, pattern};
use daxwindow_guest::{Access, Guest, GuestOptions};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

const SIZE: u64 = 8 * RANGE;

/// A tmpfs, unmounted on drop.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(options: &CStr) -> Tmpfs {
        let place = tempfile::tempdir().expect("a directory");
        let flags = MountFlags::empty();
        mount("large", place.path(), "tmpfs", flags, options).expect("mounted, which needs root");
        Tmpfs(place)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// A guest that has no range mapped before it is asked for.
fn guest(daemon: &Daemon) -> Guest {
    let options = GuestOptions {
        prefetch_ranges: 0,
        ..GuestOptions::new(options(daemon))
    };
    Guest::connect(options).expect("a guest")
}

/// How many bytes of the window and of a view of a whole file are mapped by
/// large pages, after every byte was read through both and some were stored.
fn large(tmpfs: &Tmpfs) -> [u64; 2] {
    let want = pattern(1, 0, SIZE as usize);
    std::fs::write(tmpfs.path().join("file"), &want).expect("written");
    let daemon = Daemon::start(tmpfs.path(), &["--dax", "always", "--dax-window", "32M"]);
    let guest = guest(&daemon);
    let file = guest.open("file", Access::ReadWrite).expect("open");
    let view = file.map(0, SIZE, Access::ReadWrite).expect("view");
    let mut got = vec![0; SIZE as usize];
    assert_eq!(file.read_at(&mut got, 0).expect("read_at"), got.len());
    assert_same(&got, &want, "read_at");
    view.read(0, &mut got).expect("view");
    assert_same(&got, &want, "the view");
    for at in (5..SIZE as usize).step_by(RANGE as usize) {
        view.write(at, &want[at..at + 3]).expect("stored");
    }
    let window = guest.session().window().expect("a window");
    let window = span(window.address(), window.bytes());
    let view = span(view.as_ptr().addr(), SIZE);
    [window, view].map(|span| {
        assert_eq!(span.start % RANGE, 0, "{span:#x?}");
        mapped_large(&span)
    })
}

/// Bytes of these addresses of ours that page table entries of 2 MiB map to
/// files.
fn mapped_large(span: &Range<u64>) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
    let (mut kib, mut is_inside) = (0, false);
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').expect("two words");
        if let Some((start, _)) = first.split_once('-') {
            is_inside = span.contains(&u64::from_str_radix(start, 16).expect("an address"));
        } else if is_inside && ["FilePmdMapped:", "ShmemPmdMapped:"].contains(&first) {
            let number = rest.trim().trim_end_matches(" kB");
            kib += number.parse::<u64>().expect("a number");
        }
    }
    kib << 10
}

fn span(address: usize, bytes: u64) -> Range<u64> {
    address as u64..address as u64 + bytes
}

#[test]
fn a_hot_window_and_a_view_of_it_are_mapped_by_large_pages() {
    let tmpfs = Tmpfs::new(c"huge=always");
    assert_eq!(large(&tmpfs), [SIZE, SIZE]);
}

#[test]
fn a_file_of_small_folios_is_mapped_by_small_pages() {
    let tmpfs = Tmpfs::new(c"huge=never");
    assert_eq!(large(&tmpfs), [0, 0]);
}
