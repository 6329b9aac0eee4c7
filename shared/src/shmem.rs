//! How a back end asks its front end to map and unmap a file range in the
//! window (vhost-user specification, `VHOST_USER_PROTOCOL_F_SHMEM`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::window::{FileOffset, WindowError, WindowRange};

/// Protocol feature bit of the shared memory messages. Bit 21, which some
/// front ends once used for it, means `GPA_ADDRESSES` today and is never
/// taken for this one.
pub const PROTOCOL_F_SHMEM_BIT: u32 = 22;
/// Front-end request that asks for the number and size of the regions.
pub const GET_SHMEM_CONFIG: u32 = 44;
/// Back-end request that maps; carries one descriptor.
pub const SHMEM_MAP: u32 = 9;
/// Back-end request that unmaps.
pub const SHMEM_UNMAP: u32 = 10;
/// `flags`: the mapping may be written through.
pub const MAP_WRITABLE: u64 = 1 << 0;

/// Payload of [`SHMEM_MAP`] and [`SHMEM_UNMAP`]. All numbers are bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MapMessage {
    /// Shared memory region, [`SHMCAP_ID_CACHE`](crate::virtiofs::SHMCAP_ID_CACHE).
    pub shmid: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// Start in the file.
    pub fd_offset: u64,
    /// Start in the region.
    pub shm_offset: u64,
    /// Length.
    pub len: u64,
    /// [`MAP_WRITABLE`] or zero.
    pub flags: u64,
}
const _: () = assert!(size_of::<MapMessage>() == 40);

/// Why a map or unmap message is refused before anything is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Only one region exists.
    #[error("shared memory region {0} does not exist")]
    UnknownRegion(u8),
    /// An undefined flag is set.
    #[error("unknown flags {0:#x}")]
    UnknownFlags(u64),
    /// The file range is not page aligned or overflows.
    #[error("file range at {offset:#x} of {len:#x} bytes is unaligned or too large")]
    FileRange {
        /// Start in the file.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// The window range is bad.
    #[error(transparent)]
    Window(#[from] WindowError),
}

/// A message that has passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Where in the window.
    pub range: WindowRange,
    /// Start in the file, page aligned; with `range.len()` added it fits `i64`.
    pub file_offset: FileOffset,
    /// Whether stores are allowed.
    pub writable: bool,
}

impl MapMessage {
    /// Checks the message against a window of `window_bytes`.
    pub fn validate(&self, window_bytes: u64, page_bytes: u64) -> Result<MapRequest, MessageError> {
        if self.shmid != crate::virtiofs::SHMCAP_ID_CACHE {
            return Err(MessageError::UnknownRegion(self.shmid));
        }
        if self.flags & !MAP_WRITABLE != 0 {
            return Err(MessageError::UnknownFlags(self.flags));
        }
        let range = WindowRange::new(self.shm_offset, self.len, window_bytes, page_bytes)?;
        let end = self.fd_offset.checked_add(self.len);
        if !self.fd_offset.is_multiple_of(page_bytes) || end.is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(MessageError::FileRange {
                offset: self.fd_offset,
                len: self.len,
            });
        }
        let writable = self.flags & MAP_WRITABLE != 0;
        Ok(MapRequest {
            range,
            file_offset: FileOffset(self.fd_offset),
            writable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bad_messages_are_refused_by_name() {
        let good = MapMessage {
            len: 2 * MIB,
            flags: MAP_WRITABLE,
            ..Default::default()
        };
        assert!(good.validate(4 * MIB, 4096).expect("valid").writable);
        let bad = MapMessage { shmid: 1, ..good };
        assert_eq!(
            bad.validate(4 * MIB, 4096),
            Err(MessageError::UnknownRegion(1))
        );
        let bad = MapMessage { flags: 6, ..good };
        assert_eq!(
            bad.validate(4 * MIB, 4096),
            Err(MessageError::UnknownFlags(6))
        );
        for fd_offset in [1, u64::MAX - 4095, i64::MAX as u64 - 4095] {
            let bad = MapMessage { fd_offset, ..good };
            assert!(matches!(
                bad.validate(4 * MIB, 4096),
                Err(MessageError::FileRange { .. })
            ));
        }
        let bad = MapMessage {
            shm_offset: 3 * MIB,
            ..good
        };
        assert!(matches!(
            bad.validate(4 * MIB, 4096),
            Err(MessageError::Window(_))
        ));
    }
}
