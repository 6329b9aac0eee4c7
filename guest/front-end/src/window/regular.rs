//! Files that may be mapped into an area.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, fcntl_get_seals, fstatfs, statx};

use crate::error::FileError;

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
    /// Refuses everything else.
    ///
    /// # Errors
    ///
    /// What else it is.
    pub fn check(file: BorrowedFd<'a>) -> Result<RegularFile<'a>, FileError> {
        // What is known already will do: a FUSE server need not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, c"", flags, StatxFlags::TYPE).map_err(FileError::Unknown)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
            return Err(FileError::NotRegular);
        }
        // Files of huge pages say so here, and so do some others.
        let is_ordinary = u64::from(stat.stx_blksize) <= rustix::param::page_size() as u64;
        if !is_ordinary && has_huge_pages(file)? {
            return Err(FileError::HugePages);
        }
        Ok(RegularFile(file))
    }

    pub(super) fn fd(self) -> BorrowedFd<'a> {
        self.0
    }
}

/// Only hugetlbfs and tmpfs have seals, memfd or not, and their own `statfs`
/// does not wait; that of a FUSE server may take for ever.
fn has_huge_pages(file: BorrowedFd<'_>) -> Result<bool, FileError> {
    if fcntl_get_seals(file).is_err() {
        return Ok(false);
    }
    let system = fstatfs(file).map_err(FileError::Unknown)?;
    Ok(system.f_type as i64 == HUGETLBFS_MAGIC)
}
