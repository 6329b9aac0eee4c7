//! What the end-to-end tests share: a daemon in its own process, guests that
//! attach to it, bytes that say where they belong, and waits with an end.

#![allow(dead_code, reason = "every test binary uses a part of this")]

pub(crate) mod wire;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daxwindow_guest::test_utils::{Tuning, Verdict, WindowHook};
use daxwindow_guest::{
    Error, File as GuestFile, Guest, GuestOptions, Result, Session, SessionOptions,
};
use daxwindow_shared::fuse::{EntryOut, OpenOut, ROOT_ID};
use daxwindow_shared::shmem::MapRequest;
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const DAEMON: &str = env!("CARGO_BIN_EXE_daxwindowd");
/// How long anything may take that should take no time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of one range of the window.
pub(crate) const RANGE: u64 = daxwindow_shared::window::RANGE_BYTES;
/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// A new directory on the file system that the build lies on.
pub(crate) fn on_disk() -> TempDir {
    let place = env!("CARGO_TARGET_TMPDIR");
    std::fs::create_dir_all(place).expect("a place for temporary files");
    tempfile::tempdir_in(place).expect("a directory")
}

/// A new directory in memory.
pub(crate) fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs")
}

/// Waits for `done`, and fails the test if it does not come.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The name that a process goes by.
pub(crate) fn name_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Processes that a process has made and that are still there.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let ids = children.split_whitespace().map(str::parse);
    ids.map(|id| id.expect("a process id")).collect()
}

/// The process that serves, of a daemon that was started as `pid`: the child
/// of the same name, if it has one.
pub(crate) fn serving(pid: u32) -> u32 {
    let name = name_of(pid);
    let children = children_of(pid);
    let serving = children.into_iter().find(|child| name_of(*child) == name);
    serving.unwrap_or(pid)
}

/// Everything a daemon wrote to its standard error.
#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

/// A running daemon; ended by SIGTERM on drop, and then its exit code is
/// checked.
pub(crate) struct Daemon {
    child: Child,
    /// Already waited for.
    ended: bool,
    socket: PathBuf,
    /// Where the socket is; not below the build, for its name must be short.
    _place: TempDir,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts a daemon for `share` and waits until it listens.
    pub(crate) fn start(share: &Path, flags: &[&str]) -> Daemon {
        Daemon::start_program(Path::new(DAEMON), share, flags)
    }

    /// As [`Daemon::start`], with one handling left out. `cargo test` builds
    /// that daemon as an example.
    pub(crate) fn start_naive(leave_out: &str, share: &Path, flags: &[&str]) -> Daemon {
        let naive = Path::new(DAEMON).with_file_name("examples").join("naive");
        let flags = [&["--leave-out", leave_out], flags].concat();
        Daemon::start_program(&naive, share, &flags)
    }

    fn start_program(program: &Path, share: &Path, flags: &[&str]) -> Daemon {
        Daemon::start_by(Command::new(program), share, flags)
    }

