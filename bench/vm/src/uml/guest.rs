//! One guest. Its kernel's console is the process's output, scripts and what
//! they write are files of the host that it has mounted, and a serial line
//! tells when to run one and that it has ended.
//!
//! Law: everything is bounded in time, and when the value is dropped no
//! process and no file of it is left.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::kernel::UmlKernel;
use crate::agent::{Output, read_line, release};
use crate::cleanup::Scratch;
use crate::console::{self, Console};
use crate::guard::Guard;
use crate::guest::SCRIPT_LIMIT;
use crate::kit::Kit;
use crate::machine::{initramfs, socket_of, start_daemons};
use crate::options::{Dax, ShareOptions, VmOptions};
use crate::process::Process;
use crate::processes::serving;
use crate::script;
use daxwindow_shared::virtiofs::DEVICE_ID;

/// What a mount of a share takes, in the order in which it is loaded.
const MODULES: [&str; 2] = ["fuse", "virtiofs"];
const POWERS_OFF_WITHIN: Duration = Duration::from_secs(60);

/// A guest that runs.
pub struct Uml {
    // Dropped in this order: a daemon outlives its client.
    _guard: Guard,
    process: Process,
    daemons: Vec<Option<Process>>,
    control: UnixStream,
    console: Console,
    /// The guest sees it as [`script::HOST_FOLDER`].
    folder: PathBuf,
    scripts: u64,
    release: String,
    boot_time: Duration,
    _scratch: Scratch,
}

impl Uml {
    /// Boots a guest, mounts its shares and waits until it takes scripts. Of
    /// the options, those about QEMU, processors and the kernel's kind are
    /// not used: it has one processor and this kernel.
    ///
    /// # Errors
    ///
    /// With what the kernel and the daemons said; and for a share with DAX.
    pub fn boot(options: &VmOptions) -> Result<Uml> {
        let without = |share: &ShareOptions| share.dax == Dax::Never;
        ensure!(
            options.shares.iter().all(without),
            "user-mode-linux has no window: share with dax=never"
        );
        let start = Instant::now();
        let kit = Kit::open(options.offline)?;
        let kernel = UmlKernel::find(&kit)?;
        let scratch = Scratch::for_sockets()?;
        let folder = scratch.path().join("host");
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let image = scratch.path().join("initramfs");
        let bytes = image_of(&kit, &kernel, options, &folder)?;
        std::fs::write(&image, bytes).with_context(|| format!("write {}", image.display()))?;
        let (daemons, _) = start_daemons(&kit, options, scratch.path(), false)?;
        let console = Console::new(&scratch.path().join("console.log"));
        let (control, theirs) = UnixStream::pair().context("make a serial line")?;
        let mut command = kernel.command();
        arguments(&mut command, options, scratch.path(), &image);
        command.stdin(OwnedFd::from(theirs));
        let process = Process::start("user-mode-linux", &mut command, console.path())?;
        // Else this process would keep the guest's end open.
        drop(command);
        let daemon_pids = daemons.iter().flatten().map(Process::pid);
        let pids: Vec<i32> = daemon_pids.chain([process.pid()]).collect();
        let mut guest = Uml {
            _guard: Guard::over(&pids)?,
            process,
            daemons,
            control,
            console,
            folder,
            scripts: 0,
            release: String::new(),
            boot_time: Duration::ZERO,
            _scratch: scratch,
        };
        let said = guest.line(Instant::now() + options.boot_limit);
        let ready = said.and_then(|line| release(&line));
        guest.release = ready.map_err(|e| guest.explain("the guest did not boot", &e))?;
        guest.boot_time = start.elapsed();
        Ok(guest)
    }

    /// Runs a shell script in the guest and waits for its end, at most
    /// [`SCRIPT_LIMIT`].
    ///
    /// # Errors
    ///
    /// When the guest is gone or time is up; a script's status is no error.
    pub fn sh(&mut self, script: &str) -> Result<Output> {
        self.sh_within(script, SCRIPT_LIMIT)
    }

    /// As [`Uml::sh`], with another limit.
    ///
    /// # Errors
    ///
    /// As [`Uml::sh`].
    pub fn sh_within(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.scripts += 1;
        let number = self.scripts;
        let done = self.run(number, script, limit);
        done.map_err(|error| self.explain("the script did not end", &error))
    }

