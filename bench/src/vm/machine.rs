//! One guest: its daemons, its QEMU, and the way to run things in it.
//!
//! Law: everything is bounded in time, and when the value is dropped no
//! process and no file of it is left.

use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::accel::{self, Accel};
use super::agent::{Agent, NoAnswer, Output};
use super::console::{self, Console};
use super::dialect::Dialect;
use super::guard::Guard;
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::kit::Kit;
use super::options::VmOptions;
use super::process::Process;
use super::qemu::{Qemu, escaped};
use super::script::{self, PORTS, Then};
use super::userland::Userland;
use crate::cleanup::Scratch;

const LISTENS_WITHIN: Duration = Duration::from_secs(10);
const POWERS_OFF_WITHIN: Duration = Duration::from_secs(30);
/// How long [`Vm::sh`] waits.
pub const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

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
    Root { init: Option<String> },
}

/// A guest that runs.
pub struct Vm {
    agent: Option<Agent>,
    machine: Machine,
    release: String,
    boot_time: Duration,
}

impl Vm {
    /// Boots a guest, mounts its shares and waits until it takes commands.
    ///
    /// # Errors
    ///
    /// With what QEMU, the daemons and the console said.
    pub fn boot(options: &VmOptions) -> Result<Vm> {
        let start = Instant::now();
        let kit = Kit::open(options.offline)?;
        let (scratch, listeners) = ports()?;
        let purpose = Purpose::Initramfs(Then::Agent);
        let mut machine = Machine::start(&kit, options, &purpose, scratch)?;
        let deadline = Instant::now() + options.boot_limit;
        let connected = Agent::accept(&listeners, deadline, &mut || machine.alive());
        let ready = connected.and_then(|mut agent| {
            let release = agent.ready(deadline, &mut || machine.alive())?;
            Ok((agent, release))
        });
        let (agent, release) = ready.map_err(|e| machine.explain("the guest did not boot", &e))?;
        Ok(Vm {
            agent: Some(agent),
            machine,
            release,
            boot_time: start.elapsed(),
        })
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

    /// As [`Vm::sh`], with another limit.
    ///
    /// # Errors
    ///
    /// As [`Vm::sh`].
    pub fn sh_within(&mut self, script: &str, limit: Duration) -> Result<Output> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = self.stream(script, &mut out, &mut err, limit)?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).into_owned(),
            status,
        })
    }

    /// Runs a script and hands its outputs over while it writes them. After
    /// an error no further script can be run.
    ///
    /// # Errors
    ///
    /// As [`Vm::sh`].
    pub fn stream(
        &mut self,
        script: &str,
        out: &mut (dyn Write + Send),
        err: &mut (dyn Write + Send),
        limit: Duration,
    ) -> Result<i32> {
        let mut agent = self
            .agent
            .take()
            .context("the guest takes no more scripts")?;
        let machine = &mut self.machine;
        let deadline = Instant::now() + limit;
        match agent.run(script, out, err, deadline, &mut || machine.alive()) {
            Ok(status) => {
                self.agent = Some(agent);
                Ok(status)
            }
            Err(error) => Err(machine.explain("the script did not end", &error)),
        }
    }

    /// Unmounts the shares, powers the guest off and waits for QEMU's end.
    ///
    /// # Errors
    ///
    /// When it does not end, or ends badly.
    pub fn shutdown(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.end();
        }
        match self.machine.qemu.wait(POWERS_OFF_WITHIN) {
            Some(status) if status.success() => Ok(()),
            _ => Err(self
                .machine
                .explain("the guest did not power off", &anyhow!("time is up"))),
        }
    }

    /// All that the kernel has said so far.
    pub fn console(&self) -> String {
        self.machine.console.text()
    }

    /// Lines of the console in which the kernel complains about itself.
    pub fn kernel_warnings(&self) -> Vec<String> {
        console::complaints(&self.console())
    }

    /// What QEMU has said so far.
    pub fn qemu_log(&self) -> String {
        self.machine.qemu.said()
    }

    /// What the `share`th daemon has said so far.
    pub fn daemon_log(&self, share: usize) -> String {
        self.machine
            .daemons
            .get(share)
            .map(Process::said)
            .unwrap_or_default()
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> i32 {
        self.machine.qemu.pid()
    }

    /// The `share`th daemon's process id.
    pub fn daemon_pid(&self, share: usize) -> Option<i32> {
        self.machine.daemons.get(share).map(Process::pid)
    }

    /// Kills QEMU with no warning.
    pub fn kill_qemu(&mut self) {
        self.machine.qemu.kill();
    }

    /// Kills the `share`th daemon with no warning.
    pub fn kill_daemon(&mut self, share: usize) {
        if let Some(daemon) = self.machine.daemons.get_mut(share) {
            daemon.kill();
        }
    }

    /// Whether QEMU runs.
    pub fn is_running(&mut self) -> bool {
        self.machine.alive()
    }

    /// The guest kernel's release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// What runs the guest's code.
    pub fn accel(&self) -> Accel {
        self.machine.accel
    }

    /// From start to the first command, daemons included.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }
}

/// The processes of a guest and their scratch folder.
pub(crate) struct Machine {
    // Dropped in this order: a daemon outlives its client.
    _guard: Guard,
    pub qemu: Process,
    pub daemons: Vec<Process>,
    pub console: Console,
    pub accel: Accel,
    _scratch: Scratch,
}