    /// As [`Daemon::start`], by a command that takes the daemon's flags. What
    /// is started serves one guest after the other, unless `--once` is among
    /// the flags.
    pub(crate) fn start_by(mut command: Command, share: &Path, flags: &[&str]) -> Daemon {
        let place = tempfile::tempdir().expect("a directory for the socket");
        let socket = place.path().join("s");
        let mut child = command
            .arg("--keep-serving")
            .arg("--socket-path")
            .arg(&socket)
            .arg("--shared-dir")
            .arg(share)
            .args(flags)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error} (cargo build --examples)"));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Log::default());
        let sink = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(std::result::Result::ok) {
                let mut text = sink.text.lock();
                text.push_str(&line);
                text.push('\n');
                sink.grown.notify_all();
            }
        });
        let daemon = Daemon {
            child,
            ended: false,
            socket,
            _place: place,
            log,
            reader: Some(reader),
        };
        daemon.expect_log("waiting for a client", 1);
        daemon
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.text.lock().clone()
    }

    /// Waits until `text` was logged `times` times.
    pub(crate) fn expect_log(&self, text: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut log = self.log.text.lock();
        while log.matches(text).count() < times {
            let late = self.log.grown.wait_until(&mut log, deadline).timed_out();
            assert!(!late, "{text:?} was not logged {times} times:\n{log}");
        }
    }

    /// Id of the process that was started, which takes signals.
    pub(crate) fn main_pid(&self) -> u32 {
        self.child.id()
    }

    /// Id of the process that serves.
    pub(crate) fn pid(&self) -> u32 {
        serving(self.main_pid())
    }

    /// Descriptors it has open.
    pub(crate) fn open_files(&self) -> usize {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        dir.map_or(0, Iterator::count)
    }

    /// What its descriptors are open on.
    pub(crate) fn open_targets(&self) -> Vec<PathBuf> {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("procfs");
        let targets = dir.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let mut targets: Vec<PathBuf> = targets.collect();
        targets.sort();
        targets
    }

    /// Descriptors it has open on the share, which is all it sees of the
    /// host's files, or otherwise on files whose path contains `part`.
    pub(crate) fn open_files_on(&self, part: &str) -> usize {
        let process = format!("/proc/{}", self.pid());
        let mounts = |of: &str| std::fs::read_to_string(format!("{of}/mountinfo"));
        let seen = mounts(&process).expect("procfs");
        let is_confined = seen != mounts("/proc/self").expect("procfs");
        let ids: Vec<&str> = seen.lines().filter_map(|l| l.split(' ').next()).collect();
        let is_on_share = |fd: &std::ffi::OsStr| {
            let info = process.clone() + "/fdinfo/" + fd.to_str()?;
            let info = std::fs::read_to_string(info).ok()?;
            let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            Some(ids.contains(&mount?.trim()))
        };
        let dir = std::fs::read_dir(format!("{process}/fd")).expect("procfs");
        let entries = dir.filter_map(Result::ok);
        entries
            .filter(|entry| match is_confined {
                true => is_on_share(&entry.file_name()).unwrap_or(false),
                false => std::fs::read_link(entry.path())
                    .is_ok_and(|target| target.to_string_lossy().contains(part)),
            })
            .count()
    }

    /// Descriptors it has open in the file system that is mounted at a path of
    /// its own view, which begins at the share.
    pub(crate) fn open_files_in_mount(&self, path: &str) -> usize {
        let process = format!("/proc/{}", self.pid());
        let mounts = std::fs::read_to_string(format!("{process}/mountinfo")).expect("procfs");
        let fields = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let ids: Vec<&str> = fields
            .filter(|fields| fields.get(4) == Some(&path))
            .filter_map(|fields| fields.first().copied())
            .collect();
        assert!(!ids.is_empty(), "nothing is mounted at {path}:\n{mounts}");
        let infos = std::fs::read_dir(format!("{process}/fdinfo")).expect("procfs");
        let infos = infos.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        let is_there = |info: &String| {
            let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            mount.is_some_and(|mount| ids.contains(&mount.trim()))
        };
        infos.filter(is_there).count()
    }

    /// How many of its descriptors are open on `path`.
    pub(crate) fn open_targets_of(&self, path: &str) -> usize {
        let targets = self.open_targets().into_iter();
        targets.filter(|target| target == Path::new(path)).count()
    }

    /// Lines of its memory map that contain `part`.
    pub(crate) fn maps_of(&self, part: &str) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid()));
        let maps = maps.expect("procfs");
        maps.lines().filter(|line| line.contains(part)).count()
    }

    /// Whether the process is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        !self.ended && self.child.try_wait().expect("our child").is_none()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the daemon can be signalled");
    }

    /// Kills it as the kernel would, and waits.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                self.ended = true;
                if let Some(reader) = self.reader.take() {
                    reader.join().expect("the log was read");
                }
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                self.ended = true;
                panic!("the daemon did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it by SIGTERM.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if !self.ended {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            eprintln!("--- the daemon's log:\n{}---", self.log());
            return;
        }
        if !self.ended {
            let status = self.terminate();
            assert!(status.success(), "{status}:\n{}", self.log());
        }
        let log = self.log();
        assert!(
            !log.contains("panicked"),
            "the daemon has an internal error:\n{log}"
        );
    }
}

/// Options for a session with `daemon`: small, and impatient enough for a
/// test.
pub(crate) fn options(daemon: &Daemon) -> SessionOptions {
    SessionOptions {
        memory_bytes: 16 << 20,
        timeout: PATIENCE,
        ..SessionOptions::new(daemon.socket())
    }
}

/// A session with a window.
pub(crate) fn attach(daemon: &Daemon) -> Arc<Session> {
    Session::connect(options(daemon)).expect("a session")
}

/// A front end like QEMU: it maps nothing past the end of a file. Two pages of
/// a file of one are how it is asked whether it does.
#[derive(Default)]
pub(crate) struct Strict {
    pub(crate) asked: AtomicUsize,
}

impl WindowHook for Strict {
    fn on_map(&self, request: &MapRequest) -> Verdict {
        let is_trial = request.range.len() == 2 * PAGE;
        match is_trial && self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Verdict::Refuse(rustix::io::Errno::INVAL),
            false => Verdict::Serve,
        }
    }
}

/// A session without a window.
pub(crate) fn attach_plain(daemon: &Daemon) -> Arc<Session> {
    let options = SessionOptions {
        dax: false,
        ..options(daemon)
    };
    Session::connect(options).expect("a session")
}

