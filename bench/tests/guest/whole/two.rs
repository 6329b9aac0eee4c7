//! Two shares of two daemons in one VM, and a disk of another back end that is
//! plugged into it while it runs; before that, a share of an overlay. QEMU has
//! given up root.

use std::os::unix::fs::PermissionsExt;

use daxwindow_vm::{Dax, Vm};

use super::disks::{Disk, FIND_DISK, LEN, assert_carried, assert_ranges, read, with_disk_driver};
use super::layers::{Image, ranges_show_the_copy};
use super::{LIMIT, MIB, Share, assert_quiet, assert_sums, options, regions, run};

/// `source` is too small for DAX, so its requests have buffers; `mapped` is not.
fn share(name: &'static str, seed: u8) -> Share {
    let mut share = Share::new(name, 64 * MIB, "auto");
    share.options.dax = Dax::Inode;
    let rule = ["--dax-min-size", "1M"].map(str::to_owned);
    share.options.daemon_arguments.extend(rule);
    let bytes = |len: usize| (0..len).map(|at| seed ^ (at >> 12) as u8 ^ at as u8);
    let source: Vec<u8> = bytes(512 << 10).collect();
    let mapped: Vec<u8> = bytes(24 << 20).map(|byte| !byte).collect();
    std::fs::write(share.path("source"), source).expect("written");
    std::fs::write(share.path("mapped"), mapped).expect("written");
    share
}

#[test]
fn two_windows_of_two_daemons_and_a_disk_that_comes_later() {
    let (left, right) = (share("left", 7), share("right", 200));
    let image = Image::new();
    let mut options = options(&[&left, &right, &image.share]);
    with_disk_driver(&mut options);
    let port = "pcie-root-port,id=port0,chassis=1,slot=1";
    let arguments = ["-device", port, "-run-with", "user=nobody"];
    options.qemu_arguments = arguments.map(str::to_owned).into();
    let mut vm = Vm::boot(&options).expect("boots");
    ranges_show_the_copy(&mut vm, &image, 2);
    run(
        &mut vm,
        "for share in left right; do
            guest_probe touch /mnt/$share/mapped --ranges 12 || exit
        done >/dev/null",
    );
    for share in [&left, &right] {
        assert_eq!(share.way(), ("whole".into(), None));
        assert!(share.live_ranges() >= 12);
    }
    assert_eq!(regions(&mut vm), 2);
    for (source, mapped) in [
        (&left, &left),
        (&left, &right),
        (&right, &left),
        (&right, &right),
    ] {
        assert_refused(&mut vm, source, mapped);
    }
    a_disk_is_refused_while_files_are_mapped(&mut vm, &left, &right);
    assert_quiet(&vm, 3);
    vm.shutdown().expect("powers off");
}

/// O_DIRECT from a file into a mapping, and back: a daemon does not see files
/// in a window in one piece, its own or another's. The one request fails, and
/// nothing changes but what the guest stores by itself.
#[track_caller]
fn assert_refused(vm: &mut Vm, source: &Share, mapped: &Share) {
    let (from, to) = (source.path("source"), mapped.path("mapped"));
    let before = (read(&from), read(&to));
    let line = format!(
        "guest_probe direct /mnt/{}/source /mnt/{}/mapped --len {LEN}",
        source.name, mapped.name
    );
    let carried = vm.sh_within(&line, LIMIT).expect("an end");
    assert_eq!(
        carried.stdout, "read: EFAULT\nwrite: EFAULT\n",
        "{carried:?}"
    );
    assert!(read(&from) == before.0, "nothing was written");
    let stored: Vec<u8> = before.1.iter().map(|byte| !byte).collect();
    assert!(read(&to) == stored, "what the guest stored");
}

fn plug(vm: &mut Vm, disk: &Disk) -> String {
    let socket = disk.socket();
    // QEMU has to get there, and is nobody.
    for path in [socket.parent().expect("a folder"), &socket] {
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, mode).expect("ours");
    }
    let chardev = format!("chardev-add socket,id=disk,path={}", socket.display());
    let said = vm.monitor(&chardev).expect("answered");
    let device = "device_add vhost-user-blk-pci,id=disk,bus=port0,chardev=disk";
    said + &vm.monitor(device).expect("answered")
}

fn a_disk_is_refused_while_files_are_mapped(vm: &mut Vm, left: &Share, right: &Share) {
    let mut disk = Disk::start();
    let image = disk.bytes();
    let said = plug(vm, &disk);
    assert!(said.contains("vhost_backend_init failed"), "{said:?}");
    assert!(vm.is_running());
    let log = vm.qemu_log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("daxwindow: "))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("is refused") && lines[0].contains("--dax-mapping ranges"));
    for share in [left, right] {
        // QEMU tries several times.
        assert!(share.number("/window/library/refused_devices") >= 1);
        assert_eq!(share.way().0, "whole");
        assert_sums(vm, share, &["source", "mapped"]);
    }
    assert!(disk.bytes() == image);
    // Nothing is mapped.
    let removed = vm.monitor("chardev-remove disk").expect("answered");
    assert_eq!(removed, "");
    run(vm, "umount /mnt/left /mnt/right");
    assert_eq!(plug(vm, &disk), "");
    run(vm, FIND_DISK);
    assert!(disk.is_served());
    for share in [left, right] {
        let name = share.name;
        let mount = format!("mount -t virtiofs -o dax=inode {name} /mnt/{name}");
        run(vm, &mount);
        run(
            vm,
            &format!("guest_probe touch /mnt/{name}/mapped --ranges 3"),
        );
        assert_ranges(share);
        assert!(share.live_ranges() >= 3);
        assert_carried(vm, &disk, share, "mapped");
    }
}
