//! File systems of each kind, on images and directories of the tests' own.

use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};
use std::process::Command;

use daxwindow_vm::{Kit, host_command};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::common::{make_file, on_disk};

/// Bytes of the file `seed`, which each place has from the start.
pub(crate) const SEED_BYTES: usize = (1 << 20) + 5;
/// Names in the directory `many`.
pub(crate) const MANY: usize = 400;

/// A mounted file system; unmounted on drop.
pub(crate) struct Place {
    at: PathBuf,
    /// Unmounted from the last to the first.
    mounts: Vec<PathBuf>,
    _folder: TempDir,
}

impl Place {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// The image that it is mounted from.
    pub(crate) fn image(&self) -> PathBuf {
        self.at.with_file_name("image")
    }

    /// Mounts an overlay in `base`, over `lower` there, and goes there.
    fn lay_over(&mut self, base: &Path) {
        let parts = ["lower", "upper", "work", "merged"].map(|name| base.join(name));
        for part in &parts[1..] {
            std::fs::create_dir(part).expect("a directory");
        }
        let [lower, upper, work, merged] = parts;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = CString::new(options).expect("no zero");
        let flags = MountFlags::empty();
        mount("overlay", &merged, "overlay", flags, &*options).expect("mounted");
        self.mounts.push(merged.clone());
        self.at = merged;
    }

    /// Unmounts and mounts the image again, as after a power cut.
    pub(crate) fn mount_again(&self) {
        unmount(&self.at, UnmountFlags::empty()).expect("nobody is in it");
        mount_image(&self.image(), &self.at, "rw");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for place in self.mounts.iter().rev() {
            let _ = unmount(place, UnmountFlags::DETACH);
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program of a Debian package.
pub(crate) fn tool(spec: &str) -> Command {
    let kit = Kit::open(false).expect("a kit");
    host_command(&kit, spec).expect("in the kit")
}

/// What each place has from the start.
fn prepare(folder: &Path) {
    make_file(&folder.join("seed"), 1, SEED_BYTES);
    std::os::unix::fs::symlink("seed", folder.join("link")).expect("a link");
    let many = folder.join("many");
    std::fs::create_dir(&many).expect("a directory");
    for index in 0..MANY {
        std::fs::write(many.join(format!("a-file-with-some-name-{index}")), "").expect("made");
    }
}

pub(crate) fn mount_image(image: &Path, at: &Path, options: &str) {
    let mut command = Command::new("mount");
    command.arg("-o").arg(format!("loop,{options}"));
    run(command.arg(image).arg(at));
}

fn folders(folder: &TempDir, names: &[&str]) -> Vec<PathBuf> {
    let make = |name: &&str| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    };
    names.iter().map(make).collect()
}

/// A block file system on an image of so many bytes.
pub(crate) fn on_image(make: &mut Command, bytes: u64, options: &str) -> Place {
    let folder = on_disk();
    let image = folder.path().join("image");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(bytes))
        .expect("an image");
    run(make.arg(&image));
    let at = folders(&folder, &["at"]).remove(0);
    mount_image(&image, &at, options);
    prepare(&at);
    Place {
        mounts: vec![at.clone()],
        at,
        _folder: folder,
    }
}

pub(crate) fn ext4(options: &str) -> Place {
    let mut make = tool("e2fsprogs:mke2fs");
    on_image(make.args(["-q", "-t", "ext4"]), 64 << 20, options)
}

pub(crate) fn xfs() -> Place {
    on_image(tool("xfsprogs:mkfs.xfs").arg("-q"), 320 << 20, "rw")
}

pub(crate) fn btrfs() -> Place {
    on_image(tool("btrfs-progs:mkfs.btrfs").arg("-q"), 128 << 20, "rw")
}

pub(crate) fn tmpfs() -> Place {
    in_memory("tmpfs")
}

/// It has no file handles at all.
pub(crate) fn ramfs() -> Place {
    in_memory("ramfs")
}

fn in_memory(kind: &str) -> Place {
    let folder = on_disk();
    let at = folders(&folder, &["at"]).remove(0);
    mount(kind, &at, kind, MountFlags::empty(), c"size=64m").expect("mounted");
    prepare(&at);
    Place {
        mounts: vec![at.clone()],
        at,
        _folder: folder,
    }
}

/// As a container's root is: what it has lies in the lower layer, on ext4.
pub(crate) fn overlayfs() -> Place {
    let mut place = ext4("rw");
    let base = place.at.clone();
    let lower = base.join("lower");
    std::fs::create_dir(&lower).expect("a directory");
    for name in ["seed", "link", "many"] {
        std::fs::rename(base.join(name), lower.join(name)).expect("moved");
    }
    place.lay_over(&base);
    place
}

/// An overlay on tmpfs, with what `fill` makes in its lower layer.
pub(crate) fn overlay_over(fill: impl FnOnce(&Path)) -> Place {
    let mut place = tmpfs();
    let base = place.at.clone();
    let lower = base.join("lower");
    std::fs::create_dir(&lower).expect("a directory");
    fill(&lower);
    place.lay_over(&base);
    place
}

pub(crate) fn erofs() -> Place {
    let folder = on_disk();
    let parts = folders(&folder, &["tree", "at"]);
    prepare(&parts[0]);
    let image = folder.path().join("image");
    run(tool("erofs-utils:mkfs.erofs").arg(&image).arg(&parts[0]));
    mount_image(&image, &parts[1], "ro");
    Place {
        mounts: vec![parts[1].clone()],
        at: parts[1].clone(),
        _folder: folder,
    }
}

/// bindfs, which passes everything on to a directory on ext4.
pub(crate) fn fuse() -> Place {
    let mut place = ext4("rw");
    let base = place.at.clone();
    let (mirrored, at) = (base.join("mirrored"), base.with_file_name("mirror"));
    std::fs::create_dir(&mirrored).expect("a directory");
    std::fs::create_dir(&at).expect("a directory");
    for name in ["seed", "link", "many"] {
        std::fs::rename(base.join(name), mirrored.join(name)).expect("moved");
    }
    let options: [&OsStr; 2] = ["-o".as_ref(), "dev,suid".as_ref()];
    run(tool("bindfs").args(options).arg(&mirrored).arg(&at));
    place.mounts.push(at.clone());
    place.at = at;
    place
}