/// A session with settings of its own.
pub(crate) fn attach_with(daemon: &Daemon, tuning: Tuning) -> Arc<Session> {
    Session::connect_with(options(daemon), tuning).expect("a session")
}

/// A guest with a mapper.
pub(crate) fn guest(daemon: &Daemon) -> Guest {
    Guest::connect(GuestOptions::new(options(daemon))).expect("a guest")
}

/// All of a file by `read_at`, in steps that fit no boundary.
pub(crate) fn read_all(file: &GuestFile) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut step = vec![0; 300_007];
    loop {
        match file.read_at(&mut step, out.len() as u64)? {
            0 => return Ok(out),
            got => out.extend_from_slice(&step[..got]),
        }
    }
}

/// The daemon answers a request of this session.
pub(crate) fn assert_serves(session: &Session) {
    let attr = session.getattr(ROOT_ID, None).expect("a good request");
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFDIR);
}

/// The daemon serves a new client.
pub(crate) fn assert_serves_next(daemon: &Daemon) {
    let session = attach_soon(daemon);
    assert_serves(&session);
}

/// A session, as soon as the client before it has been let go.
pub(crate) fn attach_soon(daemon: &Daemon) -> Arc<Session> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Session::connect(options(daemon)) {
            Ok(session) => return session,
            Err(error) => assert!(Instant::now() < deadline, "{error}:\n{}", daemon.log()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Looks up a path, component by component.
pub(crate) fn walk(session: &Session, path: &str) -> Result<EntryOut> {
    let mut at = EntryOut {
        nodeid: ROOT_ID,
        ..EntryOut::default()
    };
    for name in path.split('/') {
        at = session.lookup(at.nodeid, name.as_bytes())?;
    }
    Ok(at)
}

/// Looks up and opens.
pub(crate) fn open(session: &Session, path: &str, flags: i32) -> Result<(EntryOut, OpenOut)> {
    let entry = walk(session, path)?;
    let handle = session.open(entry.nodeid, flags as u32)?;
    Ok((entry, handle))
}

/// Reads `len` bytes at `offset` by FUSE_READ.
pub(crate) fn read_by_request(
    session: &Session,
    (nodeid, fh): (u64, u64),
    offset: u64,
    len: usize,
) -> Result<Vec<u8>> {
    let mut buf = session.alloc(len.max(1))?;
    let got = session.read(nodeid, fh, offset, &mut buf, 0, len)?;
    let mut out = vec![0; got];
    buf.copy_to(0, &mut out);
    Ok(out)
}

/// Writes by FUSE_WRITE.
pub(crate) fn write_by_request(
    session: &Session,
    (nodeid, fh): (u64, u64),
    offset: u64,
    bytes: &[u8],
) -> Result<usize> {
    let mut buf = session.alloc(bytes.len().max(1))?;
    buf.copy_from(0, bytes);
    session.write(nodeid, fh, offset, &buf, 0, bytes.len())
}

/// The word at byte `8 * index` of pattern `seed`: no two places or seeds
/// look alike.
pub(crate) fn word(seed: u64, index: u64) -> u64 {
    // splitmix64
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(index)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `len` bytes of pattern `seed` from `offset` on.
pub(crate) fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8;
    let skip = (offset % 8) as usize;
    let words = (skip + len).div_ceil(8) as u64;
    let bytes = (first..first + words).flat_map(|index| word(seed, index).to_le_bytes());
    bytes.skip(skip).take(len).collect()
}

/// Writes a file of `len` bytes of pattern `seed` on the host.
pub(crate) fn make_file(path: &Path, seed: u64, len: usize) {
    std::fs::write(path, pattern(seed, 0, len)).expect("a file on the host");
}

/// Says where two byte strings differ, without printing all of them.
#[track_caller]
pub(crate) fn assert_same(got: &[u8], want: &[u8], what: &str) {
    if got == want {
        return;
    }
    let at = got.iter().zip(want).position(|(g, w)| g != w);
    panic!(
        "{what}: {} bytes instead of {}, first difference at {at:?}",
        got.len(),
        want.len()
    );
}

/// An access met the end of the file.
#[track_caller]
pub(crate) fn assert_truncated<T>(result: Result<T>) {
    let error = result.err().expect("past the end");
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
}

/// Bytes of a file as the host reads them.
pub(crate) fn host_bytes(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut file = File::open(path).expect("a file on the host");
    file.seek(SeekFrom::Start(offset)).expect("seek");
    let mut out = Vec::with_capacity(len);
    file.take(len as u64).read_to_end(&mut out).expect("read");
    out
}
