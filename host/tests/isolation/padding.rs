//! The process that pads, asked by a serving process that somebody has taken
//! over: here by the test, with that process's own end of the line.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, mknodat};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg, sockopt,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::common::{Daemon, assert_serves_next, eventually, in_memory};
use crate::{field, padding_of};

/// The serving process's end of its line to the process that pads.
fn line_of(daemon: &Daemon) -> OwnedFd {
    let pid = daemon.pid();
    let process = Pid::from_raw(pid as i32).expect("a process");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("it runs");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs");
    let mut lines = open.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let fd = name.to_str()?.parse().ok()?;
        let taken = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()?;
        let kind = sockopt::socket_type(&taken).ok()?;
        (kind == SocketType::SEQPACKET).then_some(taken)
    });
    let line = lines.next().expect("a line");
    assert!(lines.next().is_none(), "which one?");
    line
}

/// Sends a message and takes the answer.
fn ask(line: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(
        line,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .expect("sent");
    let mut answer = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut answer)];
    let got = recvmsg(line, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).expect("answered");
    assert!(got.bytes >= 4, "an errno");
    let errno = i32::from_ne_bytes(answer[..4].try_into().expect("four bytes"));
    let mut fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    match errno {
        0 => {
            assert_eq!(fds.len(), 1);
            Ok(fds.remove(0))
        }
        errno => {
            assert!(fds.is_empty(), "an error comes with nothing");
            Err(Errno::from_raw_os_error(errno))
        }
    }
}

const READ: &[u8] = &[0];
const WRITE: &[u8] = &[1];

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
    let line = line_of(&daemon);
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
        (&reader, &[2][..], Ok(OFlags::RDONLY)),
        (&reader, &[1, 1][..], Ok(OFlags::RDONLY)),
        (&both, &[0xff; 400][..], Ok(OFlags::RDONLY)),
    ] {
        let answer = ask(&line, asked, &[file.as_fd()]);
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
    let line = line_of(&daemon);
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
        ("a socket", line.try_clone().expect("a copy"), Errno::INVAL),
    ] {
        for asked in [READ, WRITE] {
            let error = ask(&line, asked, &[fd.as_fd()]).expect_err(what);
            assert!(error == errno || error == Errno::ACCESS, "{what}: {error}");
        }
    }
    for asked in [READ, WRITE, &[7; 512][..]] {
        assert_eq!(ask(&line, asked, &[]).err(), Some(Errno::BADF));
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
        let many = [file.as_fd(), line.as_fd(), file.as_fd(), file.as_fd()];
        drop(ask(&line, READ, &many).expect("the first"));
    }
    eventually("none is kept", || held() <= before);
    assert_serves_next(&daemon);
}
