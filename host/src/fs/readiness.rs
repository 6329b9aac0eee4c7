//! Whether reads of an open file can be tried without waiting.
//!
//! A file system says so only when it is asked (`RWF_NOWAIT`). What it said
//! is kept with the open file, so that each is asked once if it cannot.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// `f_type` of file systems that ask somebody else for the data (statfs(2)):
/// FUSE, NFS, CIFS and its successor, Ceph, 9P, AFS.
const REMOTE: [u32; 7] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x5346_414f,
];

const UNKNOWN: u8 = 0;
const LOCAL: u8 = 1;
const ELSEWHERE: u8 = 2;

/// What is known of one open file.
#[derive(Debug, Default)]
pub struct Readiness {
    cannot_try: AtomicBool,
    place: AtomicU8,
}

impl Readiness {
    /// It may be asked to read without waiting.
    pub fn can_try(&self) -> bool {
        !self.cannot_try.load(Relaxed)
    }

    /// It cannot be asked, and each read may have to wait for somebody else.
    pub fn is_remote(&self) -> bool {
        !self.can_try() && self.place.load(Relaxed) == ELSEWHERE
    }

    /// `file` cannot be asked (`EOPNOTSUPP`).
    pub fn cannot_try(&self, file: &File) {
        self.is_elsewhere(file);
        self.cannot_try.store(true, Relaxed);
    }

    /// Whether the file system of `file` asks somebody else for its data.
    pub fn is_elsewhere(&self, file: &File) -> bool {
        let known = self.place.load(Relaxed);
        if known != UNKNOWN {
            return known == ELSEWHERE;
        }
        let magic = rustix::fs::fstatfs(file).map(|stat| stat.f_type as u32);
        let remote = magic.is_ok_and(|magic| REMOTE.contains(&magic));
        let place = if remote { ELSEWHERE } else { LOCAL };
        self.place.store(place, Relaxed);
        remote
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_is_asked_once() {
        let readiness = Readiness::default();
        let proc = File::open("/proc/self/stat").expect("procfs");
        assert!(!readiness.is_elsewhere(&proc) && readiness.can_try());
        assert!(readiness.can_try() && !readiness.is_remote());
        readiness.cannot_try(&proc);
        assert!(!readiness.can_try() && !readiness.is_remote());
    }
}
