//! A machine of Debian's unstable release, with the programs that boot a
//! directory, and the daemon where they look for virtiofsd.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use daxwindow_vm::kernel::Kernel;
use daxwindow_vm::{Container, Debian, Inmate, Kit, daemon_program};

/// Whatever is waited for takes seconds; this is for machines with other work.
const LIMIT: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_millis(20);
const PACKAGES: [&str; 2] = ["systemd-container", "virtme-ng"];
/// Where both look.
pub(crate) const DAEMON: &str = "/usr/libexec/virtiofsd";
const KERNEL: &str = "/boot/vmlinuz";
/// What a command says.
const SAID: &str = "/srv/said";

/// The machine, and the command that runs on it.
pub(crate) struct Machine {
    container: Container,
    running: Option<Child>,
}

impl Machine {
    /// Runs the script `setup` on a machine that has started.
    pub(crate) fn start(setup: &str) -> Machine {
        let kit = Kit::open(false).expect("kit");
        let layers = Debian::unstable_layers(&kit, "clients", &PACKAGES).expect("in the kit");
        let container = Container::start(&layers).expect("starts");
        let kernel = Kernel::find(&kit).expect("in the kit");
        let daemon = daemon_program().expect("built in the same profile");
        for (from, to) in [(kernel.image, KERNEL), (daemon, DAEMON)] {
            container.copy(&from, to).expect("copied");
        }
        let machine = Machine {
            container,
            running: None,
        };
        machine.run(setup);
        machine
    }

    /// Runs a script as root, which must end well; returns what it prints.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.container.run(&["sh", "-e", "-c", script]);
        let output = output.and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    }

    /// Starts a script, and lets it run.
    pub(crate) fn begin(&mut self, script: &str) {
        let log = File::create(self.path(SAID)).expect("made");
        let mut command = self.container.command(&["sh", "-e", "-c", script]);
        command.stdout(log.try_clone().expect("a copy")).stderr(log);
        self.running = Some(command.spawn().expect("starts"));
    }

    /// Waits for that script's end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut child = self.running.take().expect("one was started");
        let mut status = None;
        self.wait_for("the end", || {
            status = child.try_wait().expect("ours");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Waits until a file is there, or the script has ended.
    pub(crate) fn wait_for_file(&mut self, path: &str) {
        let mut child = self.running.take().expect("one was started");
        let file = self.path(path);
        self.wait_for(path, || {
            let ended = child.try_wait().expect("ours");
            assert!(ended.is_none(), "{ended:?}: {}", self.said());
            file.exists()
        });
        self.running = Some(child);
    }

    fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < deadline, "{what}: {}", self.said());
            std::thread::sleep(STEP);
        }
    }

    /// Waits until nothing serves a share.
    pub(crate) fn wait_until_none_serves(&self) {
        self.wait_for("no daemon", || self.serving().is_empty());
    }

    /// The processes that serve shares.
    pub(crate) fn serving(&self) -> Vec<Inmate> {
        let all = self.container.processes().into_iter();
        all.filter(|inmate| inmate.words[0] == DAEMON).collect()
    }

    /// The command line of each daemon, in order.
    pub(crate) fn command_lines(&self) -> Vec<String> {
        let serving = self.serving().into_iter();
        let mut lines: Vec<String> = serving.map(|inmate| inmate.words.join(" ")).collect();
        lines.sort();
        lines.dedup();
        lines
    }

    /// Where a path is from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.container.path(inside)
    }

    pub(crate) fn read(&self, path: &str) -> String {
        let bytes = fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the script has said so far.
    pub(crate) fn said(&self) -> String {
        self.read(SAID)
    }
}
