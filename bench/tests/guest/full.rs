//! A host file system without room, under files with holes in a guest's
//! window. Needs root, for file systems of the tests' own.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use daxwindow_vm::{Dax, Output, ShareOptions, Vm, VmOptions, example};

use crate::mounted::Mounted;

const SIGBUS: i32 = 7;
/// What a shell makes of it.
const BUS_ERROR: i32 = 128 + SIGBUS;
const HOLE: u64 = 4 << 20;

/// A tmpfs of 16 MiB with a sparse file.
fn disk() -> Mounted {
    let disk = Mounted::new("tmpfs", "size=16m");
    let file = std::fs::File::create(disk.path().join("sparse")).expect("made");
    file.set_len(HOLE).expect("a hole");
    disk
}

fn share(disk: &Mounted, name: &str, flags: &[&str]) -> ShareOptions {
    let mut share = ShareOptions::new(disk.path(), Dax::Always);
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.window_bytes = 32 << 20;
    share.daemon_arguments = flags.iter().map(|flag| (*flag).to_owned()).collect();
    share
}

fn sh(vm: &mut Vm, script: &str) -> Output {
    vm.sh(script).expect("an end")
}

#[test]
fn a_store_into_a_hole_of_a_full_disk_ends_the_program_and_not_the_guest() {
    let (disk, other) = (disk(), disk());
    let shares = vec![
        share(&disk, "kept", &[]),
        share(&other, "lost", &["--dax-allocate-below", "0"]),
    ];
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    let mut vm = Vm::boot(&options).expect("boots");

    let fill = "echo there >/kept/whole; cat /dev/zero >/kept/ballast";
    let filled = sh(&mut vm, fill);
    assert!(
        filled.stderr.contains("No space left on device"),
        "{filled:?}"
    );
    let store = sh(&mut vm, "guest_probe store /kept/sparse 3000000 text");
    assert_eq!(store.status, BUS_ERROR, "{store:?}");
    let write = "printf text | dd of=/kept/sparse bs=1 seek=3000000 conv=notrunc";
    let write = sh(&mut vm, write);
    assert!(
        write.stderr.contains("No space left on device"),
        "{write:?}"
    );
    // All else goes on, and this too when there is room: some time after the
    // file was removed, since the guest waits for no answer when it forgets.
    let others = "cat /kept/whole && printf over | dd of=/kept/ballast conv=notrunc && sync \
        && rm /kept/ballast || exit 1; n=0
        until guest_probe store /kept/sparse 3000000 text >&2; do
            n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1
        done; sync";
    let others = sh(&mut vm, others);
    assert_eq!(
        (others.stdout.as_str(), others.status),
        ("there\n", 0),
        "{others:?}"
    );
    let bytes = std::fs::read(disk.path().join("sparse")).expect("readable");
    assert_eq!(&bytes[3_000_000..3_000_004], b"text");
    let blocks = disk
        .path()
        .join("sparse")
        .metadata()
        .expect("there")
        .blocks();
    assert_eq!(blocks * 512, 2 << 20, "one range of two");

    // Without room made first, the one who stores is QEMU.
    sh(
        &mut vm,
        "guest_probe store /lost/sparse 0 text; cat /dev/zero >/lost/ballast",
    );
    let store = vm.sh_within(
        "guest_probe store /lost/sparse 1000000 text",
        Duration::from_secs(300),
    );
    assert!(store.is_err(), "{store:?}");
    let status = vm.wait_for_qemu(Duration::from_secs(300)).expect("ended");
    assert_eq!(status.signal(), Some(SIGBUS), "{}", vm.qemu_log());
}
