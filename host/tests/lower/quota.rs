//! Quotas and file systems that turn read-only by themselves.

use std::path::Path;

use daxwindow_guest::Access;
use daxwindow_shared::fuse::ROOT_ID;
use rustix::io::Errno;

use crate::common::{
    Daemon, assert_same, guest, host_bytes, open, pattern, read_all, write_by_request,
};
use crate::places::{MANY, SEED_BYTES, btrfs, ext4, run, tool};
use crate::refused;

const DAX: [&str; 4] = ["--dax", "always", "--dax-window", "32M"];
const LIMIT: &str = "8M";
const STEP: usize = 256 << 10;

#[test]
fn a_used_up_quota_is_edquot_and_keeps_what_was_acknowledged() {
    let place = btrfs();
    let sparse = place.path().join("sparse");
    let file = std::fs::File::create(&sparse).expect("made");
    file.set_len(1 << 20).expect("a hole");
    let quota = |words: &[&str]| {
        let mut command = tool("btrfs-progs:btrfs");
        run(command.args(words).arg(place.path()));
    };
    quota(&["quota", "enable", "--simple"]);
    quota(&["qgroup", "limit", LIMIT, "0/5"]);
    let mut daemon = Daemon::start(place.path(), &DAX);
    let guest = guest(&daemon);
    let session = guest.session();
    let (entry, handle) = session
        .create(ROOT_ID, b"file", libc::O_RDWR as u32, 0o600)
        .expect("made");
    let at = (entry.nodeid, handle.fh);
    let mut done = 0;
    let over = loop {
        let bytes = pattern(5, done, STEP);
        match write_by_request(session, at, done, &bytes) {
            Ok(count) => done += count as u64,
            Err(error) => break error.errno(),
        }
        assert!(done < 64 << 20, "no quota");
    };
    assert_eq!(over, Errno::DQUOT);
    assert!(done > 0);
    session.fsync(at.0, at.1, false).expect("what came is kept");
    let kept = host_bytes(&place.path().join("file"), 0, done as usize);
    assert_same(&kept, &pattern(5, 0, done as usize), "acknowledged bytes");
    // Nor is there room for what a store would need.
    let file = guest.open("sparse", Access::ReadWrite).expect("open");
    let view = file.map(0, 1 << 20, Access::ReadWrite).expect("a view");
    assert_eq!(refused(view.write(0, b"no room")), Err(Errno::DQUOT));
    assert!(daemon.is_running());
    // What is there is there.
    let seed = guest.open("seed", Access::Read).expect("open");
    let bytes = read_all(&seed).expect("readable");
    assert_same(&bytes, &pattern(1, 0, SEED_BYTES), "another file");
    assert_eq!(guest.list("many").expect("readable").len(), MANY);
}

/// `errors=remount-ro`: an error of its own makes ext4 read-only with files
/// open for writing and mapped.
#[test]
fn an_ext4_that_turns_read_only_refuses_writers_and_serves_readers() {
    let place = ext4("errors=remount-ro");
    let mut daemon = Daemon::start(place.path(), &DAX);
    let guest = guest(&daemon);
    let session = guest.session();
    let (entry, handle) = open(session, "seed", libc::O_RDWR).expect("open");
    let at = (entry.nodeid, handle.fh);
    let file = guest.open("seed", Access::ReadWrite).expect("open");
    let view = file
        .map(0, SEED_BYTES as u64, Access::ReadWrite)
        .expect("a view");
    view.write(0, b"kept").expect("stored");
    file.sync().expect("acknowledged");
    let device = device_of(place.path());
    let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    std::fs::write(trigger, "faults").expect("an error");

    let made = refused(session.mkdir(ROOT_ID, b"dir", 0o700)).err();
    assert_eq!(made, Some(Errno::ROFS));
    let written = refused(write_by_request(session, at, 5, b"no")).err();
    assert_eq!(written, Some(Errno::ROFS));
    let opened = session.open(at.0, libc::O_RDWR as u32);
    assert_eq!(refused(opened).err(), Some(Errno::ROFS));
    // The page may be writable already; then it is the sync that tells.
    let stored = view.write(SEED_BYTES - 2, b"no");
    assert!(stored.is_err() || file.sync().is_err(), "acknowledged");
    let end = SEED_BYTES - 2;
    let mut want = pattern(1, 0, SEED_BYTES);
    want[..4].copy_from_slice(b"kept");
    let mut bytes = vec![0; end];
    view.read(0, &mut bytes).expect("readable");
    assert_same(&bytes, &want[..end], "through the window");
    assert!(daemon.is_running());
}

/// The name of the block device below a mount.
fn device_of(place: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    let line = mounts.lines().find_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        let at = rest.split(' ').next()?;
        (Path::new(at) == place).then(|| device.trim_start_matches("/dev/").to_owned())
    });
    line.expect("mounted")
}
