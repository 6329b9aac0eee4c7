//! Names that change while they are used, by the host's doing or by another
//! guest's. Every loop has its end by count.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use daxwindow_guest::Result;
use daxwindow_guest::session::{Session, SessionOptions};
use daxwindow_shared::fuse::flags::SetattrValid;
use daxwindow_shared::fuse::{ROOT_ID, SetattrIn};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::common::{
    Daemon, PATIENCE, attach, in_memory, make_file, on_disk, open, read_by_request, walk,
    write_by_request,
};
use crate::{House, INSIDE, SANDBOXES, SECRET};

/// Rounds of a guest that does everything there is.
const ROUNDS: u64 = 400;

/// Does something again and again, until dropped.
pub(crate) struct Again {
    stop: Arc<AtomicBool>,
    times: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Again {
    fn start(mut once: impl FnMut() + Send + 'static) -> Again {
        let stop = Arc::new(AtomicBool::new(false));
        let times = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), times.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                once();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Again {
            stop,
            times,
            thread: Some(thread),
        }
    }

    /// The host swaps two names as fast as can be.
    pub(crate) fn swapping(one: &Path, other: &Path) -> Again {
        let (one, other) = (one.to_owned(), other.to_owned());
        Again::start(move || {
            renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("swap");
        })
    }

    /// Another guest does.
    fn swapping_by(session: Arc<Session>, one: &'static [u8], other: &'static [u8]) -> Again {
        Again::start(move || {
            let swapped = session.rename2(ROOT_ID, one, ROOT_ID, other, libc::RENAME_EXCHANGE);
            swapped.expect("swap");
        })
    }

    #[track_caller]
    pub(crate) fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("running");
        thread.join().expect("it went well");
        assert!(self.times.load(Ordering::Relaxed) > 100);
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn errno<T>(result: Result<T>) -> std::result::Result<T, Errno> {
    result.map_err(|error| error.errno())
}

/// What one attempt to reach `dir/secret` came to.
fn attempt(session: &Session) -> std::result::Result<Vec<u8>, Errno> {
    let (entry, handle) = errno(open(session, "dir/secret", libc::O_RDWR))?;
    let at = (entry.nodeid, handle.fh);
    let bytes = errno(read_by_request(session, at, 0, 100));
    let _ = write_by_request(session, at, 0, INSIDE);
    session.release(entry.nodeid, handle.fh).expect("closed");
    session.forget(entry.nodeid, 1);
    bytes
}

#[test]
fn a_directory_swapped_with_a_link_never_leads_out() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        let share = house.share();
        std::fs::create_dir(share.join("dir")).expect("a directory");
        std::fs::write(share.join("dir/secret"), INSIDE).expect("a file");
        symlink(house.outside(), share.join("swap")).expect("a link");
        let daemon = Daemon::start(&share, &[sandbox, &["--num-request-queues", "2"]].concat());
        let session = attach(&daemon);
        let swapper = Again::swapping(&share.join("dir"), &share.join("swap"));
        let (mut inside, mut refused) = (0u32, 0u32);
        let deadline = Instant::now() + PATIENCE;
        // Until both outcomes have been seen many times.
        while inside < 300 || refused < 300 {
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
        swapper.end();
        house.assert_untouched();
    }
}

#[test]
fn a_file_swapped_with_a_link_is_never_created_or_truncated_through() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        let share = house.share();
        make_file(&share.join("file"), 5, 100);
        symlink(house.outside().join("secret"), share.join("swap")).expect("a link");
        // One that leads to what is not there yet.
        symlink(house.outside().join("new"), share.join("dangling")).expect("a link");
        let daemon = Daemon::start(&share, sandbox);
        let session = attach(&daemon);
        for link in ["swap", "dangling"] {
            let swapper = Again::swapping(&share.join("file"), &share.join(link));
            let (mut made, mut refused) = (0u32, 0u32);
            let deadline = Instant::now() + PATIENCE;
            while made < 100 || refused < 100 {
                assert!(Instant::now() < deadline, "{made} made, {refused} refused");
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
                        refused += 1;
                    }
                }
            }
            swapper.end();
            // Whichever it was at the end.
            if share.join("file").is_symlink() {
                let (one, other) = (share.join("file"), share.join(link));
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("swap");
            }
        }
        house.assert_untouched();
    }
}

