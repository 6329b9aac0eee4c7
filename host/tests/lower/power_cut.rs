//! A power cut: the file system is shut down at once, nothing more is written
//! to its disk, and what is found when it is mounted again is what was there.

use std::path::Path;
use std::sync::Arc;

use daxwindow_guest::{Access, File, Guest, Session, View};
use daxwindow_shared::fuse::ROOT_ID;

use crate::common::{Daemon, RANGE, assert_same, guest, host_bytes, pattern, write_by_request};
use crate::places::{Place, ext4, run, tool, xfs};

const SIZE: usize = 3 << 20;

/// A file made, written and left open.
fn made(session: &Session, name: &str, seed: u64) -> (u64, u64) {
    let flags = libc::O_RDWR as u32;
    let (entry, open) = session
        .create(ROOT_ID, name.as_bytes(), flags, 0o600)
        .expect("made");
    let at = (entry.nodeid, open.fh);
    for offset in (0..SIZE).step_by(1 << 19) {
        let bytes = pattern(seed, offset as u64, 1 << 19);
        assert_eq!(
            write_by_request(session, at, offset as u64, &bytes).expect("written"),
            bytes.len()
        );
    }
    at
}

fn sync_root(session: &Session) {
    let root = session.opendir(ROOT_ID, 0).expect("open");
    session.fsyncdir(ROOT_ID, root.fh, false).expect("synced");
    session.releasedir(ROOT_ID, root.fh).expect("closed");
}

/// Everything that is acknowledged, and then something that is not.
/// Answers what is still open: to close it begins to write it back.
fn work(guest: &Guest) -> (File, View) {
    let session: &Arc<Session> = guest.session();
    let written = made(session, "written", 10);
    session.fsync(written.0, written.1, false).expect("synced");

    let stored = made(session, "stored", 11);
    session.fsync(stored.0, stored.1, false).expect("synced");
    let file = guest.open("stored", Access::ReadWrite).expect("open");
    assert!(file.is_dax());
    let view = file.map(0, SIZE as u64, Access::ReadWrite).expect("a view");
    view.write(RANGE as usize - 3, b"across").expect("stored");
    file.sync().expect("synced");

    let grown = guest.open("written", Access::ReadWrite).expect("open");
    grown.append(b"the end").expect("appended");
    grown.sync().expect("synced");

    let renamed = made(session, "before", 12);
    session.fsync(renamed.0, renamed.1, true).expect("synced");
    let after = session.rename(ROOT_ID, b"before", ROOT_ID, b"after");
    after.expect("renamed");
    session.unlink(ROOT_ID, b"link").expect("removed");
    sync_root(session);

    made(session, "all", 13);
    session.syncfs(ROOT_ID).expect("synced");

    // Not acknowledged.
    made(session, "lost", 14);
    view.write(100, b"lost").expect("into the page cache");
    (file, view)
}

fn found(at: &Path) {
    let file = |name: &str| host_bytes(&at.join(name), 0, SIZE + 100);
    let want = [pattern(10, 0, SIZE), b"the end".to_vec()].concat();
    assert_same(&file("written"), &want, "written and appended");
    let mut want = pattern(11, 0, SIZE);
    let across = RANGE as usize - 3;
    want[across..across + 6].copy_from_slice(b"across");
    assert_same(&file("stored"), &want, "stored through the window");
    assert_same(&file("after"), &pattern(12, 0, SIZE), "renamed");
    assert!(!at.join("before").exists() && at.join("link").symlink_metadata().is_err());
    assert_same(&file("all"), &pattern(13, 0, SIZE), "synced with all");
    // That this can fail at all.
    let lost = at.join("lost");
    assert!(!lost.exists() || file("lost") != pattern(14, 0, SIZE));
}

fn cut_and_find(place: &Place) {
    let mut daemon = Daemon::start(place.path(), &["--dax", "always", "--dax-window", "32M"]);
    let guest = guest(&daemon);
    let open = work(&guest);
    // Without its log, as when the power goes.
    run(tool("xfsprogs:xfs_io")
        .args(["-x", "-c", "shutdown"])
        .arg(place.path()));
    // A dead disk is an error of each request, and no more.
    let dead = guest.session().mkdir(ROOT_ID, b"dir", 0o700);
    assert_eq!(dead.expect_err("dead").errno(), rustix::io::Errno::IO);
    assert!(daemon.is_running());
    drop(open);
    drop(guest);
    drop(daemon);
    place.mount_again();
    found(place.path());
}

#[test]
fn on_ext4_what_was_acknowledged_is_there_after_a_power_cut() {
    cut_and_find(&ext4("rw"));
}

#[test]
fn on_xfs_what_was_acknowledged_is_there_after_a_power_cut() {
    cut_and_find(&xfs());
}
