//! IOCTL: the four commands about file attributes, and `ENOTTY` for all
//! others, as of a file that knows no commands.

use daxwindow_shared::fuse::ioctl::{FSGETXATTR, FSSETXATTR, GETFLAGS, SETFLAGS};
use daxwindow_shared::fuse::{FsXattr, IoctlIn, IoctlOut};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::{Call, Server};

/// What the flags take on the wire: an `int`, or the `long` that the
/// command's number speaks of.
const FLAGS_BYTES: [u32; 2] = [4, 8];
const XATTR_BYTES: u32 = size_of::<FsXattr>() as u32;

impl Server {
    pub(super) fn ioctl(&self, call: &mut Call<'_, '_, '_>) -> Result<(), Errno> {
        let args: IoctlIn = call.body.args()?;
        let data = call.body.rest();
        if data.len() != args.in_size as usize {
            return Err(Errno::INVAL);
        }
        let room = size_of::<IoctlOut>().saturating_add(args.out_size as usize);
        if call.reply.room() < room {
            return Err(Errno::OVERFLOW);
        }
        let (node, fh) = (call.header.nodeid, args.fh);
        match args.cmd {
            GETFLAGS if FLAGS_BYTES.contains(&args.out_size) => {
                let flags = u64::from(self.fs.file_flags(node, fh)?);
                answer(call, flags.as_bytes().get(..args.out_size as usize))
            }
            SETFLAGS if FLAGS_BYTES.contains(&args.in_size) => {
                let (flags, _) = u32::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
                self.fs.set_file_flags(node, fh, flags)?;
                self.follow(call.terms.queue, node)?;
                answer(call, None)
            }
            FSGETXATTR if args.out_size == XATTR_BYTES => {
                let attr = self.fs.file_xattr(node, fh)?;
                answer(call, Some(attr.as_bytes()))
            }
            FSSETXATTR => {
                let attr = FsXattr::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
                self.fs.set_file_xattr(node, fh, &attr)?;
                self.follow(call.terms.queue, node)?;
                answer(call, None)
            }
            GETFLAGS | SETFLAGS | FSGETXATTR => Err(Errno::INVAL),
            _ => Err(Errno::NOTTY),
        }
    }
}

fn answer(call: &mut Call<'_, '_, '_>, data: Option<&[u8]>) -> Result<(), Errno> {
    call.reply.value(&IoctlOut::default())?;
    call.reply.bytes(data.unwrap_or_default())
}
