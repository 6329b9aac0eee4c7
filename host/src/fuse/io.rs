//! Requests about open files.

use std::fs::File;

use daxwindow_shared::fuse::flags::{
    FsyncFlags, OpenInFlags, OpenOutFlags, ReleaseFlags, WriteFlags,
};
use daxwindow_shared::fuse::{
    CopyFileRangeIn, CopyFileRangeOut, CreateIn, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut,
    OpenIn, OpenOut, ReadIn, ReleaseIn, SyncfsIn, WriteIn, WriteOut,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::fs::OpenFile;

use super::chain::{Placement, Waits};
use super::{Call, Server};

/// Most that one COPY_FILE_RANGE moves: its reply counts in 32 bits, and no
/// system call moves more than 2 GiB less a page.
const MAX_COPY_BYTES: u64 = 0x7fff_f000;

/// Of the guest's open(2) flags.
const ACCESS_MODE: u32 = OFlags::ACCMODE.bits();
const READ_ONLY: u32 = OFlags::RDONLY.bits();
const WRITE_ONLY: u32 = OFlags::WRONLY.bits();
const READ_WRITE: u32 = OFlags::RDWR.bits();
const DIRECT: u32 = OFlags::DIRECT.bits();
const APPEND: u32 = OFlags::APPEND.bits();

impl Server {
    pub(super) fn open(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: OpenIn = call.body.only()?;
        let nodeid = call.header.nodeid;
        let fh = self.open_for(nodeid, &args)?;
        if let Err(errno) = self.follow(call.terms.queue, nodeid) {
            let _ = self.fs.release(nodeid, fh);
            return Err(errno);
        }
        let out = self.open_out(nodeid, fh, args.flags, self.fs.is_dax(nodeid));
        call.reply.value(&out)
    }

    /// A guest that keeps back what is written reads the pages around it, by
    /// whatever handle it has.
    fn open_for(&self, nodeid: u64, args: &OpenIn) -> Result<u64, Errno> {
        let kill = self.session.kills_priv() && kills_suidgid(args.open_flags);
        if self.session.writes_back() && args.flags & ACCESS_MODE == WRITE_ONLY {
            let both = args.flags & !ACCESS_MODE | READ_WRITE;
            match self.fs.open_file(nodeid, both, kill) {
                Err(Errno::ACCESS) => {}
                opened => return opened,
            }
        }
        self.fs.open_file(nodeid, args.flags, kill)
    }

    pub(super) fn create(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: CreateIn = call.body.args()?;
        let (name, creator) = self.last_name(call)?;
        let (parent, flags) = (call.header.nodeid, self.create_flags(args.flags));
        let (entry, fh) = self
            .fs
            .create(creator, parent, name, flags, args.mode, args.umask)?;
        if let Err(errno) = self.follow(call.terms.queue, entry.nodeid) {
            let _ = self.fs.release(entry.nodeid, fh);
            self.fs.forget(entry.nodeid, 1);
            return Err(errno);
        }
        let dax = self.settled_dax(parent, name, &entry);
        let open = self.open_out(entry.nodeid, fh, args.flags, dax);
        call.reply.value(&self.entry_with(&entry, dax))?;
        call.reply.value(&open)
    }

    /// A file without a name. The one that Linux sends is that of its own
    /// unnamed entry, and means nothing.
    pub(super) fn tmpfile(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: CreateIn = call.body.args()?;
        call.body.string()?;
        let creator = self.creator(call)?;
        let (parent, flags) = (call.header.nodeid, self.create_flags(args.flags));
        let (entry, fh) = self
            .fs
            .tmpfile(creator, parent, flags, args.mode, args.umask)?;
        let dax = self.settled_dax_unnamed(&entry);
        let open = self.open_out(entry.nodeid, fh, args.flags, dax);
        call.reply.value(&self.entry_with(&entry, dax))?;
        call.reply.value(&open)
    }

    /// As in [`Server::open_for`]; what is created can be read.
    fn create_flags(&self, flags: u32) -> u32 {
        match self.session.writes_back() && flags & ACCESS_MODE == WRITE_ONLY {
            true => flags & !ACCESS_MODE | READ_WRITE,
            false => flags,
        }
    }

    /// The reply to what opened `fh`. A guest mounted with `dax=always` takes
    /// every file for a DAX inode, whatever the flag says, and one mounted with
    /// `dax=never` takes none. A DAX inode has no pages in the guest to
    /// invalidate at open, and the attempt makes the guest warn about its live
    /// mappings; nor is `O_DIRECT` for one whose data others have mapped.
    fn open_out(&self, nodeid: u64, fh: u64, flags: u32, dax: bool) -> OpenOut {
        let dax = self.session.has_window() && (dax || self.session.all_dax());
        let keeps = self.session.has_window() && self.dax.keep_cache(nodeid, dax);
        let mut open_flags = match dax || keeps {
            true if keeps => OpenOutFlags::KEEP_CACHE,
            true => OpenOutFlags::empty(),
            false => self.options.caching.of_file(),
        };
        if self.options.direct_io && flags & DIRECT != 0 && !dax {
            self.fs.make_direct(nodeid, fh);
        }
        if dax && flags & ACCESS_MODE != READ_ONLY {
            self.fs.expect_stores(nodeid, fh);
        }
        let appends = !dax && flags & APPEND != 0 && self.fs.is_append_only(nodeid, fh);
        if appends {
            // Each write as it is: pages that are written back have a place.
            open_flags = OpenOutFlags::DIRECT_IO;
        }
        OpenOut {
            fh,
            open_flags: open_flags.bits(),
            padding: 0,
        }
    }

    pub(super) fn read(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ReadIn = call.body.only()?;
        let open = self.fs.file(call.header.nodeid, args.fh)?;
        if !open.readable {
            return Err(Errno::BADF);
        }
        let count = args.size as usize;
        let waits = Waits {
            readiness: &open.readiness,
            queue: call.terms.queue,
            is_direct: open.is_direct(),
        };
        match call.reply.file(&open.file, args.offset, count, Some(waits)) {
            Err(Errno::INVAL) if open.is_direct() => {
                let buffered = self.fs.buffered(call.header.nodeid, &open)?;
                let waits = Waits {
                    is_direct: false,
                    ..waits
                };
                call.reply.file(&buffered, args.offset, count, Some(waits))
            }
            read => read,
        }
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
        // Part of the protocol since 7.31, whatever was agreed.
        if WriteFlags::from_bits_retain(args.write_flags).contains(WriteFlags::KILL_SUIDGID) {
            self.fs.kill_suidgid(call.header.nodeid)?;
        }
        self.fs.drop_capability_of(&open.file)?;
        let placement = placement(&open, &args)?;
        let is_elsewhere = open.readiness.is_elsewhere(&open.file);
        let mut write = |file: &File, by_buffer| match by_buffer {
            true => call.data.write_by_buffer(file, placement, count),
            false => call.data.write_to(file, placement, count),
        };
        let size = match write(&open.file, open.is_direct() || is_elsewhere) {
            Err(Errno::INVAL) if open.is_direct() => {
                let buffered = self.fs.buffered(call.header.nodeid, &open)?;
                write(&buffered, is_elsewhere)?
            }
            written => written?,
        };
        self.show_growth(call.terms.queue, call.header.nodeid);
        call.reply.value(&WriteOut {
            size: u32::try_from(size).unwrap_or(u32::MAX),
            padding: 0,
        })
    }

    pub(super) fn flush(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FlushIn = call.body.only()?;
        self.flush_file(call, args.fh, args.lock_owner)
    }

    fn flush_file(&self, call: &Call<'_, '_, '_>, fh: u64, lock_owner: u64) -> Result<(), Errno> {
        let nodeid = call.header.nodeid;
        let slow = || call.terms.queue.takes_long();
        self.fs.flush(nodeid, fh, lock_owner)?;
        self.fs.settle_times(nodeid, fh, &slow);
        self.fs.close_error(nodeid, fh, &slow)
    }

    pub(super) fn release(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: ReleaseIn = call.body.only()?;
        let flags = ReleaseFlags::from_bits_retain(args.release_flags);
        let nodeid = call.header.nodeid;
        let flushed = match flags.contains(ReleaseFlags::FLUSH) {
            true => self.flush_file(call, args.fh, args.lock_owner),
            false => Ok(()),
        };
        // What a mapping that outlived its descriptor has stored.
        let slow = || call.terms.queue.takes_long();
        self.fs.settle_times(nodeid, args.fh, &slow);
        self.fs.release(nodeid, args.fh).and(flushed)
    }

    pub(super) fn fsync(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FsyncIn = call.body.only()?;
        call.terms.queue.takes_long();
        self.fs.fsync(call.header.nodeid, args.fh, datasync(&args))
    }

    pub(super) fn fallocate(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: FallocateIn = call.body.only()?;
        self.kill_for(call, call.header.nodeid)?;
        self.fs.fallocate(call.header.nodeid, &args)?;
        self.show_growth(call.terms.queue, call.header.nodeid);
        Ok(())
    }

    /// Clears set-id bits before a change whose request does not say whether
    /// the caller may keep them: root may. With ALLOW_IDMAP Linux tells of no
    /// user where nothing is created; then nobody keeps them.
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
        call.terms.queue.takes_long();
        self.fs.copy_file_range(
            (call.header.nodeid, args.fh_in, args.off_in),
            (args.nodeid_out, args.fh_out, args.off_out),
            args.len.min(most),
            args.flags,
        )
    }

    pub(super) fn syncfs(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let _: SyncfsIn = call.body.only()?;
        call.terms.queue.takes_long();
        self.fs.syncfs(call.header.nodeid)
    }
}

/// Where WRITE data go. The guest computes the offset of an append from the
/// size it last saw; another guest or the host may have appended since, and
/// writing there would destroy their bytes. So data of an append handle go to
/// the end as it is now, as they would for a local process. Pages written
/// back from the guest's cache (a shared mapping of that handle) do have a
/// place of their own, which a file that is append-only has not: `EPERM`.
fn placement(open: &OpenFile, args: &WriteIn) -> Result<Placement, Errno> {
    let cached = WriteFlags::from_bits_retain(args.write_flags).contains(WriteFlags::CACHE);
    match (open.append, cached) {
        (true, false) => Ok(Placement::Append),
        _ if open.append_only => Err(Errno::PERM),
        _ => Ok(Placement::At(args.offset)),
    }
}

fn kills_suidgid(open_flags: u32) -> bool {
    OpenInFlags::from_bits_retain(open_flags).contains(OpenInFlags::KILL_SUIDGID)
}

pub(super) fn datasync(args: &FsyncIn) -> bool {
    FsyncFlags::from_bits_retain(args.fsync_flags).contains(FsyncFlags::FDATASYNC)
}
