//! Which accelerator boots a guest, found by trying.
//!
//! A `/dev/kvm` that opens proves nothing: there are machines on which a stock
//! kernel stops in its first instructions. So a kernel is booted under it, for
//! ten seconds at most, and the answer is kept with the kit.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::console::Console;
use super::kernel::Kernel;
use super::kit::Kit;
use super::options::AccelChoice;
use super::process::Process;
use super::qemu::{Qemu, escaped};
use crate::cleanup::Scratch;

const TRIAL: Duration = Duration::from_secs(10);
const MARKER: &str = "Linux version";

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The host's processor.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// QEMU's arguments.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// As QEMU has it.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// An answer and what it holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub accel: Accel,
    /// Why not the faster one.
    pub reason: String,
    host: String,
    qemu: String,
}

/// Decides, trying out what is not known yet.
///
/// # Errors
///
/// When the answer cannot be kept; no accelerator failing is one.
pub fn choose(kit: &Kit, choice: AccelChoice, qemu: &Qemu, kernel: &Kernel) -> Result<Accel> {
    match choice {
        AccelChoice::Kvm => Ok(Accel::Kvm),
        AccelChoice::Tcg => Ok(Accel::Tcg),
        AccelChoice::Auto => Ok(verdict(kit, qemu, kernel)?.accel),
    }
}

/// The kept answer if it is for this host and QEMU, else a trial's.
pub(crate) fn verdict(kit: &Kit, qemu: &Qemu, kernel: &Kernel) -> Result<Verdict> {
    let path = kit.home().join("accelerator.json");
    let host = host();
    if let Some(known) = read(&path)
        && known.host == host
        && known.qemu == qemu.version
    {
        return Ok(known);
    }
    let (accel, reason) = match trial(qemu, kernel) {
        Ok(()) => (Accel::Kvm, String::new()),
        Err(error) => (Accel::Tcg, format!("{error:#}")),
    };
    let qemu = qemu.version.clone();
    let verdict = Verdict {
        accel,
        reason,
        host,
        qemu,
    };
    std::fs::create_dir_all(kit.home())?;
    let text = serde_json::to_vec_pretty(&verdict)?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(verdict)
}

/// Rights on the device matter too, so the user is part of what it holds for.
fn host() -> String {
    let name = rustix::system::uname();
    let user = rustix::process::getuid().as_raw();
    format!(
        "{} {} uid {user}",
        name.release().to_string_lossy(),
        name.version().to_string_lossy()
    )
}

fn read(path: &PathBuf) -> Option<Verdict> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn trial(qemu: &Qemu, kernel: &Kernel) -> Result<()> {
    let device = Path::new("/dev/kvm");
    let opened = std::fs::File::options().read(true).write(true).open(device);
    opened.with_context(|| format!("open {}", device.display()))?;
    let scratch = Scratch::for_sockets()?;
    let console = Console::new(&scratch.path().join("console"));
    let mut command = qemu.command();
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-machine", "q35", "-m", "256"])
        .args(Accel::Kvm.arguments())
        .arg("-kernel")
        .arg(&kernel.image)
        .args(["-append", "earlyprintk=ttyS0 console=ttyS0 panic=-1"])
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", escaped(console.path())))
        .args(["-serial", "chardev:console"]);
    let mut process = Process::start("QEMU", &mut command, &scratch.path().join("log"))?;
    let deadline = Instant::now() + TRIAL;
    while Instant::now() < deadline {
        if console.text().contains(MARKER) {
            return Ok(());
        }
        if process.ended().is_some() {
            bail!("under kvm {}", process.report());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!(
        "under kvm the kernel printed nothing in {} s",
        TRIAL.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_this_host_only() {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("accelerator.json");
        let verdict = Verdict {
            accel: Accel::Tcg,
            reason: "x".into(),
            host: host(),
            qemu: "q".into(),
        };
        let text = serde_json::to_vec(&verdict).expect("json");
        assert!(String::from_utf8_lossy(&text).contains("\"tcg\""));
        std::fs::write(&path, text).expect("written");
        assert_eq!(read(&path), Some(verdict));
        std::fs::write(&path, "{").expect("written");
        assert_eq!(read(&path), None);
        assert!(host().contains("uid"));
    }
}
