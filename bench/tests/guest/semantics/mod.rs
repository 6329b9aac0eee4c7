//! What a Linux guest makes of the requests that few file systems serve, on
//! shares with other flags each: names exchanged, whiteouts and overlays, mount
//! points, birth times, labels, groups, ids mapped, holes, direct I/O, caching.

mod attributes;
mod files;
mod mounts;

use std::path::{Path, PathBuf};

use daxwindow_vm::{Dax, Kit, ShareOptions, Vm, VmOptions, example, kernel_module};
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
    // Immutable files, `trusted.*` and labels take capabilities of the host.
    let flags: &[&str] = match name {
        "inode" => &[
            "--dax-min-size",
            "1M",
            "--xattr",
            "--modcaps=+sys_admin:+linux_immutable",
        ],
        "always" => &["--cache", "always", "--writeback", "--allow-direct-io"],
        "metadata" => &["--cache", "metadata", "--allow-mmap"],
        "never" => &["--cache", "never"],
        _ => &["--security-label", "--modcaps=+sys_admin"],
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
    files::names_change_places(&mut scene);
    files::special_files(&mut scene);
    files::holes_and_copies(&mut scene);
    mounts::mount_points(&mut scene);
    attributes::birth_times(&mut scene);
    attributes::groups(&mut scene);
    mounts::ids_mapped(&mut scene);
    mounts::overlays(&mut scene);
    attributes::labels(&mut scene);
    attributes::caches(&mut scene);
    files::direct(&mut scene);
    let mut vm = scene.vm;
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
