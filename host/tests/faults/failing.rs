//! Reads, writes, syncs and attributes that fail with EIO below the daemon.

use std::process::Command;

use daxwindow_guest::Access;
use daxwindow_shared::fuse::flags::{ReleaseFlags, SetattrValid};
use daxwindow_shared::fuse::{EntryOut, Opcode, OpenOut, ReleaseIn, SetattrIn};
use daxwindow_vm::{Kit, host_command};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::common::wire::{Message, args, ask};
use crate::common::{
    Daemon, RANGE, assert_same, attach, eventually, guest, open, pattern, read_all,
    read_by_request, walk, write_by_request,
};
use crate::errno;
use crate::failing_fs::{FailingFs, Fault, SIZE};
use crate::mounted::Tmpfs;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "16M"];

#[test]
fn each_request_has_the_hosts_error_and_other_files_go_on() {
    let lower = FailingFs::mount();
    let daemon = Daemon::start(lower.path(), &[]);
    let session = attach(&daemon);
    let (entry, handle) = open(&session, "bad", libc::O_RDWR).expect("open");
    let bad = (entry.nodeid, handle.fh);
    let (entry, handle) = open(&session, "good", libc::O_RDWR).expect("open");
    let good = (entry.nodeid, handle.fh);
    let intact = lower.stored();

    lower.fail(&[Fault::Read]);
    assert_eq!(errno(read_by_request(&session, bad, 0, 1 << 16)), Errno::IO);
    lower.fail(&[Fault::Write]);
    let written = write_by_request(&session, bad, 0, b"lost");
    assert_eq!(errno(written), Errno::IO);
    lower.fail(&[Fault::Fsync]);
    let before = lower.fsyncs();
    assert_eq!(
        write_by_request(&session, bad, 0, b"kept").expect("written"),
        4
    );
    for _ in 0..2 {
        // Each asks the disk anew: no error is forgotten, none is made up.
        assert_eq!(errno(session.fsync(bad.0, bad.1, false)), Errno::IO);
    }
    assert_eq!(lower.fsyncs(), before + 2);
    lower.fail(&[Fault::Truncate]);
    let cut = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        ..SetattrIn::default()
    };
    assert_eq!(errno(session.setattr(bad.0, &cut)), Errno::IO);
    lower.fail(&[Fault::Attributes]);
    assert_eq!(errno(session.getattr(bad.0, None)), Errno::IO);
    assert_eq!(errno(walk(&session, "bad")), Errno::IO);

    lower.fail(&[Fault::Read, Fault::Write, Fault::Fsync, Fault::Attributes]);
    let bytes = read_by_request(&session, good, 5, 70_000).expect("another file");
    assert_same(&bytes, &pattern(1, 5, 70_000), "the good file");
    write_by_request(&session, good, 0, b"fine").expect("another file");
    session.fsync(good.0, good.1, false).expect("another file");

    lower.fail(&[]);
    session.fsync(bad.0, bad.1, false).expect("as before");
    let stored = lower.stored();
    assert_eq!(&stored[..4], b"kept");
    assert_same(&stored[4..], &intact[4..], "the rest");
    let bytes = read_by_request(&session, bad, 0, 1 << 16).expect("as before");
    assert_same(&bytes, &stored[..1 << 16], "by request");
}

/// A page that cannot be read is SIGBUS to who maps it, and an error to who
/// copies.
#[test]
fn a_page_that_cannot_be_read_is_an_error_of_that_access_alone() {
    let lower = FailingFs::mount();
    let mut daemon = Daemon::start(lower.path(), &DAX);
    let guest = guest(&daemon);
    let bad = guest.open("bad", Access::Read).expect("open");
    let good = guest.open("good", Access::Read).expect("open");
    assert!(bad.is_dax() && good.is_dax());
    lower.fail(&[Fault::Read]);
    let view = bad.map(0, SIZE as u64, Access::Read).expect("a view");
    let mut some = [0; 100];
    assert!(view.read(3_000_000, &mut some).is_err());
    assert!(bad.read_at(&mut some, 3_000_000).is_err());
    let all = read_all(&good).expect("another file");
    assert_same(&all, &pattern(1, 0, SIZE), "the good file");
    assert!(daemon.is_running());
    lower.fail(&[]);
    view.read(3_000_000, &mut some).expect("as before");
    assert_same(&some, &pattern(2, 3_000_000, 100), "the view");
    let all = read_all(&bad).expect("as before");
    assert_same(&all, &pattern(2, 0, SIZE), "the bad file");
}

/// Stores into the window are written back later: the sync that follows has
/// to say when that failed, whichever descriptor they went through.
#[test]
fn a_sync_says_when_stores_through_the_window_could_not_be_written() {
    let lower = FailingFs::mount();
    let daemon = Daemon::start(lower.path(), &DAX);
    let guest = guest(&daemon);
    let file = guest.open("bad", Access::ReadWrite).expect("open");
    let view = file.map(0, SIZE as u64, Access::ReadWrite).expect("a view");
    let at = RANGE as usize + 5000;
    view.write(at, b"stored").expect("into the page cache");
    file.sync().expect("written");
    assert_eq!(&lower.stored()[at..at + 6], b"stored");

    view.write(at, b"failed").expect("into the page cache");
    lower.fail(&[Fault::Write]);
    assert_eq!(errno(file.sync()), Errno::IO);
    assert_eq!(&lower.stored()[at..at + 6], b"stored", "not acknowledged");
    lower.fail(&[]);
    view.write(at, b"kept on").expect("into the page cache");
    file.sync().expect("written");
    assert_eq!(&lower.stored()[at..at + 7], b"kept on");
}

