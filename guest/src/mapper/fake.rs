//! A back end for tests: maps pieces of memfds into the real window, keeps a
//! ledger, and refuses, delays or fails on request.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use daxwindow_shared::fuse::RemoveMappingOne;
use daxwindow_shared::shmem::MapMessage;
use daxwindow_shared::window::{FileOffset, RANGE_BYTES, WindowOffset};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::MapChannel;
use crate::error::{Error, Result};
use crate::window::{RegularFile, Window};

/// A memfd of `bytes`.
pub(crate) fn memfd(bytes: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::memfd_create("daxwindow-test", flags).expect("memfd");
    let file = File::from(fd);
    file.set_len(bytes).expect("size");
    file
}

/// Every 8 bytes of a pattern file name the file and their own offset.
pub(crate) fn pattern(nodeid: u64, offset: u64) -> u64 {
    (nodeid << 48) ^ (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A memfd that holds the pattern of `nodeid`.
pub(crate) fn pattern_file(nodeid: u64, bytes: u64) -> File {
    let file = memfd(bytes);
    let chunk = 1 << 20;
    for start in (0..bytes).step_by(chunk) {
        let words = (start..(start + chunk as u64).min(bytes)).step_by(8);
        let data: Vec<u8> = words
            .flat_map(|o| pattern(nodeid, o).to_le_bytes())
            .collect();
        file.write_all_at(&data, start).expect("fill");
    }
    file
}

/// What is mapped where: window offset to (node, file offset, writable).
type Ledger = HashMap<u64, (u64, u64, bool)>;

pub(crate) struct Fake {
    pub(crate) window: Arc<Window>,
    pub(crate) files: Mutex<HashMap<u64, Arc<File>>>,
    ledger: Mutex<Ledger>,
    pub(crate) refuse_setups: AtomicU32,
    pub(crate) lose_setups: AtomicU32,
    pub(crate) fail_removals: AtomicU32,
    pub(crate) delay_us: AtomicU64,
    /// Maps everything writable, whatever was asked for.
    pub(crate) writable_always: AtomicBool,
    pub(crate) setups: AtomicUsize,
    pub(crate) removal_requests: AtomicUsize,
}

fn spend(budget: &AtomicU32) -> bool {
    let less = |n: u32| n.checked_sub(1);
    budget
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

fn remote(operation: &'static str, errno: Errno) -> Error {
    Error::Remote { operation, errno }
}

impl Fake {
    pub(crate) fn new(window_bytes: u64) -> Arc<Fake> {
        Arc::new(Fake {
            window: Arc::new(Window::reserve(window_bytes).expect("window")),
            files: Mutex::default(),
            ledger: Mutex::default(),
            refuse_setups: AtomicU32::new(0),
            lose_setups: AtomicU32::new(0),
            fail_removals: AtomicU32::new(0),
            delay_us: AtomicU64::new(0),
            writable_always: AtomicBool::new(false),
            setups: AtomicUsize::new(0),
            removal_requests: AtomicUsize::new(0),
        })
    }

    pub(crate) fn add(&self, nodeid: u64, file: File) -> Arc<File> {
        let file = Arc::new(file);
        self.files.lock().insert(nodeid, Arc::clone(&file));
        file
    }

    /// Ranges mapped now.
    pub(crate) fn live(&self) -> usize {
        self.ledger.lock().len()
    }

    fn pause(&self) {
        match self.delay_us.load(Ordering::Relaxed) {
            0 => {}
            us => std::thread::sleep(Duration::from_micros(us)),
        }
    }

    fn message(&self, at: u64, fd_offset: u64, len: u64, writable: bool) -> MapMessage {
        MapMessage {
            fd_offset,
            shm_offset: at,
            len,
            flags: u64::from(writable),
            ..Default::default()
        }
    }
}

impl MapChannel for Fake {
    fn setup(
        &self,
        nodeid: u64,
        FileOffset(from): FileOffset,
        WindowOffset(at): WindowOffset,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        self.setups.fetch_add(1, Ordering::SeqCst);
        self.pause();
        if spend(&self.refuse_setups) {
            return Err(remote("SETUPMAPPING", Errno::NOMEM));
        }
        let file = self.files.lock().get(&nodeid).cloned();
        let file = file.ok_or(remote("SETUPMAPPING", Errno::NOENT))?;
        let request = self
            .message(
                at,
                from,
                len,
                writable || self.writable_always.load(Ordering::SeqCst),
            )
            .validate(self.window.bytes(), rustix::param::page_size() as u64)
            .expect("a mapper sends only valid ranges");
        let regular = RegularFile::check(file.as_fd()).expect("a regular file");
        self.window.map(request, regular).expect("mmap");
        for piece in (0..len).step_by(RANGE_BYTES as usize) {
            let entry = (nodeid, from + piece, writable);
            self.ledger.lock().insert(at + piece, entry);
        }
        if spend(&self.lose_setups) {
            return Err(Error::TimedOut {
                operation: "SETUPMAPPING",
                after: Duration::ZERO,
            });
        }
        Ok(())
    }

    fn remove(&self, ranges: &[RemoveMappingOne]) -> Result<()> {
        self.removal_requests.fetch_add(1, Ordering::SeqCst);
        self.pause();
        if spend(&self.fail_removals) {
            return Err(remote("REMOVEMAPPING", Errno::IO));
        }
        for range in ranges {
            let gone = self.ledger.lock().remove(&range.moffset);
            assert!(gone.is_some(), "removed what was not mapped");
            let request = self
                .message(range.moffset, 0, range.len, false)
                .validate(self.window.bytes(), rustix::param::page_size() as u64)
                .expect("a mapper sends only valid ranges");
            self.window.unmap(request.range).expect("munmap");
        }
        Ok(())
    }
}
