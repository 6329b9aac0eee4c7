//! The processes of a guest: its daemons and its QEMU, and how they are started.
//!
//! Law: when the value is dropped no process and no file of it is left.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::accel::{self, Accel};
use super::agent::NoAnswer;
use super::console::{self, Console};
use super::dialect::Dialect;
use super::guard::Guard;
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::kit::Kit;
use super::monitor::Monitor;
use super::options::{Dax, ShareOptions, VmOptions};
use super::process::Process;
use super::program::Program;
use super::qemu::{Qemu, escaped};
use super::root::{self, Init};
use super::script::{self, PORTS, Then};
use super::userland::Userland;
use crate::cleanup::Scratch;

const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// The guest's console when it is not only for reading.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// The interactive shell's socket.
pub(crate) const SHELL_SOCKET: &str = "shell.sock";

/// What the guest is booted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An initramfs, and then this.
    Initramfs(Then),
    /// The first share as the root file system, and this as its init.
    Root(Init),
}

/// The processes of a guest and their scratch folder.
pub(crate) struct Machine {
    // Dropped in this order: a daemon outlives its client.
    _guard: Guard,
    pub qemu: Process,
    /// One for each share, but not for one with a socket of its own.
    pub daemons: Vec<Option<Process>>,
    pub monitor: Monitor,
    pub console: Console,
    pub accel: Accel,
    scratch: Scratch,
}

impl Machine {
    /// Starts the daemons and QEMU; what they connect to is in `scratch`.
    pub(crate) fn start(
        kit: &Kit,
        options: &VmOptions,
        purpose: &Purpose,
        scratch: Scratch,
    ) -> Result<Machine> {
        let qemu = Qemu::find(kit)?;
        let kernel = Kernel::of_flavour(kit, options.kernel)?;
        let accel = accel::choose(kit, options.accel, &qemu, &kernel)?;
        let emulated_root = accel == Accel::Tcg && matches!(purpose, Purpose::Root(_));
        let (daemons, devices) = start_daemons(kit, options, scratch.path(), emulated_root)?;
        let console = Console::new(&scratch.path().join("console.log"));
        let mut command = qemu.command();
        machine_arguments(&mut command, options, accel);
        command.args(devices).arg("-kernel").arg(&kernel.image);
        if let Purpose::Initramfs(then) = purpose {
            let image = scratch.path().join("initramfs");
            let init = script::init(&options.shares, then);
            std::fs::write(&image, initramfs(kit, options, &init)?.finish()?)
                .with_context(|| format!("write {}", image.display()))?;
            command.arg("-initrd").arg(&image);
        }
        let monitor = Monitor {
            socket: scratch.path().join("monitor.sock"),
        };
        let listener = escaped(&monitor.socket);
        command.arg("-qmp");
        command.arg(format!("unix:{listener},server=on,wait=off"));
        command.args(channel_arguments(purpose, scratch.path(), &console));
        command.arg("-append").arg(kernel_line(options, purpose));
        command.args(&options.qemu_arguments);
        if let Some(library) = &options.preload {
            command.env("LD_PRELOAD", library);
        }
        let pid_file = scratch.path().join("qemu.pid");
        if options.background {
            command.args(["-daemonize", "-pidfile"]).arg(&pid_file);
        }
        tracing::debug!(?command, "starting QEMU");
        let mut qemu = Process::start("QEMU", &mut command, &scratch.path().join("qemu.log"))?;
        if options.background {
            qemu.follow(&pid_file, options.boot_limit)?;
        }
        let pids: Vec<i32> = daemons
            .iter()
            .flatten()
            .chain([&qemu])
            .map(Process::pid)
            .collect();
        Ok(Machine {
            _guard: Guard::over(&pids)?,
            qemu,
            daemons,
            monitor,
            console,
            accel,
            scratch,
        })
    }

    /// Where the `share`th daemon listens, if it was started here.
    pub(crate) fn socket(&self, share: usize) -> Option<PathBuf> {
        let started = self.daemons.get(share)?.is_some();
        started.then(|| socket_of(self.scratch.path(), share))
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.qemu.ended().is_none()
    }

