//! Request numbers (`enum fuse_opcode`).

/// A FUSE request number. Numbers outside this list are answered with
/// `ENOSYS` by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Opcode {
    /// Resolve one name in a directory; raises the lookup count.
    Lookup = 1,
    /// Lower a lookup count; no reply.
    Forget = 2,
    /// Read attributes.
    Getattr = 3,
    /// Change mode, owner, size or times.
    Setattr = 4,
    /// Read a symbolic link.
    Readlink = 5,
    /// Create a symbolic link.
    Symlink = 6,
    /// Create a node.
    Mknod = 8,
    /// Create a directory.
    Mkdir = 9,
    /// Remove a name.
    Unlink = 10,
    /// Remove an empty directory.
    Rmdir = 11,
    /// Rename, replacing the target.
    Rename = 12,
    /// Create a hard link.
    Link = 13,
    /// Open a file.
    Open = 14,
    /// Read file data.
    Read = 15,
    /// Write file data.
    Write = 16,
    /// File system totals.
    Statfs = 17,
    /// Close a file handle.
    Release = 18,
    /// Make file data durable.
    Fsync = 20,
    /// Set an extended attribute.
    Setxattr = 21,
    /// Read an extended attribute.
    Getxattr = 22,
    /// List extended attributes.
    Listxattr = 23,
    /// Remove an extended attribute.
    Removexattr = 24,
    /// A descriptor was closed.
    Flush = 25,
    /// Negotiate the session.
    Init = 26,
    /// Open a directory.
    Opendir = 27,
    /// List a directory.
    Readdir = 28,
    /// Close a directory handle.
    Releasedir = 29,
    /// Make a directory durable.
    Fsyncdir = 30,
    /// Test a POSIX lock.
    Getlk = 31,
    /// Take or release a POSIX or flock lock.
    Setlk = 32,
    /// The same, waiting.
    Setlkw = 33,
    /// Check access.
    Access = 34,
    /// Create and open.
    Create = 35,
    /// Interrupt a request.
    Interrupt = 36,
    /// Map a block.
    Bmap = 37,
    /// End the session.
    Destroy = 38,
    /// Device control.
    Ioctl = 39,
    /// Poll readiness.
    Poll = 40,
    /// Answer to a notification.
    NotifyReply = 41,
    /// Many forgets in one; no reply.
    BatchForget = 42,
    /// Allocate, punch or zero.
    Fallocate = 43,
    /// List a directory with entries looked up.
    Readdirplus = 44,
    /// Rename with flags.
    Rename2 = 45,
    /// Find data or a hole.
    Lseek = 46,
    /// Copy between files.
    CopyFileRange = 47,
    /// Map a file range into the DAX window.
    Setupmapping = 48,
    /// Unmap ranges of the DAX window.
    Removemapping = 49,
    /// Make the file system durable.
    Syncfs = 50,
    /// Create an unnamed file.
    Tmpfile = 51,
    /// Read extended attributes of the inode (statx).
    Statx = 52,
    /// Copy between files, 64-bit count in the reply.
    CopyFileRange64 = 53,
}

impl Opcode {
    /// Every opcode known here, in ascending order.
    pub const ALL: &'static [Opcode] = &[
        Opcode::Lookup,
        Opcode::Forget,
        Opcode::Getattr,
        Opcode::Setattr,
        Opcode::Readlink,
        Opcode::Symlink,
        Opcode::Mknod,
        Opcode::Mkdir,
        Opcode::Unlink,
        Opcode::Rmdir,
        Opcode::Rename,
        Opcode::Link,
        Opcode::Open,
        Opcode::Read,
        Opcode::Write,
        Opcode::Statfs,
        Opcode::Release,
        Opcode::Fsync,
        Opcode::Setxattr,
        Opcode::Getxattr,
        Opcode::Listxattr,
        Opcode::Removexattr,
        Opcode::Flush,
        Opcode::Init,
        Opcode::Opendir,
        Opcode::Readdir,
        Opcode::Releasedir,
        Opcode::Fsyncdir,
        Opcode::Getlk,
        Opcode::Setlk,
        Opcode::Setlkw,
        Opcode::Access,
        Opcode::Create,
        Opcode::Interrupt,
        Opcode::Bmap,
        Opcode::Destroy,
        Opcode::Ioctl,
        Opcode::Poll,
        Opcode::NotifyReply,
        Opcode::BatchForget,
        Opcode::Fallocate,
        Opcode::Readdirplus,
        Opcode::Rename2,
        Opcode::Lseek,
        Opcode::CopyFileRange,
        Opcode::Setupmapping,
        Opcode::Removemapping,
        Opcode::Syncfs,
        Opcode::Tmpfile,
        Opcode::Statx,
        Opcode::CopyFileRange64,
    ];

    /// The opcode with this number, or `None` if it is not known here.
    pub fn from_u32(number: u32) -> Option<Opcode> {
        match number {
            1 => Some(Opcode::Lookup),
            2 => Some(Opcode::Forget),
            3 => Some(Opcode::Getattr),
            4 => Some(Opcode::Setattr),
            5 => Some(Opcode::Readlink),
            6 => Some(Opcode::Symlink),
            8 => Some(Opcode::Mknod),
            9 => Some(Opcode::Mkdir),
            10 => Some(Opcode::Unlink),
            11 => Some(Opcode::Rmdir),
            12 => Some(Opcode::Rename),
            13 => Some(Opcode::Link),
            14 => Some(Opcode::Open),
            15 => Some(Opcode::Read),
            16 => Some(Opcode::Write),
            17 => Some(Opcode::Statfs),
            18 => Some(Opcode::Release),
            20 => Some(Opcode::Fsync),
            21 => Some(Opcode::Setxattr),
            22 => Some(Opcode::Getxattr),
            23 => Some(Opcode::Listxattr),
            24 => Some(Opcode::Removexattr),
            25 => Some(Opcode::Flush),
            26 => Some(Opcode::Init),
            27 => Some(Opcode::Opendir),
            28 => Some(Opcode::Readdir),
            29 => Some(Opcode::Releasedir),
            30 => Some(Opcode::Fsyncdir),
            31 => Some(Opcode::Getlk),
            32 => Some(Opcode::Setlk),
            33 => Some(Opcode::Setlkw),
            34 => Some(Opcode::Access),
            35 => Some(Opcode::Create),
            36 => Some(Opcode::Interrupt),
            37 => Some(Opcode::Bmap),
            38 => Some(Opcode::Destroy),
            39 => Some(Opcode::Ioctl),
            40 => Some(Opcode::Poll),
            41 => Some(Opcode::NotifyReply),
            42 => Some(Opcode::BatchForget),
            43 => Some(Opcode::Fallocate),
            44 => Some(Opcode::Readdirplus),
            45 => Some(Opcode::Rename2),
            46 => Some(Opcode::Lseek),
            47 => Some(Opcode::CopyFileRange),
            48 => Some(Opcode::Setupmapping),
            49 => Some(Opcode::Removemapping),
            50 => Some(Opcode::Syncfs),
            51 => Some(Opcode::Tmpfile),
            52 => Some(Opcode::Statx),
            53 => Some(Opcode::CopyFileRange64),
            _ => None,
        }
    }

    /// Whether the request is never answered.
    pub fn is_oneway(self) -> bool {
        matches!(
            self,
            Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_strangers_are_refused() {
        for op in Opcode::ALL {
            assert_eq!(Opcode::from_u32(*op as u32), Some(*op));
        }
        for number in [0, 7, 19, 54, 4096, u32::MAX] {
            assert_eq!(Opcode::from_u32(number), None);
        }
    }
}
