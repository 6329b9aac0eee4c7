//! The window in one piece, on a stock QEMU with the preloaded library.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use daxwindow_bench::vm::{Dax, ShareOptions, Vm, VmOptions, example, preload_library};

const LIMIT: Duration = Duration::from_secs(300);
const RANGE: u64 = 2 << 20;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("directory")
}

fn pattern(folder: &Path, files: usize, bytes: u64) {
    let mut probe = Command::new(example("guest_probe").expect("built"));
    probe.args(["pattern", "--files", &files.to_string()]);
    probe.args(["--bytes", &bytes.to_string()]);
    assert!(probe.arg(folder).status().expect("runs").success());
}

fn share(name: &str, folder: &Path, window_bytes: u64, mapping: &str) -> ShareOptions {
    let mut share = ShareOptions::new(folder, Dax::Always);
    share.tag = name.into();
    share.mount_at = Some(format!("/mnt/{name}"));
    share.window_bytes = window_bytes;
    share.daemon_arguments = vec!["--dax-mapping".into(), mapping.into()];
    share
}

fn boot(shares: Vec<ShareOptions>) -> Vm {
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    options.cpus = 2;
    options.reboot = true;
    options.preload = Some(preload_library().expect("built"));
    Vm::boot(&options).expect("boots")
}

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

#[test]
fn one_region_shows_every_file_and_survives_what_a_guest_does() {
    let folder = dir();
    pattern(folder.path(), 2, 40_000_123);
    std::fs::write(folder.path().join("short"), "short\n").expect("written");
    let mut vm = boot(vec![share("one", folder.path(), 256 << 20, "whole")]);
    assert_eq!(run(&mut vm, "cat /mnt/one/short"), "short\n");
    let touch = "for i in 0 1; do guest_probe touch /mnt/one/pattern-$i --ranges 20 || exit; done";
    run(&mut vm, touch);
    assert_eq!(regions(&mut vm), 1, "{}", vm.daemon_log(0));
    assert!(
        vm.daemon_log(0).contains("in one piece"),
        "{}",
        vm.daemon_log(0)
    );
    let _ = (Instant::now(), RANGE);
    vm.reboot("reboot -f", LIMIT)
        .expect("boots again with ranges mapped");
    run(&mut vm, touch);
    vm.shutdown().expect("powers off");
    println!("{}", vm.daemon_log(0));
}
