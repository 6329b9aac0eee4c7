//! Who starts virtiofsd how. The words are theirs but for what differs from
//! machine to machine: SOCKET and DIR are paths, GROUP is a group, NPROC the
//! number of processors, FILES microvm.nix's 1048576 where a process may open so
//! many files, and a passed descriptor has one digit.

use super::promises::Promise::{self, *};

/// One command line.
pub(crate) struct Line {
    /// The program, and its version.
    pub client: &'static str,
    /// Where it is written, in which commit.
    pub source: &'static str,
    pub words: &'static str,
    pub environment: &'static [(&'static str, &'static str)],
    /// Who runs it.
    pub user: u32,
    /// The host's owner of the share's directory, and of what root of the
    /// guest makes in it.
    pub owner: u32,
    pub promises: &'static [Promise],
}

const ROOT: u32 = 0;
/// Somebody's own machine.
const USER: u32 = 1000;
/// The user of KubeVirt's containers, which have no capabilities and get none.
pub(crate) const KUBEVIRT: u32 = 107;
/// Root of an Incus guest.
const SHIFTED: u32 = 1_000_000;

/// What most of them are.
const PLAIN: Line = Line {
    client: "",
    source: "",
    words: "",
    environment: &[],
    user: ROOT,
    owner: ROOT,
    promises: &[],
};

