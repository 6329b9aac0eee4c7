//! Which inodes get DAX, and how they are mapped.
//!
//! Law: the decision is taken once, from the file as it is found, and says
//! nothing about what may be mapped: a guest mounted with `dax=always` maps
//! every file and asks no one, so a mapping is refused only where it would do
//! harm ([`DaxOptions::may_map`]).

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::ValueEnum;
use daxwindow_shared::fuse::Attr;
use daxwindow_shared::window::RANGE_BYTES;
use serde::{Deserialize, Serialize};

use super::capabilities::Capabilities;
use super::globs::NameRules;
use super::no_dax::NoDax;
use super::test_faults::TestFaults;
use super::whole::Mapping;
use crate::padding::Padding;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const ANY_EXECUTE: u32 = 0o111;
/// Of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// About where two or three reads of a file pay for its mapping in a guest of
/// a stock QEMU (docs/dax-policy.md).
pub const DEFAULT_MIN_FILE_BYTES: u64 = 128 << 10;

/// Half of what a VMM's memory slots have room for by default.
pub const DEFAULT_WINDOW_BYTES: u64 = 256 << 20;

/// Several times what the default window can hold.
pub const DEFAULT_ALLOCATE_BELOW: u64 = 1 << 30;

/// Which files get `FUSE_ATTR_DAX` (`--dax`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaxMode {
    /// No file; all data travel in requests.
    Never,
    /// Regular files that are large enough to gain by DAX, and executables only
    /// where the host can still run them. Not all files, because each mapping
    /// costs some VMMs one of few memory slots.
    #[default]
    Inode,
    /// Every regular file that the VMM can map, except for names that
    /// --dax-include and --dax-exclude keep out.
    Always,
}

/// Whether files with an execute bit get DAX in [`DaxMode::Inode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Executables {
    /// Executables get DAX where the VMM maps them read-only, so that the host
    /// can still run them, and the guest runs on KVM: an emulator may run code
    /// that was in the window before.
    #[default]
    Auto,
    /// Executables get DAX. Where the VMM only maps writable, the host cannot
    /// run what a guest has mapped, and a guest cannot map what the host runs.
    Always,
    /// Executables get no DAX.
    Never,
}

/// Whether front ends may add and remove memory regions one by one
/// (`VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS`), which is how some announce
/// their maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MemorySlots {
    /// The VMM may announce them: buffers may lie in the window, and the VMM
    /// may be paused while no mapping is under way. QEMU 11 ends when its guest
    /// resets the device with ranges mapped, and takes long over a map with
    /// more than 128 live.
    #[default]
    Auto,
    /// As with auto, but a VMM that announces nothing gets no DAX.
    On,
    /// The VMM may not announce them: QEMU 11 survives a reset of the device
    /// with ranges mapped, but a pause with ranges mapped takes the share from
    /// its guest; transfers between buffers in the window and other files fail,
    /// and QEMU complains on its standard error about each map.
    Off,
}

/// Memory regions that a front end is taken to have room for, its own memory
/// included. `VHOST_USER_MAX_RAM_SLOTS` of QEMU 11, which aborts beyond.
pub const VMM_SLOTS: usize = 512;

/// Of these, what the window leaves to everything else.
pub const DEFAULT_SLOT_RESERVE: u16 = 64;

/// Half of the mappings that the kernel lets a process have by default, 65,530
/// (`vm.max_map_count`): as many ranges as a window of 64 GiB has.
pub const DEFAULT_MAX_EXTENTS: usize = 1 << 15;

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
    /// Executable files in [`DaxMode::Inode`].
    pub executables: Executables,
    /// Names let in and kept out, in both modes.
    pub names: NameRules,
    /// Who pads files for a front end that refuses ranges past the end.
    pub padding: Padding,
    /// With less room than this on the host's file system, in bytes, the holes
    /// of a range are filled before it is mapped writable.
    pub allocate_below: u64,
    /// In one piece or a range at a time.
    pub mapping: Mapping,
    /// Whether memory regions may be announced one by one.
    pub memory_slots: MemorySlots,
    /// Maps that a front end may hold at once, if it keeps each as an object
    /// of its own. The window offered has room for no more. None for one
    /// that maps with a plain mmap, which is offered the window as it is.
    pub max_maps: Option<usize>,
    /// Extents that may be mapped at once where the front end maps with a plain
    /// mmap, which makes each a mapping of its process.
    pub max_extents: usize,
    /// Files that are kept open for further maps while they are mapped.
    pub max_files: usize,
    /// How long the front end may take over one request before the log tells of
    /// it, or before it is asked again for what it should have announced.
    pub front_end_timeout: std::time::Duration,
    /// Nothing, but in tests.
    pub test_faults: TestFaults,
}

