//! No request leads out of the shared directory, whatever lies in it and
//! whoever moves it about.

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::wire::{Message, ask};
use common::{
    Daemon, PATIENCE, attach, in_memory, make_file, on_disk, open, read_by_request, walk,
    write_by_request,
};
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::{EntryOut, Opcode, ROOT_ID};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

const SECRET: &[u8] = b"nobody in the guest may read this";
const INSIDE: &[u8] = b"this is the guest's";

/// `outside/secret` beside `share/`.
fn house(base: TempDir) -> TempDir {
    let outside = base.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("secret"), SECRET).expect("a file");
    std::fs::create_dir(base.path().join("share")).expect("a directory");
    base
}

/// Every request that takes a node, on a node that is a link.
fn assert_link_leads_nowhere(session: &Session, link: EntryOut) {
    let id = link.nodeid;
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        let error = session.open(id, flags as u32).expect_err("a link");
        assert_eq!(error.errno(), Errno::LOOP);
    }
    let not_a_directory = [Errno::NOTDIR, Errno::LOOP];
    for name in [b"secret".as_slice(), b"passwd", b"outside"] {
        let error = session.lookup(id, name).expect_err("a link");
        assert!(not_a_directory.contains(&error.errno()), "{error}");
        let error = session.mkdir(id, name, 0o755).expect_err("a link");
        assert!(not_a_directory.contains(&error.errno()), "{error}");
        let error = session.unlink(id, name).expect_err("a link");
        assert!(not_a_directory.contains(&error.errno()), "{error}");
        let created = session.create(id, name, libc::O_RDWR as u32, 0o644);
        let error = created.expect_err("a link");
        assert!(not_a_directory.contains(&error.errno()), "{error}");
    }
    let error = session.opendir(id, 0).expect_err("a link");
    assert!(not_a_directory.contains(&error.errno()), "{error}");
    session
        .setup_mapping(id, 0, 0, common::RANGE, false)
        .expect_err("a link");
}

#[test]
fn links_are_handed_over_and_never_followed() {
    let base = house(on_disk());
    let share = base.path().join("share");
    let targets = [
        "/",
        "/etc/passwd",
        "..",
        "../outside",
        "../outside/secret",
        "../../../../../../../etc",
        "/proc/self/root",
        "loop",
    ];
    for (number, target) in targets.iter().enumerate() {
        symlink(target, share.join(number.to_string())).expect("a link");
    }
    symlink("loop", share.join("loop")).expect("a link");
    let daemon = Daemon::start(&share, &["--dax", "always"]);
    let session = attach(&daemon);
    for (number, target) in targets.iter().enumerate() {
        let link = walk(&session, &number.to_string()).expect("the link itself");
        let read = session.readlink(link.nodeid).expect("its target");
        assert_eq!(read, target.as_bytes());
        assert_link_leads_nowhere(&session, link);
        // CREATE without O_EXCL opens what is there: not through a link.
        let name = number.to_string();
        let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
        let created = session.create(ROOT_ID, name.as_bytes(), flags, 0o644);
        assert_eq!(created.expect_err("a link").errno(), Errno::LOOP);
    }
    let secret = std::fs::read(base.path().join("outside/secret")).expect("untouched");
    assert_eq!(secret, SECRET);
}

#[test]
fn links_that_the_guest_makes_lead_nowhere_either() {
    let base = house(on_disk());
    let share = base.path().join("share");
    let daemon = Daemon::start(&share, &["--dax", "always"]);
    let session = attach(&daemon);
    for target in [b"/etc".as_slice(), b"../outside", b"/"] {
        let link = session.symlink(ROOT_ID, b"way-out", target).expect("made");
        assert_link_leads_nowhere(&session, link);
        // A hard link to it is a link as well, not its target.
        let hard = session.link(link.nodeid, ROOT_ID, b"hard").expect("linked");
        assert_link_leads_nowhere(&session, hard);
        session.unlink(ROOT_ID, b"hard").expect("removed");
        session.unlink(ROOT_ID, b"way-out").expect("removed");
    }
}

#[test]
fn the_parent_of_the_share_has_no_name() {
    let base = house(on_disk());
    let share = base.path().join("share");
    std::fs::create_dir(share.join("dir")).expect("a directory");
    let daemon = Daemon::start(&share, &[]);
    let session = attach(&daemon);
    let dir = walk(&session, "dir").expect("dir").nodeid;
    for nodeid in [ROOT_ID, dir] {
        for name in ["..", ".", "../outside", "../../etc", "/etc"] {
            let body = [name.as_bytes(), b"\0"].concat();
            let lookup = Message::new(Opcode::Lookup as u32, nodeid, body);
            assert_eq!(ask(&session, &lookup).errno, libc::EINVAL, "{name}");
        }
    }
    // "." and ".." are listed, but not looked up.
    let dh = session.opendir(ROOT_ID, 0).expect("opendir").fh;
    for item in session.readdirplus(ROOT_ID, dh, 0).expect("list") {
        if item.name == b".." {
            assert_eq!(item.entry.expect("an entry").nodeid, 0);
        }
    }
}

