//! What is read-only stays so, whatever the guest does.

use std::os::unix::process::ExitStatusExt;

use daxwindow_vm::Vm;

use super::{LIMIT, MIB, Share, eventually, run};

const SIGSEGV: i32 = 11;
const FILE: &str = "pattern-0";

fn bytes(share: &Share) -> Vec<u8> {
    std::fs::read(share.path(FILE)).expect("read")
}

/// The guest mounts it writable, for all that the daemon knows.
pub(super) fn a_readonly_share_cannot_be_written(vm: &mut Vm, share: &Share) {
    let before = bytes(share);
    // An empty window, of which the guest has no reason to take ranges back.
    let again = format!("umount /mnt/fixed && {}", share.mount());
    run(vm, &again);
    run(vm, "guest_probe touch /mnt/fixed/pattern-0 --ranges 3");
    share.assert_whole();
    assert_eq!(share.live_ranges(), 3);
    let store = "mount -o remount,rw /mnt/fixed
        guest_probe store /mnt/fixed/pattern-0 0 harm 2>&1";
    let stored = vm.sh_within(store, LIMIT).expect("an end");
    assert_ne!(stored.status, 0, "{stored:?}");
    assert!(
        stored.stdout.contains("Read-only file system"),
        "{stored:?}"
    );
    run(vm, "mount -o remount,ro /mnt/fixed");
    assert!(bytes(share) == before, "the host's file");
}

/// The guest's kernel finds the file in the window and stores into it. Its
/// processor cannot, which ends QEMU; the file is what it was, and the daemons
/// serve on.
pub(super) fn a_hostile_store_harms_its_vm_alone(vm: &mut Vm, share: &Share, other: &Share) {
    // As above: the file's first range is there.
    let again = format!("umount /mnt/fixed && {}", share.mount());
    run(vm, &again);
    run(vm, "guest_probe touch /mnt/fixed/pattern-0 --ranges 1");
    let before = bytes(share);
    let base = share.number("/window/guest_physical_base");
    let first = before.first_chunk().map(|first| u64::from_le_bytes(*first));
    let wanted = format!("0x{:016X}", first.expect("eight bytes"));
    let places = (0..16).map(|range| (base + range * 2 * MIB).to_string());
    let places: Vec<String> = places.collect();
    let find = format!(
        "for at in {}; do [ $(devmem $at 64) = {wanted} ] && echo $at; done; true",
        places.join(" ")
    );
    let found = run(vm, &find);
    let at = found.trim();
    assert!(places.iter().any(|place| place == at), "{found:?}");
    let stored = vm.sh_within(&format!("devmem {at} 64 0"), LIMIT);
    // Under TCG the store is QEMU's own.
    assert!(stored.is_err(), "{stored:?}");
    let ended = vm.wait_for_qemu(LIMIT).expect("ended");
    assert_eq!(ended.signal(), Some(SIGSEGV), "{ended:?}");
    assert!(bytes(share) == before, "the host's file");
    eventually("both daemons have seen the end of it", || {
        let is_live = |share: &Share| share.status()["session"]["live"] == true;
        !is_live(share) && !is_live(other)
    });
}
