#![allow(clippy::unwrap_used)]
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::mm::MprotectFlags;

use super::*;
use crate::error::FileError;
use crate::window::mappings;

const MIB: usize = 1 << 20;

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(bytes).expect("write");
    file
}

fn mapped(file: &File, len: usize) -> Area {
    let area = Area::reserve(len, Protection::None).expect("reserve");
    let regular = RegularFile::check(file.as_fd()).expect("a regular file");
    area.map_file(0, len, regular, 0, Protection::ReadWrite)
        .expect("map");
    area
}

#[test]
fn areas_are_aligned_and_checked() {
    let area = Area::reserve(4 * MIB, Protection::None).expect("reserve");
    assert_eq!(area.address() % ALIGN_BYTES, 0);
    let page = page_size();
    let mut out = [0u8; 8];
    assert!(area.map_nothing(4 * MIB, page).is_err());
    assert!(area.map_nothing(usize::MAX - page + 1, 2 * page).is_err());
    assert!(area.map_nothing(1, page).is_err());
    assert!(area.map_nothing(0, 0).is_err());
    assert_eq!(area.copy_out(4 * MIB - 4, &mut out), Err(0));
    assert_eq!(area.copy_out(usize::MAX - 3, &mut out), Err(0));
    assert!(Area::reserve(0, Protection::None).is_err());
    assert!(Area::reserve(usize::MAX & !(page - 1), Protection::None).is_err());
}

#[test]
fn a_truncated_file_ends_the_copy() {
    let page = page_size();
    let file = file_of(&vec![7u8; 8 * page]);
    let area = mapped(&file, 8 * page);
    let mut out = vec![0u8; 8 * page];
    assert_eq!(area.copy_out(0, &mut out), Ok(()));
    file.set_len(3 * page as u64).expect("truncate");
    out.fill(0);
    assert_eq!(
        area.copy_out(100, &mut out[..6 * page]),
        Err(3 * page - 100)
    );
    assert!(out[..3 * page - 100].iter().all(|&b| b == 7));
    assert_eq!(area.copy_in(0, &vec![1u8; 4 * page]), Err(3 * page));
    assert_eq!(area.copy_out(5 * page, &mut out[..1]), Err(0));
    file.set_len(8 * page as u64).expect("grow");
    assert_eq!(area.copy_out(0, &mut out), Ok(()));
    assert_eq!(out[3 * page - 1], 1);
    assert_eq!(out[3 * page], 0);
}

#[test]
fn an_unmapped_range_ends_the_copy_too() {
    let page = page_size();
    let file = file_of(&vec![7u8; 2 * page]);
    let area = mapped(&file, 2 * page);
    area.map_nothing(page, page).expect("unmap");
    let mut out = vec![0u8; 2 * page];
    assert_eq!(area.copy_out(0, &mut out), Err(page));
    let regular = RegularFile::check(file.as_fd()).expect("a regular file");
    area.map_file(0, page, regular, 0, Protection::Read)
        .expect("map for loads");
    assert_eq!(area.copy_in(8, b"no"), Err(0));
}

#[test]
fn the_kernel_copies_with_the_same_answers() {
    let page = page_size();
    let file = file_of(&vec![9u8; 4 * page]);
    let area = mapped(&file, 4 * page);
    file.set_len(2 * page as u64).expect("truncate");
    let mut out = vec![0u8; 4 * page];
    // SAFETY: both ranges are mapped; the source may lack pages.
    let left = unsafe { guard::copy_by_kernel(out.as_mut_ptr(), area.pointer(10), 3 * page) };
    assert_eq!(left, page + 10);
    assert!(out[..2 * page - 10].iter().all(|&b| b == 9));
}

