//! A share that is the guest's root file system: what is put into it, and what
//! the kernel is told of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use super::options::{ShareOptions, VmOptions};
use super::script;

/// What the kernel starts on a share that is the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// The script that takes commands, at [`AGENT_INIT`].
    Agent,
    /// This, or what the kernel finds, with the console as its terminal.
    Console(Option<String>),
}

/// Where the script that takes commands lies in a root directory; the guest
/// hides it under a mount.
const AGENT_INIT: &str = "/run/daxwindow-init";

/// Writes the script that takes commands into the directory that becomes the
/// root file system.
pub(crate) fn place_agent(options: &VmOptions) -> Result<()> {
    let (root, others) = options.shares.split_first().context("no share to boot")?;
    let script = root.directory.join(AGENT_INIT.trim_start_matches('/'));
    let what = || format!("write {}", script.display());
    if let Some(folder) = script.parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    fs::write(&script, script::root_init(others)).with_context(what)?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&script, mode).with_context(what)
}

/// Words of the kernel's command line.
pub(crate) fn kernel_words(share: &ShareOptions, init: &Init) -> Vec<String> {
    let access = if share.readonly { "ro" } else { "rw" };
    let mut words = vec![format!("root={} rootfstype=virtiofs {access}", share.tag)];
    if !share.plain_mount {
        words.push(format!("rootflags=dax={}", share.dax.name()));
    }
    match init {
        Init::Agent => words.push(format!("init={AGENT_INIT}")),
        Init::Console(init) => words.extend(init.iter().map(|init| format!("init={init}"))),
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::options::Dax;
    use super::*;

    #[test]
    fn the_kernel_learns_of_share_mode_and_init() {
        let mut share = ShareOptions::new("/d", Dax::Always);
        let line = kernel_words(&share, &Init::Console(Some("/bin/sh".into()))).join(" ");
        let wanted = "root=daxwindow rootfstype=virtiofs rw rootflags=dax=always init=/bin/sh";
        assert_eq!(line, wanted);
        share.plain_mount = true;
        share.readonly = true;
        let line = kernel_words(&share, &Init::Console(None)).join(" ");
        assert_eq!(line, "root=daxwindow rootfstype=virtiofs ro");
    }

    #[test]
    fn the_script_is_where_the_kernel_is_told() {
        let root = tempfile::tempdir().expect("directory");
        let share = ShareOptions::new(root.path(), Dax::Inode);
        let line = kernel_words(&share, &Init::Agent).join(" ");
        place_agent(&VmOptions::new(vec![share])).expect("written");
        let path = line.split_once("init=/").expect("there").1;
        let mode = root
            .path()
            .join(path)
            .metadata()
            .expect("there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        assert!(place_agent(&VmOptions::new(Vec::new())).is_err());
    }
}
