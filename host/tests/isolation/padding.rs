//! The process that pads, asked by a serving process that somebody has taken
//! over: here by the test, with that process's own end of the line; and what
//! is left when it ends.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxwindow_guest::Session;
use daxwindow_guest::test_utils::Tuning;
use daxwindow_shared::fuse::EntryOut;
use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::window::{FileOffset, WindowOffset};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstatfs, mknodat, openat};
use rustix::io::Errno;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg, sockopt,
};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};

use crate::common::{
    Daemon, RANGE, Strict, assert_serves_next, eventually, in_memory, make_file, open, options,
    pattern, read_by_request, walk,
};
use crate::{field, padding_of};

/// What the serving process has of the view: its end of the line to the
/// process that pads, and the directory in which it opens files.
struct View {
    line: OwnedFd,
    root: OwnedFd,
    /// Far from those of the daemon.
    number: Cell<u64>,
}

impl View {
    fn of(daemon: &Daemon) -> View {
        let pid = daemon.pid();
        let process = Pid::from_raw(pid as i32).expect("a process");
        let process = pidfd_open(process, PidfdFlags::empty()).expect("it runs");
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs");
        let taken: Vec<OwnedFd> = open
            .filter_map(|entry| {
                let fd = entry.ok()?.file_name().to_str()?.parse().ok()?;
                pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()
            })
            .collect();
        let is_line = |fd: &OwnedFd| sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET);
        let is_root = |fd: &OwnedFd| fstatfs(fd).is_ok_and(|fs| fs.f_type == FUSE_SUPER_MAGIC);
        let (lines, others): (Vec<_>, Vec<_>) = taken.into_iter().partition(is_line);
        let roots: Vec<_> = others.into_iter().filter(is_root).collect();
        let [line] = <[_; 1]>::try_from(lines).expect("a line");
        let [root] = <[_; 1]>::try_from(roots).expect("a view");
        let number = Cell::new(1 << 40);
        View { line, root, number }
    }

    /// Orders a file under a number of its own, and answers that.
    fn order(&self, what: u32, fds: &[BorrowedFd<'_>]) -> u64 {
        let number = self.number.replace(self.number.get() + 1);
        let words = [0, what].map(u32::to_ne_bytes).concat();
        self.send(&[&number.to_ne_bytes(), &words[..]].concat(), fds);
        number
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let data = [IoSlice::new(bytes)];
        sendmsg(&self.line, &data, &mut control, SendFlags::NOSIGNAL).expect("sent");
    }

    fn open(&self, number: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        openat(&self.root, number.to_string(), flags, Mode::empty())
    }

    /// Orders a file and opens it.
    fn ask(&self, what: u32, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, Errno> {
        let access = match what {
            WRITE => OFlags::RDWR,
            _ => OFlags::RDONLY,
        };
        self.open(self.order(what, fds), access)
    }
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const WITHDRAW: u32 = 2;
/// linux/magic.h
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

fn access(fd: impl AsFd) -> OFlags {
    fcntl_getfl(fd).expect("open") & OFlags::ACCMODE
}

fn again(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[test]
fn who_asks_gets_no_more_than_the_descriptor_has() {
    let share = in_memory();
    let path = share.path().join("file");
    std::fs::write(&path, "bytes").expect("a file");
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let helper = padding_of(&daemon);
    eventually("it is confined", || field(helper, "Seccomp") == "2");
    let view = View::of(&daemon);
    let open = |read, write| {
        let mut options = OpenOptions::new();
        options.read(read).write(write).open(&path).expect("opens")
    };
    let (reader, writer, both) = (open(true, false), open(false, true), open(true, true));
    let held = || {
        std::fs::read_dir(format!("/proc/{helper}/fd"))
            .expect("runs")
            .count()
    };
    let before = held();
    for (file, asked, may) in [
        (&reader, READ, Ok(OFlags::RDONLY)),
        (&reader, WRITE, Err(Errno::ACCESS)),
        (&writer, READ, Err(Errno::ACCESS)),
        (&writer, WRITE, Err(Errno::ACCESS)),
        (&both, READ, Ok(OFlags::RDONLY)),
        (&both, WRITE, Ok(OFlags::RDWR)),
        // What is no order to pad for writing is one for reading at most.
        (&reader, 3, Ok(OFlags::RDONLY)),
        (&both, u32::MAX, Ok(OFlags::RDONLY)),
        (&both, WITHDRAW, Err(Errno::NOENT)),
    ] {
        let answer = view.ask(asked, &[file.as_fd()]);
        assert_eq!(answer.as_ref().map(access), may.as_ref().copied());
        let Ok(padded) = answer else { continue };
        // Neither it nor another way into the view gives more.
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            let opened = again(&padded, flags);
            assert!(opened.is_err(), "{flags:?}");
        }
        if access(&padded) == OFlags::RDONLY {
            let written = rustix::io::pwrite(&padded, b"got", 0);
            assert_eq!(written, Err(Errno::BADF));
        }
        rustix::fs::ftruncate(&padded, 1).expect_err("nothing is cut through it");
        let grown = rustix::fs::fallocate(&padded, rustix::fs::FallocateFlags::empty(), 0, 1 << 20);
        grown.expect_err("nor grown");
        for up in ["..", ".", "2", "x"] {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&padded, up, flags, Mode::empty());
            assert_eq!(opened.err(), Some(Errno::NOTDIR));
        }
    }
    // Nor does an open that is not the one that was ordered, or a second one.
    for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR | OFlags::TRUNC] {
        let number = view.order(READ, &[both.as_fd()]);
        assert_eq!(view.open(number, flags).err(), Some(Errno::ACCESS));
        assert_eq!(view.open(number, OFlags::RDONLY).err(), Some(Errno::NOENT));
    }
    for strange in [&[][..], &[1], &[0xff; 15], &[0xff; 400]] {
        if !strange.is_empty() {
            view.send(strange, &[both.as_fd()]);
        }
        assert_eq!(
            view.open(u64::MAX, OFlags::RDONLY).err(),
            Some(Errno::NOENT)
        );
    }
    assert_eq!(std::fs::read(&path).expect("there"), b"bytes");
    eventually("nothing is left with it", || held() <= before);
    assert_serves_next(&daemon);
}

