//! A disk whose back end is another program maps guest memory by itself, and
//! would see zeros for what a window in one piece shows: it keeps windows from
//! being in one piece, or is refused.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use daxwindow_vm::{Dax, Kit, Vm, VmOptions, host_command, kernel_module};
use tempfile::TempDir;

use super::{LIMIT, MIB, Share, assert_quiet, dir, eventually, options, run};

const DISK_BYTES: u64 = 4 * MIB;
/// Bytes that are carried over.
pub(super) const LEN: usize = 256 << 10;

/// A raw image that qemu-storage-daemon offers as a vhost-user-blk device.
pub(super) struct Disk {
    storage: Child,
    place: TempDir,
}

impl Disk {
    pub(super) fn start() -> Disk {
        let place = dir();
        let kit = Kit::open(false).expect("a kit");
        let program = "qemu-utils:qemu-storage-daemon";
        let mut command = host_command(&kit, program).expect("in the kit");
        let image = place.path().join("image");
        let bytes: Vec<u8> = (0..DISK_BYTES).map(|at| (at >> 9) as u8 ^ 0x5a).collect();
        std::fs::write(&image, bytes).expect("written");
        let socket = place.path().join("socket");
        command.arg("--blockdev").arg(format!(
            "driver=file,node-name=image,filename={}",
            image.display()
        ));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=disk,node-name=image,writable=on,num-queues=2,\
             addr.type=unix,addr.path={}",
            socket.display()
        ));
        let storage = command.stdin(Stdio::null()).spawn().expect("starts");
        let disk = Disk { storage, place };
        eventually("the disk's socket", || disk.socket().exists());
        disk
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.place.path().join("socket")
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        read(&self.place.path().join("image"))
    }

    pub(super) fn is_served(&mut self) -> bool {
        self.storage.try_wait().expect("our child").is_none()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.storage.kill();
        let _ = self.storage.wait();
    }
}

pub(super) fn read(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    let file = std::fs::File::open(path).expect("open");
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// A guest that can drive such a disk.
pub(super) fn with_disk_driver(options: &mut VmOptions) {
    let kit = Kit::open(false).expect("a kit");
    let module = kernel_module(&kit, "virtio_blk").expect("in the kit");
    options.files = vec![("/virtio_blk.ko.xz".into(), module)];
}

/// The guest loads the driver and waits for the disk.
pub(super) const FIND_DISK: &str = "lsmod | grep -q virtio_blk || insmod /virtio_blk.ko.xz
until [ -b /dev/vda ]; do sleep 0.05; done; cat /sys/block/vda/size";

/// O_DIRECT from the disk into a mapping of `file`, and the complement of it
/// from there to the disk: right on the host, on both sides.
#[track_caller]
pub(super) fn assert_carried(vm: &mut Vm, disk: &Disk, share: &Share, file: &str) {
    let before = disk.bytes();
    let line = format!(
        "guest_probe direct /dev/vda /mnt/{}/{file} --len {LEN}",
        share.name
    );
    let carried = vm.sh_within(&line, LIMIT).expect("an end");
    assert_eq!(
        carried.stdout,
        format!("read: {LEN}\nwrite: {LEN}\n"),
        "{carried:?}"
    );
    let wanted: Vec<u8> = before.iter().map(|byte| !byte).collect();
    assert!(disk.bytes() == wanted, "the disk has what was stored");
    assert!(read(&share.path(file)) == wanted, "and the file");
}

#[test]
fn beside_a_disk_of_another_back_end_a_window_is_not_in_one_piece() {
    let disk = Disk::start();
    let share = Share::new("files", 64 * MIB, "auto");
    let whole = Share::new("whole", 64 * MIB, "whole");
    for share in [&share, &whole] {
        std::fs::write(share.path("mapped"), vec![b'm'; 24 << 20]).expect("written");
    }
    let mut whole_options = whole.options.clone();
    whole_options.dax = Dax::Inode;
    let mut options = options(&[&share]);
    options.shares.push(whole_options);
    with_disk_driver(&mut options);
    options.qemu_arguments = [
        "-chardev".to_owned(),
        format!("socket,id=disk,path={}", disk.socket().display()),
        "-device".to_owned(),
        "vhost-user-blk-pci,chardev=disk".to_owned(),
    ]
    .into();
    let mut vm = Vm::boot(&options).expect("boots");
    run(&mut vm, FIND_DISK);
    assert_ranges(&share);
    let log = vm.daemon_log(0);
    assert!(
        log.contains("the window is not in one piece: another"),
        "{log}"
    );
    let touch = "guest_probe touch /mnt/files/mapped --ranges 12";
    run(&mut vm, touch);
    assert!(share.live_ranges() >= 12);
    for _ in 0..3 {
        assert_carried(&mut vm, &disk, &share, "mapped");
    }
    // Whoever wants it in one piece or not at all gets requests.
    assert_eq!(run(&mut vm, "head -c 3 /mnt/whole/mapped"), "mmm");
    let status = whole.status();
    assert_eq!(status["dax"]["verdict"], "off", "{status:#}");
    assert_eq!(status["dax"]["reason"], "not-whole", "{status:#}");
    assert_eq!(whole.live_ranges(), 0);
    assert_carried(&mut vm, &disk, &whole, "mapped");
    assert_quiet(&vm, 2);
    vm.shutdown().expect("powers off");
}

#[track_caller]
pub(super) fn assert_ranges(share: &Share) {
    let (way, why) = share.way();
    assert_eq!(way, "ranges");
    let why = why.unwrap_or_default();
    assert!(why.contains("another vhost-user back end"), "{why}");
}
