//! What a Linux guest makes of the requests that few file systems serve, on
//! shares with other flags each: names exchanged, whiteouts and overlays, mount
//! points, birth times, labels, groups, ids mapped, holes, direct I/O, caching.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use daxwindow_bench::vm::{Dax, Kit, ShareOptions, Vm, VmOptions, example, kernel_module};
use rustix::fs::{IFlags, ioctl_getflags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::counted::Counted;

/// In the order in which they are given to the guest.
const SHARES: [&str; 5] = ["inode", "always", "metadata", "never", "labels"];
const INODE: usize = 0;
const ALWAYS: usize = 1;
const METADATA: usize = 2;
const NEVER: usize = 3;

fn share(folder: &Path, name: &str) -> ShareOptions {
    let dax = if name == "inode" {
        Dax::Inode
    } else {
        Dax::Never
    };
    let mut share = ShareOptions::new(folder.join(name), dax);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.window_bytes = 64 << 20;
    let flags: &[&str] = match name {
        "inode" => &["--dax-min-size", "1M"],
        "always" => &["--cache", "always", "--writeback", "--allow-direct-io"],
        "metadata" => &["--cache", "metadata", "--allow-mmap"],
        "never" => &["--cache", "never"],
        _ => &["--security-label"],
    };
    share.daemon_arguments = flags.iter().map(|flag| (*flag).to_owned()).collect();
    // Flags DAX inodes one by one, which is what such a mount asks for.
    share.plain_mount = true;
    share
}

/// A guest, and where its shares are on the host.
struct Scene {
    vm: Vm,
    folder: PathBuf,
}

impl Scene {
    /// What a script prints; it has to succeed.
    #[track_caller]
    fn run(&mut self, script: &str) -> String {
        let output = self.vm.sh(script).and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    }

    /// What a script that fails says.
    #[track_caller]
    fn fails(&mut self, script: &str) -> String {
        let output = self.vm.sh(script).expect("ran");
        assert_ne!(output.status, 0, "{script}: {output:?}");
        output.stderr
    }

    /// A file of a share, on the host.
    fn host(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.host(path)).expect("read")
    }

    /// How many requests of a kind one more script costs.
    fn cost(&mut self, share: usize, kind: &str, script: &str) -> u64 {
        let before = Counted::by(&self.vm, share).requests(kind);
        self.run(script);
        Counted::by(&self.vm, share).requests(kind) - before
    }
}

/// A file system of the host below a share, unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf) -> Mounted {
        std::fs::create_dir(&path).expect("made");
        mount("none", &path, "tmpfs", MountFlags::empty(), None).expect("mounted");
        Mounted(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmounted");
    }
}

#[test]
fn what_few_file_systems_serve_is_served_in_a_real_guest() {
    let place = tempfile::tempdir().expect("directory");
    let shares: Vec<ShareOptions> = SHARES.map(|name| share(place.path(), name)).into();
    let _mounted = Mounted::at(place.path().join("inode/mounted"));
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    let tools = [
        "xfsprogs:xfs_io",
        "util-linux:setpriv",
        "mount:mount",
        "e2fsprogs:chattr",
        "e2fsprogs:lsattr",
    ];
    options.tools = tools.map(str::to_owned).into();
    let kit = Kit::open(false).expect("a kit");
    let module = kernel_module(&kit, "overlay").expect("in the kit");
    options.files = vec![("/overlay".into(), module)];
    // A security module, so that there are labels; without a policy it allows
    // everything.
    options.kernel_arguments = vec!["security=selinux".into(), "selinux=1".into()];
    let mut scene = Scene {
        vm: Vm::boot(&options).expect("boots"),
        folder: place.path().to_owned(),
    };
    names_change_places(&mut scene);
    special_files(&mut scene);
    holes_and_copies(&mut scene);
    mount_points(&mut scene);
    birth_times(&mut scene);
    groups(&mut scene);
    ids_mapped(&mut scene);
    overlays(&mut scene);
    labels(&mut scene);
    caches(&mut scene);
    direct(&mut scene);
    let mut vm = scene.vm;
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}

