//! Flags of the DAX window: how large it is, who gets it, what the VMM bears.

use std::time::Duration;

use clap::Args;

use crate::dax::globs::{NameRules, Pattern};
use crate::dax::policy::{DEFAULT_SLOT_RESERVE, VMM_SLOTS};
use crate::dax::{DaxMode, DaxOptions, Executables, Mapping, MemorySlots};

use super::FlagError;
use super::size::{Bytes, parse_window};

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "DAX window")]
pub struct WindowFlags {
    /// Size of the DAX window, a multiple of 2M, with suffix K, M or G; 0 for
    /// no window. A PCI device's window is a power of two: other sizes are
    /// rounded down
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = Bytes(DaxOptions::default().window_bytes),
        value_parser = parse_window,
    )]
    pub dax_window: Bytes,

    /// Whether a library that is preloaded into the VMM maps files over one
    /// mapping of the whole window, or the VMM maps each range itself
    #[arg(long, value_name = "WAY", value_enum, default_value_t)]
    pub dax_mapping: Mapping,

    /// Which files the guest may access through the window
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub dax: DaxMode,

    /// With --dax inode: size of the smallest file that gets DAX, with suffix
    /// K, M or G
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = Bytes(DaxOptions::default().min_file_bytes),
    )]
    pub dax_min_size: Bytes,

    /// With --dax inode: whether files with an execute bit get DAX
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub dax_executables: Executables,

    /// Give DAX only to files that match, by name (*.bin) or by path in the
    /// share (models/**); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub dax_include: Vec<Pattern>,

    /// Give no DAX to files that match, even if they match --dax-include; may
    /// be repeated
    #[arg(long, value_name = "GLOB")]
    pub dax_exclude: Vec<Pattern>,

    /// With less room than this left on the host's file system, fill the holes
    /// of sparse files before the guest maps them writable, and refuse the
    /// mapping if that fails; with suffix K, M or G, 0 for never. Unless holes
    /// are filled, a store into one on a full file system ends the VMM
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = Bytes(DaxOptions::default().allocate_below),
    )]
    pub dax_allocate_below: Bytes,

    /// Whether the VMM may announce memory regions one by one
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub memory_slots: MemorySlots,

    /// How many of the VMM's 512 memory slots to leave to its own memory, to
    /// other devices and to memory hotplug; the window is cut to 2M for each
    /// of the other slots, and to a power of two
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_SLOT_RESERVE,
        value_parser = clap::value_parser!(u16).range(16..=511),
    )]
    pub slot_reserve: u16,

    /// Offer the window in the size of --dax-window, for a VMM that maps with a
    /// plain mmap, spends no memory slots and needs no power of two
    #[arg(long, conflicts_with = "slot_reserve")]
    pub no_slot_limit: bool,

    /// How many seconds the VMM may take over one map before the daemon logs
    /// it. Requests that need the map wait for it as long as the VMM is
    /// connected
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = DaxOptions::default().front_end_timeout.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    pub front_end_timeout: u64,
}

impl WindowFlags {
    /// What they mean for a share that is `readonly` or not.
    ///
    /// # Errors
    ///
    /// [`FlagError::Patterns`].
    pub(super) fn options(&self, readonly: bool) -> Result<DaxOptions, FlagError> {
        let mode = match self.dax_window.0 {
            0 => DaxMode::Never,
            _ => self.dax,
        };
        Ok(DaxOptions {
            mode,
            window_bytes: self.dax_window.0,
            readonly,
            min_file_bytes: self.dax_min_size.0,
            executables: self.dax_executables,
            names: NameRules::new(&self.dax_include, &self.dax_exclude)?,
            mapping: self.dax_mapping,
            memory_slots: self.memory_slots,
            allocate_below: self.dax_allocate_below.0,
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
            MemorySlots::Off => Some(VMM_SLOTS),
            MemorySlots::Auto | MemorySlots::On => Some(VMM_SLOTS - usize::from(self.slot_reserve)),
        }
    }
}
