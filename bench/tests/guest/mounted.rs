//! File systems of the tests' own, gone with the value.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

/// A file system on a directory of its own. Needs root.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    /// Of this kind, with these options.
    pub(crate) fn new(kind: &str, options: &str) -> Mounted {
        let place = tempfile::tempdir().expect("directory");
        let options = CString::new(options).expect("no zero");
        let flags = MountFlags::empty();
        mount(kind, place.path(), kind, flags, &*options).expect("mounted, which needs root");
        Mounted(place)
    }

    /// An overlay of `lower` and what is made in the folder `above`.
    pub(crate) fn overlay(lower: &Path, above: &Path) -> Mounted {
        Mounted::overlays(&[lower], above)
    }

    /// The same of several, the topmost first.
    pub(crate) fn overlays(lower: &[&Path], above: &Path) -> Mounted {
        let [upper, work] = ["upper", "work"].map(|name| above.join(name));
        for folder in [&upper, &work] {
            std::fs::create_dir(folder).expect("made");
        }
        let lower: Vec<_> = lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        Mounted::new("overlay", &options)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes it read-only.
    pub(crate) fn make_readonly(&self) {
        mount_remount(self.path(), MountFlags::RDONLY, "").expect("nobody writes");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}
