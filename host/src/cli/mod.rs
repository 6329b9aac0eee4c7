//! The command line: what was typed becomes a checked [`Config`].

mod sandbox;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use daxwindow_shared::virtiofs;
use daxwindow_shared::window::RANGE_BYTES;

use crate::dax::globs::{NameRules, Pattern};
use crate::dax::policy::VMM_SLOTS;
use crate::dax::{DaxMode, DaxOptions, Executables, MemorySlots};
use crate::device::backend::MAX_REQUEST_QUEUES;
use crate::device::serve::DeviceOptions;
use crate::fs::ShareOptions;
use crate::isolation;
use crate::server::CacheTimeouts;

pub use sandbox::SandboxFlags;

/// Serves a directory to a virtual machine over virtio-fs, with a DAX window
/// on the host's page cache.
#[derive(Clone, Debug, Parser)]
#[command(name = "daxwindowd", version, about)]
pub struct Flags {
    /// Unix socket to listen on for the VMM; one client at a time is served
    #[arg(long, value_name = "PATH", required_unless_present_any = ["print_session", "fd"])]
    pub socket_path: Option<PathBuf>,

    /// Descriptor of a Unix socket that listens already, in place of
    /// --socket-path: 3 under a systemd socket unit
    #[arg(long, value_name = "FD", conflicts_with_all = ["socket_path", "print_session"])]
    pub fd: Option<RawFd>,

    /// Directory to share
    #[arg(long, value_name = "DIR", required_unless_present = "print_session")]
    pub shared_dir: Option<PathBuf>,

    /// Name by which the guest mounts the share, at most 36 bytes
    #[arg(long, default_value = "daxwindow", value_parser = parse_tag)]
    pub tag: String,

    /// Size of the DAX window, a multiple of 2M; suffixes K, M and G; 0 for no
    /// window. A PCI device's window is a power of two: other sizes are
    /// rounded down
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_window)]
    pub dax_window: u64,

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

    /// How long the VMM may take over one map, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    pub front_end_timeout: u64,

    /// Refuse everything that would change the directory
    #[arg(long)]
    pub readonly: bool,

    /// Take the guest's POSIX and flock locks on the host, where other guests
    /// and the host's own programs meet them
    #[arg(long)]
    pub locks: bool,

    /// Let POSIX ACLs of the share hold in the guest, and default ACLs for what
    /// it creates
    #[arg(long)]
    pub posix_acl: bool,

    /// Number of request queues, each with a worker of its own
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)),
    )]
    pub num_request_queues: u32,

    /// Isolation.
    #[command(flatten)]
    pub sandbox: SandboxFlags,

    /// What to log on standard error: off, error, warn, info, debug, trace, or
    /// a list of target=level. RUST_LOG wins over it
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// Unix socket that tells whoever connects how things are, as one JSON
    /// document
    #[arg(long, value_name = "PATH")]
    pub status_socket: Option<PathBuf>,

    /// Serve nothing: ask the daemon at this status socket how things are,
    /// and above all whether its share has DAX, and if not why
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "shared_dir", "status_socket"])]
    pub print_session: Option<PathBuf>,

    /// With --print-session: the document itself
    #[arg(long, requires = "print_session")]
    pub json: bool,
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

/// Where the VMM connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket of our own at this path.
    Path(PathBuf),
    /// A socket that listens already.
    Inherited(RawFd),
}

/// Everything the daemon needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// What to share.
    pub shared_dir: PathBuf,
    /// How it is shared.
    pub share: ShareOptions,
    /// The window.
    pub dax: DaxOptions,
    /// How long guests may cache names and attributes.
    pub timeouts: CacheTimeouts,
    /// What the device tells the guest.
    pub device: DeviceOptions,
    /// How the daemon is isolated.
    pub isolation: isolation::Options,
    /// What to log.
    pub log_level: String,
    /// Where to tell how things are.
    pub status_socket: Option<PathBuf>,
}

impl Flags {
    /// What the flags mean. `max_open_files` is what the process may have
    /// open, which the guest's inodes and handles must leave some of.
    ///
    /// # Errors
    ///
    /// What the flags cannot mean together.
    pub fn config(self, max_open_files: u64) -> Result<Config, FlagError> {
        let mode = match self.dax {
            _ if self.dax_window == 0 => DaxMode::Never,
            DaxFlag::Never => DaxMode::Never,
            DaxFlag::Inode => DaxMode::Inode,
            DaxFlag::Always => DaxMode::Always,
        };
        let dax = DaxOptions {
            mode,
            window_bytes: self.dax_window,
            readonly: self.readonly,
            min_file_bytes: self.dax_min_size,
            executables: match self.dax_executables {
                ExecutablesFlag::Auto => Executables::Auto,
                ExecutablesFlag::Always => Executables::Always,
                ExecutablesFlag::Never => Executables::Never,
            },
            names: NameRules::new(&self.dax_include, &self.dax_exclude)?,
            memory_slots: match self.memory_slots {
                SlotsFlag::Auto => MemorySlots::Auto,
                SlotsFlag::On => MemorySlots::On,
                SlotsFlag::Off => MemorySlots::Off,
            },
            max_maps: self.max_maps(),
            front_end_timeout: Duration::from_secs(self.front_end_timeout),
            ..DaxOptions::default()
        };
        let device = DeviceOptions {
            config: virtiofs::Config::new(&self.tag, self.num_request_queues)?,
            front_end_timeout: dax.front_end_timeout,
        };
        Ok(Config {
            share: ShareOptions {
                locks: self.locks,
                posix_acl: self.posix_acl,
                ..share_options(self.readonly, max_open_files)
            },
            // The parser requires both, unless nothing is served.
            listen: match self.fd {
                Some(fd) => Listen::Inherited(fd),
                None => Listen::Path(self.socket_path.unwrap_or_default()),
            },
            shared_dir: self.shared_dir.unwrap_or_default(),
            dax,
            timeouts: CacheTimeouts::default(),
            device,
            isolation: self.sandbox.options(),
            log_level: self.log_level,
            status_socket: self.status_socket,
        })
    }
}

