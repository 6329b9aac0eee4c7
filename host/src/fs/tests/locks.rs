//! Locks, with a second share of the same directory for another guest.

use daxwindow_shared::fuse::flags::LkFlags;
use daxwindow_shared::fuse::{FileLock, LkIn};
use rustix::io::Errno;

use super::*;
use crate::fs::locks::Locked;

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const NONE: u32 = libc::F_UNLCK as u32;
const END: u64 = i64::MAX as u64;

/// One open file of one guest.
struct Opened {
    fs: SharedDir,
    node: u64,
    fh: u64,
}

impl Opened {
    fn new(dir: &std::path::Path, flags: i32) -> Opened {
        let options = ShareOptions {
            locks: true,
            max_handles: 100,
            ..Default::default()
        };
        let fs = SharedDir::open(dir, options).unwrap();
        let node = fs
            .lookup(ROOT_ID, Name::new(c"db").unwrap())
            .unwrap()
            .nodeid;
        let fh = fs.open_file(node, flags as u32, false).unwrap();
        Opened { fs, node, fh }
    }

    fn ask(&self, owner: u64, typ: u32, (start, end): (u64, u64), flags: LkFlags) -> LkIn {
        LkIn {
            fh: self.fh,
            owner,
            lk: FileLock {
                start,
                end,
                typ,
                pid: owner as u32,
            },
            lk_flags: flags.bits(),
            padding: 0,
        }
    }

    fn lock(&self, owner: u64, typ: u32, range: (u64, u64)) -> Result<(), Errno> {
        let args = self.ask(owner, typ, range, LkFlags::empty());
        outcome(self.fs.lock(self.node, &args))
    }

    fn flock(&self, fh: u64, typ: u32) -> Result<(), Errno> {
        let mut args = self.ask(0, typ, (0, END), LkFlags::FLOCK);
        args.fh = fh;
        outcome(self.fs.lock(self.node, &args))
    }

    fn conflict(&self, owner: u64, typ: u32, range: (u64, u64)) -> FileLock {
        let args = self.ask(owner, typ, range, LkFlags::empty());
        self.fs.conflicting_lock(self.node, &args).unwrap()
    }
}

fn outcome(locked: Result<Locked, Errno>) -> Result<(), Errno> {
    match locked? {
        Locked::Done => Ok(()),
        Locked::Blocked(_) => Err(Errno::AGAIN),
    }
}

fn two_guests() -> (tempfile::TempDir, Opened, Opened) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("db"), b"data").unwrap();
    let one = Opened::new(dir.path(), libc::O_RDWR);
    let two = Opened::new(dir.path(), libc::O_RDWR);
    (dir, one, two)
}

#[test]
fn ranges_exclude_other_owners_here_and_in_another_guest() {
    let (_dir, one, two) = two_guests();
    one.lock(7, WRITE, (10, 19)).unwrap();
    assert_eq!(
        one.lock(7, READ, (0, END)),
        Ok(()),
        "its own is no obstacle"
    );
    one.lock(7, WRITE, (10, 19)).unwrap();
    assert_eq!(one.lock(8, READ, (19, 30)), Err(Errno::AGAIN));
    assert_eq!(two.lock(7, READ, (19, 30)), Err(Errno::AGAIN));
    assert_eq!(two.lock(7, READ, (20, 30)), Ok(()));
    assert_eq!(one.lock(7, WRITE, (20, 20)), Err(Errno::AGAIN));

    let here = one.conflict(8, READ, (0, END));
    assert_eq!(
        (here.start, here.end, here.typ, here.pid),
        (10, 19, WRITE, 7)
    );
    let there = two.conflict(7, WRITE, (15, 15));
    assert_eq!(
        (there.start, there.end, there.typ, there.pid),
        (10, 19, WRITE, 0)
    );
    assert_eq!(one.conflict(7, WRITE, (0, 9)).typ, NONE);

    one.lock(7, NONE, (0, END)).unwrap();
    assert_eq!(two.lock(7, WRITE, (0, END)), Ok(()));
}

#[test]
fn a_lock_of_which_a_part_is_given_back_keeps_the_pid_of_its_holder() {
    let (_dir, one, _two) = two_guests();
    one.lock(7, WRITE, (0, 20)).unwrap();
    let mut unlock = one.ask(7, NONE, (10, 15), LkFlags::empty());
    unlock.lk.pid = 0;
    outcome(one.fs.lock(one.node, &unlock)).unwrap();
    let left = one.conflict(8, WRITE, (0, 0));
    assert_eq!((left.start, left.end, left.pid), (0, 9, 7));
}

#[test]
fn an_owner_that_closes_a_descriptor_loses_its_locks_and_only_those() {
    let (_dir, one, two) = two_guests();
    one.lock(7, WRITE, (0, 9)).unwrap();
    one.lock(8, WRITE, (10, 19)).unwrap();
    one.fs.flush(one.node, one.fh, 7).unwrap();
    assert_eq!(two.lock(1, WRITE, (0, 9)), Ok(()));
    assert_eq!(two.lock(1, WRITE, (10, 19)), Err(Errno::AGAIN));
    one.fs.reset();
    assert_eq!(two.lock(1, WRITE, (10, 19)), Ok(()));
    two.fs.flush(two.node, two.fh, 1).unwrap();
    assert_eq!(two.fs.live_handles(), 1, "an owner's descriptor is closed");
}

