//! Host file systems on which a VMM that maps writable only (QEMU) would be
//! in trouble: overlayfs, which copies a file up when it is opened for
//! writing, and files that cannot be. Needs root.
//!
//! One boot, whose root file system is an overlay over a Debian, as a
//! container's is.

use std::fs;
use std::path::Path;

use daxwindow_vm::{Dax, Debian, Kit, ShareOptions, Vm, VmOptions};
use rustix::fs::{IFlags, ioctl_setflags};

use crate::counted::Counted;
use crate::mounted::Mounted;

const SIZE: usize = 3_000_123;

fn share(folder: &Path, name: &str, dax: Dax) -> ShareOptions {
    let mut share = ShareOptions::new(folder, dax);
    share.plain_mount = dax == Dax::Inode;
    share.tag = name.into();
    share.mount_at = Some(format!("/mnt/{name}"));
    share.window_bytes = 32 << 20;
    share
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh(script).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}\n{error:#}"))
}

fn bytes(seed: u32) -> Vec<u8> {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8;
    (0..SIZE as u32).map(byte).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("readable");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("entry").file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn an_overlay_boots_and_what_cannot_be_opened_for_writing_is_read_all_the_same() {
    let kit = Kit::open(false).expect("kit");
    let debian = Debian::find(&kit).expect("made, which needs root");
    let (lower, disk) = (tempfile::tempdir(), Mounted::new("tmpfs", ""));
    let lower = lower.expect("directory");
    fs::write(lower.path().join("file"), bytes(1)).expect("written");
    let folder = |name: &str| {
        let folder = disk.path().join(name);
        fs::create_dir(&folder).expect("made");
        folder
    };
    let (root_above, some_above, all_above) = (folder("root"), folder("some"), folder("all"));
    let root = Mounted::overlay(debian.root(), &root_above);
    let some = Mounted::overlay(lower.path(), &some_above);
    let all = Mounted::overlay(lower.path(), &all_above);
    let fixed = Mounted::new("tmpfs", "");
    fs::write(fixed.path().join("file"), bytes(2)).expect("written");
    fixed.make_readonly();
    let immutable = Mounted::new("tmpfs", "");
    let path = immutable.path().join("file");
    fs::write(&path, bytes(3)).expect("written");
    let file = fs::File::open(&path).expect("there");
    ioctl_setflags(&file, IFlags::IMMUTABLE).expect("on tmpfs");

    let mut first = ShareOptions::new(root.path(), Dax::Inode);
    first.plain_mount = true;
    let mut vm = Vm::boot_root(&VmOptions::new(vec![
        first,
        share(some.path(), "some", Dax::Inode),
        share(all.path(), "all", Dax::Always),
        share(fixed.path(), "fixed", Dax::Inode),
        share(immutable.path(), "immutable", Dax::Inode),
    ]))
    .expect("boots from the overlay");

    let sums = "cd /mnt && sha256sum some/file all/file fixed/file immutable/file";
    let sums = run(&mut vm, sums);
    let want = tempfile::tempdir().expect("directory");
    for (name, seed) in [("some", 1), ("all", 1), ("fixed", 2), ("immutable", 3)] {
        fs::create_dir(want.path().join(name)).expect("made");
        fs::write(want.path().join(name).join("file"), bytes(seed)).expect("written");
    }
    let mut host = std::process::Command::new("sha256sum");
    host.args(["some/file", "all/file", "fixed/file", "immutable/file"]);
    let host = host.current_dir(want.path()).output().expect("starts");
    assert_eq!(sums, String::from_utf8_lossy(&host.stdout));
    // Read, and not copied: but where every file was asked for.
    assert_eq!(names(&some_above.join("upper")), Vec::<String>::new());
    assert_eq!(names(&all_above.join("upper")), ["file"]);
    let refused = "touch /mnt/fixed/file /mnt/immutable/file";
    let refused = vm.sh(refused).expect("an end").stderr;
    assert!(refused.contains("Read-only file system"), "{refused}");
    assert!(refused.contains("Operation not permitted"), "{refused}");
    // Writes, by both ways.
    let write = "for s in some all; do
        printf over | dd of=/mnt/$s/file bs=1 seek=2500000 conv=notrunc 2>/dev/null
        printf end >>/mnt/$s/file; mv /mnt/$s/file /mnt/$s/moved; sync; done";
    run(&mut vm, write);
    let mut changed = bytes(1);
    changed[2_500_000..2_500_004].copy_from_slice(b"over");
    changed.extend_from_slice(b"end");
    for above in [&some_above, &all_above] {
        let bytes = fs::read(above.join("upper/moved")).expect("in the upper layer");
        assert!(bytes == changed, "{above:?}");
    }
    assert!(fs::read(lower.path().join("file")).expect("there") == bytes(1));

    // The system itself, as in a container: changes lie in the upper layer.
    let installed = run(
        &mut vm,
        "dpkg -i /srv/packages/hello_*.deb >/dev/null && hello",
    );
    assert_eq!(installed, "Hello, world!\n");
    let upper = root_above.join("upper");
    assert!(upper.join("usr/bin/hello").is_file());
    assert!(!upper.join("usr/bin/dpkg").exists(), "read, not copied up");
    assert!(!debian.root().join("usr/bin/hello").exists());

    for (index, name) in ["root", "some", "all", "fixed", "immutable"]
        .iter()
        .enumerate()
    {
        let counted = Counted::by(&vm, index);
        let dax = *name == "all";
        assert_eq!(counted.window("setups") > 0, dax, "{name}: {counted:?}");
        assert_eq!(counted.window("refusals"), 0, "{name}: {counted:?}");
        assert_eq!(counted.requests("Read") == 0, dax, "{name}: {counted:?}");
    }
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    ioctl_setflags(&file, IFlags::empty()).expect("for whoever cleans up");
}
