//! Which QEMU: one that can give a vhost-user device a shared memory region.
//!
//! That is the generic vhost-user device of QEMU 11.1 and later; the ordinary
//! virtio-fs device has no such region.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kit::{Kit, Recipe, Set};

/// Names another QEMU.
pub(crate) const QEMU_VARIABLE: &str = "DAXWINDOW_QEMU";
/// The device whose region the window is.
pub(crate) const GENERIC_DEVICE: &str = "vhost-user-test-device-pci";
const LEAST_VERSION: (u32, u32) = (11, 1);
const PROGRAM: &str = "qemu-system-x86_64";
pub(crate) const SET: &str = "qemu";
pub(crate) const PACKAGE: &str = "qemu-system-x86";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// What it says of its version.
    pub version: String,
    /// Where it comes from.
    pub origin: Origin,
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Where a QEMU comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Installed on this machine.
    System,
    /// Unpacked in the kit.
    Kit,
}

impl Qemu {
    /// The system's if it will do, else the kit's, which is fetched if need be.
    ///
    /// # Errors
    ///
    /// When neither can be had.
    pub fn find(kit: &Kit) -> Result<Qemu> {
        match Qemu::of_system() {
            Ok(qemu) => Ok(qemu),
            Err(_) if std::env::var_os(QEMU_VARIABLE).is_none() => Qemu::of_kit(kit),
            Err(error) => Err(error),
        }
    }

    /// The one in the path, or that `DAXWINDOW_QEMU` names.
    ///
    /// # Errors
    ///
    /// Says what it lacks.
    pub fn of_system() -> Result<Qemu> {
        let program = match std::env::var_os(QEMU_VARIABLE) {
            Some(path) => PathBuf::from(path),
            None => in_path(PROGRAM).with_context(|| format!("{PROGRAM} is not installed"))?,
        };
        let mut qemu = Qemu {
            version: String::new(),
            origin: Origin::System,
            program,
            arguments: Vec::new(),
        };
        qemu.prove()?;
        Ok(qemu)
    }

    /// The kit's, fetched if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or does not run here.
    pub fn of_kit(kit: &Kit) -> Result<Qemu> {
        if !cfg!(target_arch = "x86_64") {
            bail!("the kit has guests and tools for x86-64 machines only");
        }
        Qemu::in_set(&Qemu::set(kit)?)
    }

    /// The kit's set of it, made if need be.
    pub(crate) fn set(kit: &Kit) -> Result<Set> {
        let recipe = Recipe {
            name: SET,
            wanted: &[PACKAGE],
            keep: &|_| true,
        };
        kit.set(&recipe, |_| Ok(()))
    }

    /// The kit's if it is there.
    pub(crate) fn in_set(set: &Set) -> Result<Qemu> {
        let root = set.root();
        let libraries = root.join(LIBRARIES);
        let data = root.join("usr/share");
        let mut arguments: Vec<OsString> = vec![
            "--library-path".into(),
            libraries.clone().into(),
            root.join("usr/bin").join(PROGRAM).into(),
        ];
        for folder in ["qemu", "seabios"] {
            arguments.extend(["-L".into(), data.join(folder).into()]);
        }
        let mut qemu = Qemu {
            version: String::new(),
            origin: Origin::Kit,
            program: libraries.join("ld-linux-x86-64.so.2"),
            arguments,
        };
        qemu.prove()?;
        Ok(qemu)
    }

    /// A command that starts it, to which arguments can be added.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }

    fn prove(&mut self) -> Result<()> {
        let text = self.ask(&["--version"])?;
        let version = parse_version(&text)
            .with_context(|| format!("{} does not tell its version", self.program.display()))?;
        self.version = text.lines().next().unwrap_or_default().to_owned();
        if version < LEAST_VERSION {
            bail!(
                "{} is version {}.{}: {}.{} is the first with shared memory regions",
                self.program.display(),
                version.0,
                version.1,
                LEAST_VERSION.0,
                LEAST_VERSION.1
            );
        }
        let device = self.ask(&["-device", &format!("{GENERIC_DEVICE},help")]);
        match device {
            Ok(help) if help.contains("virtio-id") => Ok(()),
            _ => bail!("{} has no {GENERIC_DEVICE}", self.program.display()),
        }
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output();
        let output = output.with_context(|| format!("start {}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{} {}: {}",
                self.program.display(),
                arguments.join(" "),
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Major and minor from `QEMU emulator version 11.1.3 (...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_once("version ")?.1.split_whitespace().next()?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A value inside a QEMU option: commas are doubled.
pub fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pretender(folder: &Path, version: &str, device: &str) -> Qemu {
        let program = folder.join("qemu");
        let text = format!(
            "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version {version} (x)';; \
             *) {device};; esac\n"
        );
        std::fs::write(&program, text).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("executable");
        Qemu {
            version: String::new(),
            origin: Origin::System,
            program,
            arguments: Vec::new(),
        }
    }

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 11.1.3 (D)"),
            Some((11, 1))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.0"), Some((7, 2)));
        for text in ["", "version", "version x.y", "version 7"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn what_a_qemu_lacks_is_said() {
        let folder = tempfile::tempdir().expect("directory");
        let prove = |version, device| pretender(folder.path(), version, device).prove();
        assert!(prove("11.1.3", "echo virtio-id").is_ok());
        let old = prove("10.0.2", "echo virtio-id")
            .expect_err("old")
            .to_string();
        assert!(old.contains("10.0") && old.contains("11.1"), "{old}");
        let without = prove("12.0.0", "exit 1")
            .expect_err("no device")
            .to_string();
        assert!(without.contains(GENERIC_DEVICE), "{without}");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }
}
