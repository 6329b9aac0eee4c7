//! Files that may be mapped into an area.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, fstatfs, statx};
use rustix::io::Errno;

/// `f_type` of hugetlbfs, which memfds of huge pages lie on, too.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A descriptor of a regular file with pages of the system's size.
///
/// Only a regular file (a memfd is one) has a page cache to share; mapping a
/// device could do whatever its driver likes. Of a file with huge pages the
/// kernel maps whole huge pages, however little was asked for, and so would
/// replace what lies behind the range.
#[derive(Clone, Copy, Debug)]
pub struct RegularFile<'a>(BorrowedFd<'a>);

impl<'a> RegularFile<'a> {
    /// Refuses everything else with `EACCES`.
    pub fn check(file: BorrowedFd<'a>) -> Result<RegularFile<'a>, Errno> {
        // What is known already will do: a FUSE server need not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, c"", flags, StatxFlags::TYPE)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
            return Err(Errno::ACCESS);
        }
        // Files of huge pages say so here, and so do some others.
        let is_ordinary = u64::from(stat.stx_blksize) <= rustix::param::page_size() as u64;
        if !is_ordinary && fstatfs(file)?.f_type as i64 == HUGETLBFS_MAGIC {
            return Err(Errno::ACCESS);
        }
        Ok(RegularFile(file))
    }

    pub(super) fn fd(self) -> BorrowedFd<'a> {
        self.0
    }
}
