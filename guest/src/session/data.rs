//! File data: open, read, write, and what goes with them.
//!
//! Data moves between the device and a [`DmaBuf`] without a copy here. A
//! read or write larger than the daemon takes is split.

use daxwindow_shared::fuse::flags::FsyncFlags;
use daxwindow_shared::fuse::{
    CopyFileRangeIn, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut, Opcode, OpenIn, OpenOut,
    ReadIn, ReleaseIn, SyncfsIn, WriteIn, WriteOut,
};

use super::Session;
use super::call::{Request, bytes};
use super::parts::Data;
use super::pending::Pending;
use crate::error::{Error, Result};
use crate::transport::DmaBuf;

impl Session {
    /// Opens a file.
    pub fn open(&self, nodeid: u64, flags: u32) -> Result<OpenOut> {
        let open = OpenIn {
            flags,
            open_flags: 0,
        };
        self.core
            .call(Request::new(Opcode::Open, nodeid, &[bytes(&open)]))
    }

    /// Closes a handle.
    pub fn release(&self, nodeid: u64, fh: u64) -> Result<()> {
        let release = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.core
            .call_empty(Request::new(Opcode::Release, nodeid, &[bytes(&release)]))
    }

    /// Reads straight into `buf[at..at + len]`; returns the bytes read, fewer
    /// than `len` only at end of file. When it ended without the device, by a
    /// time-out or with the queue, the buffer is refused until the device has
    /// given it back or is reset.
    pub fn read(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        buf: &mut DmaBuf,
        at: usize,
        len: usize,
    ) -> Result<usize> {
        let most = self.limits().read_bytes;
        let mut done = 0;
        loop {
            let step = (len - done).min(most);
            let from = offset.checked_add(done as u64).ok_or_else(past_the_end)?;
            let got = self.read_once(nodeid, fh, from, Data::new(buf, at + done, step)?)?;
            done += got;
            if got < step || done == len {
                return Ok(done);
            }
        }
    }

    fn read_once(&self, nodeid: u64, fh: u64, offset: u64, room: Data<'_>) -> Result<usize> {
        let read = read_in(fh, offset, room.len);
        let args = [bytes(&read)];
        let mut request = Request::new(Opcode::Read, nodeid, &args);
        request.room = Some(room);
        self.core.call_data(&request)
    }

    /// Starts a read of at most the daemon's largest into all of `buf`, and
    /// returns at once.
    pub fn submit_read(&self, nodeid: u64, fh: u64, offset: u64, buf: DmaBuf) -> Result<Pending> {
        let len = buf.len().min(self.limits().read_bytes);
        let read = read_in(fh, offset, len);
        let args = [bytes(&read)];
        let mut request = Request::new(Opcode::Read, nodeid, &args);
        request.room = Some(Data::new(&buf, 0, len)?);
        let sent = Pending::start(&self.core, &request)?;
        Ok(Pending::read(sent, buf, len))
    }

    /// Writes `buf[at..at + len]`; returns the bytes written, fewer than
    /// `len` only if the daemon took fewer.
    pub fn write(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        buf: &DmaBuf,
        at: usize,
        len: usize,
    ) -> Result<usize> {
        let most = self.limits().write_bytes;
        let mut done = 0;
        loop {
            let step = (len - done).min(most);
            let to = offset.checked_add(done as u64).ok_or_else(past_the_end)?;
            let put = self.write_once(nodeid, fh, to, Data::new(buf, at + done, step)?)?;
            done += put;
            if put < step || done == len {
                return Ok(done);
            }
        }
    }

    fn write_once(&self, nodeid: u64, fh: u64, offset: u64, data: Data<'_>) -> Result<usize> {
        let write = write_in(fh, offset, data.len);
        let args = [bytes(&write)];
        let mut request = Request::new(Opcode::Write, nodeid, &args);
        request.payload = Some(data);
        let reply: WriteOut = self.core.call(request)?;
        let put = reply.size as usize;
        if put > data.len {
            let what = format!("{put} bytes written of {}", data.len);
            return Err(Error::Protocol {
                operation: "WRITE",
                what,
            });
        }
        Ok(put)
    }

