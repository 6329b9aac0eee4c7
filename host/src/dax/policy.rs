//! Which inodes get DAX, and how they are mapped.

use daxwindow_shared::fuse::Attr;
use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::window::RANGE_BYTES;

use super::capabilities::Capabilities;
use super::naive::Naive;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const ANY_EXECUTE: u32 = 0o111;

/// Who gets `FUSE_ATTR_DAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxMode {
    /// Nobody, and mapping requests are refused.
    Never,
    /// Regular files of at least [`DaxOptions::min_file_bytes`].
    Inode,
    /// Every regular file.
    Always,
}

/// Whether front ends may add and remove memory regions one by one
/// (`VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS`), which is how some announce
/// their maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySlots {
    /// They may; one that announces nothing is waited for in another way.
    Auto,
    /// They may, and one that announces nothing gets no DAX.
    On,
    /// They may not.
    Off,
}

/// Memory regions that a front end is taken to have room for, its own memory
/// included. `VHOST_USER_MAX_RAM_SLOTS` of QEMU 11, which aborts beyond.
pub const VMM_SLOTS: usize = 512;

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct DaxOptions {
    /// Who gets DAX.
    pub mode: DaxMode,
    /// Bytes of the window; zero means there is none.
    pub window_bytes: u64,
    /// The share is read-only: nothing is ever mapped writable.
    pub readonly: bool,
    /// Smallest file that gets DAX in [`DaxMode::Inode`].
    pub min_file_bytes: u64,
    /// Whether a front end that refuses ranges past the end of a file may be
    /// given padded files.
    pub padded_view: bool,
    /// Whether memory regions may be announced one by one.
    pub memory_slots: MemorySlots,
    /// Maps that a front end may hold at once, if it keeps each as an object
    /// of its own. The window offered has room for no more. None for one
    /// that maps with a plain mmap, which is offered the window as it is.
    pub max_maps: Option<usize>,
    /// How long the front end may take over one request.
    pub front_end_timeout: std::time::Duration,
    /// Nothing, but in tests.
    pub naive: Naive,
}

impl Default for DaxOptions {
    fn default() -> Self {
        DaxOptions {
            mode: DaxMode::Inode,
            window_bytes: 1 << 30,
            readonly: false,
            min_file_bytes: 64 << 10,
            padded_view: true,
            memory_slots: MemorySlots::Auto,
            max_maps: Some(VMM_SLOTS - 64),
            front_end_timeout: super::channel::DEFAULT_TIMEOUT,
            naive: Naive::default(),
        }
    }
}

/// Why an inode gets no DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDax {
    /// Switched off.
    #[error("DAX is off for this share")]
    Off,
    /// Directories and special files have no pages to lend.
    #[error("not a regular file")]
    NotRegular,
    /// Below the threshold.
    #[error("smaller than the threshold for DAX")]
    Small,
    /// The share is read-only and the front end can only map writable.
    #[error("the share is read-only and the front end cannot map read-only")]
    ReadOnlyShare,
    /// The file ends inside a page or may grow, and the front end refuses
    /// ranges past the end.
    #[error("the front end refuses ranges past the end of a file")]
    PastEndOfFile,
}

impl DaxOptions {
    /// Bytes of the window that guests are offered: as asked for, but with
    /// room for no more ranges than may be mapped, since a guest that finds
    /// a free range and cannot have it mapped reports an I/O error; and a
    /// power of two, which a PCI BAR has to be (QEMU 11 aborts on others).
    pub fn offered_bytes(&self) -> u64 {
        if self.mode == DaxMode::Never {
            return 0;
        }
        match self.max_maps {
            Some(maps) if !self.naive.leaves_out(Naive::SLOT_LIMIT) => {
                let room = (maps as u64).saturating_mul(RANGE_BYTES);
                let most = self.window_bytes.min(room);
                most.checked_ilog2().map_or(0, |log| 1 << log)
            }
            _ => self.window_bytes,
        }
    }

    /// Whether the inode behind `attr` gets DAX.
    pub fn decide(
        &self,
        attr: &Attr,
        can: &Capabilities,
        page_bytes: u64,
    ) -> Result<AttrFlags, NoDax> {
        if attr.mode & S_IFMT != S_IFREG {
            return Err(NoDax::NotRegular);
        }
        match self.mode {
            DaxMode::Never => return Err(NoDax::Off),
            DaxMode::Inode if attr.size < self.min_file_bytes => return Err(NoDax::Small),
            DaxMode::Inode | DaxMode::Always => {}
        }
        self.may_map(attr.size, can, page_bytes)
            .map(|()| AttrFlags::DAX)
    }

