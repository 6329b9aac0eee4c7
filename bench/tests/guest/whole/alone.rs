//! One VM with three shares whose QEMU has no system call to spare, and what
//! happens to a VM in its life: pauses, resets, new drivers, truncated files, a
//! dead daemon, a hostile guest.

use std::process::Command;

use daxwindow_vm::Vm;

use super::{
    LIMIT, MIB, Share, assert_quiet, assert_sums, complaints, ends, eventually, expect_regions,
    options, pattern, regions, run, truncated,
};

/// Of the wide window. The guest begins to give ranges back when a fifth is free.
const RANGES: u64 = 700;
const PAUSES: usize = 12;
const RESETS: usize = 2;
const REBINDS: usize = 4;

/// Reads ranges of all shares through mappings, all verified.
const TOUCH: &str = "guest_probe touch /mnt/wide/pattern-0 --ranges 700 >/dev/null &&
guest_probe touch /mnt/narrow/pattern-1 --ranges 6 >/dev/null &&
guest_probe touch /mnt/fixed/pattern-2 --ranges 6 >/dev/null";

/// Threads map and upgrade ranges under pressure until they are told to stop.
const WORK: &str = "rm -f /tmp/stop
while [ ! -e /tmp/stop ]; do
    guest_probe stress /mnt/narrow --threads 4 --seconds 1 --write || exit
done >/tmp/worked 2>&1 &
echo $! >/tmp/worker";
const AT_WORK: &str = "kill -0 $(cat /tmp/worker) || { cat /tmp/worked; exit 1; }";
const WORKED: &str = "touch /tmp/stop
while kill -0 $(cat /tmp/worker) 2>/dev/null; do sleep 0.05; done
grep -v 'all right' /tmp/worked >&2 && exit 1
grep -c 'all right' /tmp/worked";

/// A driver of its own for each device that had one.
const REBIND: &str = "cd /sys/bus/virtio/drivers/virtiofs
for device in virtio*; do echo $device >unbind; echo $device >bind; done";

struct Scene {
    wide: Share,
    narrow: Share,
    fixed: Share,
    vm: Vm,
}

impl Scene {
    fn boot() -> Scene {
        let wide = Share::new("wide", 2048 * MIB, "whole");
        let narrow = Share::new("narrow", 32 * MIB, "whole");
        let mut fixed = Share::new("fixed", 32 * MIB, "auto");
        pattern(wide.folder.path(), 1, 2048 * MIB, &["--sparse"]);
        std::fs::write(wide.path("short"), "short\n").expect("written");
        std::fs::copy("/bin/true", wide.path("program")).expect("copied");
        pattern(narrow.folder.path(), 5, 12_000_123, &[]);
        fixed.options.readonly = true;
        pattern(fixed.folder.path(), 3, 12_000_123, &[]);
        let mut options = options(&[&wide, &narrow, &fixed]);
        let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        options.qemu_arguments = ["-sandbox", sandbox].map(str::to_owned).into();
        // Guests may be hostile: this one may map what it likes.
        options.kernel_arguments = ["iomem=relaxed", "nopat"].map(str::to_owned).into();
        let vm = Vm::boot(&options).expect("boots");
        Scene {
            wide,
            narrow,
            fixed,
            vm,
        }
    }

    fn shares(&self) -> [&Share; 3] {
        [&self.wide, &self.narrow, &self.fixed]
    }

    /// Maps ranges of all shares and looks at bytes of all.
    #[track_caller]
    fn assert_right(&mut self) {
        run(&mut self.vm, TOUCH);
        expect_regions(&mut self.vm, 3);
        self.shares().iter().for_each(|share| share.assert_whole());
        assert!(self.wide.live_ranges() >= RANGES);
        assert_sums(&mut self.vm, &self.wide, &["short", "program"]);
        assert_sums(&mut self.vm, &self.narrow, &["pattern-0"]);
        assert_sums(&mut self.vm, &self.fixed, &["pattern-1"]);
    }

    /// Waits for ranges to be mapped that were not before.
    #[track_caller]
    fn await_maps(&mut self) {
        let Scene { narrow, vm, .. } = self;
        let setups = || narrow.number("/mappings/setups");
        let before = setups();
        eventually("ranges are mapped", || {
            run(vm, AT_WORK);
            setups() > before + 4
        });
    }
}

#[test]
fn one_region_shows_every_file_and_survives_what_befalls_a_vm() {
    let mut scene = Scene::boot();
    windows_are_offered_in_full(&mut scene);
    programs_run_on_the_host_while_they_are_mapped(&mut scene);
    an_unmount_is_one_message(&mut scene);
    pauses_under_traffic_are_not_felt(&mut scene);
    resets_with_ranges_mapped_are_survived(&mut scene);
    new_drivers_with_ranges_mapped_leave_dead_mounts(&mut scene);
    truncated::files_end_and_grow_under_readers(&mut scene.vm, &scene.wide);
    scene.assert_right();
    ends::a_readonly_share_cannot_be_written(&mut scene.vm, &scene.fixed);
    a_dead_daemon_costs_the_others_nothing(&mut scene);
    assert_quiet(&scene.vm, 3);
    ends::a_hostile_store_harms_its_vm_alone(&mut scene.vm, &scene.fixed, &scene.wide);
}

