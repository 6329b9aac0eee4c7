//! A Debian with more programs than essential ones, and one share with DAX and
//! one without for them to work on.

use std::path::{Path, PathBuf};

use daxwindow_vm::{Dax, Debian, Kit, ShareOptions, Vm, VmOptions, package_root};

use crate::mounted::Mounted;

/// The shares, by the names of their folders, tags and mount points in `/mnt`.
pub(crate) const SHARES: [(&str, Dax); 2] = [("dax", Dax::Always), ("plain", Dax::Never)];

/// The root directory, changes to which are gone with the value, and the
/// shares.
pub(crate) struct Workshop {
    root: Mounted,
    _above: tempfile::TempDir,
    shares: tempfile::TempDir,
}

impl Workshop {
    /// Of the kit's Debian with these sets of packages on it, each with a name
    /// of its own. Fetched if need be.
    pub(crate) fn new(sets: &[(&str, &[&str])]) -> Workshop {
        let kit = Kit::open(false).expect("kit");
        let debian = Debian::find(&kit).expect("made, which needs root");
        let roots: Vec<PathBuf> = sets
            .iter()
            .map(|(name, packages)| package_root(&kit, name, packages).expect("in the kit"))
            .collect();
        let mut lower = vec![debian.root()];
        lower.extend(roots.iter().map(PathBuf::as_path));
        let above = tempfile::tempdir().expect("directory");
        let workshop = Workshop {
            root: Mounted::overlays(&lower, above.path()),
            _above: above,
            shares: tempfile::tempdir().expect("directory"),
        };
        for (share, _) in SHARES {
            std::fs::create_dir(workshop.share(share)).expect("made");
        }
        workshop
    }

    /// The guest's root directory.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where a share is on the host.
    pub(crate) fn share(&self, name: &str) -> PathBuf {
        self.shares.path().join(name)
    }

    /// A guest with all of it, the shares being the second and the third; the
    /// daemons of these get further arguments.
    pub(crate) fn boot(&self, arguments: &[&str]) -> Vm {
        let mut first = ShareOptions::new(self.root(), Dax::Never);
        first.tag = "root".into();
        let mut all = vec![first];
        for (name, dax) in SHARES {
            let mut share = ShareOptions::new(self.share(name), dax);
            share.tag = name.into();
            share.mount_at = Some(format!("/mnt/{name}"));
            share.window_bytes = 256 << 20;
            share.daemon_arguments = arguments.iter().map(|&argument| argument.into()).collect();
            all.push(share);
        }
        let mut options = VmOptions::new(all);
        options.memory_bytes = 1 << 30;
        options.cpus = 2;
        Vm::boot_root(&options).expect("boots")
    }
}
