//! How a mount ends: by umount, by a signal, with its daemon.

use std::fs::File;
use std::io::Read;

use rustix::process::Signal;

use crate::share::{Share, within};

#[test]
fn an_unmounted_share_is_an_ended_session_and_can_be_mounted_again() {
    let mut share = Share::mount(&["--keep-serving"], &[]);
    std::fs::write(share.place().join("file"), "first").expect("written");
    share.unmount();
    assert!(within(|| share.daemon_log().contains("session ends")));
    assert!(!share.place().join("file").exists());
    share.mount_again(&["--readonly"]);
    let read = std::fs::read_to_string(share.place().join("file"));
    assert_eq!(read.expect("there"), "first");
    let refused = std::fs::write(share.place().join("file"), "second");
    assert_eq!(
        refused.expect_err("read-only").raw_os_error(),
        Some(libc::EROFS)
    );
    share.unmount();
}

#[test]
fn a_signal_takes_the_mount_away_and_serves_who_has_a_file_open() {
    let mut share = Share::mount(&[], &[]);
    std::fs::write(share.shared().join("file"), "still there").expect("written");
    let mut file = File::open(share.place().join("file")).expect("opened");
    share.signal_tool(Signal::TERM);
    assert!(within(|| !share.place().join("file").exists()));
    let mut read = String::new();
    file.read_to_string(&mut read).expect("served");
    assert_eq!(read, "still there");
    drop(file);
    assert!(share.ended().success(), "{}", share.tool_log());
}

#[test]
fn a_second_signal_ends_who_has_a_file_open_too() {
    let mut share = Share::mount(&["--cache", "never"], &[]);
    std::fs::write(share.shared().join("file"), "gone").expect("written");
    let mut file = File::open(share.place().join("file")).expect("opened");
    share.signal_tool(Signal::INT);
    assert!(within(|| !share.place().join("file").exists()));
    share.signal_tool(Signal::INT);
    assert_eq!(share.ended().code(), Some(128 + libc::SIGINT));
    let error = file.read_to_string(&mut String::new()).expect_err("gone");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn a_daemon_that_dies_makes_errors_and_no_hang() {
    let mut share = Share::mount(&["--cache", "never"], &[]);
    std::fs::write(share.shared().join("file"), "gone").expect("written");
    let mut file = File::open(share.place().join("file")).expect("opened");
    share.kill_daemon();
    file.read_to_string(&mut String::new()).expect_err("gone");
    assert_eq!(share.ended().code(), Some(1));
    let said = share.tool_log();
    assert!(said.contains("the daemon closed the connection"), "{said}");
    assert!(said.contains("umount"), "{said}");
    let error = std::fs::read_dir(share.place()).expect_err("not the directory below");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}