fn windows_are_offered_in_full(scene: &mut Scene) {
    scene.assert_right();
    let offered = scene.wide.number("/window/offered_bytes");
    assert_eq!(offered, 2048 * MIB);
    let log = scene.vm.daemon_log(0);
    assert!(log.contains("in one piece"), "{log}");
    assert_eq!(complaints(&scene.vm), Vec::<String>::new());
}

fn programs_run_on_the_host_while_they_are_mapped(scene: &mut Scene) {
    let hold = "guest_probe hold /mnt/wide/program --ranges 1 >/tmp/held 2>&1 </dev/null &
        echo $! >/tmp/holder; until grep ready /tmp/held; do sleep 0.05; done";
    run(&mut scene.vm, hold);
    let program = scene.wide.path("program");
    let ran = Command::new(program).status().expect("no ETXTBSY");
    assert!(ran.success(), "{ran}");
    run(&mut scene.vm, "kill $(cat /tmp/holder)");
}

/// The guest sends DESTROY, and QEMU is asked once, whatever is mapped.
fn an_unmount_is_one_message(scene: &mut Scene) {
    let removals = scene.wide.number("/mappings/removals");
    assert!(scene.wide.live_ranges() >= RANGES);
    assert_eq!(regions(&mut scene.vm), 3);
    run(&mut scene.vm, "umount /mnt/wide");
    assert_eq!(scene.wide.live_ranges(), 0);
    expect_regions(&mut scene.vm, 2);
    assert_eq!(scene.wide.number("/mappings/removals"), removals);
    assert_eq!(scene.wide.number("/mappings/failed_removals"), 0);
    run(&mut scene.vm, &scene.wide.mount());
    scene.assert_right();
    assert_eq!(complaints(&scene.vm), Vec::<String>::new());
}

fn pauses_under_traffic_are_not_felt(scene: &mut Scene) {
    run(&mut scene.vm, WORK);
    for pause in 0..PAUSES {
        scene.await_maps();
        scene.vm.monitor("stop").expect("stops");
        let status = scene.vm.monitor("info status").expect("answered");
        assert!(status.contains("paused"), "{status}");
        let said = scene.vm.monitor("cont").expect("goes on");
        assert_eq!(said, "", "pause {pause}");
    }
    scene.await_maps();
    run(&mut scene.vm, AT_WORK);
    run(&mut scene.vm, WORKED);
    scene.assert_right();
    assert_eq!(complaints(&scene.vm), Vec::<String>::new());
}

fn resets_with_ranges_mapped_are_survived(scene: &mut Scene) {
    for reset in 0..RESETS {
        let before = complaints(&scene.vm).len();
        run(&mut scene.vm, WORK);
        scene.await_maps();
        match reset % 2 {
            0 => {
                scene.vm.monitor("system_reset").expect("resets");
                scene.vm.wait_ready(LIMIT).expect("boots again");
            }
            _ => scene.vm.reboot("reboot -f", LIMIT).expect("boots again"),
        }
        scene.assert_right();
        let said = complaints(&scene.vm).split_off(before);
        assert!(said.len() <= scene.shares().len(), "{said:?}");
    }
}

fn new_drivers_with_ranges_mapped_leave_dead_mounts(scene: &mut Scene) {
    for rebind in 0..REBINDS {
        let before = complaints(&scene.vm).len();
        assert!(scene.wide.live_ranges() >= RANGES, "{rebind}");
        let said = run(&mut scene.vm, &format!("{REBIND}; ls /mnt/wide 2>&1; true"));
        assert!(
            said.contains("Transport endpoint is not connected"),
            "{said}"
        );
        for share in [&scene.wide, &scene.narrow, &scene.fixed] {
            let again = format!("umount /mnt/{} && {}", share.name, share.mount());
            run(&mut scene.vm, &again);
        }
        scene.assert_right();
        let said = complaints(&scene.vm).split_off(before);
        assert!(said.len() <= scene.shares().len(), "{said:?}");
    }
}

/// Its mappings go on as well; whoever asks it hangs.
fn a_dead_daemon_costs_the_others_nothing(scene: &mut Scene) {
    // An empty window, of which the guest has no reason to take ranges back.
    let hold = "rm -f /tmp/go; mkfifo /tmp/go; umount /mnt/narrow
        mount -t virtiofs -o dax=always narrow /mnt/narrow
        guest_probe hold /mnt/narrow/pattern-3 --ranges 6 </tmp/go >/tmp/held 2>&1 &
        sleep 1000 >/tmp/go & until grep ready /tmp/held; do sleep 0.05; done";
    run(&mut scene.vm, hold);
    scene.vm.kill_daemon(1);
    run(
        &mut scene.vm,
        "echo >/tmp/go; until grep same /tmp/held; do sleep 0.05; done",
    );
    let again = format!("umount /mnt/wide && {} && {TOUCH}", scene.wide.mount());
    let again = again.replace("/mnt/narrow/pattern-1", "/mnt/wide/pattern-0");
    run(&mut scene.vm, &again);
    scene.wide.assert_whole();
    scene.fixed.assert_whole();
    assert_sums(&mut scene.vm, &scene.wide, &["short", "program"]);
    assert_sums(&mut scene.vm, &scene.fixed, &["pattern-0"]);
}
