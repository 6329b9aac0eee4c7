//! `SOCKET.pid`, beside the socket as virtiofsd has it: the process to signal.
//!
//! Law: whose lock is on the file owns the socket's path. So the lock is taken
//! before the socket is looked at, and kept until its file is gone. A file
//! without a lock is one that a daemon left behind, if it has nothing but a
//! number in it; anything else is left alone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;

/// For the owner alone, as the socket.
const MODE: Mode = Mode::from_raw_mode(0o600);
/// More than any number takes.
const MAX_BYTES: usize = 64;
/// How often others may be quicker before that is an error.
const TRIES: usize = 100;

/// The process that was called, as it knew itself.
static MAIN: OnceLock<u32> = OnceLock::new();

/// Id, on the host, of the process that was called and takes signals.
pub fn main_pid() -> u32 {
    *MAIN.get_or_init(std::process::id)
}

/// Why the socket is not for this process.
#[derive(Debug, thiserror::Error)]
pub(super) enum PidFileError {
    /// Another process has it; which one, if it has come to say so.
    #[error("in use")]
    InUse(Option<u32>),
    /// It is no file of a daemon.
    #[error("holds something other than a process id")]
    NotAPidFile,
    /// Anything else that the kernel says.
    #[error(transparent)]
    Io(#[from] Errno),
}

/// A file with a process id in it, locked; removed on drop, unless somebody
/// has put another in its place.
#[derive(Debug)]
pub(super) struct PidFile {
    directory: Arc<OwnedFd>,
    name: OsString,
    file: File,
    /// Device and inode, to know it again; none if it is left to others.
    identity: Option<(u64, u64)>,
}

impl PidFile {
    /// Writes `pid` beside `socket`, a name in `directory`, replacing what a
    /// daemon left behind that is gone.
    pub(super) fn take(
        directory: &Arc<OwnedFd>,
        socket: &OsStr,
        pid: u32,
    ) -> Result<PidFile, PidFileError> {
        let mut name = socket.to_owned();
        name.push(".pid");
        for _ in 0..TRIES {
            let Some(file) = open(directory, &name)? else {
                continue;
            };
            let stat = fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(PidFileError::NotAPidFile);
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(PidFileError::InUse(read(&file)?)),
                locked => locked?,
            }
            // Who had it may have removed it before it was locked here.
            let there = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW);
            if there.map(identity) == Ok(identity(stat)) {
                read(&file)?;
                let taken = PidFile {
                    directory: directory.clone(),
                    name,
                    file,
                    identity: Some(identity(stat)),
                };
                taken.write(pid)?;
                return Ok(taken);
            }
        }
        Err(PidFileError::Io(Errno::AGAIN))
    }

    fn write(&self, pid: u32) -> Result<(), Errno> {
        let text = format!("{pid}\n");
        let written = self.file.write_all_at(text.as_bytes(), 0);
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        rustix::fs::ftruncate(&self.file, text.len() as u64)
    }

    /// Leaves file and lock to another process.
    pub(super) fn leave(mut self) {
        self.identity = None;
    }

    /// What keeps the lock while it is open.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let there = statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if self.identity.is_some() && there.ok().map(identity) == self.identity {
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

fn identity(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// None where another process was quicker to make or to remove it.
fn open(directory: &OwnedFd, name: &OsStr) -> Result<Option<File>, Errno> {
    // Nothing that is no file is waited for.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => return Ok(Some(file.into())),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // Only what is new is created: in a sticky directory the kernel refuses
    // that for a file of another user.
    match openat(directory, name, flags | OFlags::CREATE | OFlags::EXCL, MODE) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::EXIST) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The number in the file; none in one that was made only now.
fn read(file: &File) -> Result<Option<u32>, PidFileError> {
    let mut text = [0; MAX_BYTES];
    let len = file.read_at(&mut text, 0);
    let len = len.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let text = &text[..len];
    // virtiofsd leaves the end of a longer number behind, in a line of its own.
    let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'\n';
    if len == MAX_BYTES || !text.iter().all(is_number) {
        return Err(PidFileError::NotAPidFile);
    }
    let text = std::str::from_utf8(text).unwrap_or_default();
    Ok(text.lines().next().and_then(|line| line.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn directory(path: &Path) -> Arc<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Arc::new(rustix::fs::open(path, flags, Mode::empty()).expect("there"))
    }

    fn take(place: &Path, pid: u32) -> Result<PidFile, PidFileError> {
        PidFile::take(&directory(place), OsStr::new("s"), pid)
    }

    #[test]
    fn it_names_the_process_is_exclusive_and_goes() {
        let place = tempfile::tempdir().expect("directory");
        let path = place.path().join("s.pid");
        let first = take(place.path(), 4711).expect("free");
        assert_eq!(std::fs::read(&path).expect("there"), b"4711\n");
        let refused = take(place.path(), 1).expect_err("in use");
        assert!(matches!(refused, PidFileError::InUse(Some(4711))));
        drop(first);
        assert!(!path.exists(), "gone with its owner");

        let left = take(place.path(), 4711).expect("free");
        left.leave();
        assert!(path.exists(), "left to another process");
        let next = take(place.path(), 5).expect("nobody has a lock on it");
        assert_eq!(std::fs::read(&path).expect("there"), b"5\n", "none of it");

        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "6\n").expect("another");
        drop(next);
        assert!(path.exists(), "it was another's");
    }

    #[test]
    fn what_is_no_pid_file_is_left_alone() {
        let place = tempfile::tempdir().expect("directory");
        let path = place.path().join("s.pid");
        for text in ["precious", "12 34\n", "-1\n", &"1".repeat(MAX_BYTES)] {
            std::fs::write(&path, text).expect("written");
            let refused = take(place.path(), 1).expect_err("not ours");
            assert!(matches!(refused, PidFileError::NotAPidFile), "{refused}");
            assert_eq!(std::fs::read(&path).expect("there"), text.as_bytes());
        }
        // As virtiofsd leaves one.
        std::fs::write(&path, "99\n45\n").expect("written");
        drop(take(place.path(), 1).expect("stale"));
        let target = place.path().join("target");
        std::os::unix::fs::symlink(&target, &path).expect("linked");
        let refused = take(place.path(), 1).expect_err("a link");
        assert!(matches!(refused, PidFileError::Io(Errno::LOOP)));
        assert!(!target.exists());
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        let refused = take(place.path(), 1).expect_err("a directory");
        assert!(matches!(refused, PidFileError::Io(Errno::ISDIR)));
    }
}