    /// Starts a write of at most the daemon's largest from all of `buf`, and
    /// returns at once.
    pub fn submit_write(&self, nodeid: u64, fh: u64, offset: u64, buf: DmaBuf) -> Result<Pending> {
        let len = buf.len().min(self.limits().write_bytes);
        let write = write_in(fh, offset, len);
        let args = [bytes(&write)];
        let mut request = Request::new(Opcode::Write, nodeid, &args);
        request.payload = Some(Data::new(&buf, 0, len)?);
        request.reply_bytes = size_of::<WriteOut>();
        let sent = Pending::start(&self.core, &request)?;
        Ok(Pending::write(sent, buf, len))
    }

    /// What `close(2)` sends.
    pub fn flush(&self, nodeid: u64, fh: u64) -> Result<()> {
        let flush = FlushIn {
            fh,
            ..FlushIn::default()
        };
        self.core
            .call_empty(Request::new(Opcode::Flush, nodeid, &[bytes(&flush)]))
    }

    /// Makes a file's data durable, and its metadata unless `datasync`.
    pub fn fsync(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<()> {
        self.sync_with(Opcode::Fsync, nodeid, fh, datasync)
    }

    pub(super) fn sync_with(
        &self,
        opcode: Opcode,
        nodeid: u64,
        fh: u64,
        datasync: bool,
    ) -> Result<()> {
        let flags = if datasync {
            FsyncFlags::FDATASYNC
        } else {
            FsyncFlags::empty()
        };
        let fsync = FsyncIn {
            fh,
            fsync_flags: flags.bits(),
            padding: 0,
        };
        self.core
            .call_empty(Request::new(opcode, nodeid, &[bytes(&fsync)]))
    }

    /// Makes the whole share durable.
    pub fn syncfs(&self, nodeid: u64) -> Result<()> {
        let syncfs = SyncfsIn::default();
        self.core
            .call_empty(Request::new(Opcode::Syncfs, nodeid, &[bytes(&syncfs)]))
    }

    /// Allocates, punches or zeroes; `mode` as in `fallocate(2)`.
    pub fn fallocate(
        &self,
        nodeid: u64,
        fh: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let fallocate = FallocateIn {
            fh,
            offset,
            length,
            mode,
            padding: 0,
        };
        self.core.call_empty(Request::new(
            Opcode::Fallocate,
            nodeid,
            &[bytes(&fallocate)],
        ))
    }

    /// Finds data or a hole; `whence` as in `lseek(2)`.
    pub fn lseek(&self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let lseek = LseekIn {
            fh,
            offset,
            whence,
            padding: 0,
        };
        let args = [bytes(&lseek)];
        let reply: LseekOut = self.core.call(Request::new(Opcode::Lseek, nodeid, &args))?;
        Ok(reply.offset)
    }

    /// Copies between two open files on the host; returns the bytes copied.
    pub fn copy_file_range(&self, nodeid_in: u64, copy: &CopyFileRangeIn) -> Result<usize> {
        let args = [bytes(copy)];
        let request = Request::new(Opcode::CopyFileRange, nodeid_in, &args);
        let reply: WriteOut = self.core.call(request)?;
        Ok(reply.size as usize)
    }
}

fn read_in(fh: u64, offset: u64, len: usize) -> ReadIn {
    // A length is at most the daemon's largest, far below 4 GiB.
    ReadIn {
        fh,
        offset,
        size: len as u32,
        ..ReadIn::default()
    }
}

fn write_in(fh: u64, offset: u64, len: usize) -> WriteIn {
    WriteIn {
        fh,
        offset,
        size: len as u32,
        ..WriteIn::default()
    }
}

fn past_the_end() -> Error {
    Error::Invalid("an offset above 2^64".into())
}
