#![allow(clippy::unwrap_used)]
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::*;

const MIB: usize = 1 << 20;

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(bytes).expect("write");
    file
}

fn mapped(file: &File, len: usize) -> Area {
    let area = Area::reserve(len, Protection::None).expect("reserve");
    area.map_file(0, len, file.as_fd(), 0, Protection::ReadWrite)
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
    area.protect(0, page, Protection::Read).expect("protect");
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
    view.alias(2 * MIB, &window, 0, 2 * MIB).expect("alias");
    view.copy_in(2 * MIB + 5, b"hello").expect("write");
    let mut out = [0u8; 5];
    window.copy_out(5, &mut out).expect("read");
    assert_eq!(&out, b"hello");
    window.map_nothing(0, 2 * MIB).expect("unmap");
    view.copy_out(2 * MIB + 5, &mut out).expect("still there");
    assert_eq!(&out, b"hello");
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
