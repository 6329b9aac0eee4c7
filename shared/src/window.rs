//! Geometry of the DAX window: typed offsets, checked ranges and the 2 MiB
//! ranges in which a Linux guest maps.
//!
//! A [`WindowRange`] exists only if it is page aligned, not empty and inside
//! its window, so whoever holds one need not check again.

use std::fmt;

/// Bytes of one range of the Linux guest (`FUSE_DAX_SZ`).
pub const RANGE_BYTES: u64 = 1 << RANGE_SHIFT;
/// Logarithm to base 2 of [`RANGE_BYTES`].
pub const RANGE_SHIFT: u32 = 21;

/// A byte offset from the start of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowOffset(pub u64);

/// A byte offset from the start of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

impl fmt::Display for WindowOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "window+{:#x}", self.0)
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file+{:#x}", self.0)
    }
}

/// Why a range of the window is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Length zero.
    #[error("empty range at window+{offset:#x}")]
    Empty {
        /// Start.
        offset: u64,
    },
    /// Start or length is not a multiple of the page size.
    #[error("range window+{offset:#x} of {len:#x} bytes is not page aligned")]
    Unaligned {
        /// Start.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// The end lies past the window or overflows.
    #[error("range window+{offset:#x} of {len:#x} bytes leaves the window of {window:#x} bytes")]
    Outside {
        /// Start.
        offset: u64,
        /// Length.
        len: u64,
        /// Size of the window.
        window: u64,
    },
}

/// A page-aligned, non-empty range inside a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowRange {
    start: u64,
    len: u64,
}

impl WindowRange {
    /// Checks `offset` and `len` against a window of `window_bytes`.
    pub fn new(
        offset: u64,
        len: u64,
        window_bytes: u64,
        page_bytes: u64,
    ) -> Result<Self, WindowError> {
        if len == 0 {
            return Err(WindowError::Empty { offset });
        }
        if !offset.is_multiple_of(page_bytes) || !len.is_multiple_of(page_bytes) {
            return Err(WindowError::Unaligned { offset, len });
        }
        match offset.checked_add(len) {
            Some(end) if end <= window_bytes => Ok(WindowRange { start: offset, len }),
            _ => Err(WindowError::Outside {
                offset,
                len,
                window: window_bytes,
            }),
        }
    }

    /// First byte.
    pub fn start(&self) -> WindowOffset {
        WindowOffset(self.start)
    }

    /// Length in bytes, never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// One past the last byte; cannot overflow by construction.
    pub fn end(&self) -> WindowOffset {
        WindowOffset(self.start + self.len)
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &WindowRange) -> bool {
        self.start < other.start + other.len && other.start < self.start + self.len
    }

    /// What is left of this range on either side of `other`.
    pub fn around(&self, other: &WindowRange) -> (Option<WindowRange>, Option<WindowRange>) {
        let piece = |start: u64, end: u64| {
            (start < end).then(|| WindowRange {
                start,
                len: end - start,
            })
        };
        let (end, other_end) = (self.end().0, other.end().0);
        (
            piece(self.start, end.min(other.start)),
            piece(self.start.max(other_end), end),
        )
    }

    /// Cuts the range where the window offset is a multiple of `granule`
    /// bytes, itself a multiple of the page size.
    pub fn pieces(&self, granule: u64) -> impl Iterator<Item = WindowRange> + use<> {
        let (mut start, end) = (self.start, self.start + self.len);
        std::iter::from_fn(move || {
            let next = (start / granule)
                .saturating_add(1)
                .saturating_mul(granule)
                .min(end);
            let piece = (start < end).then(|| WindowRange {
                start,
                len: next - start,
            });
            start = next;
            piece
        })
    }

    /// This range and `next` as one, if `next` follows at once.
    pub fn joined(&self, next: &WindowRange) -> Option<WindowRange> {
        (self.end() == next.start()).then(|| WindowRange {
            start: self.start,
            len: self.len + next.len,
        })
    }

    /// The part that lies in `other` too.
    pub fn intersection(&self, other: &WindowRange) -> Option<WindowRange> {
        let start = self.start.max(other.start);
        let end = self.end().0.min(other.end().0);
        (start < end).then(|| WindowRange {
            start,
            len: end - start,
        })
    }

    /// The first `len` bytes, or `None` if that is nothing. `len` is page
    /// aligned.
    pub fn first(&self, len: u64) -> Option<WindowRange> {
        let len = len.min(self.len);
        (len > 0).then_some(WindowRange {
            start: self.start,
            len,
        })
    }

    /// Whether every byte of `other` lies in this range.
    pub fn contains(&self, other: &WindowRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

impl fmt::Display for WindowRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "window+{:#x}..{:#x}", self.start, self.start + self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_is_always_inside(offset: u64, len: u64, window in 0u64..1 << 40) {
            if let Ok(range) = WindowRange::new(offset, len, window, 4096) {
                prop_assert!(range.end().0 <= window);
                prop_assert!(range.len() > 0);
                prop_assert_eq!(range.start().0 % 4096, 0);
            }
        }
    }

    #[test]
    fn cutting() {
        let range = |start, len| WindowRange { start, len };
        let whole = range(0x1000, 0x6000);
        assert_eq!(
            whole.around(&range(0x2000, 0x1000)),
            (Some(range(0x1000, 0x1000)), Some(range(0x3000, 0x4000)))
        );
        assert_eq!(
            whole.around(&range(0, 0x3000)),
            (None, Some(range(0x3000, 0x4000)))
        );
        assert_eq!(whole.around(&range(0, 0x9000)), (None, None));
        let pieces: Vec<_> = whole.pieces(0x4000).collect();
        assert_eq!(pieces, [range(0x1000, 0x3000), range(0x4000, 0x3000)]);
        assert_eq!(whole.first(0x2000), Some(range(0x1000, 0x2000)));
        assert_eq!(whole.first(0), None);
        assert_eq!(range(0, 0x1000).joined(&whole), Some(range(0, 0x7000)));
        assert_eq!(whole.joined(&whole), None);
        assert_eq!(
            whole.intersection(&range(0, 0x3000)),
            Some(range(0x1000, 0x2000))
        );
        assert_eq!(whole.intersection(&range(0, 0x1000)), None);
    }

    #[test]
    fn overflow_is_outside() {
        let refused = WindowRange::new(u64::MAX - 4095, 8192, 1 << 30, 4096);
        assert!(matches!(refused, Err(WindowError::Outside { .. })));
    }
}
