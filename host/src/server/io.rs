//! Requests about open files.

use daxwindow_shared::fuse::flags::{
    FsyncFlags, OpenInFlags, OpenOutFlags, ReleaseFlags, WriteFlags,
};
use daxwindow_shared::fuse::{
    CopyFileRangeIn, CopyFileRangeOut, CreateIn, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut,
    OpenIn, OpenOut, ReadIn, ReleaseIn, SyncfsIn, WriteIn, WriteOut,
};
use rustix::io::Errno;

use crate::fs::OpenFile;

use super::chain::Placement;
use super::request::caller;
use super::{Call, Server};

/// Most that one COPY_FILE_RANGE moves: its reply counts in 32 bits, and no
/// system call moves more than 2 GiB less a page.
const MAX_COPY_BYTES: u64 = 0x7fff_f000;

impl Server {
    pub(super) fn open(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: OpenIn = call.body.only()?;
        let nodeid = call.header.nodeid;
        let fh = self
            .fs
            .open_file(nodeid, args.flags, kills_suidgid(args.open_flags))?;
        // A DAX inode has no pages in the guest to invalidate at open, and the
        // attempt makes the guest warn about its live mappings.
        let keep = self.keep_cache(nodeid, self.fs.is_dax(nodeid));
        call.reply.value(&open_out(fh, keep))
    }

    pub(super) fn create(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: CreateIn = call.body.args()?;
        let name = call.body.only_name()?;
        let (entry, fh) = self.fs.create(
            caller(&call.header),
            call.header.nodeid,
            name,
            args.flags,
            args.mode,
            args.umask,
        )?;
        let dax = self.settled_dax(call.header.nodeid, name, &entry);
        let keep = self.keep_cache(entry.nodeid, dax);
        let entry = self.entry_out(call.header.nodeid, name, &entry);
        call.reply.value(&entry)?;
        call.reply.value(&open_out(fh, keep))
    }

    /// A file without a name. The one that Linux sends is that of its own
    /// unnamed entry, and means nothing.
    pub(super) fn tmpfile(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: CreateIn = call.body.args()?;
        call.body.string()?;
        call.body.end()?;
        let (entry, fh) = self.fs.tmpfile(
            caller(&call.header),
            call.header.nodeid,
            args.flags,
            args.mode,
            args.umask,
        )?;
        let dax = self.settled_dax_unnamed(&entry);
        let keep = self.keep_cache(entry.nodeid, dax);
        call.reply.value(&self.entry_with(&entry, dax))?;
        call.reply.value(&open_out(fh, keep))
    }

    /// A guest mounted with `dax=always` takes every file for a DAX inode,
    /// whatever the flag says, and one mounted with `dax=never` takes none.
    fn keep_cache(&self, nodeid: u64, dax: bool) -> bool {
        let dax = dax || self.session.all_dax();
        self.session.has_window() && self.dax.keep_cache(nodeid, dax)
    }

    pub(super) fn read(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ReadIn = call.body.only()?;
        let open = self.fs.file(call.header.nodeid, args.fh)?;
        if !open.readable {
            return Err(Errno::BADF);
        }
        call.reply.file(&open.file, args.offset, args.size as usize)
    }

    pub(super) fn write(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: WriteIn = call.body.only()?;
        let open = self.fs.file(call.header.nodeid, args.fh)?;
        if !open.writable {
            return Err(Errno::BADF);
        }
        let count = args.size as usize;
        if call.data.remaining() < count {
            return Err(Errno::INVAL);
        }
        if WriteFlags::from_bits_retain(args.write_flags).contains(WriteFlags::KILL_SUIDGID) {
            self.fs.kill_suidgid(call.header.nodeid)?;
        }
        let size = call
            .data
            .write_to(&open.file, placement(&open, &args), count)?;
        call.reply.value(&WriteOut {
            size: u32::try_from(size).unwrap_or(u32::MAX),
            padding: 0,
        })
    }

    pub(super) fn flush(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FlushIn = call.body.only()?;
        self.fs.flush(call.header.nodeid, args.fh, args.lock_owner)
    }

