//! Overlays over one lower layer.

use std::ffi::CString;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::common::{make_file, on_disk};

/// A lower layer with a file of data and a program, and overlays over that;
/// unmounted on drop.
pub(crate) struct Layers {
    folder: TempDir,
    overlays: usize,
}

impl Layers {
    /// One overlay, called `merged`, over files of so many bytes.
    pub(crate) fn mount(bytes: usize) -> Layers {
        Layers::mount_several(1, bytes, "")
    }

    /// `merged`, `merged1` and so on; `options` begin with a comma.
    pub(crate) fn mount_several(overlays: usize, bytes: usize, options: &str) -> Layers {
        let folder = on_disk();
        std::fs::create_dir(folder.path().join("lower")).expect("a directory");
        let mut layers = Layers {
            folder,
            overlays: 0,
        };
        for (seed, name) in [(1, "lower/data"), (2, "lower/program")] {
            make_file(&layers.path(name), seed, bytes);
        }
        let mode = Permissions::from_mode(0o755);
        std::fs::set_permissions(layers.path("lower/program"), mode).expect("set");
        for _ in 0..overlays {
            layers.lay_over(options);
        }
        layers
    }

    /// With one overlay more, by these options.
    pub(crate) fn and_another(mut self, options: &str) -> Layers {
        self.lay_over(options);
        self
    }

    fn lay_over(&mut self, more: &str) {
        let number = match self.overlays {
            0 => String::new(),
            number => number.to_string(),
        };
        let parts = ["upper", "work", "merged"].map(|name| self.path(&(name.to_owned() + &number)));
        for part in &parts {
            std::fs::create_dir(part).expect("a directory");
        }
        let [upper, work, at] = &parts;
        let (lower, upper, work) = (self.path("lower"), upper.display(), work.display());
        let lower = lower.display();
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{more}");
        let options = CString::new(options).expect("no zero");
        let flags = MountFlags::empty();
        mount("overlay", at, "overlay", flags, &*options).expect("mounted, which needs root");
        self.overlays += 1;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is in the upper layer of `merged`.
    pub(crate) fn copied(&self) -> Vec<PathBuf> {
        self.copied_in("upper")
    }

    pub(crate) fn copied_in(&self, upper: &str) -> Vec<PathBuf> {
        let upper = std::fs::read_dir(self.path(upper)).expect("listed");
        upper.map(|entry| entry.expect("an entry").path()).collect()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for number in 0..self.overlays {
            let at = match number {
                0 => self.path("merged"),
                number => self.path(&format!("merged{number}")),
            };
            let _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

pub(crate) fn write_on_host(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all_at(bytes, at).expect("written");
}
