//! One guest, and the way to run things in it.
//!
//! Law: everything is bounded in time, and when the value is dropped no
//! process and no file of it is left.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::accel::Accel;
use super::agent::{Agent, Output};
use super::console;
use super::kit::Kit;
use super::machine::{Machine, Purpose, VmFailure};
use super::options::VmOptions;
use super::process::Process;
use super::root::{self, Init};
use super::script::{PORTS, Then};
use crate::cleanup::Scratch;
use crate::processes::serving;

/// How often a boot is tried that QEMU's emulator spoils.
const MOST_BOOTS: usize = 3;
const POWERS_OFF_WITHIN: Duration = Duration::from_secs(30);
/// How long [`Vm::monitor`] waits.
pub const MONITOR_LIMIT: Duration = Duration::from_secs(20);
/// How long [`Vm::sh`] waits.
pub const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

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
        Vm::start(options, &Purpose::Initramfs(Then::Agent))
    }

    /// Boots a guest whose root file system is the first share, with no
    /// initramfs: what the options would put into one is not used. The
    /// directory needs a shell, the usual small programs, and perl or
    /// poweroff; a script is left in its `run`.
    ///
    /// # Errors
    ///
    /// As [`Vm::boot`].
    pub fn boot_root(options: &VmOptions) -> Result<Vm> {
        root::place_agent(options)?;
        Vm::start(options, &Purpose::Root(Init::Agent))
    }

    fn start(options: &VmOptions, purpose: &Purpose) -> Result<Vm> {
        let kit = Kit::open(options.offline)?;
        let mut boots = 1;
        loop {
            match Vm::start_once(&kit, options, purpose) {
                Err(error) if boots < MOST_BOOTS && emulator_failed(&error) => {
                    boots += 1;
                    tracing::warn!("{error:#}\nthe emulator ran stale code of the kernel; again");
                }
                done => return done,
            }
        }
    }

    fn start_once(kit: &Kit, options: &VmOptions, purpose: &Purpose) -> Result<Vm> {
        let start = Instant::now();
        let (scratch, listeners) = ports()?;
        let mut machine = Machine::start(kit, options, purpose, scratch)?;
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

    /// Runs a script that ends in a reboot, as `reboot -f` does, and waits until
    /// the guest takes commands again. Needs [`VmOptions::reboot`].
    ///
    /// # Errors
    ///
    /// As [`Vm::wait_ready`].
    pub fn reboot(&mut self, script: &str, limit: Duration) -> Result<()> {
        let agent = self.agent.as_mut();
        agent
            .context("the guest takes no more scripts")?
            .start(script)?;
        self.wait_ready(limit)
    }

    /// Waits until a guest that boots again has mounted its shares and takes
    /// commands. Needs [`VmOptions::reboot`].
    ///
    /// # Errors
    ///
    /// When QEMU ends, a share cannot be mounted, or time is up.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let mut agent = self
            .agent
            .take()
            .context("the guest takes no more scripts")?;
        let machine = &mut self.machine;
        match agent.ready_again(Instant::now() + limit, &mut || machine.alive()) {
            Ok(_) => {
                self.agent = Some(agent);
                Ok(())
            }
            Err(error) => Err(machine.explain("the guest did not boot again", &error)),
        }
    }

    /// Gives QEMU's monitor a command (`stop`, `cont`, `system_reset`,
    /// `info mtree`) and returns what it prints.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer within [`MONITOR_LIMIT`], or ends.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let deadline = Instant::now() + MONITOR_LIMIT;
        let monitor = self.machine.monitor.clone();
        let machine = &mut self.machine;
        let said = monitor.ask(line, deadline, &mut || machine.alive());
        said.map_err(|error| machine.explain(&format!("the monitor's {line:?}"), &error))
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

    /// What the `share`th daemon has said so far; nothing if it was not
    /// started for this guest.
    pub fn daemon_log(&self, share: usize) -> String {
        let daemon = self.daemon(share);
        daemon.map(Process::said).unwrap_or_default()
    }

    fn daemon(&self, share: usize) -> Option<&Process> {
        self.machine.daemons.get(share)?.as_ref()
    }

    /// Where the `share`th daemon listens, for another guest's
    /// [`ShareOptions::socket`](super::ShareOptions::socket).
    pub fn socket(&self, share: usize) -> Option<PathBuf> {
        self.machine.socket(share)
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> i32 {
        self.machine.qemu.pid()
    }

    /// Id of the process that serves, of the `share`th daemon.
    pub fn daemon_pid(&self, share: usize) -> Option<i32> {
        self.daemon(share).map(|daemon| serving(daemon.pid()))
    }

    /// Kills QEMU with no warning.
    pub fn kill_qemu(&mut self) {
        self.machine.qemu.kill();
    }

    /// Kills the `share`th daemon with no warning.
    pub fn kill_daemon(&mut self, share: usize) {
        if let Some(Some(daemon)) = self.machine.daemons.get_mut(share) {
            daemon.kill();
        }
    }

    /// Waits for QEMU's end and tells how it ended; none if it still runs.
    pub fn wait_for_qemu(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.machine.qemu.wait(limit)
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

/// Whether a boot failed by QEMU's emulator alone, and is worth another.
fn emulator_failed(error: &anyhow::Error) -> bool {
    let failure: Option<&VmFailure> = error.downcast_ref();
    failure.is_some_and(|failure| failure.stale_code)
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