    /// Whether a regular file of `size` bytes can be mapped without harm,
    /// whatever the guest was told.
    pub fn may_map(&self, size: u64, can: &Capabilities, page_bytes: u64) -> Result<(), NoDax> {
        if self.mode == DaxMode::Never {
            return Err(NoDax::Off);
        }
        if self.readonly && !can.readonly_fd {
            return Err(NoDax::ReadOnlyShare);
        }
        let fixed = self.readonly && size > 0 && size.is_multiple_of(page_bytes);
        if can.maps_past_eof() || fixed {
            Ok(())
        } else {
            Err(NoDax::PastEndOfFile)
        }
    }

    /// Whether to map writable though the guest asked only to read.
    ///
    /// A guest that writes while its first read maps may use the read-only
    /// mapping, so writable is the safe choice. Executables are the
    /// exception: while one is open for writing, the host cannot run it.
    pub fn writable_from_the_start(&self, mode: u32, can: &Capabilities) -> bool {
        if self.naive.leaves_out(Naive::WRITABLE_FIRST) {
            return false;
        }
        !self.readonly && (mode & ANY_EXECUTE == 0 || !can.readonly_fd || !can.replace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Capabilities = Capabilities {
        past_eof: true,
        padded: false,
        readonly_fd: true,
        replace: true,
        partial_unmap: true,
        announced: false,
        window_base: None,
    };

    fn file(size: u64) -> Attr {
        Attr {
            mode: S_IFREG | 0o644,
            size,
            ..Default::default()
        }
    }

    #[test]
    fn modes() {
        let mut options = DaxOptions {
            min_file_bytes: 100,
            ..Default::default()
        };
        let decide = |o: &DaxOptions, a: &Attr| o.decide(a, &PLAIN, 4096);
        assert_eq!(decide(&options, &file(99)), Err(NoDax::Small));
        assert_eq!(decide(&options, &file(100)), Ok(AttrFlags::DAX));
        let directory = Attr {
            mode: 0o040_755,
            size: 4096,
            ..Default::default()
        };
        assert_eq!(decide(&options, &directory), Err(NoDax::NotRegular));
        options.mode = DaxMode::Always;
        assert_eq!(decide(&options, &file(0)), Ok(AttrFlags::DAX));
        options.mode = DaxMode::Never;
        assert_eq!(decide(&options, &file(1 << 20)), Err(NoDax::Off));
    }

    #[test]
    fn a_front_end_that_only_maps_writable_gets_no_read_only_share() {
        let options = DaxOptions {
            readonly: true,
            ..Default::default()
        };
        let can = Capabilities {
            readonly_fd: false,
            ..PLAIN
        };
        assert_eq!(
            options.decide(&file(1 << 20), &can, 4096),
            Err(NoDax::ReadOnlyShare)
        );
        assert!(options.decide(&file(1 << 20), &PLAIN, 4096).is_ok());
        assert!(!options.writable_from_the_start(0o644, &PLAIN));
    }

    #[test]
    fn end_of_file_rule() {
        let can = Capabilities {
            past_eof: false,
            ..PLAIN
        };
        let options = DaxOptions {
            readonly: true,
            mode: DaxMode::Always,
            ..Default::default()
        };
        assert_eq!(options.decide(&file(8192), &can, 4096), Ok(AttrFlags::DAX));
        assert_eq!(
            options.decide(&file(8193), &can, 4096),
            Err(NoDax::PastEndOfFile)
        );
        assert_eq!(
            options.decide(&file(0), &can, 4096),
            Err(NoDax::PastEndOfFile)
        );
        let options = DaxOptions {
            readonly: false,
            ..options
        };
        assert_eq!(
            options.decide(&file(8192), &can, 4096),
            Err(NoDax::PastEndOfFile)
        );
        let can = Capabilities {
            padded: true,
            ..can
        };
        assert_eq!(options.decide(&file(1), &can, 4096), Ok(AttrFlags::DAX));
    }

    #[test]
    fn the_window_has_room_for_what_may_be_mapped() {
        let asked = DaxOptions {
            window_bytes: 4 << 30,
            ..Default::default()
        };
        assert_eq!(asked.offered_bytes(), 512 << 20);
        let small = DaxOptions {
            window_bytes: 64 << 20,
            ..asked.clone()
        };
        assert_eq!(small.offered_bytes(), 64 << 20);
        let odd = DaxOptions {
            window_bytes: 6 << 20,
            ..asked.clone()
        };
        assert_eq!(odd.offered_bytes(), 4 << 20);
        let unlimited = DaxOptions {
            max_maps: None,
            ..asked.clone()
        };
        assert_eq!(unlimited.offered_bytes(), 4 << 30);
        let never = DaxOptions {
            mode: DaxMode::Never,
            ..asked
        };
        assert_eq!(never.offered_bytes(), 0);
    }

    #[test]
    fn executables_stay_executable_on_the_host_where_an_upgrade_is_possible() {
        let options = DaxOptions::default();
        assert!(options.writable_from_the_start(0o644, &PLAIN));
        assert!(!options.writable_from_the_start(0o755, &PLAIN));
        let can = Capabilities {
            replace: false,
            ..PLAIN
        };
        assert!(options.writable_from_the_start(0o755, &can));
    }
}