#[test]
fn a_wait_ends_when_the_lock_comes_free_or_the_session_ends() {
    let (_dir, one, two) = two_guests();
    one.lock(7, WRITE, (0, END)).unwrap();
    let args = two.ask(9, WRITE, (0, 0), LkFlags::empty());
    let Ok(Locked::Blocked(wait)) = two.fs.lock(two.node, &args) else {
        panic!("it has to wait");
    };
    assert_eq!(two.fs.try_lock(&wait), Err(Errno::AGAIN));
    // A close by another thread of the owner does not end the wait.
    two.fs.flush(two.node, two.fh, 9).unwrap();
    one.fs.flush(one.node, one.fh, 7).unwrap();
    assert_eq!(two.fs.try_lock(&wait), Ok(()));
    assert_eq!(one.lock(7, READ, (0, 0)), Err(Errno::AGAIN));
    drop(wait);
    assert_eq!(
        one.lock(7, READ, (0, 0)),
        Err(Errno::AGAIN),
        "it is the owner's"
    );

    let args = one.ask(7, READ, (0, 0), LkFlags::empty());
    let Ok(Locked::Blocked(wait)) = one.fs.lock(one.node, &args) else {
        panic!("it has to wait");
    };
    one.fs.reset();
    two.fs.reset();
    assert_eq!(one.fs.try_lock(&wait), Err(Errno::NOTCONN));
}

#[test]
fn a_flock_lock_is_the_handles_and_goes_with_it() {
    let (dir, one, two) = two_guests();
    one.flock(one.fh, WRITE).unwrap();
    let second = one.fs.open_file(one.node, 0, false).unwrap();
    assert_eq!(one.flock(second, READ), Err(Errno::AGAIN));
    assert_eq!(two.flock(two.fh, READ), Err(Errno::AGAIN));
    assert_eq!(two.lock(1, WRITE, (0, END)), Ok(()), "another kind of lock");
    let host = std::fs::File::open(dir.path().join("db")).unwrap();
    assert!(host.try_lock_shared().is_err(), "the host meets it");

    one.flock(one.fh, READ).unwrap();
    assert_eq!(two.flock(two.fh, READ), Ok(()));
    // A request may still use the handle's descriptor.
    let in_use = two.fs.file(two.node, two.fh).unwrap();
    two.fs.release(two.node, two.fh).unwrap();
    one.flock(one.fh, WRITE).unwrap();
    drop(in_use);
}

#[test]
fn a_lock_that_an_open_file_owns_goes_with_its_handle() {
    let (_dir, one, two) = two_guests();
    one.lock(0xf11e, WRITE, (0, 9)).unwrap();
    let other = one
        .fs
        .open_file(one.node, libc::O_RDWR as u32, false)
        .unwrap();
    one.fs.release(one.node, other).unwrap();
    assert_eq!(two.lock(1, READ, (0, 9)), Err(Errno::AGAIN));
    one.fs.release(one.node, one.fh).unwrap();
    assert_eq!(two.lock(1, READ, (0, 9)), Ok(()));
    assert_eq!(one.fs.live_handles(), 0);
}

#[test]
fn a_lock_needs_a_handle_of_its_kind_and_a_range_that_is_one() {
    let (dir, one, _two) = two_guests();
    let reader = Opened::new(dir.path(), libc::O_RDONLY);
    assert_eq!(reader.lock(1, WRITE, (0, 1)), Err(Errno::BADF));
    assert_eq!(reader.lock(1, READ, (0, 1)), Ok(()));
    let writer = Opened::new(dir.path(), libc::O_WRONLY);
    assert_eq!(writer.lock(1, READ, (0, 1)), Err(Errno::BADF));
    for (typ, range) in [(READ, (1, 0)), (READ, (0, u64::MAX)), (77, (0, 1))] {
        assert_eq!(one.lock(1, typ, range), Err(Errno::INVAL));
    }
    let strange = one.ask(1, READ, (0, 1), LkFlags::from_bits_retain(2));
    assert_eq!(outcome(one.fs.lock(one.node, &strange)), Err(Errno::INVAL));
    let no_handle = LkIn {
        fh: 999,
        ..one.ask(1, READ, (0, 1), LkFlags::empty())
    };
    assert_eq!(outcome(one.fs.lock(one.node, &no_handle)), Err(Errno::BADF));
}

#[test]
fn locks_cost_their_guest_ranges_and_descriptors() {
    let (_dir, one, _two) = two_guests();
    let mut refused = None;
    for i in 0..9000 {
        if let Err(errno) = one.lock(1, READ, (3 * i, 3 * i)) {
            refused = Some((i, errno));
            break;
        }
    }
    assert_eq!(refused, Some((8192, Errno::NOLCK)));
    assert_eq!(one.lock(1, READ, (0, END)), Ok(()), "fewer than before");
    let refused = (2..200).find_map(|owner| Some((owner, one.lock(owner, READ, (0, 0)).err()?)));
    assert_eq!(refused, Some((100, Errno::NOLCK)), "99 owners and a handle");
    // What is not there can always be unlocked.
    assert_eq!(one.lock(500, NONE, (0, END)), Ok(()));
}