impl Flags {
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

/// Half of the descriptors may be spent on inodes and a quarter on handles;
/// the window's files and the daemon's own needs have the rest.
fn share_options(readonly: bool, max_open_files: u64) -> ShareOptions {
    let defaults = ShareOptions::default();
    let part = |divisor| usize::try_from(max_open_files / divisor).unwrap_or(usize::MAX);
    ShareOptions {
        readonly,
        max_inodes: defaults.max_inodes.min(part(2)),
        max_handles: defaults.max_handles.min(part(4)),
        ..defaults
    }
}

fn parse_tag(text: &str) -> Result<String, virtiofs::TagError> {
    virtiofs::Config::new(text, 1)?;
    Ok(text.to_owned())
}

fn parse_window(text: &str) -> Result<u64, String> {
    let bytes = daxwindow_shared::size::parse_bytes(text)?;
    if bytes % RANGE_BYTES != 0 {
        return Err("the window must be a multiple of 2M, the range in which guests map".into());
    }
    Ok(bytes)
}

/// What is wrong with flags that are right one by one.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// The tag.
    #[error("--tag: {0}")]
    Tag(#[from] virtiofs::TagError),
    /// The patterns, all together.
    #[error("--dax-include, --dax-exclude: {0}")]
    Patterns(#[from] globset::Error),
}

/// Why the directory cannot be shared.
#[derive(Debug, thiserror::Error)]
#[error("--shared-dir {path:?}: {cause}")]
pub struct SharedDirError {
    path: PathBuf,
    cause: std::io::Error,
}

impl SharedDirError {
    /// Says which directory it was.
    pub fn new(path: &Path, cause: std::io::Error) -> Self {
        SharedDirError {
            path: path.to_owned(),
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<Flags, clap::Error> {
        let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
        Flags::try_parse_from(base.iter().chain(extra))
    }

    #[test]
    fn defaults_are_a_window_of_a_quarter_gibibyte_for_chosen_inodes() {
        let config = parse(&[]).expect("valid").config(1024).expect("valid");
        assert_eq!(config.dax.window_bytes, 256 << 20);
        assert_eq!(config.dax.mode, DaxMode::Inode);
        assert_eq!(
            config.dax.min_file_bytes,
            DaxOptions::default().min_file_bytes
        );
        assert_eq!(config.device.config.tag(), Some("daxwindow"));
        assert_eq!(config.device.config.num_request_queues.get(), 1);
        assert_eq!(
            (config.share.max_inodes, config.share.max_handles),
            (512, 256)
        );
    }

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

    #[test]
    fn bad_flags_are_named() {
        for (flags, word) in [
            (vec!["--tag", ""], "--tag"),
            (vec!["--tag", "a\nb"], "--tag"),
            (vec!["--num-request-queues", "0"], "--num-request-queues"),
            (vec!["--num-request-queues", "64"], "--num-request-queues"),
            (vec!["--dax-window", "1M"], "--dax-window"),
            (vec!["--dax", "often"], "--dax"),
            (vec!["--dax-min-size", "small"], "--dax-min-size"),
            (vec!["--dax-executables", "some"], "--dax-executables"),
            (vec!["--dax-include", "[x"], "--dax-include"),
            (vec!["--dax-include", "[x"], "'[x'"),
            (vec!["--dax-exclude", "dir/"], "--dax-exclude"),
            (vec!["--dax-exclude", "dir/"], "dir/**"),
            (vec!["--memory-slots", "many"], "--memory-slots"),
            (vec!["--slot-reserve", "512"], "--slot-reserve"),
            (
                vec!["--slot-reserve", "64", "--no-slot-limit"],
                "--no-slot-limit",
            ),
            (vec!["--front-end-timeout", "0"], "--front-end-timeout"),
        ] {
            let error = parse(&flags).expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn asking_needs_no_share_and_serving_does() {
        let flags = Flags::try_parse_from(["daxwindowd", "--print-session", "/s", "--json"]);
        let flags = flags.expect("enough");
        assert_eq!(flags.print_session.as_deref(), Some(Path::new("/s")));
        for few in [vec!["--shared-dir", "/d"], vec!["--json"], vec![]] {
            assert!(Flags::try_parse_from([&["daxwindowd"], &few[..]].concat()).is_err());
        }
        assert!(
            parse(&["--print-session", "/x"]).is_err(),
            "one or the other"
        );
    }

    #[test]
    fn no_window_means_no_dax() {
        let flags = parse(&["--dax-window", "0", "--dax", "always"]).expect("valid");
        assert_eq!(flags.config(1024).expect("valid").dax.mode, DaxMode::Never);
    }
}
