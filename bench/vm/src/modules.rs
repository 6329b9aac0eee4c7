//! Modules of the guest's kernel, for tests that need more than what is built
//! into it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::{Flavour, Kernel};
use super::kit::{Kit, Recipe};

/// The module's file, as the kernel's package has it (`overlay.ko.xz`), for
/// [`VmOptions::files`](super::VmOptions::files). Fetched if need be: 30 MB for
/// all modules of a kernel, once.
///
/// # Errors
///
/// When it cannot be fetched, or there is none of that name.
pub fn kernel_module(kit: &Kit, name: &str) -> Result<PathBuf> {
    module_of(kit, Flavour::default(), name)
}

/// The same of another kernel: 110 MB for the generic one.
///
/// # Errors
///
/// As [`kernel_module`].
pub fn module_of(kit: &Kit, flavour: Flavour, name: &str) -> Result<PathBuf> {
    let release = Kernel::of_flavour(kit, flavour)?.release()?;
    let package = format!("linux-modules-{release}");
    let recipe = Recipe {
        name: &format!("modules-{release}"),
        wanted: &[&package],
        keep: &|candidate| candidate == package,
    };
    let root = kit.set(&recipe, |_| Ok(()))?.root();
    find(&root, name).with_context(|| format!("{package} has no module {name}"))
}

/// The file of a module in an unpacked package.
pub(crate) fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let entries = walkdir::WalkDir::new(root).into_iter();
    entries
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path)
        .find(|path| is_module(path, name) && fs::metadata(path).is_ok_and(|m| m.is_file()))
}

fn is_module(path: &Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let rest = file.strip_prefix(name);
    rest.is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_whatever_packs_it() {
        let root = tempfile::tempdir().expect("directory");
        let folder = root.path().join("usr/lib/modules/1/kernel/fs");
        fs::create_dir_all(&folder).expect("made");
        for name in ["overlay.ko.xz", "overlayed.ko", "ext4.ko"] {
            fs::write(folder.join(name), "").expect("written");
        }
        let found = |name| find(root.path(), name);
        assert_eq!(found("overlay"), Some(folder.join("overlay.ko.xz")));
        assert_eq!(found("ext4"), Some(folder.join("ext4.ko")));
        assert_eq!(found("ext"), None);
    }
}