/// SYNCFS reports what could not be written back even if somebody on the host
/// has heard of it.
#[test]
fn an_error_of_writing_back_that_the_host_has_seen_is_told_to_the_guest_too() {
    let lower = FailingFs::mount();
    let daemon = Daemon::start(lower.path(), &[]);
    let session = attach(&daemon);
    let root = daxwindow_shared::fuse::ROOT_ID;
    session.syncfs(root).expect("nothing to write");

    let path = lower.path().join("bad");
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.expect("opened");
    let host = std::fs::File::open(lower.path()).expect("opened");
    #[allow(unsafe_code)]
    // SAFETY: nobody makes the file shorter while it is mapped.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("mapped");
    lower.fail(&[Fault::Write]);
    map[0] ^= 1;
    map.flush().expect_err("not written back");
    let heard = rustix::fs::syncfs(&host);
    assert_eq!(heard, Err(Errno::IO), "the host hears of it");
    assert_eq!(errno(session.syncfs(root)), Errno::IO);
    lower.fail(&[]);
    session.syncfs(root).expect("told once");
}

/// The descriptor that hears of it is closed when the mount has been idle.
#[test]
fn the_next_sync_tells_what_an_idle_mount_could_not_write_back() {
    let lower = FailingFs::mount();
    let share = Tmpfs::new("size=1m");
    mount_change(share.path(), MountPropagationFlags::SHARED).expect("shared");
    let (disk, at) = (lower.path().join("bad"), share.path().join("sub"));
    std::fs::create_dir(&at).expect("a directory");
    let kit = Kit::open(false).expect("a kit");
    let mut make = host_command(&kit, "e2fsprogs:mke2fs").expect("in the kit");
    run(make
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
        .arg(&disk));
    run(Command::new("mount")
        .args(["-o", "loop"])
        .arg(&disk)
        .arg(&at));
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let top = walk(&session, "sub").expect("there").nodeid;
    let flags = libc::O_RDWR as u32;
    let (entry, handle) = session.create(top, b"f", flags, 0o644).expect("created");
    session.syncfs(top).expect("written back");

    lower.fail(&[Fault::Write]);
    let file = (entry.nodeid, handle.fh);
    write_by_request(&session, file, 0, b"lost").expect("into the page cache");
    session.release(file.0, file.1).expect("released");
    eventually("nothing is open there", || {
        daemon.open_files_in_mount("/sub") == 0
    });
    lower.fail(&[]);
    assert_eq!(errno(session.syncfs(top)), Errno::IO);
    session.syncfs(top).expect("told once");
    eventually("unmounted", || unmount(&at, UnmountFlags::empty()).is_ok());
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

#[test]
fn flush_tells_what_close_would_tell_and_release_closes_all_the_same() {
    let lower = FailingFs::mount();
    let daemon = Daemon::start(lower.path(), &[]);
    let session = attach(&daemon);
    let before = daemon.open_files_on("");
    let bad = open(&session, "bad", libc::O_RDWR).expect("open");
    let good = open(&session, "good", libc::O_RDWR).expect("open");
    let flush = |(entry, handle): (EntryOut, OpenOut)| session.flush(entry.nodeid, handle.fh);
    for told in [Errno::NOSPC, Errno::DQUOT, Errno::IO] {
        lower.fail(&[Fault::Flush(told.raw_os_error())]);
        let native = std::fs::File::open(lower.path().join("bad")).expect("opened");
        let native = nix::unistd::close(native).expect_err("fails");
        assert_eq!(
            native as i32,
            told.raw_os_error(),
            "as a program of the host hears"
        );
        assert_eq!(errno(flush(bad)), told);
        flush(good).expect("another file");
    }
    let release = ReleaseIn {
        fh: bad.1.fh,
        release_flags: ReleaseFlags::FLUSH.bits(),
        ..ReleaseIn::default()
    };
    let release = Message::new(Opcode::Release as u32, bad.0.nodeid, args(release));
    assert_eq!(ask(&session, &release).errno, libc::EIO);
    assert_eq!(errno(flush(bad)), Errno::BADF, "closed");
    lower.fail(&[]);
    flush(good).expect("good");
    session.release(good.0.nodeid, good.1.fh).expect("closed");
    eventually("no descriptor is left", || {
        daemon.open_files_on("") <= before + 2
    });
}

#[test]
fn a_file_that_cannot_be_mapped_shared_is_read_by_requests() {
    let lower = FailingFs::mount();
    lower.fail(&[Fault::Mmap]);
    let daemon = Daemon::start(lower.path(), &["--dax-window", "16M"]);
    let guest = guest(&daemon);
    let good = guest.open("good", Access::Read).expect("open");
    assert!(good.is_dax());
    assert_same(
        &read_all(&good).expect("read"),
        &pattern(1, 0, SIZE),
        "good",
    );
    let bad = guest.open("bad", Access::Read).expect("open");
    assert!(!bad.is_dax());
    assert_same(&read_all(&bad).expect("read"), &pattern(2, 0, SIZE), "bad");
    daemon.signal(rustix::process::Signal::USR1);
    daemon.expect_log("not-mappable 1", 1);
}