    pub(super) fn release(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ReleaseIn = call.body.only()?;
        let flags = ReleaseFlags::from_bits_retain(args.release_flags);
        if flags.contains(ReleaseFlags::FLUSH) {
            self.fs
                .flush(call.header.nodeid, args.fh, args.lock_owner)?;
        }
        self.fs.release(call.header.nodeid, args.fh)
    }

    pub(super) fn fsync(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FsyncIn = call.body.only()?;
        call.pace.takes_long();
        self.fs.fsync(call.header.nodeid, args.fh, datasync(&args))
    }

    pub(super) fn fallocate(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FallocateIn = call.body.only()?;
        self.kill_for(call, call.header.nodeid)?;
        self.fs.fallocate(call.header.nodeid, &args)
    }

    /// Clears set-id bits before a change whose request does not say whether
    /// the caller may keep them: root may.
    fn kill_for(&self, call: &Call<'_, '_, '_>, nodeid: u64) -> Result<(), Errno> {
        if self.session.kills_priv() && call.header.uid != 0 {
            self.fs.kill_suidgid(nodeid)?;
        }
        Ok(())
    }

    pub(super) fn lseek(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: LseekIn = call.body.only()?;
        let offset = self
            .fs
            .lseek(call.header.nodeid, args.fh, args.offset, args.whence)?;
        call.reply.value(&LseekOut { offset })
    }

    /// Into a file with live ranges it is refused, and the guest copies by
    /// itself: after ours it drops the target's pages without unmapping them
    /// first, and warns if they are mapped (`truncate_folio_batch_exceptionals`).
    pub(super) fn copy_file_range(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let copied = self.copy(call, MAX_COPY_BYTES)?;
        call.reply.value(&WriteOut {
            size: u32::try_from(copied).map_err(|_| Errno::IO)?,
            padding: 0,
        })
    }

    /// The same with a reply that can count more.
    pub(super) fn copy_file_range_64(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let bytes_copied = self.copy(call, u64::MAX)?;
        call.reply.value(&CopyFileRangeOut { bytes_copied })
    }

    fn copy(&self, call: &mut Call<'_, '_, '_>, most: u64) -> Result<u64, Errno> {
        let args: CopyFileRangeIn = call.body.only()?;
        if self.dax.has_live_ranges(args.nodeid_out) {
            return Err(Errno::OPNOTSUPP);
        }
        self.kill_for(call, args.nodeid_out)?;
        call.pace.takes_long();
        self.fs.copy_file_range(
            (call.header.nodeid, args.fh_in, args.off_in),
            (args.nodeid_out, args.fh_out, args.off_out),
            args.len.min(most),
            args.flags,
        )
    }

    pub(super) fn syncfs(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let _: SyncfsIn = call.body.only()?;
        call.pace.takes_long();
        self.fs.syncfs(call.header.nodeid)
    }
}

/// Where WRITE data go. The guest computes the offset of an append from the
/// size it last saw; another guest or the host may have appended since, and
/// writing there would destroy their bytes. So data of an append handle go to
/// the end as it is now, as they would for a local process. Pages written
/// back from the guest's cache (a shared mapping of that handle) do have a
/// place of their own.
fn placement(open: &OpenFile, args: &WriteIn) -> Placement {
    let cached = WriteFlags::from_bits_retain(args.write_flags).contains(WriteFlags::CACHE);
    if open.append && !cached {
        Placement::Append
    } else {
        Placement::At(args.offset)
    }
}

fn kills_suidgid(open_flags: u32) -> bool {
    OpenInFlags::from_bits_retain(open_flags).contains(OpenInFlags::KILL_SUIDGID)
}

pub(super) fn datasync(args: &FsyncIn) -> bool {
    FsyncFlags::from_bits_retain(args.fsync_flags).contains(FsyncFlags::FDATASYNC)
}

fn open_out(fh: u64, keep_cache: bool) -> OpenOut {
    let mut flags = OpenOutFlags::empty();
    flags.set(OpenOutFlags::KEEP_CACHE, keep_cache);
    OpenOut {
        fh,
        open_flags: flags.bits(),
        padding: 0,
    }
}