#[test]
fn an_alias_shows_the_same_file() {
    let file = file_of(&vec![3u8; 2 * MIB]);
    let window = mapped(&file, 2 * MIB);
    let view = Area::reserve(4 * MIB, Protection::ReadWrite).expect("reserve");
    view.alias(2 * MIB, &window, 0, 2 * MIB, Protection::ReadWrite)
        .expect("alias");
    view.copy_in(2 * MIB + 5, b"hello").expect("write");
    let mut out = [0u8; 5];
    window.copy_out(5, &mut out).expect("read");
    assert_eq!(&out, b"hello");
    window.map_nothing(0, 2 * MIB).expect("unmap");
    view.copy_out(2 * MIB + 5, &mut out).expect("still there");
    assert_eq!(&out, b"hello");
}

/// What the file's own `mmap` refuses.
fn unmappable() -> File {
    File::open("/proc/version").expect("procfs")
}

fn map(area: &Area, at: usize, file: &File) -> io::Result<()> {
    let regular = RegularFile::check(file.as_fd()).expect("a regular file");
    area.map_file(at, 2 * MIB, regular, 0, Protection::Read)
}

fn is_whole(area: &Area) -> bool {
    mappings::cover(area.address()..area.address() + area.len())
}

#[test]
fn a_file_that_cannot_be_mapped_leaves_what_was_there() {
    let area = Area::reserve(6 * MIB, Protection::None).expect("reserve");
    map(&area, 2 * MIB, &file_of(&vec![5; 2 * MIB])).expect("map");
    for at in [0, 2 * MIB, 4 * MIB] {
        map(&area, at, &unmappable()).expect_err("its mmap fails");
        assert!(is_whole(&area) && !area.is_lost(), "{at:#x}");
    }
    let mut out = [0; 1];
    assert_eq!((area.copy_out(2 * MIB, &mut out), out), (Ok(()), [5]));
    assert_eq!(area.copy_out(0, &mut out), Err(0));
}

#[test]
fn what_is_not_shared_cannot_be_shown_and_leaves_no_hole() {
    let window = Area::reserve(2 * MIB, Protection::None).expect("reserve");
    let view = Area::reserve(2 * MIB, Protection::None).expect("reserve");
    let shown = view.alias(0, &window, 0, 2 * MIB, Protection::ReadWrite);
    shown.expect_err("nothing is mapped there");
    assert!(is_whole(&view) && !view.is_lost());
}

#[test]
fn an_alias_for_loads_takes_no_stores() {
    let window = mapped(&file_of(&vec![3; 2 * MIB]), 2 * MIB);
    let view = Area::reserve(2 * MIB, Protection::None).expect("reserve");
    view.alias(0, &window, 0, 2 * MIB, Protection::Read)
        .expect("alias");
    assert_eq!(view.copy_in(0, b"no"), Err(0));
    window.copy_in(0, b"as before").expect("the origin does");
}

#[test]
fn files_of_huge_pages_are_refused_for_they_map_more_than_was_asked_for() {
    let flags = rustix::fs::MemfdFlags::HUGETLB;
    let huge = rustix::fs::memfd_create("daxwindow-test", flags).expect("a memfd of huge pages");
    let refused = RegularFile::check(huge.as_fd()).expect_err("huge pages");
    assert_eq!(refused, FileError::HugePages);
    assert_eq!(refused.errno(), rustix::io::Errno::ACCESS);
}

/// Unmaps `len` bytes of an area at `at`, as a kernel that fails half-way.
fn punch(area: &Area, at: usize, len: usize) -> *mut c_void {
    let target = area.pages(at, len).expect("inside");
    // SAFETY: inside the area; nothing holds references into it.
    unsafe { mm::munmap(target, len).expect("munmap") };
    target
}

fn after_failure(target: *mut c_void, len: usize) -> Failure {
    // SAFETY: the target was a part of an area.
    unsafe { Failure::after(rustix::io::Errno::NOMEM, target, len) }
}

#[test]
fn a_hole_is_reserved_again() {
    let area = Area::reserve(4 * MIB, Protection::None).expect("reserve");
    let failure = after_failure(punch(&area, MIB, MIB), MIB);
    assert!(!failure.lost && is_whole(&area));
}