    fn run(&mut self, number: u64, script: &str, limit: Duration) -> Result<Output> {
        let file = |what: &str| self.folder.join(format!("{what}{number}"));
        let [path, out, err] = ["script", "out", "err"].map(file);
        std::fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        let order = format!("RUN {number}\n");
        let sent = self.control.write_all(order.as_bytes());
        sent.context("send a script to the guest")?;
        let line = self.line(Instant::now() + limit)?;
        let status = line.strip_prefix(&format!("DONE {number} "));
        let Some(status) = status.and_then(|status| status.parse().ok()) else {
            bail!("the guest says {line:?}");
        };
        let output = Output {
            stdout: take(&out)?,
            stderr: take(&err)?,
            status,
        };
        let _ = std::fs::remove_file(path);
        Ok(output)
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        let process = &mut self.process;
        let mut alive = || process.ended().is_none();
        read_line(&self.control, deadline, &mut alive)
    }

    /// Unmounts the shares, powers the guest off and waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end, or ends badly.
    pub fn shutdown(&mut self) -> Result<()> {
        let _ = self.control.write_all(b"END\n");
        match self.process.wait(POWERS_OFF_WITHIN) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.explain("the guest ended badly", &anyhow!("{status}"))),
            None => Err(self.explain("the guest did not power off", &anyhow!("time is up"))),
        }
    }

    /// All that the kernel has said so far.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Lines of the console in which the kernel complains about itself.
    pub fn kernel_warnings(&self) -> Vec<String> {
        console::complaints(&self.console())
    }

    /// What the `share`th daemon has said so far; nothing if it was not
    /// started for this guest.
    pub fn daemon_log(&self, share: usize) -> String {
        let daemon = self.daemons.get(share).and_then(Option::as_ref);
        daemon.map(Process::said).unwrap_or_default()
    }

    /// Id of the process that serves, of the `share`th daemon.
    pub fn daemon_pid(&self, share: usize) -> Option<i32> {
        let daemon = self.daemons.get(share)?.as_ref()?;
        Some(serving(daemon.pid()))
    }

    /// The process that is the guest.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The kernel's release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// From start to the first script, daemons included.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// An error with everything that helps to understand it.
    fn explain(&mut self, what: &str, error: &anyhow::Error) -> anyhow::Error {
        let mut text = format!("{what}: {error:#}");
        for daemon in self.daemons.iter_mut().flatten() {
            text.push_str(&format!("\n  {}", daemon.report()));
        }
        anyhow!("{text}\n  {}", self.console.tail())
    }
}

/// What a file has, which is of no more use then.
fn take(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let _ = std::fs::remove_file(path);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn image_of(kit: &Kit, kernel: &UmlKernel, options: &VmOptions, folder: &Path) -> Result<Vec<u8>> {
    let init = script::uml_init(&options.shares, &MODULES, folder);
    let mut image = initramfs(kit, options, &init)?;
    for module in MODULES {
        image.copy(&script::module_path(module), &kernel.module(module)?)?;
    }
    image.finish()
}

/// Console 0 is the process's output, serial line 0 its input, which is a
/// socket; there are no others.
fn arguments(command: &mut Command, options: &VmOptions, scratch: &Path, image: &Path) {
    let scratch_argument = |key: &str, path: &Path| {
        let mut argument = std::ffi::OsString::from(key);
        argument.push(path);
        argument
    };
    command
        .arg(format!("mem={}M", options.memory_bytes >> 20))
        .arg(scratch_argument("uml_dir=", &scratch.join("uml")))
        .arg(scratch_argument("initrd=", image))
        .args(["con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:0"])
        .arg("console=tty0");
    for (index, share) in options.shares.iter().enumerate() {
        let socket = match &share.socket {
            Some(socket) => socket.clone(),
            None => socket_of(scratch, index),
        };
        command.arg(format!(
            "virtio_uml.device={}:{DEVICE_ID}",
            socket.display()
        ));
    }
    command.args(&options.kernel_arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_share_is_a_device() {
        let mut second = ShareOptions::new("/d", Dax::Never);
        second.socket = Some("/own.sock".into());
        let options = VmOptions::new(vec![ShareOptions::new("/d", Dax::Never), second]);
        let mut command = Command::new("linux");
        arguments(&mut command, &options, Path::new("/s"), Path::new("/s/i"));
        let line = format!("{command:?}");
        for word in [
            "mem=512M",
            "initrd=/s/i",
            "virtio_uml.device=/s/fs0.sock:26",
            "virtio_uml.device=/own.sock:26",
        ] {
            assert!(line.contains(word), "{word} in {line}");
        }
    }

    #[test]
    fn a_window_is_refused_before_anything_is_started() {
        let options = VmOptions::new(vec![ShareOptions::new("/d", Dax::Inode)]);
        let error = Uml::boot(&options).err().expect("refused").to_string();
        assert!(error.contains("dax=never"), "{error}");
    }
}
