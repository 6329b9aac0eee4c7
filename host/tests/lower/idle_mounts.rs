//! Mounts below the share of which nothing is open: the host can unmount them,
//! and the guest goes on with what is there.

use std::path::{Path, PathBuf};

use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::EntryOut;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::common::{Daemon, attach, eventually, open, read_by_request, walk, write_by_request};
use crate::places::{Place, ext4, mount_image, tmpfs};
use crate::refused;

/// A share whose mounts come and go in the daemon's view as in the host's.
fn share() -> Place {
    let place = tmpfs();
    mount_change(place.path(), MountPropagationFlags::SHARED).expect("shared");
    place
}

/// A mount below the share, unmounted on drop.
struct Below(PathBuf);

impl Below {
    fn tmpfs(at: PathBuf, text: &str) -> Below {
        std::fs::create_dir_all(&at).expect("a directory");
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).expect("mounted");
        std::fs::write(at.join("f"), text).expect("written");
        Below(at)
    }

    fn bind(source: &Path, at: PathBuf) -> Below {
        std::fs::create_dir_all(&at).expect("a directory");
        mount_bind(source, &at).expect("mounted");
        Below(at)
    }

    fn image(image: &Path, at: PathBuf) -> Below {
        std::fs::create_dir_all(&at).expect("a directory");
        mount_image(image, &at, "rw");
        Below(at)
    }

    /// As `umount` does, without `--lazy`.
    fn try_to_unmount(&self) -> Result<(), Errno> {
        unmount(&self.0, UnmountFlags::empty())
    }

    fn unmount_soon(&self) {
        eventually("unmounted", || self.try_to_unmount().is_ok());
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn wait_until_idle(daemon: &Daemon, path: &str) {
    eventually("nothing is open there", || {
        daemon.open_files_in_mount(path) == 0
    });
}

#[track_caller]
fn read(session: &Session, node: u64) -> String {
    let handle = session.open(node, libc::O_RDONLY as u32).expect("opened");
    let bytes = read_by_request(session, (node, handle.fh), 0, 100).expect("read");
    session.release(node, handle.fh).expect("released");
    String::from_utf8(bytes).expect("text")
}

/// Looks it up anew.
#[track_caller]
fn read_at(session: &Session, path: &str) -> (u64, String) {
    let node = walk(session, path).expect("there").nodeid;
    (node, read(session, node))
}

#[track_caller]
fn list(session: &Session, dir: &EntryOut) -> usize {
    let fh = session.opendir(dir.nodeid, 0).expect("opened").fh;
    let listed = session.readdir(dir.nodeid, fh, 0).expect("listed").len();
    session.releasedir(dir.nodeid, fh).expect("released");
    listed
}

#[track_caller]
fn assert_stale(session: &Session, node: u64) {
    let attr = refused(session.getattr(node, None));
    assert_eq!(attr.err(), Some(Errno::STALE));
}

fn can_be_unmounted(mount: impl Fn(PathBuf) -> Below) {
    let share = share();
    let at = share.path().join("sub");
    let below = mount(at.clone());
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let top = walk(&session, "sub").expect("there");
    let (file, text) = read_at(&session, "sub/f");
    assert_eq!(text, "one");
    assert!(list(&session, &top) >= 3);

    below.unmount_soon();
    assert_stale(&session, top.nodeid);
    assert_stale(&session, file);
    let opened = refused(session.open(file, libc::O_RDONLY as u32));
    assert_eq!(opened.err(), Some(Errno::STALE));
    let within = refused(session.lookup(top.nodeid, b"f"));
    assert_eq!(within.err(), Some(Errno::STALE));
    let under = walk(&session, "sub").expect("the directory below");
    assert_ne!(under.nodeid, top.nodeid);
    let gone = refused(walk(&session, "sub/f"));
    assert_eq!(gone.err(), Some(Errno::NOENT));
    std::fs::write(at.join("f"), "under").expect("written");
    let (other, text) = read_at(&session, "sub/f");
    assert_eq!(text, "under");
    assert_ne!(other, file);

    let again = mount(at);
    let (new, text) = read_at(&session, "sub/f");
    assert_eq!(text, "one");
    assert!(![file, other].contains(&new));
    assert_stale(&session, file);
    assert_eq!(read(&session, new), "one");
    again.unmount_soon();
    assert_eq!(read_at(&session, "sub/f").1, "under");
}

#[test]
fn the_host_unmounts_a_file_system_below_the_share_of_which_nothing_is_open() {
    can_be_unmounted(|at| Below::tmpfs(at, "one"));
}

/// The file system, with all its handles, is there all the time.
#[test]
fn the_host_unmounts_a_bound_directory_below_the_share_of_which_nothing_is_open() {
    let lent = ext4("rw");
    std::fs::write(lent.path().join("f"), "one").expect("written");
    can_be_unmounted(|at| Below::bind(lent.path(), at));
}

#[test]
fn what_a_guest_knows_of_a_mount_is_the_same_after_it_was_idle() {
    let share = share();
    let _below = Below::tmpfs(share.path().join("dir/sub"), "one");
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let top = walk(&session, "dir/sub").expect("there");
    let (file, _) = read_at(&session, "dir/sub/f");

    wait_until_idle(&daemon, "/dir/sub");
    assert_eq!(session.getattr(file, None).expect("there").size, 3);
    assert_eq!(read(&session, file), "one");
    wait_until_idle(&daemon, "/dir/sub");
    assert_eq!(read_at(&session, "dir/sub/f"), (file, "one".into()));
    wait_until_idle(&daemon, "/dir/sub");
    let made = session.mkdir(top.nodeid, b"made", 0o755).expect("made");
    wait_until_idle(&daemon, "/dir/sub");
    session.syncfs(file).expect("synced");

    // Found again by its new path, once the guest has looked.
    wait_until_idle(&daemon, "/dir/sub");
    let moved = share.path().join("moved");
    std::fs::rename(share.path().join("dir"), moved).expect("renamed");
    let _unmounted = Below(share.path().join("moved/sub"));
    assert_stale(&session, file);
    assert_eq!(
        walk(&session, "moved/sub").expect("there").nodeid,
        top.nodeid
    );
    assert_eq!(read(&session, file), "one");
    let found = walk(&session, "moved/sub/made").expect("there");
    assert_eq!(found.nodeid, made.nodeid);
}

/// Unmounts a disk whose image is whole then, though other namespaces may have it
/// mounted for a moment longer.
fn unmount_synced(at: &Path) {
    let top = std::fs::File::open(at).expect("mounted");
    rustix::fs::syncfs(&top).expect("synced");
    drop(top);
    unmount(at, UnmountFlags::empty()).expect("unmounted");
}

/// Two disks of which one is a copy, so that handles of one open files of the
/// other.
#[test]
fn an_idle_mount_that_another_hides_is_not_taken_for_that() {
    let disk = ext4("rw");
    let at = disk.path();
    std::fs::write(at.join("f"), "one").expect("written");
    unmount_synced(at);
    let copy = disk.image().with_file_name("copy");
    std::fs::copy(disk.image(), &copy).expect("copied");
    mount_image(&copy, at, "rw");
    std::fs::write(at.join("f"), "above").expect("written");
    unmount_synced(at);

    let share = share();
    let at = share.path().join("sub");
    let _below = Below::image(&disk.image(), at.clone());
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let (file, _) = read_at(&session, "sub/f");
    wait_until_idle(&daemon, "/sub");
    let above = Below::image(&copy, at);
    assert_stale(&session, file);
    let (hiding, text) = read_at(&session, "sub/f");
    assert_eq!(text, "above");
    assert_ne!(hiding, file);
    above.unmount_soon();
    assert_stale(&session, hiding);
    assert_eq!(read_at(&session, "sub/f"), (file, "one".into()));
}

#[test]
fn what_is_open_on_a_mount_keeps_it() {
    let share = share();
    let [at, other] = ["sub", "other"].map(|name| share.path().join(name));
    let below = Below::tmpfs(at, "one");
    let _other = Below::tmpfs(other, "other");
    let daemon = Daemon::start(share.path(), &[]);
    let session = attach(&daemon);
    let (entry, handle) = open(&session, "sub/f", libc::O_RDWR).expect("opened");
    let top = walk(&session, "sub").expect("there").nodeid;
    let listing = session.opendir(top, 0).expect("opened").fh;
    let let_others_go = || {
        for _ in 0..2 {
            read_at(&session, "other/f");
            wait_until_idle(&daemon, "/other");
        }
    };

    let_others_go();
    assert_eq!(below.try_to_unmount(), Err(Errno::BUSY));
    let at = (entry.nodeid, handle.fh);
    assert_eq!(read_by_request(&session, at, 0, 100).expect("read"), b"one");
    session.getattr(entry.nodeid, None).expect("there");
    session.release(entry.nodeid, handle.fh).expect("released");
    let_others_go();
    assert_eq!(
        below.try_to_unmount(),
        Err(Errno::BUSY),
        "a directory is open"
    );
    session.releasedir(top, listing).expect("released");
    below.unmount_soon();

    // Out of the tree, and still there for who has it open.
    let lazily = Below::tmpfs(below.0.clone(), "two");
    let (entry, handle) = open(&session, "sub/f", libc::O_RDWR).expect("opened");
    unmount(&lazily.0, UnmountFlags::DETACH).expect("detached");
    let_others_go();
    let at = (entry.nodeid, handle.fh);
    session.getattr(entry.nodeid, None).expect("there");
    write_by_request(&session, at, 0, b"new").expect("written");
    assert_eq!(read_by_request(&session, at, 0, 100).expect("read"), b"new");
    session.release(entry.nodeid, handle.fh).expect("released");
}

/// Nothing but its descriptor leads to such a node.
#[test]
fn without_file_handles_a_mount_is_busy_until_it_is_forgotten() {
    let share = share();
    let below = Below::tmpfs(share.path().join("sub"), "one");
    let daemon = Daemon::start(share.path(), &["--inode-file-handles", "never"]);
    let session = attach(&daemon);
    let top = walk(&session, "sub").expect("there").nodeid;
    assert_eq!(below.try_to_unmount(), Err(Errno::BUSY));
    session.forget(top, 1);
    below.unmount_soon();
}