    /// An error with everything that helps to understand it.
    pub(crate) fn explain(&mut self, what: &str, error: &anyhow::Error) -> anyhow::Error {
        // A process that is about to end says more in a moment.
        self.qemu.wait(Duration::from_millis(200));
        let mut text = format!("{what}: {error:#}\n  {}", self.qemu.report());
        for daemon in self.daemons.iter_mut().flatten() {
            text.push_str(&format!("\n  {}", daemon.report()));
        }
        text.push_str(&format!("\n  {}", self.console.tail()));
        anyhow::Error::new(VmFailure {
            text,
            timed_out: error.downcast_ref() == Some(&NoAnswer::TimeUp),
            stale_code: self.accel == Accel::Tcg && console::stale_code(&self.console.text()),
        })
    }
}

/// One for each share, but not for one with a socket of its own.
pub(crate) type Daemons = Vec<Option<Process>>;

/// Starts a daemon for each share. The root of an emulated guest keeps its
/// code out of the window where that is left to the daemon: QEMU's emulator
/// goes on with its translation of code whose range shows another file now.
pub(crate) fn start_daemons(
    kit: &Kit,
    options: &VmOptions,
    folder: &Path,
    emulated_root: bool,
) -> Result<(Daemons, Vec<String>)> {
    let (mut daemons, mut devices) = (Vec::new(), Vec::new());
    for (index, share) in options.shares.iter().enumerate() {
        let dialect = Dialect::of(kit, share)?;
        let mut share = share.clone();
        if emulated_root && index == 0 && share.dax == Dax::Inode {
            share.daemon_arguments.extend(dialect.no_libraries());
        }
        let share = &share;
        let (socket, daemon) = match &share.socket {
            Some(socket) => (socket.clone(), None),
            None => {
                let socket = socket_of(folder, index);
                let log = folder.join(format!("daemon{index}.log"));
                let daemon = start_daemon(&dialect, share, &socket, &log)?;
                (socket, Some(daemon))
            }
        };
        devices.extend(dialect.device(share, &socket, index));
        daemons.push(daemon);
    }
    Ok((daemons, devices))
}

/// Where the `index`th share's daemon listens.
pub(crate) fn socket_of(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("fs{index}.sock"))
}

fn start_daemon(
    dialect: &Dialect,
    share: &ShareOptions,
    socket: &Path,
    log: &Path,
) -> Result<Process> {
    let name = dialect.binary().file_name().unwrap_or_default();
    let mut command = dialect.command(share, socket);
    let mut daemon = Process::start(&name.to_string_lossy(), &mut command, log)?;
    wait_for_socket(&mut daemon, socket)?;
    Ok(daemon)
}

