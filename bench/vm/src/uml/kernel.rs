//! The kernel and its modules, from Debian's unstable release: older ones send
//! a memory table that rust-vmm's back ends refuse.
//!
//! The kernel is an ordinary dynamic program, but cannot be started by a
//! loader that is named on the command line: it puts its guest's memory
//! behind its own end, where only the host's kernel places it. So its copy in
//! the kit names a loader in the working directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Release;
use crate::kit::{Kit, Recipe};
use crate::modules;
use crate::program::with_interpreter;

const PACKAGE: &str = "user-mode-linux";
const C_LIBRARY: &str = "libc6";
/// Paths in the packages.
const ORIGINAL: &str = "usr/bin/linux.uml";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Names in the set's folder.
const PROGRAM: &str = "linux";
const INTERPRETER: &str = "loader";

/// The kit's kernel.
pub(super) struct UmlKernel {
    folder: PathBuf,
    root: PathBuf,
}

impl UmlKernel {
    /// Fetched if need be.
    pub(super) fn find(kit: &Kit) -> Result<UmlKernel> {
        let recipe = Recipe {
            name: PACKAGE,
            wanted: &[PACKAGE],
            keep: &|name| name == PACKAGE || name == C_LIBRARY,
        };
        let kit = kit.with_release(Release::Unstable);
        let set = kit.set(&recipe, relink)?;
        Ok(UmlKernel {
            root: set.root(),
            folder: set.folder,
        })
    }

    /// A command that starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(self.folder.join(PROGRAM));
        command
            .current_dir(&self.folder)
            .env("LD_LIBRARY_PATH", self.root.join(LIBRARIES))
            // Guest memory belongs on the tmpfs that it looks for then.
            .env_remove("TMPDIR");
        command
    }

    /// The file of one of its modules.
    pub(super) fn module(&self, name: &str) -> Result<PathBuf> {
        let found = modules::find(&self.root, name);
        found.with_context(|| format!("{PACKAGE} has no module {name}"))
    }
}

fn relink(set: &Path) -> Result<()> {
    let original = set.join("root").join(ORIGINAL);
    let bytes = fs::read(&original).with_context(|| format!("read {}", original.display()))?;
    let program = set.join(PROGRAM);
    let linked = with_interpreter(bytes, INTERPRETER).context("the kernel's own loader")?;
    fs::write(&program, linked)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // The kit may be moved.
    let loader = Path::new("root").join(LIBRARIES).join(LOADER);
    symlink(loader, set.join(INTERPRETER)).context("link the loader")
}
