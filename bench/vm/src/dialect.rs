//! A vhost-user-fs daemon in the dialect it understands.
//!
//! `--socket-path` and `--shared-dir` are common to all. What else it takes is
//! read from its own help.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::kit::Kit;
use super::options::{Dax, DeviceChoice, ShareOptions};
use super::peers::Peer;
use super::qemu::{GENERIC_DEVICE, escaped};
use crate::daemon::KEEP_SERVING;

/// Bytes of virtio-fs configuration space: tag and number of queues.
const CONFIG_BYTES: usize = 40;
const QUEUE_SIZE: usize = 128;

/// Names of code that has no execute bit: with the execute bit's own rule this
/// keeps all but scripts and modules out of the window.
const LIBRARIES: [&str; 2] = ["*.so", "*.so.*"];

/// How to start one and how to attach QEMU to it.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    binary: PathBuf,
    /// Takes `--dax`, `--dax-window`, `--tag` and `--num-request-queues`.
    has_window: bool,
    /// Takes `--dax-exclude`.
    has_names: bool,
    /// Has to be told to stay when its client goes.
    keeps_serving: bool,
    device: DeviceChoice,
}

impl Dialect {
    /// Looks at the daemon that `share` names: a peer of the kit, or a path.
    pub(crate) fn of(kit: &Kit, share: &ShareOptions) -> Result<Dialect> {
        let told = share.daemon.as_deref();
        let peer = told.map_or(Ok(None), |name| Peer::named(kit, name))?;
        let binary = match peer {
            Some(peer) => peer.program,
            None => crate::daemon::find(told)?,
        };
        let output = Command::new(&binary)
            .arg("--help")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut help = String::from_utf8_lossy(&output.stdout).into_owned();
        help.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(Dialect::from_help(binary, &help, share.device))
    }

    fn from_help(binary: PathBuf, help: &str, device: DeviceChoice) -> Dialect {
        let has_window = help.contains("--dax-window");
        let device = match device {
            DeviceChoice::Auto if has_window => DeviceChoice::Generic,
            DeviceChoice::Auto => DeviceChoice::Fs,
            told => told,
        };
        Dialect {
            binary,
            has_window,
            has_names: help.contains("--dax-exclude"),
            keeps_serving: help.contains(KEEP_SERVING),
            device,
        }
    }

    pub(crate) fn command(&self, share: &ShareOptions, socket: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(self.arguments(share, socket))
            .stdin(Stdio::null());
        command
    }

    fn arguments(&self, share: &ShareOptions, socket: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            "--socket-path".into(),
            socket.into(),
            "--shared-dir".into(),
            share.directory.clone().into(),
        ];
        if self.keeps_serving {
            arguments.push(KEEP_SERVING.into());
        }
        if self.has_window {
            for (flag, value) in [
                ("--tag", share.tag.clone()),
                ("--dax", share.dax.name().into()),
                ("--num-request-queues", share.queues.to_string()),
            ] {
                arguments.extend([flag.into(), value.into()]);
            }
            if share.dax != Dax::Never {
                let bytes = share.window_bytes.to_string();
                arguments.extend(["--dax-window".into(), bytes.into()]);
            }
        }
        if share.readonly {
            arguments.push("--readonly".into());
        }
        arguments.extend(share.daemon_arguments.iter().map(OsString::from));
        arguments
    }

    /// Arguments by which the daemon gives no DAX to libraries, if it has such.
    pub(crate) fn no_libraries(&self) -> impl Iterator<Item = String> + use<> {
        let names = LIBRARIES.iter().filter(|_| self.has_names);
        let flags = names.flat_map(|name| ["--dax-exclude".to_owned(), (*name).to_owned()]);
        flags.collect::<Vec<_>>().into_iter()
    }

    /// QEMU's arguments for the `index`th share.
    pub(crate) fn device(&self, share: &ShareOptions, socket: &Path, index: usize) -> [String; 4] {
        let chardev = format!("socket,id=fs{index},path={}", escaped(socket));
        let queues = share.queues;
        let device = match self.device {
            DeviceChoice::Fs => format!(
                "vhost-user-fs-pci,chardev=fs{index},tag={},num-request-queues={queues}",
                share.tag
            ),
            DeviceChoice::Generic | DeviceChoice::Auto => format!(
                "{GENERIC_DEVICE},chardev=fs{index},virtio-id=26,num_vqs={},\
                 config_size={CONFIG_BYTES},vq_size={QUEUE_SIZE}",
                queues + 1
            ),
        };
        ["-chardev".into(), chardev, "-device".into(), device]
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(dialect: &Dialect, share: &ShareOptions) -> String {
        let arguments = dialect.arguments(share, Path::new("/s"));
        let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_daemon_with_a_window_gets_the_generic_device() {
        let share = ShareOptions::new("/d", Dax::Always);
        let ours = Dialect::from_help("d".into(), "--tag --dax-window <S>", DeviceChoice::Auto);
        let line = text(&ours, &share);
        assert!(
            line.starts_with("--socket-path /s --shared-dir /d"),
            "{line}"
        );
        assert!(
            line.contains("--dax always") && line.ends_with("--dax-window 536870912"),
            "{line}"
        );
        let device = ours.device(&share, Path::new("/s"), 1).join(" ");
        assert!(
            device.contains("virtio-id=26,num_vqs=2,config_size=40"),
            "{device}"
        );
        assert!(
            device.contains("id=fs1,path=/s") && device.contains("chardev=fs1"),
            "{device}"
        );
    }

    #[test]
    fn another_daemon_gets_only_what_all_understand() {
        let mut share = ShareOptions::new("/d", Dax::Always);
        share.daemon_arguments = vec!["--sandbox".into(), "none".into()];
        share.queues = 3;
        let other = Dialect::from_help("d".into(), "--shared-dir", DeviceChoice::Auto);
        assert_eq!(
            text(&other, &share),
            "--socket-path /s --shared-dir /d --sandbox none"
        );
        let device = other.device(&share, Path::new("/s"), 0).join(" ");
        assert!(
            device.contains("vhost-user-fs-pci,chardev=fs0,tag=daxwindow"),
            "{device}"
        );
        assert!(device.contains("num-request-queues=3"), "{device}");
    }

    #[test]
    fn libraries_are_kept_out_where_the_daemon_knows_names() {
        let count = |help: &str| {
            let dialect = Dialect::from_help("d".into(), help, DeviceChoice::Auto);
            dialect.no_libraries().count()
        };
        assert_eq!(
            (count("--dax-window --dax-exclude"), count("--dax-window")),
            (4, 0)
        );
    }

    #[test]
    fn a_window_is_named_only_with_dax() {
        let share = ShareOptions::new("/d", Dax::Never);
        let ours = Dialect::from_help("d".into(), "--dax-window", DeviceChoice::Fs);
        assert!(!text(&ours, &share).contains("--dax-window"));
        assert!(ours.device(&share, Path::new("/s"), 0)[3].starts_with("vhost-user-fs-pci"));
    }
}