fn names_change_places(scene: &mut Scene) {
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

fn special_files(scene: &mut Scene) {
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

fn holes_and_copies(scene: &mut Scene) {
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

fn mount_points(scene: &mut Scene) {
    scene.run("echo below >/inode/mounted/file; mkdir /inode/mounted/dir");
    assert_eq!(scene.read("inode/mounted/file"), "below\n");
    let devices = scene.run("cd /inode; stat -c %d . mounted mounted/file mounted/dir");
    let devices: Vec<&str> = devices.lines().collect();
    assert!(devices[0] != devices[1], "{devices:?}");
    assert_eq!(devices[1..], [devices[1]; 3]);
    let shown = scene.run("df -P /inode/mounted; grep /inode/mounted /proc/mounts");
    assert!(shown.contains("/inode/mounted virtiofs"), "{shown}");
    let totals = rustix::fs::statfs(scene.host("inode/mounted")).expect("totals");
    let kilobytes = totals.f_blocks as u64 * totals.f_bsize as u64 / 1024;
    assert!(
        shown.contains(&kilobytes.to_string()),
        "{kilobytes}: {shown}"
    );
    assert!(scene.cost(INODE, "Syncfs", "sync") >= 2, "each of its own");
    assert!(
        scene
            .fails("cd /inode; ln b mounted/b")
            .contains("ross-device")
    );
}

fn birth_times(scene: &mut Scene) {
    scene.run("cd /inode; head -c 4194304 /dev/zero >mapped; echo >small; cat mapped >/dev/null");
    // Anew, so that the decision is taken with the size that it has now.
    scene.run("echo 2 >/proc/sys/vm/drop_caches; cat /inode/mapped >/dev/null");
    let modes = scene.run("cd /inode; guest_probe dax mapped small");
    assert_eq!(modes, "dax\nrequests\n");
    scene.run("guest_probe touch /inode/mapped --ranges 2");
    let before = Counted::by(&scene.vm, INODE);
    for (name, mask) in [("mapped", 0xbff), ("small", 0xfff)] {
        let told = scene.run(&format!("guest_probe born /inode/{name}"));
        let host = scene
            .host(&format!("inode/{name}"))
            .metadata()
            .expect("there");
        let born = host.created().expect("known").duration_since(UNIX_EPOCH);
        let born = born.expect("after 1970").as_nanos();
        let (bits, told) = told.trim().split_once(' ').expect("two words");
        // Those above are the guest kernel's own.
        let bits = u32::from_str_radix(bits, 16).expect("bits") & 0xfff;
        assert_eq!((bits, told), (mask, &*born.to_string()), "{name}");
    }
    let looked = scene
        .run("cd /inode; for i in 1 2 3; do guest_probe born mapped; stat -c '%s %b' mapped; done");
    assert!(looked.contains("4194304 8192"), "{looked}");
    scene.run("guest_probe touch /inode/mapped --ranges 2; guest_probe dax /inode/mapped");
    let after = Counted::by(&scene.vm, INODE);
    assert!(
        after.requests("Statx") >= before.requests("Statx") + 5,
        "{after:?}"
    );
    // Its inode was not dropped, and with it its mappings.
    for counter in ["setups", "removals"] {
        assert_eq!(after.window(counter), before.window(counter), "{counter}");
    }
    assert_eq!(after.requests("Forget"), before.requests("Forget"));
}

fn groups(scene: &mut Scene) {
    let member = "/usr/bin/setpriv --reuid 1000 --regid 1000 --groups 2000";
    scene
        .run("cd /inode; mkdir team hand; chown 0:2000 team hand; chmod 770 team; chmod 2770 hand");
    scene.run(&format!(
        "cd /inode; {member} touch team/f hand/f; {member} mkdir hand/d"
    ));
    let owner = |path: &str| {
        let found = scene.host(path).metadata().expect("there");
        (found.uid(), found.gid(), found.mode() & 0o7000)
    };
    assert_eq!(owner("inode/team/f"), (1000, 1000, 0));
    assert_eq!(owner("inode/hand/f"), (1000, 2000, 0));
    assert_eq!(owner("inode/hand/d"), (1000, 2000, 0o2000));
    let other = "/usr/bin/setpriv --reuid 1001 --regid 1001 --clear-groups touch /inode/team/g";
    assert!(scene.fails(other).contains("ermission denied"));
}

fn ids_mapped(scene: &mut Scene) {
    scene.run("mkdir /inode/ids /tmp/ids; chmod 777 /inode/ids; touch /inode/ids/five; chown 5:6 /inode/ids/five");
    scene.run("/usr/bin/mount --bind -o X-mount.idmap=b:0:1000:100 /inode/ids /tmp/ids");
    assert_eq!(scene.run("stat -c '%u %g' /tmp/ids/five"), "1005 1006\n");
    scene.run("cd /tmp/ids; /usr/bin/setpriv --reuid 1007 --regid 1008 --clear-groups touch seven");
    let seven = scene.host("inode/ids/seven").metadata().expect("there");
    assert_eq!((seven.uid(), seven.gid()), (7, 8));
    // Who has no id there can leave nothing there.
    scene.fails("cd /tmp/ids; /usr/bin/setpriv --reuid 5000 --regid 5000 --clear-groups touch no");
    scene.run("cd /; umount /tmp/ids");
}

fn overlays(scene: &mut Scene) {
    scene.run("unxz -c </overlay >/tmp/overlay.ko; insmod /tmp/overlay.ko");
    scene.run("cd /inode; mkdir -p lower/dir upper work upper2 work2; cd lower; for f in kept changed removed moved dir/inner; do echo $f >$f; done; mkdir /tmp/merged");
    for (upper, work, options) in [("upper", "work", ",userxattr"), ("upper2", "work2", "")] {
        scene.run(&format!(
            "/usr/bin/mount -t overlay overlay -o lowerdir=/inode/lower,upperdir=/inode/{upper},workdir=/inode/{work}{options} /tmp/merged"
        ));
        let merged = scene.run(
            "cd /tmp/merged; echo new >>changed; rm removed; mv moved elsewhere; rm -r dir; mkdir dir; \
             echo made >dir/made; find . | sort; cat kept changed elsewhere dir/made",
        );
        let names = ".\n./changed\n./dir\n./dir/made\n./elsewhere\n./kept\n";
        assert_eq!(merged, format!("{names}kept\nchanged\nnew\nmoved\nmade\n"));
        for name in ["removed", "moved"] {
            let whiteout = scene
                .host(&format!("inode/{upper}/{name}"))
                .symlink_metadata();
            let whiteout = whiteout.expect("there");
            assert!(
                whiteout.file_type().is_char_device() && whiteout.rdev() == 0,
                "{name}"
            );
        }
        let prefix = if options.is_empty() {
            "trusted"
        } else {
            "user"
        };
        let mut opaque = [0; 8];
        let dir = scene.host(&format!("inode/{upper}/dir"));
        let found = rustix::fs::getxattr(&dir, format!("{prefix}.overlay.opaque"), &mut opaque);
        assert_eq!((found, opaque[0]), (Ok(1), b'y'));
        assert_eq!(scene.read("inode/lower/changed"), "changed\n");
        scene.run("umount /tmp/merged");
    }
    // Again, over what is there now.
    scene.run(
        "/usr/bin/mount -t overlay overlay -o lowerdir=/inode/upper2:/inode/lower /tmp/merged",
    );
    assert_eq!(
        scene.run("cd /tmp/merged; ls; cat dir/*"),
        "changed\ndir\nelsewhere\nkept\nmade\n"
    );
    scene.run("umount /tmp/merged");
}

fn labels(scene: &mut Scene) {
    scene.run("cd /labels; echo x >file; mkdir dir; ln -s file link; mknod pipe p; xfs_io -T -c 'pwrite -q 0 1' -c 'flink /labels/tmp' .");
    let label = |path: &str| {
        let mut value = [0; 256];
        let len = rustix::fs::lgetxattr(scene.host(path), "security.selinux", &mut value);
        let len = len.unwrap_or_else(|errno| panic!("{path}: {errno}"));
        String::from_utf8_lossy(&value[..len]).into_owned()
    };
    let of_file = label("labels/file");
    assert!(!of_file.is_empty());
    for path in ["labels/dir", "labels/link", "labels/pipe", "labels/tmp"] {
        assert_eq!(label(path), of_file, "{path}");
    }
}

fn caches(scene: &mut Scene) {
    for name in &SHARES[ALWAYS..=NEVER] {
        std::fs::write(scene.host(&format!("{name}/file")), vec![b'.'; 9000]).expect("written");
        scene.run(&format!(
            "cat /{name}/file >/dev/null; ls /{name} >/dev/null"
        ));
    }
    let cat = |name: &str| format!("cat /{name}/file >/dev/null");
    let listed = |name: &str| format!("ls -a /{name} >/dev/null");
    assert_eq!(scene.cost(ALWAYS, "Read", &cat("always")), 0);
    assert!(scene.cost(METADATA, "Read", &cat("metadata")) > 0);
    assert!(scene.cost(NEVER, "Read", &cat("never")) > 0);
    let all = |scene: &mut Scene, share, script: &str| {
        scene.cost(share, "Readdir", script) + scene.cost(share, "Readdirplus", script)
    };
    assert_eq!(all(scene, ALWAYS, &listed("always")), 0);
    assert_eq!(all(scene, METADATA, &listed("metadata")), 0);
    assert!(all(scene, NEVER, &listed("never")) > 0);
    assert_eq!(Counted::by(&scene.vm, NEVER).requests("Readdirplus"), 0);
    let stat = |name: &str| format!("stat /{name}/file >/dev/null");
    assert_eq!(scene.cost(METADATA, "Lookup", &stat("metadata")), 0);
    assert!(scene.cost(NEVER, "Lookup", &stat("never")) > 0);

    assert!(
        scene
            .fails("guest_probe load /never/file 0 4")
            .contains("map")
    );
    assert_eq!(scene.run("guest_probe load /metadata/file 0 4"), "....");
    let bytes = |name: &str| format!("dd if=/dev/zero of=/{name}/new bs=1 count=500 2>/dev/null");
    assert_eq!(scene.cost(NEVER, "Write", &bytes("never")), 500);
    let kept_back = scene.cost(ALWAYS, "Write", &bytes("always"));
    assert!(kept_back < 20, "{kept_back} writes");
    assert_eq!(
        scene.host("always/new").metadata().expect("there").len(),
        500
    );
}

fn direct(scene: &mut Scene) {
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
    let path = scene.host("always/direct").canonicalize().expect("there");
    let flags = open_flags(pid, &path);
    scene.run("cat /tmp/hold >/dev/null");
    let direct = rustix::fs::OFlags::DIRECT.bits();
    assert!(flags.iter().any(|flags| flags & direct != 0), "{flags:?}");
}

/// open(2) flags of all descriptors that a process has of a file, `O_PATH`
/// aside.
fn open_flags(pid: i32, path: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list") {
        let entry = entry.expect("an entry");
        if !std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
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
