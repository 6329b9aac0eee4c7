//! Large pages in QEMU: what lies in the host's page cache in folios of 2 MiB
//! is one page table entry of QEMU's, and so may be one of KVM's.

use std::process::Command;
use std::time::Duration;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example, preload_library};
use procfs::process::{MMapPath, Process};

use crate::mounted::Mounted;

const LIMIT: Duration = Duration::from_secs(300);
const RANGE: u64 = 2 << 20;
const RANGES: u64 = 12;

/// Of QEMU's mappings of a file of this name: bytes that page table entries of
/// 2 MiB map, and whether address and offset in the file agree modulo 2 MiB.
fn mapped_large(vm: &Vm, name: &str) -> (u64, bool) {
    let qemu = Process::new(vm.qemu_pid()).expect("it runs");
    let maps = qemu.smaps().expect("procfs").into_iter();
    let is_of_file = |path: &MMapPath| matches!(path, MMapPath::Path(path) if path.ends_with(name));
    let (mut bytes, mut agree) = (0, true);
    for map in maps.filter(|map| is_of_file(&map.pathname)) {
        let large = map.extension.map.get("ShmemPmdMapped");
        bytes += large.copied().unwrap_or_default();
        agree &= map.address.0 % RANGE == map.offset % RANGE;
    }
    (bytes, agree)
}

/// Where the guest has the window, by QEMU's account.
fn place_in_guest(vm: &mut Vm) -> u64 {
    let tree = vm.monitor("info mtree").expect("answered");
    let is_window = |line: &&str| line.contains("ram): virtio-shmem-");
    let region = tree.lines().find(is_window).expect("a window");
    let (start, _) = region.trim().split_once('-').expect("a range");
    u64::from_str_radix(start, 16).expect("an address")
}

#[test]
fn a_window_in_one_piece_is_mapped_by_large_pages() {
    let tmpfs = Mounted::new("tmpfs", "huge=always");
    let mut pattern = Command::new(example("guest_probe").expect("built"));
    pattern.args(["pattern", "--files", "1"]);
    pattern.args(["--bytes", &(RANGES * RANGE).to_string()]);
    let status = pattern.arg(tmpfs.path()).status().expect("runs");
    assert!(status.success());
    let mut share = ShareOptions::new(tmpfs.path(), Dax::Always);
    share.window_bytes = 64 << 20;
    share.daemon_arguments = vec!["--dax-mapping".into(), "whole".into()];
    let mut options = VmOptions::new(vec![share]);
    options.programs = vec![example("guest_probe").expect("built")];
    options.preload = Some(preload_library().expect("built"));
    let mut vm = Vm::boot(&options).expect("boots");
    for store in ["", "--write"] {
        let touch = format!("guest_probe touch /mnt/pattern-0 --ranges {RANGES} {store}");
        let touched = vm.sh_within(&touch, LIMIT).and_then(|output| output.ok());
        touched.unwrap_or_else(|error| panic!("{touch}: {error:#}\n{}", vm.daemon_log(0)));
        let found = mapped_large(&vm, "pattern-0");
        assert_eq!(found, (RANGES * RANGE, true), "{}", vm.daemon_log(0));
    }
    assert_eq!(place_in_guest(&mut vm) % RANGE, 0);
    vm.shutdown().expect("powers off");
}
