//! A share that is taken away: detached from the tree, or dead.

use daxwindow_guest::Access;
use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use crate::common::{
    Daemon, assert_same, attach_soon, guest, host_bytes, make_file, pattern, read_all,
};
use crate::errno;
use crate::failing_fs::FailingFs;
use crate::mounted::Tmpfs;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "16M"];
const SIZE: usize = 5 << 20;

/// A mount that is detached lives as long as somebody is in it, and the
/// daemon is.
#[test]
fn a_detached_share_is_served_on() {
    let disk = Tmpfs::new("size=32m");
    make_file(&disk.path().join("file"), 1, SIZE);
    let witness = std::fs::File::open(disk.path().join("file")).expect("open");
    let daemon = Daemon::start(disk.path(), &DAX);
    let guest = guest(&daemon);
    let file = guest.open("file", Access::ReadWrite).expect("open");
    let view = file.map(0, SIZE as u64, Access::ReadWrite).expect("a view");
    view.write(0, b"before").expect("written");
    disk.detach();
    assert!(
        std::fs::read_dir(disk.path())
            .expect("empty")
            .next()
            .is_none()
    );

    view.write(3 << 20, b"after").expect("written");
    file.write_at(b"by request", 4 << 20).expect("written");
    file.sync().expect("synced");
    guest.mkdir("dir", 0o700).expect("made");
    guest.create("dir/new", 0o600).expect("made");
    guest.rename("file", "dir/file").expect("renamed");
    let again = guest.open("dir/file", Access::Read).expect("open");
    let mut want = pattern(1, 0, SIZE);
    want[..6].copy_from_slice(b"before");
    want[3 << 20..(3 << 20) + 5].copy_from_slice(b"after");
    want[4 << 20..(4 << 20) + 10].copy_from_slice(b"by request");
    assert_same(&read_all(&again).expect("read"), &want, "in the guest");
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&witness)
    );
    let seen = host_bytes(std::path::Path::new(&path), 0, SIZE);
    assert_same(&seen, &want, "on the host");
}

/// What serves the lower file system has ended: every request has an error,
/// and the daemon lives.
#[test]
fn a_dead_share_is_an_error_of_each_request() {
    let lower = FailingFs::mount();
    let mut daemon = Daemon::start(lower.path(), &DAX);
    let guest_before = guest(&daemon);
    let file = guest_before.open("good", Access::ReadWrite).expect("open");
    file.write_at(b"alive", 0).expect("written");
    lower.die();
    let session = guest_before.session();
    let dead = [
        errno(session.lookup(ROOT_ID, b"good")),
        errno(file.metadata()),
        errno(file.sync()),
        errno(session.mkdir(ROOT_ID, b"dir", 0o700)),
        errno(guest_before.open("good", Access::Read)),
    ];
    assert_eq!(dead, [Errno::NOTCONN; 5]);
    assert!(daemon.is_running());
    drop(file);
    drop(guest_before);
    // The next client is told as well, and is not hung up on.
    let session = attach_soon(&daemon);
    assert_eq!(errno(session.lookup(ROOT_ID, b"good")), Errno::NOTCONN);
    assert!(daemon.is_running());
}
