//! The FUSE wire protocol, version 7.45, as `include/uapi/linux/fuse.h` lays
//! it out. All integers are in host byte order; every struct is `#[repr(C)]`
//! without padding that the header does not spell out.
//!
//! - [`Opcode`]: the request numbers.
//! - [`mod@flags`]: the bit sets of each request and reply.
//! - [`structs`]: headers, arguments and replies.
//! - [`ioctl`]: numbers of commands.
//! - [`dirent`]: directory entries, written and read.

pub mod dirent;
pub mod flags;
pub mod ioctl;
mod opcode;
pub mod structs;

pub use opcode::Opcode;
pub use structs::*;

/// Major version spoken; any other is refused with `EPROTO`.
pub const KERNEL_VERSION: u32 = 7;
/// Newest minor version whose layouts are defined here.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// Oldest minor version a peer may speak: 7.31 brought `map_alignment`, and
/// with it `SETUPMAPPING` over virtio-fs.
pub const MIN_KERNEL_MINOR_VERSION: u32 = 31;
/// Node id of the root of the shared directory (`FUSE_ROOT_ID`).
pub const ROOT_ID: u64 = 1;
/// The `fh` of a request that names no open handle: Linux sends it in every
/// `SETUPMAPPING`.
pub const NO_HANDLE: u64 = u64::MAX;
/// Largest `typ` of an extension that is a number of security contexts
/// (`FUSE_MAX_NR_SECCTX`).
pub const MAX_NR_SECCTX: u32 = 31;
/// `typ` of the extension of supplementary groups (`FUSE_EXT_GROUPS`).
pub const EXT_GROUPS: u32 = 32;