fn wait_for_socket(daemon: &mut Process, socket: &Path) -> Result<()> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    while !socket.metadata().is_ok_and(|m| m.file_type().is_socket()) {
        if daemon.ended().is_some() || Instant::now() > deadline {
            bail!("no daemon listens: {}", daemon.report());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Everything that the options put into a guest, and its first program.
pub(crate) fn initramfs(kit: &Kit, options: &VmOptions, init: &str) -> Result<Initramfs> {
    let mut image = Initramfs::new()?;
    Userland::find(kit, &options.tools)?.add_to(&mut image)?;
    for path in &options.programs {
        Program::find(path)?.add_to(&mut image)?;
    }
    for (guest, host) in &options.files {
        image.copy(guest.trim_start_matches('/'), host)?;
    }
    image.program("init", init.as_bytes())?;
    Ok(image)
}

fn machine_arguments(command: &mut Command, options: &VmOptions, accel: Accel) {
    let bytes = options.memory_bytes;
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args((!options.reboot).then_some("-no-reboot"))
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=mem,size={bytes},share=on"))
        .args(["-machine", "q35,memory-backend=mem", "-m"])
        .arg(format!("{}M", bytes >> 20))
        .arg("-smp")
        .arg(options.cpus.to_string())
        .args(accel.arguments());
}

/// The kernel's console, and the ports or the terminal that the purpose needs.
fn channel_arguments(purpose: &Purpose, folder: &Path, console: &Console) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    let socket =
        |id: &str, name: &str| format!("socket,id={id},path={}", escaped(&folder.join(name)));
    let log = escaped(console.path());
    let device = match purpose {
        Purpose::Root(Init::Console(_)) => {
            let console = socket("console", CONSOLE_SOCKET);
            format!("{console},logfile={log}")
        }
        Purpose::Root(Init::Agent) | Purpose::Initramfs(_) => format!("file,id=console,path={log}"),
    };
    add("-chardev", device);
    add("-serial", "chardev:console".into());
    match purpose {
        Purpose::Root(Init::Console(_)) => {}
        Purpose::Initramfs(Then::Shell { .. }) => {
            add("-device", "virtio-serial-pci".into());
            add("-chardev", socket("shell", SHELL_SOCKET));
            add("-device", "virtconsole,chardev=shell".into());
        }
        Purpose::Root(Init::Agent) | Purpose::Initramfs(Then::Agent) => {
            add("-device", "virtio-serial-pci".into());
            for (index, port) in PORTS.iter().enumerate() {
                add("-chardev", socket(&format!("port{index}"), port));
                add(
                    "-device",
                    format!("virtserialport,chardev=port{index},name={port}"),
                );
            }
        }
    }
    arguments
}

fn kernel_line(options: &VmOptions, purpose: &Purpose) -> String {
    let mut words: Vec<String> = ["console=ttyS0", "panic=-1"].map(str::to_owned).into();
    if let (Purpose::Root(init), Some(share)) = (purpose, options.shares.first()) {
        words.extend(root::kernel_words(share, init));
    }
    if !matches!(purpose, Purpose::Root(Init::Console(_))) {
        // Warnings and worse only: an emulated serial line is slow.
        words.push("loglevel=5".into());
    }
    words.extend(options.kernel_arguments.iter().cloned());
    words.join(" ")
}

/// A guest failed, with everything that helps to understand it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct VmFailure {
    text: String,
    /// It was only too slow.
    pub timed_out: bool,
    /// It died of a breakpoint that its kernel had taken away already.
    pub stale_code: bool,
}

#[cfg(test)]
mod tests {
    use super::super::options::{Dax, ShareOptions};
    use super::*;

    fn options() -> VmOptions {
        VmOptions::new(vec![ShareOptions::new("/d", Dax::Always)])
    }

    #[test]
    fn guest_memory_is_shared_and_one_boot_is_one_qemu() {
        let mut command = Command::new("qemu");
        machine_arguments(&mut command, &options(), Accel::Tcg);
        let line = format!("{command:?}");
        assert!(
            line.contains("memory-backend-memfd,id=mem,size=536870912,share=on"),
            "{line}"
        );
        assert!(
            line.contains("q35,memory-backend=mem") && line.contains("-no-reboot"),
            "{line}"
        );
    }

    #[test]
    fn a_root_share_is_named_on_the_kernels_line() {
        let purpose = Purpose::Root(Init::Console(None));
        let line = kernel_line(&options(), &purpose);
        assert!(
            line.contains("root=daxwindow") && !line.contains("loglevel"),
            "{line}"
        );
        let line = kernel_line(&options(), &Purpose::Initramfs(Then::Agent));
        assert!(
            !line.contains("root=") && line.contains("loglevel"),
            "{line}"
        );
    }

    #[test]
    fn the_console_is_apart_from_the_ports() {
        let console = Console::new(Path::new("/s/console.log"));
        let purpose = Purpose::Initramfs(Then::Agent);
        let line = channel_arguments(&purpose, Path::new("/s"), &console).join(" ");
        assert!(
            line.contains("file,id=console,path=/s/console.log"),
            "{line}"
        );
        for port in PORTS {
            assert!(line.contains(&format!("name={port}")), "{line}");
        }
    }
}
