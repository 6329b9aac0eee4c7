//! Flags of the DAX window: how large it is, who gets it, what the VMM bears.

use std::time::Duration;

use clap::{Args, ValueEnum};
use daxwindow_shared::window::RANGE_BYTES;

use crate::dax::globs::{NameRules, Pattern};
use crate::dax::policy::VMM_SLOTS;
use crate::dax::{DaxMode, DaxOptions, Executables, Mapping, MemorySlots};

use super::FlagError;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "DAX window")]
pub struct WindowFlags {
    /// Size of the DAX window, a multiple of 2M; suffixes K, M and G; 0 for no
    /// window. A PCI device's window is a power of two: other sizes are
    /// rounded down
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_window)]
    pub dax_window: u64,

    /// Whether the VMM maps the whole window once, and a library that is
    /// preloaded into it maps files over that
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub dax_mapping: MappingFlag,

    /// Which files the guest may access through the window
    #[arg(long, value_name = "MODE", default_value = "inode")]
    pub dax: DaxFlag,

    /// With --dax inode: smallest file that gets DAX, with suffixes as above
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "128K",
        value_parser = daxwindow_shared::size::parse_bytes,
    )]
    pub dax_min_size: u64,

    /// With --dax inode: whether files with an execute bit get DAX
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub dax_executables: ExecutablesFlag,

    /// DAX only for files that match, by name (*.bin) or by path in the share
    /// (models/**); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub dax_include: Vec<Pattern>,

    /// No DAX for files that match, even if included; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub dax_exclude: Vec<Pattern>,

    /// With less room than this left on the host's file system, fill the holes
    /// of sparse files where the guest maps them writable, and refuse where
    /// that fails; suffixes as above, 0 for never. Without, a store into a
    /// hole on a full file system ends the VMM
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1G",
        value_parser = daxwindow_shared::size::parse_bytes,
    )]
    pub dax_allocate_below: u64,

    /// Whether the VMM may announce memory regions one by one
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub memory_slots: SlotsFlag,

    /// Memory slots of the VMM's 512 to leave to its own memory, to other
    /// devices and to memory hotplug; the window is cut to 2M for each of the
    /// others, and to a power of two
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(16..=511),
    )]
    pub slot_reserve: u16,

    /// Offer the window as asked for: the VMM maps with a plain mmap, spends
    /// no memory slots and needs no power of two
    #[arg(long, conflicts_with = "slot_reserve")]
    pub no_slot_limit: bool,

    /// How long the VMM may take over one map before the log tells of it, in
    /// seconds. What needs the map waits for it as long as the VMM is connected
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    pub front_end_timeout: u64,
}

/// `--dax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DaxFlag {
    /// No file; all data travel in requests
    Never,
    /// Files that gain by it: regular files that are not small, and
    /// executables only where the host can still run them. The default,
    /// because each mapping costs some VMMs one of few memory slots
    Inode,
    /// Every regular file that the VMM can map, but for names kept out
    Always,
}

/// `--dax-mapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MappingFlag {
    /// In one piece where libdaxwindow_preload.so is preloaded into the VMM and
    /// nobody but the VMM and the kernel looks into guest memory, else a range
    /// at a time. The window is no larger than ranges may be
    Auto,
    /// In one piece, or no file has DAX. The window may have any size
    Whole,
    /// A range at a time, each by the VMM itself
    Ranges,
}

/// `--dax-executables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExecutablesFlag {
    /// Where the VMM maps read-only, so that the host can run them meanwhile
    Auto,
    /// They do, and where the VMM maps writable only, what a guest has mapped
    /// cannot be run on the host and the other way round
    Always,
    /// They do not
    Never,
}

/// `--memory-slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlotsFlag {
    /// It may: buffers may lie in the window, and the VMM may be paused while
    /// nothing is being mapped. QEMU 11 ends when its guest resets the device
    /// with ranges mapped, and takes long over a map with more than 128 live
    Auto,
    /// As auto, and a VMM that announces nothing gets no DAX
    On,
    /// It may not: QEMU 11 survives such resets, but a pause with ranges mapped
    /// takes the share from its guest; transfers between buffers in the window
    /// and other files fail, and QEMU complains on its standard error about
    /// each map
    Off,
}

impl From<DaxFlag> for DaxMode {
    fn from(flag: DaxFlag) -> DaxMode {
        match flag {
            DaxFlag::Never => DaxMode::Never,
            DaxFlag::Inode => DaxMode::Inode,
            DaxFlag::Always => DaxMode::Always,
        }
    }
}

impl WindowFlags {
    /// What they mean for a share that is `readonly` or not.
    ///
    /// # Errors
    ///
    /// [`FlagError::Patterns`].
    pub(super) fn options(&self, readonly: bool) -> Result<DaxOptions, FlagError> {
        let mode = match self.dax_window {
            0 => DaxMode::Never,
            _ => self.dax.into(),
        };
        Ok(DaxOptions {
            mode,
            window_bytes: self.dax_window,
            readonly,
            min_file_bytes: self.dax_min_size,
            executables: match self.dax_executables {
                ExecutablesFlag::Auto => Executables::Auto,
                ExecutablesFlag::Always => Executables::Always,
                ExecutablesFlag::Never => Executables::Never,
            },
            names: NameRules::new(&self.dax_include, &self.dax_exclude)?,
            mapping: match self.dax_mapping {
                MappingFlag::Auto => Mapping::Auto,
                MappingFlag::Whole => Mapping::Whole,
                MappingFlag::Ranges => Mapping::Ranges,
            },
            memory_slots: match self.memory_slots {
                SlotsFlag::Auto => MemorySlots::Auto,
                SlotsFlag::On => MemorySlots::On,
                SlotsFlag::Off => MemorySlots::Off,
            },
            allocate_below: self.dax_allocate_below,
            max_maps: self.max_maps(),
            front_end_timeout: Duration::from_secs(self.front_end_timeout),
            ..DaxOptions::default()
        })
    }

    /// Only what is announced one by one is counted against the VMM's slots.
    /// Elsewhere it is the cost that grows with the number of maps.
    fn max_maps(&self) -> Option<usize> {
        match self.memory_slots {
            _ if self.no_slot_limit => None,
            SlotsFlag::Off => Some(VMM_SLOTS),
            SlotsFlag::Auto | SlotsFlag::On => Some(VMM_SLOTS - usize::from(self.slot_reserve)),
        }
    }
}

pub(super) fn parse_window(text: &str) -> Result<u64, String> {
    let bytes = daxwindow_shared::size::parse_bytes(text)?;
    if bytes % RANGE_BYTES != 0 {
        return Err("the window must be a multiple of 2M, the range in which guests map".into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_bounds() {
        for (text, bytes) in [
            ("0", 0),
            ("2M", 2 << 20),
            ("4096k", 4 << 20),
            ("3G", 3 << 30),
        ] {
            assert_eq!(parse_window(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1T", "-1", "1M", "3000000", "99999999999G", "1é"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }
}