/// Everything that a guest can do in a directory and to a file in it, looked
/// up anew each time. What succeeds and what does not depends on the moment;
/// what is read never does.
fn everything(session: &Session, round: u64) {
    let Ok(dir) = session.lookup(ROOT_ID, b"dir") else {
        return;
    };
    let (dir, name) = (dir.nodeid, format!("made-{}", round % 7));
    let name = name.as_bytes();
    let _ = session.mkdir(dir, name, 0o755);
    let _ = session.rmdir(dir, name);
    let _ = session.symlink(dir, name, b"/etc");
    let _ = session.unlink(dir, name);
    let _ = session.mknod(dir, name, libc::S_IFIFO | 0o600, 0);
    let _ = session.unlink(dir, name);
    if let Ok((made, handle)) = session.create(dir, name, libc::O_RDWR as u32, 0o644) {
        let _ = write_by_request(session, (made.nodeid, handle.fh), 0, INSIDE);
        let _ = session.release(made.nodeid, handle.fh);
        let _ = session.link(made.nodeid, dir, b"linked");
        let _ = session.rename(dir, b"linked", ROOT_ID, b"moved");
        let _ = session.rename2(ROOT_ID, b"moved", dir, name, libc::RENAME_EXCHANGE);
        let _ = session.unlink(ROOT_ID, b"moved");
        let _ = session.unlink(dir, b"linked");
    }
    let _ = session.unlink(dir, name);
    if let Ok(listing) = session.opendir(dir, 0) {
        for item in session.readdirplus(dir, listing.fh, 0).unwrap_or_default() {
            // Only ours has it; that outside has a directory of this name.
            assert_ne!(item.name, b"dir", "a listing of what is outside");
        }
        let _ = session.releasedir(dir, listing.fh);
    }
    if let Ok(secret) = session.lookup(dir, b"secret") {
        let id = secret.nodeid;
        for (valid, mode) in [
            (SetattrValid::MODE, 0o600 + (round as u32 % 8)),
            (SetattrValid::MTIME_NOW | SetattrValid::ATIME_NOW, 0),
            (SetattrValid::UID | SetattrValid::GID, 0),
        ] {
            let set = SetattrIn {
                valid: valid.bits(),
                mode,
                uid: 7,
                gid: 7,
                ..SetattrIn::default()
            };
            let _ = session.setattr(id, &set);
        }
        let _ = session.setxattr(id, b"user.round", &round.to_le_bytes(), 0);
        if let Ok(handle) = session.open(id, libc::O_RDWR as u32) {
            let read = read_by_request(session, (id, handle.fh), 0, SECRET.len());
            assert_ne!(read.unwrap_or_default(), SECRET, "read outside");
            let _ = write_by_request(session, (id, handle.fh), 0, INSIDE);
            let _ = session.release(id, handle.fh);
        }
        session.forget(id, 1);
    }
}

/// Files, links and directories: `dir` is the guest's, `swap` leads outside.
fn lay_out(house: &House) {
    let share = house.share();
    std::fs::create_dir(share.join("dir")).expect("a directory");
    std::fs::write(share.join("dir/secret"), INSIDE).expect("a file");
    symlink("../outside", share.join("swap")).expect("a link");
}

#[test]
fn whatever_a_guest_does_while_the_host_swaps_names_stays_inside() {
    for sandbox in SANDBOXES {
        for handles in ["prefer", "never"] {
            let house = House::new(on_disk());
            lay_out(&house);
            let share = house.share();
            let flags = ["--xattr", "--inode-file-handles", handles];
            let daemon = Daemon::start(&share, &[sandbox, &flags].concat());
            let session = attach(&daemon);
            let swapper = Again::swapping(&share.join("dir"), &share.join("swap"));
            for round in 0..ROUNDS {
                everything(&session, round);
            }
            swapper.end();
            house.assert_untouched();
            let kept = [share.join("dir/secret"), share.join("swap/secret")];
            let ours = kept.iter().find(|path| {
                let dir = path.parent().expect("a parent");
                !dir.is_symlink()
            });
            let meta = std::fs::metadata(ours.expect("one of both")).expect("there");
            assert_eq!(meta.uid(), 7, "what was done was done inside");
        }
    }
}

#[test]
fn whatever_a_guest_does_while_another_swaps_names_stays_inside() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        lay_out(&house);
        let sockets = tempfile::tempdir().expect("a directory");
        let second = sockets.path().join("second");
        let both = ["--socket-path", second.to_str().expect("UTF-8"), "--xattr"];
        let daemon = Daemon::start(&house.share(), &[sandbox, &both].concat());
        daemon.expect_log("waiting for a client", 2);
        let options = SessionOptions {
            memory_bytes: 16 << 20,
            timeout: PATIENCE,
            ..SessionOptions::new(&second)
        };
        let other = Session::connect(options).expect("a session");
        let session = attach(&daemon);
        let swapper = Again::swapping_by(other, b"dir", b"swap");
        for round in 0..ROUNDS {
            everything(&session, round);
        }
        swapper.end();
        house.assert_untouched();
    }
}

/// A directory that the host takes out of the share and puts back: what a
/// guest makes in it is in it, wherever it is, and never beside it.
#[test]
fn a_directory_that_comes_and_goes_is_no_way_to_its_neighbours() {
    for sandbox in SANDBOXES {
        let house = House::new(in_memory());
        lay_out(&house);
        let (share, away) = (house.share(), house.base.path().join("away"));
        std::fs::create_dir(&away).expect("a directory");
        std::fs::write(away.join("secret"), SECRET).expect("a file");
        std::fs::create_dir(share.join("dir/below")).expect("a directory");
        let daemon = Daemon::start(&share, sandbox);
        let session = attach(&daemon);
        let below = walk(&session, "dir/below").expect("there").nodeid;
        let (here, there) = (share.join("dir"), away.join("dir"));
        let mover = Again::start(move || {
            std::fs::rename(&here, &there).expect("moved out");
            std::fs::rename(&there, &here).expect("moved back");
        });
        for round in 0..ROUNDS {
            everything(&session, round);
            for name in [b"secret".as_slice(), b"../secret", b"../../secret"] {
                let error = session.lookup(below, name).expect_err("not in there");
                let known = [Errno::NOENT, Errno::INVAL, Errno::ACCESS, Errno::STALE];
                assert!(known.contains(&error.errno()), "{error}");
            }
            let _ = session.mkdir(below, b"made", 0o755);
            let _ = session.rmdir(below, b"made");
        }
        mover.end();
        let left: Vec<_> = std::fs::read_dir(&away).expect("listed").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(
            std::fs::read(away.join("secret")).expect("there"),
            SECRET,
            "nothing was written beside it"
        );
        house.assert_untouched();
    }
}