#[test]
fn a_place_that_another_mapping_has_taken_is_never_touched_again() {
    let area = Area::reserve(4 * MIB, Protection::None).expect("reserve");
    let target = punch(&area, MIB, MIB);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let other =
        unsafe { mm::mmap_anonymous(target, MIB, ProtFlags::READ | ProtFlags::WRITE, flags) };
    let other = other.expect("the place is free").cast::<u8>();
    // SAFETY: a mapping of this test's own.
    unsafe { other.write_volatile(7) };

    let failure = after_failure(target, MIB);
    assert!(failure.lost);
    let _ = area.failed(failure);
    assert!(area.is_lost());
    map(&area, 0, &file_of(&vec![1; 2 * MIB])).expect_err("lost");
    area.map_nothing(0, 4 * MIB).expect_err("lost");
    area.populate(0, MIB).expect_err("lost");
    assert_eq!(area.copy_out(MIB, &mut [0; 1]), Err(0));
    assert_eq!(area.copy_in(MIB, &[0; 1]), Err(0));
    drop(area);
    // SAFETY: as above; the area's drop has left it alone.
    assert_eq!(unsafe { other.read_volatile() }, 7);
}

const LIMIT_CHILD: &str = "DAXWINDOW_TEST_LIMIT_CHILD";

/// Runs in a child of its own, which may have no more mappings; see below.
#[test]
fn mapping_limit_child() {
    if std::env::var(LIMIT_CHILD).is_err() {
        return assert!(std::env::var(LIMIT_CHILD).is_err());
    }
    let file = file_of(&vec![5; 2 * MIB]);
    let area = Area::reserve(6 * MIB, Protection::None).expect("reserve");
    map(&area, 2 * MIB, &file).expect("map");
    let page = page_size();
    let many = Area::reserve((mappings::most() + 16) * page, Protection::None).expect("reserve");
    let protect = |n: usize, flags| {
        let at = many.pages(n * page, page).expect("inside");
        // SAFETY: inside the area, which nothing else uses.
        unsafe { mm::mprotect(at, page, flags) }
    };
    // Neighbours that differ are mappings of their own.
    let mut odd = 1;
    while protect(odd, MprotectFlags::READ).is_ok() {
        odd += 2;
    }
    // However few are left, what fails leaves no hole and the area usable.
    let mut refused = 0;
    while map(&area, 2 * MIB, &file).is_err() {
        refused += 1;
        assert!(is_whole(&area) && !area.is_lost());
        assert_eq!(area.copy_out(2 * MIB, &mut [0; 1]), Ok(()));
        odd -= 2;
        protect(odd, MprotectFlags::empty()).expect("one less");
    }
    assert!(refused > 0 && is_whole(&area));
    area.map_nothing(2 * MIB, 2 * MIB).expect("unmap");
}

#[test]
fn a_process_with_as_many_mappings_as_it_may_have_loses_none() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "window::sys::tests::mapping_limit_child"])
        .env(LIMIT_CHILD, "1")
        .output()
        .expect("child");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

const CHILD: &str = "DAXWINDOW_TEST_SIGBUS_CHILD";

/// Runs in a child of its own; see below.
#[test]
fn stray_sigbus_child() {
    let Ok(how) = std::env::var(CHILD) else {
        return assert!(std::env::var(CHILD).is_err());
    };
    let file = file_of(&vec![1u8; page_size()]);
    let area = mapped(&file, page_size());
    let mut out = [0u8; 1];
    assert_eq!(area.copy_out(0, &mut out), Ok(()));
    file.set_len(0).expect("truncate");
    assert_eq!(area.copy_out(0, &mut out), Err(0));
    if how == "touch" {
        // SAFETY: deliberately touches a page that has no file behind it.
        unsafe { area.pointer(0).read_volatile() };
    } else {
        // Rust's own handler, to which ours passes it on, lets the first one
        // pass and puts the default back.
        // SAFETY: raise has no preconditions.
        unsafe { libc::raise(libc::SIGBUS) };
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    std::process::exit(0);
}

#[test]
fn an_unrelated_sigbus_still_kills() {
    for how in ["touch", "raise"] {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "window::sys::tests::stray_sigbus_child"])
            .env(CHILD, how)
            .output()
            .expect("child")
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{how}: {status:?}");
    }
}
