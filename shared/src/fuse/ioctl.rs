//! Numbers of the ioctl commands that Linux sends of its own accord, from
//! `linux/fs.h`, as 64-bit x86 and Arm count them.

/// `FS_IOC_GETFLAGS`.
pub const GETFLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`.
pub const SETFLAGS: u32 = 0x4008_6602;
/// `FS_IOC_FSGETXATTR`.
pub const FSGETXATTR: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
pub const FSSETXATTR: u32 = 0x401c_5820;
