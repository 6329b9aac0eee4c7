//! What guest to boot: flags and library options, one set of types.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use daxwindow_shared::size::parse_bytes;
use daxwindow_shared::window::RANGE_BYTES;

use super::kernel::Flavour;

/// The name that a share has if it is given none.
pub const DEFAULT_TAG: &str = "daxwindow";

/// The guest's mount option, and the daemon's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dax {
    /// Every regular file through the window.
    Always,
    /// The files that the daemon flags.
    Inode,
    /// No file.
    Never,
}

impl Dax {
    /// As flag and mount option have it.
    pub fn name(self) -> &'static str {
        match self {
            Dax::Always => "always",
            Dax::Inode => "inode",
            Dax::Never => "never",
        }
    }
}

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// KVM if a guest boots under it within ten seconds, else TCG.
    Auto,
    /// The host's processor.
    Kvm,
    /// Emulation.
    Tcg,
}

/// The front end's side of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// By what the daemon's help says.
    Auto,
    /// QEMU's generic vhost-user device, which has shared memory regions.
    Generic,
    /// QEMU's virtio-fs device, which has none.
    Fs,
}

/// One shared directory, with a daemon of its own.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// The directory.
    pub directory: PathBuf,
    /// The name that the guest mounts it by.
    pub tag: String,
    /// Where it is mounted in the guest; none leaves that to the caller.
    pub mount_at: Option<String>,
    /// The daemon's policy and the mount option.
    pub dax: Dax,
    /// Mount with no option, whatever `dax` says: the guest's own default.
    pub plain_mount: bool,
    /// Bytes of the window.
    pub window_bytes: u64,
    /// Request queues.
    pub queues: usize,
    /// Nothing may be changed through it.
    pub readonly: bool,
    /// A socket on which a daemon listens already; its other options are then
    /// its own, and none is started.
    pub socket: Option<PathBuf>,
    /// The daemon, a path or the name of a peer (`virtiofsd`); none is the
    /// one beside this program.
    pub daemon: Option<PathBuf>,
    /// Further arguments of the daemon.
    pub daemon_arguments: Vec<String>,
    /// The device.
    pub device: DeviceChoice,
}

impl ShareOptions {
    /// A directory at `/mnt` with a window of 512 MiB.
    pub fn new(directory: impl Into<PathBuf>, dax: Dax) -> ShareOptions {
        ShareOptions {
            directory: directory.into(),
            tag: DEFAULT_TAG.into(),
            mount_at: Some("/mnt".into()),
            dax,
            plain_mount: false,
            window_bytes: 512 << 20,
            queues: 1,
            readonly: false,
            socket: None,
            daemon: None,
            daemon_arguments: Vec::new(),
            device: DeviceChoice::Auto,
        }
    }

    /// What follows `-o` of mount.
    pub(crate) fn mount_options(&self) -> Vec<String> {
        let dax = (!self.plain_mount).then(|| format!("dax={}", self.dax.name()));
        dax.into_iter()
            .chain(self.readonly.then(|| "ro".into()))
            .collect()
    }
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Shared directories.
    pub shares: Vec<ShareOptions>,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub cpus: usize,
    /// What runs them.
    pub accel: AccelChoice,
    /// Which kernel.
    pub kernel: Flavour,
    /// Programs from Debian packages: `fio`, `strace`, `package:program`; and
    /// of the crates registry: `crate:name@version`.
    pub tools: Vec<String>,
    /// Programs of the host, run in the guest by their name: the libraries
    /// and the loader they need come with them.
    pub programs: Vec<PathBuf>,
    /// Files of the host to put into the guest, executable: guest path, host path.
    pub files: Vec<(String, PathBuf)>,
    /// Further words of the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Further arguments of QEMU.
    pub qemu_arguments: Vec<String>,
    /// QEMU goes into the background by itself. Nothing is heard of it then.
    pub background: bool,
    /// A library to preload into QEMU, which maps windows in one piece.
    pub preload: Option<PathBuf>,
    /// A guest that reboots boots again in the same QEMU; otherwise QEMU ends.
    pub reboot: bool,
    /// Fetch nothing.
    pub offline: bool,
    /// How long booting may take.
    pub boot_limit: Duration,
}

impl VmOptions {
    /// One processor, 512 MiB, two minutes to boot.
    pub fn new(shares: Vec<ShareOptions>) -> VmOptions {
        VmOptions {
            shares,
            memory_bytes: 512 << 20,
            cpus: 1,
            accel: AccelChoice::Auto,
            kernel: Flavour::default(),
            tools: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            kernel_arguments: Vec::new(),
            qemu_arguments: Vec::new(),
            background: false,
            preload: None,
            reboot: false,
            offline: false,
            boot_limit: Duration::from_secs(120),
        }
    }
}

/// A size that is whole ranges.
///
/// # Errors
///
/// Says what a window's size has to be.
pub fn parse_window(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes % RANGE_BYTES == 0 => Ok(bytes),
        _ => Err("the window must be a multiple of 2M".into()),
    }
}

/// `HOST:/GUEST`, as path in the guest and path on the host.
///
/// # Errors
///
/// Says what was expected.
pub fn parse_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((guest.to_owned(), host.into()))
        }
        _ => Err("expected HOST:/GUEST".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_window("512M"), Ok(512 << 20));
        for text in ["", "M", "x", "1T", "99999999999G", "-1", "1é"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
        assert!(parse_window("1M").is_err());
    }

    #[test]
    fn mount_options_follow_the_share() {
        let mut share = ShareOptions::new("/d", Dax::Inode);
        assert_eq!(share.mount_options(), ["dax=inode"]);
        share.readonly = true;
        share.plain_mount = true;
        assert_eq!(share.mount_options(), ["ro"]);
    }

    #[test]
    fn files_have_two_names() {
        assert_eq!(parse_file("/a:b:/c"), Ok(("/c".into(), "/a:b".into())));
        for text in ["", "/a", ":/c", "/a:c"] {
            assert!(parse_file(text).is_err(), "{text}");
        }
    }
}
