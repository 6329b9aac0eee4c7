//! What is done with an open file besides reading and writing.

use daxwindow_shared::fuse::FallocateIn;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::SharedDir;
use super::attr::stat;

/// `whence` of lseek(2).
const SEEK_SET: u32 = 0;
const SEEK_END: u32 = 2;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl SharedDir {
    /// A descriptor of the guest was closed, which drops its owner's POSIX
    /// locks.
    pub fn flush(&self, nodeid: u64, fh: u64, lock_owner: u64) -> Result<(), Errno> {
        self.handles.file(nodeid, fh)?;
        self.drop_locks_of(nodeid, lock_owner);
        Ok(())
    }

    /// What close(2) would tell of an open file: on some file systems the
    /// errors of what is written back then. RELEASE, which closes the
    /// descriptor, has nobody to tell it to. `slow` is called before what may
    /// take long.
    pub fn close_error(&self, nodeid: u64, fh: u64, slow: &dyn Fn()) -> Result<(), Errno> {
        let inode = self.inode(nodeid);
        if !inode.is_ok_and(|inode| inode.mount().tells_at_close()) {
            return Ok(());
        }
        let open = self.handles.file(nodeid, fh)?;
        slow();
        let copy = rustix::io::fcntl_dupfd_cloexec(&open.file, 0)?;
        nix::unistd::close(copy).map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }

    /// Makes a file durable on the host.
    pub fn fsync(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<(), Errno> {
        let open = self.handles.file(nodeid, fh)?;
        if datasync {
            rustix::fs::fdatasync(&open.file)
        } else {
            rustix::fs::fsync(&open.file)
        }
    }

    /// Allocates, punches, zeroes: what the host's file system supports.
    pub fn fallocate(&self, nodeid: u64, args: &FallocateIn) -> Result<(), Errno> {
        self.require_writable()?;
        let open = self.handles.file(nodeid, args.fh)?;
        let mode = FallocateFlags::from_bits_retain(args.mode);
        self.drop_capability_of(&open.file)?;
        rustix::fs::fallocate(&open.file, mode, args.offset, args.length)
    }

    /// Finds data or a hole from `offset` on. The guest keeps its own file
    /// position, so `SEEK_CUR` means nothing here: `EINVAL`.
    pub fn lseek(&self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Result<u64, Errno> {
        let open = self.handles.file(nodeid, fh)?;
        match whence {
            SEEK_DATA => rustix::fs::seek(&open.file, SeekFrom::Data(offset)),
            SEEK_HOLE => rustix::fs::seek(&open.file, SeekFrom::Hole(offset)),
            SEEK_SET => in_file(Some(offset)),
            // The offset is signed on the wire.
            SEEK_END => in_file(stat(&open.file)?.stx_size.checked_add_signed(offset as i64)),
            _ => Err(Errno::INVAL),
        }
    }

    /// Copies between files; `from` and `to` are (node id, handle, offset).
    /// May copy less than `len`.
    pub fn copy_file_range(
        &self,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        len: u64,
        flags: u64,
    ) -> Result<u64, Errno> {
        self.require_writable()?;
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let source = self.handles.file(from.0, from.1)?;
        let target = self.handles.file(to.0, to.1)?;
        let (mut off_in, mut off_out) = (from.2, to.2);
        self.drop_capability_of(&target.file)?;
        let copied = rustix::fs::copy_file_range(
            &source.file,
            Some(&mut off_in),
            &target.file,
            Some(&mut off_out),
            usize::try_from(len).unwrap_or(usize::MAX),
        );
        match copied {
            // Offsets that do not suit a device; the guest copies by itself.
            Err(Errno::INVAL) if source.is_direct() || target.is_direct() => Err(Errno::OPNOTSUPP),
            copied => Ok(copied? as u64),
        }
    }
}

fn in_file(offset: Option<u64>) -> Result<u64, Errno> {
    offset
        .filter(|offset| i64::try_from(*offset).is_ok())
        .ok_or(Errno::INVAL)
}
