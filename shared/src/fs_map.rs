//! How back ends asked for maps before shared memory regions were in the
//! specification: `FS_MAP` and `FS_UNMAP`, of the QEMU fork that the first
//! virtiofsd ran with. Some back ends still do.
//!
//! Source of the layout: `VhostUserFSSlaveMsg` in that fork's
//! `include/hw/virtio/vhost-user-fs.h` (QEMU list, "vhost-user-fs: virtiofs
//! DAX", 2019 to 2021), the vhost crate up to 0.10, and alioth 0.12, which
//! sends it under the numbers' later names, `SHARED_OBJECT_ADD` and `_REMOVE`.
//! They differ in one thing: a message for several ranges carries one
//! descriptor for all in QEMU, and one for each in alioth.
//!
//! The numbers mean something else in the specification of today, so these
//! messages are taken only on a channel that was agreed to be of this kind.
//! The window's size is not negotiated: the front end's own option says it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::shmem::{MAP_WRITABLE, MapMessage, MapRequest, MessageError};
use crate::window::{WindowError, WindowRange};

/// Back-end request that maps.
pub const FS_MAP: u32 = 6;
/// Back-end request that unmaps.
pub const FS_UNMAP: u32 = 7;
/// Ranges in one message, at most; the length of the others is zero.
pub const ENTRIES: usize = 8;
/// `flags`: the mapping may be read.
pub const MAP_READ: u64 = 1 << 0;
/// `flags`: the mapping may be written.
pub const MAP_WRITE: u64 = 1 << 1;
/// `len` of an [`FS_UNMAP`] that means the whole window.
pub const WHOLE_WINDOW: u64 = u64::MAX;

/// Payload of [`FS_MAP`] and [`FS_UNMAP`]: up to eight ranges, field by field.
/// All numbers are bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FsMapMessage {
    /// Starts in the file.
    pub fd_offset: [u64; ENTRIES],
    /// Starts in the window.
    pub window_offset: [u64; ENTRIES],
    /// Lengths; zero where there is no range.
    pub len: [u64; ENTRIES],
    /// [`MAP_READ`], [`MAP_WRITE`].
    pub flags: [u64; ENTRIES],
}
const _: () = assert!(size_of::<FsMapMessage>() == 256);

impl FsMapMessage {
    fn entries(&self) -> impl Iterator<Item = usize> {
        (0..ENTRIES).filter(|entry| self.len[*entry] != 0)
    }

    /// Checks a map message: every range, as a
    /// [`MapMessage`] is, and that there is one.
    ///
    /// # Errors
    ///
    /// The first that is bad; then none may be mapped.
    pub fn maps(
        &self,
        window_bytes: u64,
        page_bytes: u64,
    ) -> Result<Vec<MapRequest>, MessageError> {
        let map = |entry: usize| {
            let flags = match self.flags[entry] {
                MAP_READ => 0,
                flags if flags & !MAP_READ == MAP_WRITE => MAP_WRITABLE,
                flags => return Err(MessageError::UnknownFlags(flags)),
            };
            let one = MapMessage {
                fd_offset: self.fd_offset[entry],
                shm_offset: self.window_offset[entry],
                len: self.len[entry],
                flags,
                ..MapMessage::default()
            };
            one.validate(window_bytes, page_bytes)
        };
        let maps: Vec<MapRequest> = self.entries().map(map).collect::<Result<_, _>>()?;
        match maps.is_empty() {
            true => Err(WindowError::Empty { offset: 0 }.into()),
            false => Ok(maps),
        }
    }

    /// Checks an unmap message in the same way. Files and flags mean nothing
    /// in it.
    ///
    /// # Errors
    ///
    /// The first range that is bad; then none may be unmapped.
    pub fn unmaps(
        &self,
        window_bytes: u64,
        page_bytes: u64,
    ) -> Result<Vec<WindowRange>, MessageError> {
        let unmap = |entry: usize| match (self.window_offset[entry], self.len[entry]) {
            (0, WHOLE_WINDOW) => WindowRange::new(0, window_bytes, window_bytes, page_bytes),
            (offset, len) => WindowRange::new(offset, len, window_bytes, page_bytes),
        };
        let unmaps: Vec<WindowRange> = self.entries().map(unmap).collect::<Result<_, _>>()?;
        match unmaps.is_empty() {
            true => Err(WindowError::Empty { offset: 0 }.into()),
            false => Ok(unmaps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PAGE: u64 = 4096;

    fn message(entry: usize, offset: u64, len: u64) -> FsMapMessage {
        let mut message = FsMapMessage::default();
        message.window_offset[entry] = offset;
        message.len[entry] = len;
        message.flags[entry] = MAP_READ;
        message
    }

    #[test]
    fn each_range_is_checked_and_none_is_lost() {
        let mut two = message(0, 0, 2 * MIB);
        two.window_offset[7] = 2 * MIB;
        two.fd_offset[7] = 4 * MIB;
        two.len[7] = MIB;
        two.flags[7] = MAP_READ | MAP_WRITE;
        let maps = two.maps(4 * MIB, PAGE).expect("sound");
        let seen: Vec<_> = maps
            .iter()
            .map(|map| {
                (
                    map.range.start().0,
                    map.range.len(),
                    map.file_offset.0,
                    map.writable,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [(0, 2 * MIB, 0, false), (2 * MIB, MIB, 4 * MIB, true)]
        );
        assert_eq!(two.unmaps(4 * MIB, PAGE).expect("sound").len(), 2);
        // One bad range among good ones spoils all.
        let outside = two.maps(3 * MIB - PAGE, PAGE);
        assert!(matches!(outside, Err(MessageError::Window(_))));
        assert!(two.unmaps(3 * MIB - PAGE, PAGE).is_err());
    }

    #[test]
    fn bad_ranges_and_flags_are_refused_by_name() {
        for (offset, len) in [
            (1, MIB),
            (0, MIB + 1),
            (4 * MIB, PAGE),
            (PAGE, 4 * MIB),
            (u64::MAX - PAGE + 1, 2 * PAGE),
            (PAGE, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            let bad = message(3, offset, len);
            let map = bad.maps(4 * MIB, PAGE);
            assert!(matches!(map, Err(MessageError::Window(_))), "{bad:?}");
            let unmap = bad.unmaps(4 * MIB, PAGE);
            assert!(matches!(unmap, Err(MessageError::Window(_))), "{bad:?}");
        }
        for flags in [0, 4, MAP_READ | 4, u64::MAX] {
            let mut bad = message(0, 0, MIB);
            bad.flags[0] = flags;
            assert_eq!(bad.maps(MIB, PAGE), Err(MessageError::UnknownFlags(flags)));
        }
        for fd_offset in [1, u64::MAX - PAGE + 1, i64::MAX as u64 - PAGE + 1] {
            let mut bad = message(0, 0, MIB);
            bad.fd_offset[0] = fd_offset;
            let refused = bad.maps(MIB, PAGE);
            assert!(matches!(refused, Err(MessageError::FileRange { .. })));
        }
        assert!(FsMapMessage::default().maps(MIB, PAGE).is_err());
        assert!(FsMapMessage::default().unmaps(MIB, PAGE).is_err());
    }

    #[test]
    fn the_whole_window_can_be_unmapped_but_not_mapped() {
        let whole = message(0, 0, WHOLE_WINDOW);
        let ranges = whole.unmaps(4 * MIB, PAGE).expect("whole");
        assert_eq!((ranges[0].start().0, ranges[0].len()), (0, 4 * MIB));
        assert!(whole.maps(4 * MIB, PAGE).is_err());
    }
}