#[test]
fn what_is_no_regular_file_is_not_padded() {
    let share = in_memory();
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let helper = padding_of(&daemon);
    eventually("it is confined", || field(helper, "Seccomp") == "2");
    let view = View::of(&daemon);
    let fifo = share.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
    let open = |path: &Path, flags: i32| -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags | libc::O_NONBLOCK);
        options.open(path).expect("opens").into()
    };
    let path = share.path().join("file");
    std::fs::write(&path, "bytes").expect("a file");
    let both = OpenOptions::new().read(true).write(true).open("/dev/null");
    let (one, _other) = rustix::pipe::pipe().expect("a pipe");
    for (what, fd, errno) in [
        ("a path", open(&path, libc::O_PATH), Errno::ACCESS),
        ("a directory", open(share.path(), 0), Errno::INVAL),
        ("a FIFO", open(&fifo, 0), Errno::INVAL),
        ("a device", open(Path::new("/dev/zero"), 0), Errno::INVAL),
        ("one to write to", both.expect("opens").into(), Errno::INVAL),
        ("a pipe", one, Errno::INVAL),
        (
            "a socket",
            view.line.try_clone().expect("a copy"),
            Errno::INVAL,
        ),
    ] {
        for asked in [READ, WRITE] {
            let error = view.ask(asked, &[fd.as_fd()]).expect_err(what);
            assert!(error == errno || error == Errno::ACCESS, "{what}: {error}");
        }
    }
    for asked in [READ, WRITE, 7] {
        assert_eq!(view.ask(asked, &[]).err(), Some(Errno::BADF));
    }
    // More than one at a time: the first counts, and none is kept.
    let file = File::open(&path).expect("opens");
    let held = || {
        std::fs::read_dir(format!("/proc/{helper}/fd"))
            .expect("runs")
            .count()
    };
    let before = held();
    for _ in 0..50 {
        let many = [file.as_fd(), view.line.as_fd(), file.as_fd(), file.as_fd()];
        drop(view.ask(READ, &many).expect("the first"));
    }
    eventually("none is kept", || held() <= before);
    assert_serves_next(&daemon);
}

