//! What ends and begins again: mounts, guests, devices, pauses, VMMs and the
//! daemon itself. docs/vmm.md has the table of which these are the proof, and
//! says what a user can do about it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, example};

const LIMIT: Duration = Duration::from_secs(300);
const SIGSEGV: i32 = 11;

/// Reads a byte of each range of both files through mappings, all verified.
const TOUCH: &str = "for i in 0 1; do guest_probe touch /mnt/pattern-$i --ranges 20 || exit; done";
const RANGES: usize = 40;

/// A process keeps ranges mapped; a line into /tmp/go makes it look again.
const HOLD: &str = "rm -f /tmp/go; mkfifo /tmp/go
guest_probe hold /mnt/pattern-0 --ranges 20 </tmp/go >/tmp/held 2>&1 &
echo $! >/tmp/holder
sleep 1000 >/tmp/go &
until grep ready /tmp/held; do sleep 0.05; done";
const LOOK_AGAIN: &str = "echo >/tmp/go; until grep same /tmp/held; do sleep 0.05; done";
const LET_GO: &str = "kill $(cat /tmp/holder); until umount /mnt; do sleep 0.05; done";
const MOUNT: &str = "mount -t virtiofs -o dax=always daxwindow /mnt";
const REBIND: &str = "cd /sys/bus/virtio/drivers/virtiofs
for device in virtio*; do echo $device >unbind; echo $device >bind; done";
/// A request that needs an answer of the daemon: what it got in two seconds.
const ASK: &str = ">/tmp/got; head -c 10 /mnt/pattern-1 >/tmp/got & sleep 2; wc -c </tmp/got";

fn shared_directory() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("directory");
    let mut probe = Command::new(example("guest_probe").expect("built"));
    probe.args(["pattern", "--files", "2", "--bytes", "40000123"]);
    let made = probe.arg(folder.path()).output().expect("runs");
    assert!(made.status.success(), "{made:?}");
    folder
}

fn guest(shares: Vec<ShareOptions>) -> Vm {
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    options.reboot = true;
    Vm::boot(&options).expect("boots")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh_within(script, LIMIT).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}\n{}", vm.daemon_log(0)))
}

/// Regions of the window that QEMU has, by its own account.
fn live_ranges(vm: &mut Vm) -> usize {
    let tree = vm.monitor("info mtree").expect("answered");
    let regions = tree.lines().map(str::trim);
    let ranges = regions.filter(|line| line.contains("ram): virtio-shmem-"));
    ranges.collect::<BTreeSet<_>>().len()
}

/// QEMU takes regions away when it comes to it.
#[track_caller]
fn expect_live(vm: &mut Vm, ranges: usize) {
    let deadline = Instant::now() + LIMIT;
    let mut live = live_ranges(vm);
    while live != ranges && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        live = live_ranges(vm);
    }
    assert_eq!(live, ranges);
}

fn touch_all(vm: &mut Vm) {
    run(vm, TOUCH);
    expect_live(vm, RANGES);
}

/// The end of a mount is one DESTROY: the ranges are the daemon's to remove.
fn unmounts_leave_nothing(vm: &mut Vm) {
    for _ in 0..3 {
        touch_all(vm);
        run(vm, "umount /mnt");
        expect_live(vm, 0);
        run(vm, MOUNT);
    }
}

/// Where the mappings are not removed, the front end refuses the next ones.
fn left_ranges_break_the_next_mount(vm: &mut Vm) {
    let use_it = "mount -t virtiofs -o dax=always naive /naive
        guest_probe touch /naive/pattern-0 --ranges 2 >/dev/null; echo $?
        umount /naive";
    assert_eq!(run(vm, &format!("mkdir /naive; {use_it}")), "0\n");
    expect_live(vm, 2);
    // The trial at INIT finds the window taken, so no file has DAX, and that
    // is what this mount insists on.
    let read = use_it.replace(
        "umount",
        "head -c 1 /naive/pattern-1 2>&1 | tail -n 1; umount",
    );
    let said = run(vm, &read);
    assert!(
        said.starts_with("1\n") && said.contains("Connection refused"),
        "{said}"
    );
}

