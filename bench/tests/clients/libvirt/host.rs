//! A machine with libvirt: its daemons in a container, and both programs that
//! serve shares.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daxwindow_vm::kernel::Kernel;
use daxwindow_vm::{Container, Debian, Inmate, Kit, daemon_program, initramfs_with_busybox};

use super::domain::{Domain, INIT, INITRAMFS, KERNEL, PLUGGED, SHARE};

/// Whatever is waited for takes seconds; this is for machines with other work.
const LIMIT: Duration = Duration::from_secs(300);
const PACKAGES: [&str; 5] = [
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "qemu-system-x86",
    "virtiofsd",
];
/// Where programs that serve shares are found.
pub(crate) const DISCOVERY: &str = "/usr/share/qemu/vhost-user";
/// Somebody without privileges.
const USER: &str = "somebody";
const UID: u32 = 1000;
/// The folder that is somebody's own.
pub(crate) const HOME: &str = "/srv/somebody";

/// What the packages' scripts would have made. libvirt has no security module
/// here; QEMU is run by a user of its own all the same.
const SETUP: &str = r#"set -e
groupadd --system kvm
groupadd --system libvirt
useradd --system --user-group --uid 64055 --home-dir /var/lib/libvirt libvirt-qemu
useradd --uid 1000 --user-group --no-create-home --home-dir /srv/somebody somebody
install -d -o somebody -g somebody /srv/somebody /srv/somebody/run
install -d -o libvirt-qemu -g libvirt-qemu /var/lib/libvirt/qemu
echo 'security_driver = "none"' >> /etc/libvirt/qemu.conf
echo 'log_outputs = "2:file:/var/log/libvirt/libvirtd.log"' >> /etc/libvirt/libvirtd.conf
cat /proc/sys/kernel/random/uuid | tr -d - > /etc/machine-id
daxwindowd --version
virtlogd --daemon
libvirtd --daemon
"#;

/// The container, with libvirt's daemons running in it.
pub(crate) struct Host {
    container: Container,
}

impl Host {
    pub(crate) fn start() -> Host {
        let kit = Kit::open(false).expect("kit");
        let layers = Debian::layers(&kit, "libvirt", &PACKAGES).expect("in the kit");
        let container = Container::start(&layers).expect("starts");
        let kernel = Kernel::find(&kit).expect("in the kit");
        let daemon = daemon_program().expect("built in the same profile");
        let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/dist");
        let discovered = format!("{DISCOVERY}/60-daxwindowd.json");
        for (from, to) in [
            (&*kernel.image, KERNEL),
            (&*daemon, "/usr/bin/daxwindowd"),
            (&*dist.join("60-daxwindowd.json"), &*discovered),
        ] {
            container.copy(from, to).expect("copied");
        }
        let image = initramfs_with_busybox(&kit, INIT).expect("made");
        let host = Host { container };
        host.write(INITRAMFS, image);
        for folder in [SHARE, PLUGGED] {
            fs::create_dir(host.path(folder)).expect("made");
        }
        host.run(&["sh", "-c", SETUP]);
        let version = host.system().ok(&["version"]);
        eprintln!("{}", version.trim());
        host
    }

