//! From opcode to handler, for a request whose arguments are there and whose
//! answer has room.

use daxwindow_shared::fuse::{
    AttrOut, CopyFileRangeOut, EntryOut, InHeader, InitOut, IoctlOut, KStatfs, LkOut, LseekOut,
    Opcode, OpenOut, StatxOut, WriteOut,
};
use rustix::io::Errno;

use super::chain::Reader;
use super::extensions::Agreed;
use super::reply::Reply;
use super::request::BodyBuffer;
use super::{Call, Server, Terms};

impl Server {
    /// Whether another thread answers.
    pub(super) fn run<'m>(
        &self,
        header: InHeader,
        opcode: Option<Opcode>,
        reader: &mut Reader<'m>,
        reply: &mut Reply<'m>,
        terms: Terms<'_>,
    ) -> Result<bool, Errno> {
        let opcode = opcode.ok_or(Errno::NOSYS)?;
        let needs_session = !matches!(opcode, Opcode::Init | Opcode::Destroy);
        let has_session = needs_session && self.session.is_soon_live();
        let extended = has_session && self.session.extensions() != Agreed::default();
        let mut buffer = BodyBuffer::new();
        let (body, extensions) = buffer.fill(&header, opcode, extended, reader)?;
        if needs_session && !has_session {
            // What a guest's programs see of a mount whose server is gone.
            return Err(Errno::NOTCONN);
        }
        if !matches!(opcode, Opcode::Forget | Opcode::BatchForget)
            && (!reply.fits_header() || reply.room() < least_body_bytes(opcode))
        {
            return Err(Errno::OVERFLOW);
        }
        let mut call = Call {
            header,
            opcode,
            body,
            extensions,
            data: reader,
            reply,
            terms,
            is_deferred: false,
        };
        let result = self.dispatch(opcode, &mut call);
        result.map(|()| call.is_deferred)
    }

    fn dispatch(&self, opcode: Opcode, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        match opcode {
            Opcode::Init => self.init(call),
            Opcode::Destroy => self.destroy(call),

            Opcode::Lookup => self.lookup(call),
            Opcode::Forget => self.forget(call),
            Opcode::BatchForget => self.batch_forget(call),
            Opcode::Readlink => self.readlink(call),
            Opcode::Symlink => self.symlink(call),
            Opcode::Mknod => self.mknod(call),
            Opcode::Mkdir => self.mkdir(call),
            Opcode::Unlink => self.unlink(call),
            Opcode::Rmdir => self.rmdir(call),
            Opcode::Rename => self.rename(call),
            Opcode::Rename2 => self.rename2(call),
            Opcode::Link => self.link(call),

            Opcode::Getattr => self.getattr(call),
            Opcode::Setattr => self.setattr(call),
            Opcode::Statx => self.statx(call),
            Opcode::Statfs => self.statfs(call),

            Opcode::Open => self.open(call),
            Opcode::Create => self.create(call),
            Opcode::Read => self.read(call),
            Opcode::Write => self.write(call),
            Opcode::Flush => self.flush(call),
            Opcode::Release => self.release(call),
            Opcode::Fsync => self.fsync(call),
            Opcode::Fallocate => self.fallocate(call),
            Opcode::Lseek => self.lseek(call),
            Opcode::CopyFileRange => self.copy_file_range(call),
            Opcode::CopyFileRange64 => self.copy_file_range_64(call),
            Opcode::Tmpfile => self.tmpfile(call),
            Opcode::Ioctl => self.ioctl(call),
            Opcode::Syncfs => self.syncfs(call),

            Opcode::Opendir => self.opendir(call),
            Opcode::Readdir => self.readdir(call),
            Opcode::Readdirplus => self.readdirplus(call),
            Opcode::Releasedir => self.releasedir(call),
            Opcode::Fsyncdir => self.fsyncdir(call),

            Opcode::Setxattr => self.setxattr(call),
            Opcode::Getxattr => self.getxattr(call),
            Opcode::Listxattr => self.listxattr(call),
            Opcode::Removexattr => self.removexattr(call),

            Opcode::Setupmapping => self.setupmapping(call),
            Opcode::Removemapping => self.removemapping(call),

            Opcode::Getlk => self.getlk(call),
            Opcode::Setlk => self.setlk(call),
            Opcode::Setlkw => self.setlkw(call),

            // What a virtio-fs guest can do without.
            Opcode::Access
            | Opcode::Interrupt
            | Opcode::Bmap
            | Opcode::Poll
            | Opcode::NotifyReply => Err(Errno::NOSYS),
        }
    }
}

/// Bytes that a successful reply has at least behind its header.
fn least_body_bytes(opcode: Opcode) -> usize {
    match opcode {
        Opcode::Init => size_of::<InitOut>(),
        Opcode::Lookup | Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => {
            size_of::<EntryOut>()
        }
        Opcode::Create | Opcode::Tmpfile => size_of::<EntryOut>() + size_of::<OpenOut>(),
        Opcode::Getattr | Opcode::Setattr => size_of::<AttrOut>(),
        Opcode::Statx => size_of::<StatxOut>(),
        Opcode::Open | Opcode::Opendir => size_of::<OpenOut>(),
        Opcode::Write | Opcode::CopyFileRange => size_of::<WriteOut>(),
        Opcode::Statfs => size_of::<KStatfs>(),
        Opcode::Lseek => size_of::<LseekOut>(),
        Opcode::Getlk => size_of::<LkOut>(),
        Opcode::CopyFileRange64 => size_of::<CopyFileRangeOut>(),
        Opcode::Ioctl => size_of::<IoctlOut>(),
        _ => 0,
    }
}