impl Default for DaxOptions {
    fn default() -> Self {
        DaxOptions {
            mode: DaxMode::default(),
            window_bytes: DEFAULT_WINDOW_BYTES,
            readonly: false,
            min_file_bytes: DEFAULT_MIN_FILE_BYTES,
            executables: Executables::default(),
            names: NameRules::default(),
            padding: Padding::Here,
            allocate_below: DEFAULT_ALLOCATE_BELOW,
            mapping: Mapping::default(),
            memory_slots: MemorySlots::default(),
            max_maps: Some(VMM_SLOTS - usize::from(DEFAULT_SLOT_RESERVE)),
            max_extents: DEFAULT_MAX_EXTENTS,
            max_files: 1 << 10,
            front_end_timeout: super::channel::DEFAULT_PATIENCE,
            test_faults: TestFaults::default(),
        }
    }
}

/// A file that a guest is about to know.
pub struct Candidate<'a> {
    /// As it is now.
    pub attr: &'a Attr,
    /// The name by which it was found.
    pub name: &'a OsStr,
    /// Its path in the share, if it is still known; asked for only if some
    /// rule goes by it.
    pub path: &'a dyn Fn() -> Option<PathBuf>,
    /// What is against mapping it; `true` if it has to be open for writing
    /// whatever the guest wants.
    pub mappable: &'a dyn Fn(bool) -> Result<(), NoDax>,
    /// Whether it has a hole; asked for only if it has less blocks than its
    /// size takes, as a compressed file has, too.
    pub has_hole: &'a dyn Fn() -> bool,
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
            // One slot, whatever its size.
            Some(_) if self.mapping == Mapping::Whole => power_of_two(self.window_bytes),
            Some(maps) if !self.test_faults.injects(TestFaults::SLOT_LIMIT) => {
                let room = (maps as u64).saturating_mul(RANGE_BYTES);
                power_of_two(self.window_bytes.min(room))
            }
            _ => self.window_bytes,
        }
    }

    /// Whether the file gets DAX; to be asked once, when it becomes known.
    pub fn decide(
        &self,
        file: &Candidate<'_>,
        can: &Capabilities,
        page_bytes: u64,
    ) -> Result<(), NoDax> {
        let attr = file.attr;
        if attr.mode & S_IFMT != S_IFREG {
            return Err(NoDax::NotRegular);
        }
        match self.mode {
            DaxMode::Never => return Err(NoDax::Off),
            DaxMode::Inode => self.worth_it(file, can)?,
            DaxMode::Always => {}
        }
        self.names.check(file.name, file.path)?;
        self.may_map(attr.size, can, page_bytes)?;
        match ((file.mappable)(!can.readonly_fd), self.mode) {
            // The window shows the copy as soon as there is one.
            (Err(NoDax::CopiesUp), _) if can.follows_copies() => Ok(()),
            // Who asks for all files gets them, copies and filled holes included.
            (Err(NoDax::CopiesUp), DaxMode::Always) => Ok(()),
            (Ok(()), DaxMode::Inode) if self.chooses() => self.keeps_holes(file, can),
            (mappable, _) => mappable,
        }
    }

    /// Whether the daemon chooses among files that may have DAX. An operator who
    /// names files means these very files, whatever state they are in: two guests
    /// share memory by a file only if both have DAX of it.
    pub(super) fn chooses(&self) -> bool {
        self.mode == DaxMode::Inode && !self.names.names_files()
    }

    /// A store into a hole may take the room of a large page; a read-only
    /// share has no stores.
    fn fills_holes(&self, can: &Capabilities) -> bool {
        !self.readonly && can.fills_holes()
    }

    fn keeps_holes(&self, file: &Candidate<'_>, can: &Capabilities) -> Result<(), NoDax> {
        let blocks = file.attr.blocks.saturating_mul(BLOCK_BYTES);
        let suspect = self.fills_holes(can) && blocks < file.attr.size;
        match suspect && (file.has_hole)() {
            true => Err(NoDax::Sparse),
            false => Ok(()),
        }
    }

    fn worth_it(&self, file: &Candidate<'_>, can: &Capabilities) -> Result<(), NoDax> {
        if file.attr.size < self.min_file_bytes {
            return Err(NoDax::Small);
        }
        let executable = file.attr.mode & ANY_EXECUTE != 0;
        let is_kept_out = match self.executables {
            Executables::Always => false,
            Executables::Never => executable,
            Executables::Auto if can.emulated => executable || is_library(file.name),
            Executables::Auto => executable && !self.spares_executables(can),
        };
        match is_kept_out {
            true => Err(NoDax::Executable),
            false => Ok(()),
        }
    }

    /// Whether the host can run what a guest has mapped for reading, and a
    /// guest can map what the host runs: both fail for who maps writable.
    fn spares_executables(&self, can: &Capabilities) -> bool {
        can.readonly_fd && (self.readonly || can.replace)
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
        if self.test_faults.injects(TestFaults::WRITABLE_FIRST) {
            return false;
        }
        !self.readonly && (mode & ANY_EXECUTE == 0 || !self.spares_executables(can))
    }

    /// The policy in words, for people: which files get DAX with this front
    /// end, most important first.
    pub fn describe(&self, can: &Capabilities) -> Vec<String> {
        let none = match (self.mode, self.may_map(1, can, 1)) {
            (DaxMode::Never, _) => Some(NoDax::Off),
            (_, Err(NoDax::ReadOnlyShare)) => Some(NoDax::ReadOnlyShare),
            _ if !can.maps_past_eof() && !self.readonly => Some(NoDax::PastEndOfFile),
            _ => None,
        };
        if let Some(reason) = none {
            return vec![format!("no file: {reason}")];
        }
        let mut lines = vec![match (self.mode, self.min_file_bytes) {
            (DaxMode::Inode, least @ 1..) => format!("regular files of {} and more", size(least)),
            _ => "regular files of any size".to_owned(),
        }];
        if !can.maps_past_eof() {
            let why = NoDax::PastEndOfFile;
            lines.push(format!("only files that are whole pages: {why}"));
        }
        if self.mode == DaxMode::Inode {
            lines.extend(self.describe_executables(can));
        }
        let (include, exclude) = self.names.typed();
        if !include.is_empty() {
            lines.push(format!("only what matches {}", include.join(" or ")));
        }
        if !exclude.is_empty() {
            lines.push(format!("nothing that matches {}", exclude.join(" or ")));
        }
        if self.chooses() && self.fills_holes(can) {
            let text = "no files with holes: the front end maps large pages, and a store would \
                        fill whole ones";
            lines.push(text.to_owned());
        }
        lines
    }

    fn describe_executables(&self, can: &Capabilities) -> Option<String> {
        let spared = self.spares_executables(can);
        let text = match self.executables {
            Executables::Never => "no executables",
            Executables::Auto if can.emulated => {
                "no executables and no *.so: the guest is emulated (no KVM), and the emulator \
                 may run code that was in the window before"
            }
            Executables::Auto if !spared => {
                "no executables: the front end maps writable only, and what is mapped \
                 writable cannot run on the host"
            }
            Executables::Always if !spared => {
                "executables too, which cannot run on the host while they are mapped"
            }
            Executables::Auto | Executables::Always => return None,
        };
        Some(text.to_owned())
    }
}

/// Whether it is called as shared libraries are, which need no permission to be
/// executed.
fn is_library(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.")
}

/// The largest that is no more.
fn power_of_two(bytes: u64) -> u64 {
    bytes.checked_ilog2().map_or(0, |log| 1 << log)
}

/// Bytes as the flags take them.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}
