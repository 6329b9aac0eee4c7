//! A QEMU in the background, into which a share is plugged and out of which it
//! is pulled again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daxwindow_vm::{Vm, daemon_program};

use super::{
    LIMIT, MIB, Share, assert_quiet, assert_sums, eventually, expect_regions, options, pattern, run,
};

/// More often than a process has windows.
const PLUGS: usize = 10;

/// Until the guest's driver has both devices.
const AWAIT_DEVICE: &str = "cd /sys/bus/virtio/drivers/virtiofs
until [ $(ls -d virtio* | wc -l) = 2 ]; do sleep 0.05; done
until [ $(cat /sys/fs/virtiofs/*/tag | wc -l) = 2 ]; do sleep 0.05; done";

/// A daemon for one share, killed on drop.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(share: &Share, place: &Path) -> (Daemon, PathBuf) {
        let (socket, log) = (place.join("socket"), place.join("log"));
        let mut command = Command::new(daemon_program().expect("built"));
        command.arg("--socket-path").arg(&socket);
        command.arg("--shared-dir").arg(share.folder.path());
        command.args(["--tag", share.name, "--dax", "always", "--keep-serving"]);
        command.args(["--dax-window", &share.options.window_bytes.to_string()]);
        command.args(&share.options.daemon_arguments);
        let file = std::fs::File::create(&log).expect("created");
        let child = command.stdin(Stdio::null()).stderr(file).spawn();
        let child = child.expect("starts");
        eventually("the daemon listens", || socket.exists());
        (Daemon { child, log }, socket)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("read")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_share_is_plugged_and_pulled_in_a_vm_in_the_background() {
    let stays = Share::new("stays", 64 * MIB, "auto");
    let comes = Share::new("comes", 64 * MIB, "whole");
    for share in [&stays, &comes] {
        pattern(share.folder.path(), 1, 40_000_123, &[]);
    }
    let place = super::dir();
    let (daemon, socket) = Daemon::start(&comes, place.path());
    let mut options = options(&[&stays]);
    options.background = true;
    // The firmware leaves room for the window.
    let port = "pcie-root-port,id=port0,chassis=1,slot=1,pref64-reserve=256M";
    options.qemu_arguments = ["-device", port].map(str::to_owned).into();
    let mut vm = Vm::boot(&options).expect("boots");
    let touch = |name: &str| format!("guest_probe touch /mnt/{name}/pattern-0 --ranges 20");
    run(&mut vm, &touch("stays"));
    stays.assert_whole();
    for plug in 0..PLUGS {
        let chardev = format!("chardev-add socket,id=comes,path={}", socket.display());
        assert_eq!(vm.monitor(&chardev).expect("answered"), "");
        let device = "device_add vhost-user-test-device-pci,id=comes,bus=port0,chardev=comes,\
            virtio-id=26,num_vqs=2,config_size=40,vq_size=128";
        assert_eq!(vm.monitor(device).expect("answered"), "", "plug {plug}");
        run(&mut vm, AWAIT_DEVICE);
        run(&mut vm, &format!("mkdir -p /mnt/comes; {}", comes.mount()));
        run(&mut vm, &touch("comes"));
        comes.assert_whole();
        assert!(comes.live_ranges() >= 20, "plug {plug}");
        expect_regions(&mut vm, 2);
        if plug == 0 {
            assert_sums(&mut vm, &comes, &["pattern-0"]);
        }
        // The last time with ranges mapped: the guest's kernel (7.3) gives up
        // the window's pages, uses them later, and complains of that (seen).
        // QEMU goes on, and so does the other share.
        if plug + 1 < PLUGS {
            run(&mut vm, "umount /mnt/comes");
        } else {
            assert_quiet(&vm, 1);
        }
        assert_eq!(vm.monitor("device_del comes").expect("answered"), "");
        eventually("the device is gone", || {
            !vm.monitor("info qtree")
                .expect("answered")
                .contains("id \"comes\"")
        });
        eventually("its connection can be closed", || {
            vm.monitor("chardev-remove comes")
                .expect("answered")
                .is_empty()
        });
        eventually("the daemon is ready again", || {
            daemon.log().matches("waiting for the next client").count() > plug
        });
        run(&mut vm, "umount /mnt/comes 2>/dev/null; true");
        assert!(vm.is_running(), "plug {plug}");
        expect_regions(&mut vm, 1);
    }
    run(&mut vm, &touch("stays"));
    assert_sums(&mut vm, &stays, &["pattern-0"]);
    stays.assert_whole();
    let log = daemon.log();
    assert!(
        !log.contains("panicked") && !log.contains("internal error"),
        "{log}"
    );
    // It may be gone before it answers.
    let _ = vm.monitor("quit");
    assert!(vm.wait_for_qemu(LIMIT).is_some());
}
