//! Names, special files, holes, copies, direct I/O.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags};

use super::{ALWAYS, INODE, Scene};

pub(super) fn names_change_places(scene: &mut Scene) {
    scene.run("cd /inode; echo a >a; echo b >b; guest_probe rename a b exchange");
    assert_eq!(
        (scene.read("inode/a"), scene.read("inode/b")),
        ("b\n".into(), "a\n".into())
    );
    assert!(
        scene
            .fails("guest_probe rename /inode/a /inode/b noreplace")
            .contains("exists")
    );
    scene.run("cd /inode; guest_probe rename a c noreplace; guest_probe rename c d whiteout");
    let left = scene.host("inode/c").symlink_metadata().expect("there");
    assert!(left.file_type().is_char_device() && left.rdev() == 0);
    assert_eq!(scene.read("inode/d"), "b\n");
    // A file without a name that gets one.
    scene.run("cd /inode; xfs_io -T -c 'pwrite -q 0 5' -c 'flink /inode/linked' .");
    assert_eq!(
        scene.host("inode/linked").metadata().expect("there").len(),
        5
    );
    // What somebody else appends in between stays.
    let script = "exec 3>>/inode/log; echo one >&3; echo two >>/inode/log; echo three >&3";
    scene.run(script);
    assert_eq!(scene.read("inode/log"), "one\ntwo\nthree\n");
}

pub(super) fn special_files(scene: &mut Scene) {
    scene.run("cd /inode; mknod null c 1 3; mknod pipe p; echo gone >null; ls -l null");
    let null = scene.host("inode/null").metadata().expect("there");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.len()), (0x103, 0));
    scene.run("cd /inode; cat pipe >out & echo through >/inode/pipe; wait");
    assert_eq!(scene.read("inode/out"), "through\n");

    let flags = scene.run("cd /inode; echo >flags; chattr +d flags; lsattr flags; lsattr -d .");
    assert!(
        flags.lines().next().expect("a line").contains('d'),
        "{flags}"
    );
    let file = std::fs::File::open(scene.host("inode/flags")).expect("open");
    assert!(
        ioctl_getflags(&file)
            .expect("flags")
            .contains(IFlags::NODUMP)
    );
    scene.run("chattr -d /inode/flags; chattr +i /inode/flags; ! echo x >>/inode/flags");
    assert!(
        ioctl_getflags(&file)
            .expect("flags")
            .contains(IFlags::IMMUTABLE)
    );
    scene.run("chattr -i /inode/flags; echo x >>/inode/flags");
}

pub(super) fn holes_and_copies(scene: &mut Scene) {
    let io = |commands: &str| format!("cd /inode; xfs_io -f {commands} holes");
    scene.run(&io(
        "-c 'pwrite -q -S 0x61 0 64k' -c 'fpunch 16k 16k' -c 'fzero 48k 4k'",
    ));
    let seek = scene.run(&io("-c 'seek -a -r 0'"));
    for line in ["DATA\t0", "HOLE\t16384", "DATA\t32768"] {
        assert!(seek.contains(line), "{seek}");
    }
    scene.run(&io("-c 'falloc -k 64k 64k' -c 'falloc 64k 4k'"));
    // Others than these three modes are not for FUSE, says the guest's kernel.
    scene.fails(&io("-c 'fcollapse 0 4k'"));
    let host = std::fs::read(scene.host("inode/holes")).expect("read");
    assert_eq!(host.len(), 68 << 10);
    let zeros = host.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zeros, (16 + 4 + 4) << 10);
    let blocks = scene
        .host("inode/holes")
        .metadata()
        .expect("there")
        .blocks();
    assert!(blocks * 512 >= 112 << 10, "{blocks} blocks");
    let copy = "cd /inode; xfs_io -f -c 'copy_range -s 0 -d 4096 -l 8192 holes' copy";
    let copies = |kind, scene: &mut Scene| scene.cost(INODE, kind, copy);
    let made = copies("CopyFileRange64", scene) + copies("CopyFileRange", scene);
    assert!(made > 0, "not copied by the host");
    let copy = std::fs::read(scene.host("inode/copy")).expect("read");
    assert_eq!(
        (&copy[4096..], copy[..4096].iter().any(|byte| *byte != 0)),
        (&host[..8192], false)
    );
}

pub(super) fn direct(scene: &mut Scene) {
    let io = "xfs_io -d -f -c 'pwrite -q -S 0x62 0 64k' -c 'pwrite -q -S 0x63 4k 512' \
              -c 'pread -q 0 64k' -c fsync /always/direct";
    scene.run(io);
    let mut expected = vec![b'b'; 64 << 10];
    expected[4096..4608].fill(b'c');
    assert!(std::fs::read(scene.host("always/direct")).expect("read") == expected);
    // Neither offsets nor lengths that any device has.
    let odd = "dd if=/always/direct iflag=direct bs=1001 skip=4 count=1 2>/dev/null | head -c 200 | tail -c 1";
    assert_eq!(scene.run(odd), "c");
    let sum = scene.run("dd if=/always/direct iflag=direct bs=64k 2>/dev/null | tr -d b | wc -c");
    assert_eq!(sum.trim(), "512");
    // The descriptors of the host have the flag while the guest has them open.
    let pid = scene.vm.daemon_pid(ALWAYS).expect("runs");
    let hold = "mkfifo /tmp/hold; dd if=/always/direct iflag=direct of=/tmp/hold >/dev/null 2>&1 &";
    scene.run(&format!("{hold} sleep 1"));
    let flags = open_flags(pid, &scene.host("always/direct"));
    scene.run("cat /tmp/hold >/dev/null");
    let direct = rustix::fs::OFlags::DIRECT.bits();
    assert!(flags.iter().any(|flags| flags & direct != 0), "{flags:?}");
}

/// open(2) flags of all descriptors that a process has of a file, `O_PATH`
/// aside. By number, since the process may have a root of its own.
fn open_flags(pid: i32, path: &Path) -> Vec<u32> {
    let number = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let wanted = number(path).expect("there");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list") {
        let entry = entry.expect("an entry");
        if !number(&entry.path()).is_ok_and(|number| number == wanted) {
            continue;
        }
        let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
        let info = std::fs::read_to_string(info).expect("still open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.expect("flags").trim(), 8).expect("octal");
        if flags & rustix::fs::OFlags::PATH.bits() == 0 {
            found.push(flags);
        }
    }
    found
}