/// Orders that are given and never opened cost nothing once they are
/// withdrawn.
#[test]
fn orders_that_are_withdrawn_are_forgotten() {
    let share = in_memory();
    let path = share.path().join("file");
    std::fs::write(&path, "bytes").expect("a file");
    let daemon = Daemon::start(share.path(), &["--dax", "always"]);
    let helper = padding_of(&daemon);
    let view = View::of(&daemon);
    let held = || {
        std::fs::read_dir(format!("/proc/{helper}/fd"))
            .expect("runs")
            .count()
    };
    let before = held();
    let file = File::open(&path).expect("opens");
    for _ in 0..2000 {
        let number = view.order(READ, &[file.as_fd()]);
        let words = [0, WITHDRAW].map(u32::to_ne_bytes).concat();
        view.send(&[&number.to_ne_bytes(), &words[..]].concat(), &[]);
    }
    eventually("none is kept", || held() <= before);
    assert_serves_next(&daemon);
}

/// A guest whose front end needs padded files, once the one before is let go.
fn attach_strict(daemon: &Daemon) -> Arc<Session> {
    let mut session = None;
    eventually("a session", || {
        let hook = Arc::new(Strict::default());
        let tuning = Tuning {
            hook: Some(hook.clone()),
            ..Tuning::default()
        };
        session = Session::connect_with(options(daemon), tuning).ok();
        session.is_some() && hook.asked.load(Ordering::SeqCst) > 0
    });
    session.expect("connected")
}

#[test]
fn files_are_read_and_mapped_when_the_process_that_pads_has_ended() {
    let share = in_memory();
    for name in ["known", "mapped-later", "found-later"] {
        make_file(&share.path().join(name), 4, 2 * RANGE as usize + 100);
    }
    let daemon = Daemon::start(share.path(), &["--dax", "always", "--dax-window", "64M"]);
    let helper = Pid::from_raw(padding_of(&daemon) as i32).expect("a process");
    let session = attach_strict(&daemon);
    let has_dax = |entry: &EntryOut| entry.attr.flags & AttrFlags::DAX.bits() != 0;
    let known = walk(&session, "known").expect("there");
    let unmapped = walk(&session, "mapped-later").expect("there");
    assert!(has_dax(&known) && has_dax(&unmapped));
    let map = |file: &EntryOut, offset, slot: u64| {
        session.setup_mapping(
            file.nodeid,
            FileOffset(offset),
            WindowOffset(slot * RANGE),
            RANGE,
            false,
        )
    };
    map(&known, 2 * RANGE, 0).expect("a range past the end");
    kill_process(helper, Signal::KILL).expect("runs");
    eventually("it ends", || {
        field(helper.as_raw_nonzero().get() as u32, "State").starts_with('Z')
    });
    let (later, handle) = open(&session, "known", libc::O_RDWR).expect("opens");
    let read = read_by_request(&session, (later.nodeid, handle.fh), 5, 4096);
    assert_eq!(read.expect("read"), pattern(4, 5, 4096));
    // What is not padded may be mapped where the file is.
    map(&known, 0, 1).expect("a range within the file");
    map(&unmapped, 0, 2).expect("of a file that was not padded before");
    map(&unmapped, RANGE, 3).expect("another");
    daemon.expect_log("the process that pads files has ended", 1);

    let (later, handle) = open(&session, "found-later", libc::O_RDWR).expect("opens");
    assert!(!has_dax(&later), "the guest reads it by requests");
    let read = read_by_request(&session, (later.nodeid, handle.fh), 2 * RANGE, 100);
    assert_eq!(read.expect("read"), pattern(4, 2 * RANGE, 100));
    drop(session);
    // The next guest has no DAX, and the log says why.
    let next = attach_strict(&daemon);
    assert!(!has_dax(&walk(&next, "known").expect("there")));
    daemon.expect_log("the process that pads them has ended", 1);
}

/// Without file handles Landlock refuses what is opened outside the share.
#[test]
fn files_are_padded_inside_the_second_fence() {
    let share = in_memory();
    make_file(&share.path().join("file"), 4, 5000);
    for sandbox in ["namespace", "chroot"] {
        let flags = ["--sandbox", sandbox, "--inode-file-handles", "never"];
        let dax = ["--dax", "always", "--dax-window", "64M"];
        let daemon = Daemon::start(share.path(), &[&flags[..], &dax].concat());
        let session = attach_strict(&daemon);
        let file = walk(&session, "file").expect("there").nodeid;
        for (slot, writable) in [(0, true), (1, false)] {
            let mapped = session.setup_mapping(
                file,
                FileOffset(0),
                WindowOffset(slot * RANGE),
                RANGE,
                writable,
            );
            mapped.unwrap_or_else(|error| panic!("{sandbox}: {error}"));
        }
    }
}
