//! Files for the window.

use std::os::unix::fs::PermissionsExt;

use daxwindow_shared::fuse::ROOT_ID;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::*;
use crate::dax::MapSource;

#[test]
fn an_unlinked_file_without_any_right_is_mapped() {
    let share = Share::new();
    let f = share.file(c"f", "12345");
    if is_root() {
        let none = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(share.path("f"), none).unwrap();
    }
    share.fs.unlink(ROOT_ID, n(c"f")).unwrap();
    let map = share.fs.open_for_mapping(f, false).unwrap();
    assert_eq!(rustix::fs::fstat(&map.fd).unwrap().st_size, 5);
    let access = rustix::fs::fcntl_getfl(&map.fd).unwrap() & OFlags::ACCMODE;
    assert_eq!(access, OFlags::RDONLY);
    let map = share.fs.open_for_mapping(f, true).unwrap();
    rustix::io::pwrite(&map.fd, b"x", 0).unwrap();
}

#[test]
fn only_regular_files_are_mapped() {
    let share = Share::new();
    assert_eq!(
        share.fs.open_for_mapping(ROOT_ID, false).unwrap_err(),
        Errno::ISDIR
    );
    assert_eq!(
        share.fs.open_for_mapping(77, false).unwrap_err(),
        Errno::STALE
    );
}

#[test]
fn a_running_program_is_mapped_for_reading_only() {
    let share = Share::new();
    let program = share.path("sleep");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let mut child = std::process::Command::new(&program)
        .arg("60")
        .spawn()
        .unwrap();
    let id = share.find(c"sleep").nodeid;
    let writable = share.fs.open_for_mapping(id, true).map(|_| ());
    let readable = share.fs.open_for_mapping(id, false).map(|_| ());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(writable.unwrap_err(), Errno::TXTBSY);
    readable.unwrap();
}
