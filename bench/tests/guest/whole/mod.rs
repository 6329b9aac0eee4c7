//! The window in one piece, on a stock QEMU with the preloaded library:
//! whatever is done to the VM, to its files and to its daemons, QEMU goes on
//! and every byte is right. docs/vmm.md and docs/traps.md have the tables of
//! which these are the proof.

mod alone;
mod disks;
mod ends;
mod flags;
mod layers;
mod truncated;
mod two;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, daemon_status, example, preload_library};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

fn dir() -> TempDir {
    tempfile::tempdir().expect("directory")
}

/// Files that `guest_probe` can check.
fn pattern(folder: &Path, files: usize, bytes: u64, how: &[&str]) {
    let mut probe = Command::new(example("guest_probe").expect("built"));
    probe.args(["pattern", "--files", &files.to_string()]);
    probe.args(["--bytes", &bytes.to_string()]).args(how);
    assert!(probe.arg(folder).output().expect("runs").status.success());
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory that is shared, and where its daemon tells its status.
struct Share {
    name: &'static str,
    folder: TempDir,
    options: ShareOptions,
    status: PathBuf,
    _place: TempDir,
}

impl Share {
    /// At `/mnt/NAME`, with DAX for every file.
    fn new(name: &'static str, window_bytes: u64, mapping: &str) -> Share {
        let (folder, place) = (dir(), dir());
        let status = place.path().join("status");
        let mut options = ShareOptions::new(folder.path(), Dax::Always);
        options.tag = name.into();
        options.mount_at = Some(format!("/mnt/{name}"));
        options.window_bytes = window_bytes;
        let told = status.to_str().expect("UTF-8");
        let arguments = ["--dax-mapping", mapping, "--status-socket", told];
        options.daemon_arguments = arguments.map(str::to_owned).into();
        Share {
            name,
            folder,
            options,
            status,
            _place: place,
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn mount(&self) -> String {
        let readonly = if self.options.readonly { ",ro" } else { "" };
        let name = self.name;
        format!("mount -t virtiofs -o dax=always{readonly} {name} /mnt/{name}")
    }

    fn status(&self) -> Value {
        daemon_status(&self.status).expect("a status document")
    }

    #[track_caller]
    fn number(&self, pointer: &str) -> u64 {
        let status = self.status();
        let number = status.pointer(pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("no number {pointer}: {status:#}"))
    }

    /// `whole`, or `ranges` and why.
    fn way(&self) -> (String, Option<String>) {
        let status = self.status();
        let word = |key: &str| status["window"][key].as_str().map(str::to_owned);
        let mapping = word("mapping").expect("a word");
        (mapping, word("not_whole_because"))
    }

    #[track_caller]
    fn assert_whole(&self) {
        assert_eq!(self.way(), ("whole".into(), None), "{}", self.name);
        let verdict = &self.status()["dax"]["verdict"];
        assert_eq!(verdict, "on", "{}", self.name);
    }

    fn live_ranges(&self) -> u64 {
        self.number("/mappings/live_ranges")
    }
}

/// Two processors and the library.
fn options(shares: &[&Share]) -> VmOptions {
    let shares = shares.iter().map(|share| share.options.clone());
    let mut options = VmOptions::new(shares.collect());
    options.programs = vec![example("guest_probe").expect("built")];
    options.cpus = 2;
    options.reboot = true;
    options.preload = Some(preload_library().expect("built"));
    options
}

/// What a script prints that must succeed.
#[track_caller]
fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh_within(script, LIMIT).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}\n{}", vm.daemon_log(0)))
}

/// Regions of windows that QEMU has, by its own account.
fn regions(vm: &mut Vm) -> usize {
    let tree = vm.monitor("info mtree").expect("answered");
    let regions = tree.lines().map(str::trim);
    let ranges = regions.filter(|line| line.contains("ram): virtio-shmem-"));
    ranges.collect::<BTreeSet<_>>().len()
}

/// QEMU takes regions away when it comes to it.
#[track_caller]
fn expect_regions(vm: &mut Vm, count: usize) {
    eventually(&format!("{count} regions"), || regions(vm) == count);
}

/// `sha256sum` of a file on the host, and the same in the guest.
#[track_caller]
/// What the host has changed a guest sees when it looks at the attributes again.
fn assert_sums(vm: &mut Vm, share: &Share, files: &[&str]) {
    let files = files.join(" ");
    let host = Command::new("sh")
        .args(["-c", &format!("sha256sum {files}")])
        .current_dir(share.folder.path())
        .output()
        .expect("sha256sum");
    let host = String::from_utf8_lossy(&host.stdout);
    let ask = format!("cd /mnt/{} && sha256sum {files}", share.name);
    eventually(&format!("the guest has {host}"), || run(vm, &ask) == host);
}

/// What QEMU has said beside the library, which has to say nothing here.
#[track_caller]
fn complaints(vm: &Vm) -> Vec<String> {
    let log = vm.qemu_log();
    assert!(!log.contains("daxwindow: "), "{log}");
    log.lines().map(str::to_owned).collect()
}

/// Nobody noticed anything.
#[track_caller]
fn assert_quiet(vm: &Vm, shares: usize) {
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    for share in 0..shares {
        let log = vm.daemon_log(share);
        let is_quiet = !log.contains("panicked") && !log.contains("internal error");
        assert!(is_quiet, "{share}: {log}");
    }
}