fn a_pause_is_not_felt(vm: &mut Vm) {
    run(vm, HOLD);
    vm.monitor("stop").expect("stops");
    let status = vm.monitor("info status").expect("answered");
    assert!(status.contains("paused"), "{status}");
    assert_eq!(vm.monitor("cont").expect("goes on"), "");
    run(vm, LOOK_AGAIN);
    touch_all(vm);
    run(vm, LET_GO);
}

fn a_reboot_after_unmounting_is_safe(vm: &mut Vm) {
    run(vm, &format!("{MOUNT}; {TOUCH}"));
    vm.reboot("umount /mnt; reboot -f", LIMIT)
        .expect("boots again");
    touch_all(vm);
}

fn a_new_driver_after_unmounting_is_safe(vm: &mut Vm) {
    run(vm, &format!("umount /mnt; {REBIND}; {MOUNT}"));
    touch_all(vm);
}

/// Mounts of FUSE that this process can see.
fn fuse_mounts() -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let fuse = mounts.lines().filter(|line| line.contains(" - fuse"));
    fuse.map(str::to_owned).collect()
}

/// Waits for the daemon to be ready again after its `count`th guest.
fn await_ready(vm: &Vm, count: usize) {
    let start = Instant::now();
    let ready = |log: &str| log.matches("waiting for the next client").count() >= count;
    while !ready(&vm.daemon_log(0)) {
        assert!(start.elapsed() < LIMIT, "{}", vm.daemon_log(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    let gone = vm.daemon_log(0).matches("client disconnected").count();
    assert_eq!(gone, count, "{}", vm.daemon_log(0));
}

/// What the daemon has open, sockets and pipes without their numbers. Nothing
/// of a guest or of a shared file may be among it.
fn open_descriptors(vm: &Vm, folder: &Path) -> Vec<String> {
    let process = format!("/proc/{}", vm.daemon_pid(0).expect("started here"));
    let inside = format!("{}/", folder.display());
    // Paths of a daemon that has the folder for its root begin there.
    let is_confined = std::fs::read_link(format!("{process}/ns/mnt")).expect("readable")
        != std::fs::read_link("/proc/self/ns/mnt").expect("readable");
    let names: Vec<String> = std::fs::read_dir(folder)
        .expect("readable")
        .map(|entry| format!("/{}", entry.expect("entry").file_name().display()))
        .collect();
    let is_inside = |target: &str| match is_confined {
        true => names.iter().any(|name| {
            let rest = target.strip_prefix(name.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }),
        false => target.starts_with(&inside),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("{process}/fd")).expect("readable") {
        let target = std::fs::read_link(entry.expect("entry").path());
        let Ok(target) = target else { continue };
        let target = target.display().to_string();
        let is_range = target
            .strip_prefix('/')
            .is_some_and(|n| n.parse::<u64>().is_ok());
        let of_guest = target.contains("memfd:") || is_inside(&target) || is_range;
        assert!(!of_guest, "{target}");
        found.push(target.split('[').next().unwrap_or_default().to_owned());
    }
    let maps = std::fs::read_to_string(format!("{process}/maps")).expect("readable");
    assert!(
        !maps.contains("memfd:") && !maps.contains(&inside),
        "{maps}"
    );
    found.sort();
    found
}

/// With memory slots offered, the default: unmounts, pauses, reboots and new
/// drivers after an unmount; VMMs that die; and what the default costs.
#[test]
fn one_daemon_outlives_mounts_pauses_and_guests() {
    let mounts_before = fuse_mounts();
    let folder = shared_directory();
    let mut naive = ShareOptions::new(folder.path(), Dax::Always);
    naive.daemon = Some(example("naive").expect("built"));
    naive.daemon_arguments = ["--leave-out", "unmap-at-end"].map(str::to_owned).into();
    naive.tag = "naive".into();
    naive.mount_at = None;
    let mut first = guest(vec![ShareOptions::new(folder.path(), Dax::Always), naive]);
    unmounts_leave_nothing(&mut first);
    a_pause_is_not_felt(&mut first);
    a_reboot_after_unmounting_is_safe(&mut first);
    a_new_driver_after_unmounting_is_safe(&mut first);
    run(&mut first, "umount /mnt");
    left_ranges_break_the_next_mount(&mut first);
    assert_eq!(first.kernel_warnings(), Vec::<String>::new());

    run(&mut first, &format!("{MOUNT}; {TOUCH}"));
    first.kill_qemu();
    await_ready(&first, 1);
    let descriptors = open_descriptors(&first, folder.path());
    assert_eq!(fuse_mounts().difference(&mounts_before).next(), None);

    let mut share = ShareOptions::new(folder.path(), Dax::Always);
    share.socket = first.socket(0);
    let mut second = guest(vec![share]);
    touch_all(&mut second);
    a_reset_with_ranges_mapped_ends_qemu(&mut second);
    await_ready(&first, 2);
    assert_eq!(open_descriptors(&first, folder.path()), descriptors);
    assert_eq!(second.kernel_warnings(), Vec::<String>::new());
}

/// Seen with QEMU 11.1.3: it drops its mappings at the reset without a word
/// to the daemon and dies of SIGSEGV when the guest's driver starts the device
/// anew. Nothing that the daemon could do comes in between.
fn a_reset_with_ranges_mapped_ends_qemu(vm: &mut Vm) {
    let again = vm.reboot("reboot -f", LIMIT);
    assert!(
        again.is_err(),
        "this QEMU survives a reset with mapped ranges although slots are \
         announced: good news, and --memory-slots and docs/vmm.md have to be \
         looked at again"
    );
    let status = vm.wait_for_qemu(LIMIT).expect("ended");
    assert_eq!(status.signal(), Some(SIGSEGV), "{again:?}");
}

/// Without memory slots: resets with ranges mapped are survived, pauses are
/// not; and the daemon's death, which is the same with slots.
#[test]
fn without_memory_slots_resets_are_survived_and_pauses_are_not() {
    let folder = shared_directory();
    let mut share = ShareOptions::new(folder.path(), Dax::Always);
    share.daemon_arguments = ["--memory-slots", "off"].map(str::to_owned).into();
    let mut vm = guest(vec![share]);
    unmounts_leave_nothing(&mut vm);
    touch_all(&mut vm);
    vm.reboot("reboot -f", LIMIT).expect("boots again");
    expect_live(&mut vm, 0);
    touch_all(&mut vm);
    a_new_driver_leaves_a_dead_mount(&mut vm);
    a_pause_takes_the_share_until_a_reset(&mut vm);
    a_dead_daemon_leaves_the_guest_what_is_mapped(&mut vm);
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

fn a_new_driver_leaves_a_dead_mount(vm: &mut Vm) {
    let said = run(vm, &format!("{REBIND}; ls /mnt 2>&1; umount /mnt; {MOUNT}"));
    assert!(
        said.contains("Transport endpoint is not connected"),
        "{said}"
    );
    touch_all(vm);
}

/// QEMU 11.1.3 sends the whole memory table at `cont`, which has room for
/// eight regions: the device does not start, and requests wait for ever.
fn a_pause_takes_the_share_until_a_reset(vm: &mut Vm) {
    run(vm, HOLD);
    vm.monitor("stop").expect("stops");
    let said = vm.monitor("cont").expect("goes on");
    assert!(
        said.contains("Error starting vhost-user-base: 105"),
        "this QEMU goes on after a pause without memory slots: good news, and \
         --memory-slots and docs/vmm.md have to be looked at again; it said {said:?}"
    );
    run(vm, LOOK_AGAIN);
    assert_eq!(run(vm, ASK), "0\n");
    vm.monitor("system_reset").expect("resets");
    vm.wait_ready(LIMIT).expect("boots again");
    touch_all(vm);
}

/// Loads and stores go on, and scripts run; whoever asks the daemon hangs and
/// cannot be killed. A power-off that neither syncs nor unmounts ends it.
fn a_dead_daemon_leaves_the_guest_what_is_mapped(vm: &mut Vm) {
    run(vm, HOLD);
    vm.kill_daemon(0);
    run(vm, LOOK_AGAIN);
    assert_eq!(run(vm, ASK), "0\n");
    let status = vm.monitor("info status").expect("answered");
    assert!(status.contains("running"), "{status}");
    let off = vm.sh_within("poweroff -f -n", LIMIT);
    assert!(off.is_err(), "{off:?}");
    let status = vm.wait_for_qemu(LIMIT).expect("ended");
    assert!(status.success(), "{status:?}");
}