    /// Runs a command as root, which must end well.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.container.run(words).and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{words:?}: {error:#}"))
    }

    /// Ends the daemon that answers virsh, and starts it again.
    pub(crate) fn restart_libvirt(&self) {
        self.run(&["sh", "-c", "kill $(cat /run/libvirtd.pid)"]);
        self.wait_for("the end of libvirtd", || {
            let processes = self.container.processes();
            processes.iter().all(|inmate| inmate.name != "libvirtd")
        });
        self.run(&["libvirtd", "--daemon"]);
    }

    /// Kills the first process of that name with no warning.
    pub(crate) fn kill(&self, name: &str) {
        let processes = self.container.processes();
        let pids = processes.iter().filter(|inmate| inmate.name == name);
        let pid = pids.map(|inmate| inmate.pid).min();
        let pid = pid.unwrap_or_else(|| panic!("no {name}\n{}", self.report()));
        self.run(&["sh", "-c", &format!("kill -9 {pid}")]);
    }

    /// Where a path is from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.container.path(inside)
    }

    pub(crate) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(path), bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    pub(crate) fn write_program(&self, path: &str, text: &str) {
        self.write(path, text);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(path), executable).expect("ours");
    }

    /// What is in a file of the container; nothing if there is none.
    pub(crate) fn read(&self, path: &str) -> String {
        let bytes = fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The processes that serve shares, virtiofsd's too.
    pub(crate) fn serving(&self) -> Vec<Inmate> {
        let serves = |inmate: &Inmate| {
            inmate.name.starts_with("daxwindowd") || inmate.name.starts_with("virtiofsd")
        };
        let all = self.container.processes().into_iter();
        all.filter(serves).collect()
    }

    /// Whether one of them was told of this directory.
    pub(crate) fn serves(&self, directory: &str) -> bool {
        let told = |inmate: &Inmate| inmate.words.iter().any(|word| word == directory);
        self.serving().iter().any(told)
    }

    /// Waits until nothing serves a share.
    pub(crate) fn wait_until_none_serves(&self) {
        self.wait_for("no process of a share", || self.serving().is_empty());
    }

    pub(crate) fn wait_for(&self, what: &str, done: impl FnMut() -> bool) {
        if !within(done) {
            panic!("{what}: not within {LIMIT:?}\n{}", self.report());
        }
    }

    /// Everything that helps to understand a failure.
    pub(crate) fn report(&self) -> String {
        let script = "tail -n 25 /srv/*.console /var/log/libvirt/*.log /var/log/libvirt/qemu/*.log \
                      /srv/somebody/*.console /srv/somebody/.cache/libvirt/qemu/log/*.log";
        let logs = self.container.run(&["sh", "-c", script]);
        let logs = logs.map(|output| output.stdout).unwrap_or_default();
        let processes = self.container.processes();
        let lines = processes.iter().map(|inmate| format!("{inmate:?}\n"));
        format!("{}{logs}", lines.collect::<String>())
    }

    /// libvirt of the system.
    pub(crate) fn system(&self) -> Virsh<'_> {
        let words = ["virsh", "--quiet", "--connect", "qemu:///system"];
        Virsh::new(self, &words)
    }

    /// libvirt of a user without privileges.
    pub(crate) fn session(&self) -> Virsh<'_> {
        let id = UID.to_string();
        let (home, run) = (
            format!("HOME={HOME}"),
            format!("XDG_RUNTIME_DIR={HOME}/run"),
        );
        let user = format!("USER={USER}");
        let mut words = vec!["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
        words.extend(["env", &home, &run, &user]);
        words.extend(["virsh", "--quiet", "--connect", "qemu:///session"]);
        Virsh::new(self, &words)
    }
}

fn within(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// One way to libvirt.
pub(crate) struct Virsh<'a> {
    host: &'a Host,
    words: Vec<String>,
}

impl<'a> Virsh<'a> {
    fn new(host: &'a Host, words: &[&str]) -> Virsh<'a> {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Virsh { host, words }
    }

    /// What virsh prints, or with which error it ends.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<String, String> {
        let own = self.words.iter().map(String::as_str);
        let all: Vec<&str> = own.chain(words.iter().copied()).collect();
        let output = self.host.container.run(&all).expect("starts");
        match output.status {
            0 => Ok(output.stdout),
            _ => Err(output.stderr),
        }
    }

    /// The same of a command that must succeed.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.ask(words);
        said.unwrap_or_else(|error| panic!("virsh {words:?}: {error}\n{}", self.host.report()))
    }

    pub(crate) fn define(&self, domain: &Domain) {
        let file = format!("/srv/{}.xml", domain.name);
        self.host.write(&file, domain.xml());
        self.ok(&["define", &file]);
    }

    /// Starts a domain, whose console is empty then.
    pub(crate) fn start(&self, domain: &Domain) {
        let _ = fs::remove_file(self.host.path(&domain.console));
        self.ok(&["start", domain.name]);
    }

    /// Waits until the guest's console has a line so many times.
    pub(crate) fn wait_for_line(&self, domain: &Domain, line: &str, times: usize) {
        let what = format!("{line:?} on the console of {}", domain.name);
        self.host.wait_for(&what, || {
            let console = self.host.read(&domain.console);
            let found = console.lines().filter(|found| found.trim_end() == line);
            assert!(!console.contains("NO SHARE"), "{}", self.host.report());
            found.count() >= times
        });
    }

    /// Waits until the domain has ended by itself.
    pub(crate) fn wait_until_off(&self, domain: &Domain) {
        self.host.wait_for("the domain's end", || {
            self.ok(&["domstate", domain.name]).trim() == "shut off"
        });
    }
}
