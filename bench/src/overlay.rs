//! An overlay of the host's over one of its directories, as a container has
//! it: what is written lies above, the directory stays as it is.
//!
//! Law: it is unmounted with the value, and by [`cleanup::end_everything`].

use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daxwindow_vm::cleanup::{self, Scratch};
use rustix::mount::{MountFlags, mount};

/// What has a meaning in the options of the mount.
const SEPARATORS: [char; 3] = [':', ',', '\\'];

/// A mounted overlay.
pub(crate) struct Overlay {
    root: PathBuf,
    _above: Scratch,
}

impl Overlay {
    /// Mounts one of `lower`; what is written to it goes below `parent`.
    ///
    /// # Errors
    ///
    /// Without root, or when the kernel has no overlay.
    pub(crate) fn over(lower: &Path, parent: &Path) -> Result<Overlay> {
        let above = Scratch::below(parent)?;
        let folder = |name: &str| {
            let path = above.path().join(name);
            std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let (root, upper, work) = (folder("root")?, folder("upper")?, folder("work")?);
        let words = [
            ("lowerdir", lower),
            ("upperdir", &upper),
            ("workdir", &work),
        ];
        let options = words.map(|(word, path)| format!("{word}={}", path.display()));
        let is_plain = |(_, path): &(_, &Path)| !path.to_string_lossy().contains(SEPARATORS);
        let what = || format!("mount an overlay of {} (which needs root)", lower.display());
        ensure!(
            words.iter().all(is_plain),
            "{}: a path with one of {SEPARATORS:?}, which the mount does not take",
            lower.display()
        );
        let options = CString::new(options.join(",")).with_context(what)?;
        mount("overlay", &root, "overlay", MountFlags::empty(), &*options).with_context(what)?;
        cleanup::mounted(&root);
        Ok(Overlay {
            root,
            _above: above,
        })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        cleanup::unmount(&self.root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_an_overlay_is_not_in_the_directory_and_goes_with_it() -> Result<()> {
        let place = tempfile::tempdir()?;
        let lower = place.path().join("lower");
        std::fs::create_dir(&lower)?;
        std::fs::write(lower.join("file"), "below")?;
        let overlay = Overlay::over(&lower, &place.path().join("above"))?;
        assert_eq!(std::fs::read(overlay.path().join("file"))?, b"below");
        std::fs::write(overlay.path().join("file"), "above")?;
        assert_eq!(std::fs::read(lower.join("file"))?, b"below");
        drop(overlay);
        assert_eq!(std::fs::read_dir(place.path().join("above"))?.count(), 0);
        let comma = place.path().join("a,b");
        let error = Overlay::over(&comma, place.path())
            .err()
            .context("refused")?;
        assert!(format!("{error:#}").contains("does not take"), "{error:#}");
        Ok(())
    }
}