pub(crate) const LINES: &[Line] = &[
    Line {
        client: "Kata Containers 4.1.0, the runtime in Go",
        source: "kata-containers/kata-containers 7c6ba40c54, \
                 src/runtime/virtcontainers/virtiofsd.go, extra arguments of src/runtime/Makefile",
        words: "--syslog --cache=auto --shared-dir=DIR --fd=3 --thread-pool-size=1 \
                --announce-submounts",
        promises: &[CacheAuto, OwnMounts, Submounts, NoXattrs, NoInfo],
        ..PLAIN
    },
    Line {
        client: "Kata Containers 4.1.0, the runtime in Rust",
        source: "kata-containers/kata-containers 7c6ba40c54, src/runtime-rs/crates/resource/src/\
                 share_fs/share_virtio_fs_standalone.rs, src/runtime-rs/Makefile",
        words: "--socket-path SOCKET --shared-dir DIR --cache auto --thread-pool-size=1 \
                -o announce_submounts",
        promises: &[CacheAuto, OwnMounts, Submounts, NoXattrs, NoAcls],
        ..PLAIN
    },
    Line {
        client: "Incus 7.3, a guest of its own ids",
        source: "lxc/incus be7afc5df3, internal/server/device/device_utils_disk.go",
        words: "--fd=3 --cache=never --shared-dir=DIR --posix-acl=auto",
        promises: &[CacheNever, OwnMounts, Acls, Submounts],
        ..PLAIN
    },
    Line {
        client: "Incus 7.3, with a map of ids",
        source: "lxc/incus be7afc5df3, internal/server/device/device_utils_disk.go",
        words: "--fd=3 --cache=never --shared-dir=DIR \
                --translate-uid=map:0:1000000:1000000000 --translate-uid=forbid-guest:0:0 \
                --translate-gid=map:0:1000000:1000000000 --translate-gid=forbid-guest:0:0 \
                --translate-uid=forbid-guest:1000000000:3294967295 \
                --translate-gid=forbid-guest:1000000000:3294967295",
        owner: SHIFTED,
        promises: &[CacheNever, SeenAs(0), Fence, Forbidden(1_000_000_001)],
        ..PLAIN
    },
    Line {
        client: "Proxmox VE, qemu-server 9.2.6",
        source: "proxmox/qemu-server e6352be6, src/PVE/QemuServer/Virtiofs.pm",
        words: "--fd=8 --shared-dir=DIR --announce-submounts --syslog",
        promises: &[CacheAuto, OwnMounts, Submounts, NoXattrs, NoInfo],
        ..PLAIN
    },
    Line {
        client: "Proxmox VE, qemu-server 9.2.6, with all that a share can be told",
        source: "proxmox/qemu-server e6352be6, src/PVE/QemuServer/Virtiofs.pm",
        words: "--fd=8 --shared-dir=DIR --xattr --posix-acl --announce-submounts \
                --allow-direct-io --cache=metadata --inode-file-handles=prefer --syslog",
        promises: &[CacheMetadata, Submounts, Xattrs, Acls, DirectIo, NoInfo],
        ..PLAIN
    },
    Line {
        client: "Lima 2.2.0-rc.0",
        source: "lima-vm/lima 183a60d721, pkg/driver/qemu/qemu.go",
        words: "--socket-path SOCKET --shared-dir DIR",
        user: USER,
        owner: USER,
        promises: &[CacheAuto, OwnMounts, NoXattrs],
        ..PLAIN
    },
    Line {
        client: "Podman machine 6.0.0-dev",
        source: "containers/podman c6580b4a52, pkg/machine/qemu/virtiofsd.go",
        words: "--sandbox none --socket-path SOCKET --shared-dir . --seccomp=none",
        environment: &[("RUST_LOG", "ERROR")],
        user: USER,
        owner: USER,
        promises: &[CacheAuto, NoSandbox, NoXattrs, Silent],
    },
    Line {
        client: "Cloud Hypervisor 54, --fs",
        source: "cloud-hypervisor/cloud-hypervisor ae44c2971, docs/fs.md",
        words: "--log-level debug --socket-path=SOCKET --shared-dir=DIR --cache=never \
                --thread-pool-size=NPROC",
        promises: &[CacheNever, OwnMounts, Debug],
        ..PLAIN
    },
    Line {
        client: "Cloud Hypervisor 54, --generic-vhost-user",
        source: "cloud-hypervisor/cloud-hypervisor ae44c2971, docs/generic-vhost-user.md",
        words: "--tag=myfs --log-level=debug --socket-path=SOCKET --shared-dir=DIR",
        promises: &[CacheAuto, OwnMounts, Debug],
        ..PLAIN
    },
    Line {
        client: "microvm.nix",
        source: "microvm-nix/microvm.nix 71beea0, nixos-modules/microvm/virtiofsd/default.nix",
        words: "--socket-path=SOCKET --socket-group=GROUP --shared-dir=DIR \
                --rlimit-nofile FILES --thread-pool-size NPROC --posix-acl --xattr \
                --cache=auto --inode-file-handles=prefer",
        promises: &[CacheAuto, OwnMounts, Acls, Xattrs, Group, MostDescriptors],
        ..PLAIN
    },
    Line {
        client: "microvm.nix, the store for crosvm",
        source: "microvm-nix/microvm.nix 71beea0, nixos-modules/microvm/virtiofsd/default.nix",
        words: "--socket-path=SOCKET --socket-group=GROUP --shared-dir=DIR \
                --rlimit-nofile FILES --thread-pool-size NPROC --posix-acl --xattr \
                --cache=always --inode-file-handles=prefer --tag=ro-store --readonly",
        promises: &[ReadOnly, CacheAlways, Xattrs, Group, MostDescriptors],
        ..PLAIN
    },
    Line {
        client: "KubeVirt",
        source: "kubevirt/kubevirt d923fdb815, pkg/virt-controller/services/virtiofs.go",
        words: "--socket-path=SOCKET --shared-dir=DIR --sandbox=none --cache=auto \
                --migration-on-error=guest-error --migration-mode=find-paths",
        user: KUBEVIRT,
        owner: KUBEVIRT,
        promises: &[CacheAuto, NoSandbox, SeenAs(KUBEVIRT), TellsOfMigration],
        ..PLAIN
    },
    Line {
        client: "KubeVirt, a service account",
        source: "kubevirt/kubevirt d923fdb815, pkg/virt-controller/services/virtiofs.go",
        words: "--socket-path=SOCKET --shared-dir=DIR --sandbox=none --cache=auto \
                --migration-on-error=guest-error --migration-mode=find-paths \
                --translate-uid=host:107:0:1",
        user: KUBEVIRT,
        owner: KUBEVIRT,
        promises: &[CacheAuto, NoSandbox, SeenAs(0), TellsOfMigration],
        ..PLAIN
    },
    Line {
        client: "libvirt, a session",
        source: "libvirt/libvirt, src/qemu/qemu_virtiofs.c since separate-options",
        words: "--fd=4 --shared-dir DIR --uid-map=:0:1000:1: --gid-map=:0:1000:1:",
        user: USER,
        owner: USER,
        promises: &[CacheAuto, OwnMounts, SeenAs(0)],
        ..PLAIN
    },
    Line {
        client: "libvirt, in the old manner",
        source: "libvirt/libvirt, src/qemu/qemu_virtiofs.c without separate-options",
        words: "--fd=4 -o source=DIR,cache=always,sandbox=chroot,xattr,no_flock,no_posix_lock \
                --thread-pool-size=4 --rlimit-nofile=4096 -d",
        promises: &[CacheAlways, Chroot, Xattrs, Debug, Descriptors(4096)],
        ..PLAIN
    },
    Line {
        client: "RunCVM",
        source: "newsnowlabs/runcvm 38a1d0f008, runcvm-scripts/runcvm-ctr-virtiofsd",
        words: "-o modcaps=+sys_admin -o cache=always -o announce_submounts -o xattr \
                --socket-path=SOCKET -o source=DIR -o sandbox=chroot",
        promises: &[CacheAlways, Chroot, Submounts, Xattrs],
        ..PLAIN
    },
    Line {
        client: "systemd-vmspawn 262, --private-users=",
        source: "systemd/systemd, src/vmspawn/vmspawn.c",
        words: "--shared-dir DIR --xattr --fd 5 --no-announce-submounts --log-level=error \
                --modcaps=-mknod --translate-uid map:0:1000000:65536 \
                --translate-gid map:0:1000000:65536",
        owner: SHIFTED,
        promises: &[CacheAuto, SeenAs(0), NoSubmounts, Xattrs, NoNodes, Silent],
        ..PLAIN
    },
];