#[test]
fn a_directory_moved_out_of_the_share_has_no_way_up() {
    let base = house(on_disk());
    let share = base.path().join("share");
    std::fs::create_dir_all(share.join("a/b")).expect("directories");
    let daemon = Daemon::start(&share, &[]);
    let session = attach(&daemon);
    let b = walk(&session, "a/b").expect("b").nodeid;
    std::fs::rename(share.join("a"), base.path().join("outside/a")).expect("moved");
    let body = b"..\0".to_vec();
    let lookup = Message::new(Opcode::Lookup as u32, b, body);
    assert_eq!(ask(&session, &lookup).errno, libc::EINVAL);
    session.lookup(b, b"secret").expect_err("not in there");
}

/// Swaps two names as fast as can be, until dropped.
struct Swapper {
    stop: std::sync::Arc<AtomicBool>,
    swaps: std::sync::Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(one: &Path, other: &Path) -> Swapper {
        let (one, other) = (one.to_owned(), other.to_owned());
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let swaps = std::sync::Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("swap");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Swapper {
            stop,
            swaps,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What one attempt to reach `dir/secret` came to.
fn attempt(session: &Session) -> Result<Vec<u8>, Errno> {
    let tried = open(session, "dir/secret", libc::O_RDWR);
    let (entry, handle) = tried.map_err(|error| error.errno())?;
    let at = (entry.nodeid, handle.fh);
    let bytes = read_by_request(session, at, 0, 100).map_err(|error| error.errno());
    let _ = write_by_request(session, at, 0, INSIDE);
    session.release(entry.nodeid, handle.fh).expect("closed");
    session.forget(entry.nodeid, 1);
    bytes
}

#[test]
fn a_directory_swapped_with_a_link_never_leads_out() {
    let base = house(in_memory());
    let share = base.path().join("share");
    let outside = base.path().join("outside");
    std::fs::create_dir(share.join("dir")).expect("a directory");
    std::fs::write(share.join("dir/secret"), INSIDE).expect("a file");
    symlink(&outside, share.join("swap")).expect("a link");
    let daemon = Daemon::start(&share, &["--num-request-queues", "2"]);
    let session = attach(&daemon);
    let swapper = Swapper::start(&share.join("dir"), &share.join("swap"));
    let (mut inside, mut refused) = (0u32, 0u32);
    let deadline = Instant::now() + PATIENCE;
    // Until both outcomes have been seen many times.
    while inside < 500 || refused < 500 {
        assert!(Instant::now() < deadline, "{inside} in, {refused} refused");
        match attempt(&session) {
            Ok(bytes) => {
                assert_eq!(bytes, INSIDE);
                inside += 1;
            }
            Err(errno) => {
                let known = [Errno::NOTDIR, Errno::LOOP, Errno::NOENT, Errno::STALE];
                assert!(known.contains(&errno), "{errno}");
                refused += 1;
            }
        }
    }
    assert!(swapper.swaps.load(Ordering::Relaxed) > 100);
    drop(swapper);
    let secret = std::fs::read(outside.join("secret")).expect("still there");
    assert_eq!(secret, SECRET, "nothing was written outside");
}

#[test]
fn a_file_swapped_with_a_link_is_never_created_or_truncated_through() {
    let base = house(in_memory());
    let share = base.path().join("share");
    let secret = base.path().join("outside/secret");
    make_file(&share.join("file"), 5, 100);
    symlink(&secret, share.join("swap")).expect("a link");
    let daemon = Daemon::start(&share, &[]);
    let session = attach(&daemon);
    let swapper = Swapper::start(&share.join("file"), &share.join("swap"));
    let until = Instant::now() + Duration::from_secs(1);
    let mut made = 0u32;
    while Instant::now() < until || made == 0 {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;
        match session.create(ROOT_ID, b"file", flags, 0o644) {
            Ok((entry, handle)) => {
                let at = (entry.nodeid, handle.fh);
                write_by_request(&session, at, 0, INSIDE).expect("written");
                session.release(entry.nodeid, handle.fh).expect("closed");
                session.forget(entry.nodeid, 1);
                made += 1;
            }
            Err(error) => {
                let known = [Errno::LOOP, Errno::STALE, Errno::NOENT];
                assert!(known.contains(&error.errno()), "{error}");
            }
        }
    }
    drop(swapper);
    assert_eq!(std::fs::read(&secret).expect("still there"), SECRET);
}

#[test]
fn special_files_are_not_opened() {
    let base = house(on_disk());
    let share = base.path().join("share");
    let daemon = Daemon::start(&share, &[]);
    let session = attach(&daemon);
    let fifo = session
        .mknod(ROOT_ID, b"fifo", libc::S_IFIFO | 0o666, 0)
        .expect("a FIFO");
    let socket = session
        .mknod(ROOT_ID, b"socket", libc::S_IFSOCK | 0o666, 0)
        .expect("a socket");
    for node in [fifo, socket] {
        // Opening a FIFO would wait for its other end.
        let error = session.open(node.nodeid, 0).expect_err("special");
        assert_eq!(error.errno(), Errno::NXIO);
    }
}