/// A scratch folder in which QEMU will find the agent's ports.
fn ports() -> Result<(Scratch, [UnixListener; 3])> {
    let scratch = Scratch::for_sockets()?;
    let bind = |name: &str| {
        let path = scratch.path().join(name);
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))
    };
    let listeners = [bind(PORTS[0])?, bind(PORTS[1])?, bind(PORTS[2])?];
    Ok((scratch, listeners))
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
        let kernel = Kernel::find(kit)?;
        let accel = accel::choose(kit, options.accel, &qemu, &kernel)?;
        let (daemons, devices) = start_daemons(kit, options, scratch.path())?;
        let console = Console::new(&scratch.path().join("console.log"));
        let mut command = qemu.command();
        machine_arguments(&mut command, options, accel);
        command.args(devices).arg("-kernel").arg(&kernel.image);
        if let Purpose::Initramfs(then) = purpose {
            let image = scratch.path().join("initramfs");
            std::fs::write(&image, initramfs(kit, options, then)?)
                .with_context(|| format!("write {}", image.display()))?;
            command.arg("-initrd").arg(&image);
        }
        command.args(channel_arguments(purpose, scratch.path(), &console));
        command.arg("-append").arg(kernel_line(options, purpose));
        command.args(&options.qemu_arguments);
        tracing::debug!(?command, "starting QEMU");
        let qemu = Process::start("QEMU", &mut command, &scratch.path().join("qemu.log"))?;
        let pids: Vec<i32> = daemons.iter().chain([&qemu]).map(Process::pid).collect();
        Ok(Machine {
            _guard: Guard::over(&pids)?,
            qemu,
            daemons,
            console,
            accel,
            _scratch: scratch,
        })
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.qemu.ended().is_none()
    }

    /// An error with everything that helps to understand it.
    pub(crate) fn explain(&mut self, what: &str, error: &anyhow::Error) -> anyhow::Error {
        // A process that is about to end says more in a moment.
        self.qemu.wait(Duration::from_millis(200));
        let mut text = format!("{what}: {error:#}\n  {}", self.qemu.report());
        for daemon in &mut self.daemons {
            text.push_str(&format!("\n  {}", daemon.report()));
        }
        text.push_str(&format!("\n  {}", self.console.tail()));
        let timed_out = error.downcast_ref() == Some(&NoAnswer::TimeUp);
        anyhow::Error::new(VmFailure { text, timed_out })
    }
}

fn start_daemons(
    kit: &Kit,
    options: &VmOptions,
    folder: &Path,
) -> Result<(Vec<Process>, Vec<String>)> {
    let (mut daemons, mut devices) = (Vec::new(), Vec::new());
    for (index, share) in options.shares.iter().enumerate() {
        let dialect = Dialect::of(kit, share)?;
        let socket = folder.join(format!("fs{index}.sock"));
        let name = dialect
            .binary()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let log = folder.join(format!("daemon{index}.log"));
        let mut daemon = Process::start(&name, &mut dialect.command(share, &socket), &log)?;
        wait_for_socket(&mut daemon, &socket)?;
        devices.extend(dialect.device(share, &socket, index));
        daemons.push(daemon);
    }
    Ok((daemons, devices))
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

fn initramfs(kit: &Kit, options: &VmOptions, then: &Then) -> Result<Vec<u8>> {
    let mut image = Initramfs::new()?;
    Userland::find(kit, &options.tools)?.add_to(&mut image)?;
    for (guest, host) in &options.files {
        image.copy(guest.trim_start_matches('/'), host)?;
    }
    image.program("init", script::init(&options.shares, then).as_bytes())?;
    image.finish()
}

fn machine_arguments(command: &mut Command, options: &VmOptions, accel: Accel) {
    let bytes = options.memory_bytes;
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
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
        Purpose::Root { .. } => {
            let console = socket("console", CONSOLE_SOCKET);
            format!("{console},logfile={log}")
        }
        Purpose::Initramfs(_) => format!("file,id=console,path={log}"),
    };
    add("-chardev", device);
    add("-serial", "chardev:console".into());
    match purpose {
        Purpose::Root { .. } => {}
        Purpose::Initramfs(Then::Shell { .. }) => {
            add("-device", "virtio-serial-pci".into());
            add("-chardev", socket("shell", SHELL_SOCKET));
            add("-device", "virtconsole,chardev=shell".into());
        }
        Purpose::Initramfs(Then::Agent) => {
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
    match (purpose, options.shares.first()) {
        (Purpose::Root { init }, Some(share)) => {
            let access = if share.readonly { "ro" } else { "rw" };
            words.push(format!("root={} rootfstype=virtiofs", share.tag));
            words.push(format!("rootflags=dax={} {access}", share.dax.name()));
            words.extend(init.iter().map(|init| format!("init={init}")));
        }
        // Warnings and worse only: an emulated serial line is slow.
        _ => words.push("loglevel=5".into()),
    }
    words.extend(options.kernel_arguments.iter().cloned());
    words.join(" ")
}

/// A guest failed, with everything that helps to understand it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct VmFailure {
    text: String,
    /// It was only too slow.
    pub timed_out: bool,
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
        let purpose = Purpose::Root {
            init: Some("/bin/sh".into()),
        };
        let line = kernel_line(&options(), &purpose);
        let wanted = "root=daxwindow rootfstype=virtiofs rootflags=dax=always rw init=/bin/sh";
        assert!(line.contains(wanted), "{line}");
        let line = kernel_line(&options(), &Purpose::Initramfs(Then::Agent));
        assert!(!line.contains("root="), "{line}");
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
