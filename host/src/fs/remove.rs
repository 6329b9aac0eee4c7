//! Names taken away or moved.

use rustix::fs::{AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::attr::{kind_of, stat, stat_at};
use super::inode::{Inode, NodeFd};
use super::{Name, SharedDir};

impl SharedDir {
    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent: u64, name: Name<'_>, flags: AtFlags) -> Result<(), Errno> {
        self.require_writable()?;
        let dir = self.inode(parent)?;
        let fd = dir.fd()?;
        self.keeping(&dir, &fd, name, || {
            rustix::fs::unlinkat(&fd, name.as_c_str(), flags)
        })
    }

    /// Takes a name away by `remove`. A node of what it stood for stays usable
    /// for as long as the guest knows it, as on any Linux file system: where
    /// only a handle is known of it, a descriptor keeps its inode from now on,
    /// if that was its last name.
    fn keeping(
        &self,
        dir: &Inode,
        fd: &NodeFd<'_>,
        name: Name<'_>,
        remove: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if !dir.mount().has_handles() {
            return remove();
        }
        // What fails here fails again, with the right error.
        let Ok(victim) = stat_at(fd, name) else {
            return remove();
        };
        let nodes = self.inodes.candidates(dir.session(), &victim);
        // Each by a descriptor of its own, so it does not matter if the name
        // has changed hands meanwhile.
        let open: Vec<_> = nodes
            .iter()
            .filter_map(|node| Some((node, node.fd().ok()?)))
            .collect();
        remove()?;
        let last = victim.stx_nlink <= 1 || kind_of(&victim) == FileType::Directory;
        for (node, fd) in open {
            if last || stat(&fd).is_ok_and(|stat| stat.stx_nlink == 0) {
                node.keep(fd);
            }
        }
        Ok(())
    }

    /// Renames. `flags` may be `RENAME_NOREPLACE`, `RENAME_EXCHANGE` and
    /// `RENAME_WHITEOUT`, as far as the host's file system has them; all else is
    /// `EINVAL`. A whiteout is a device node of number 0:0, which is none.
    pub fn rename(
        &self,
        parent: u64,
        name: Name<'_>,
        new_parent: u64,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<(), Errno> {
        self.require_writable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let from = self.inode(parent)?;
        let to = self.inode(new_parent)?;
        let (old, new) = (name.as_c_str(), new_name.as_c_str());
        let (from_fd, to_fd) = (from.fd()?, to.fd()?);
        let rename = || rustix::fs::renameat_with(&from_fd, old, &to_fd, new, flags);
        if flags.is_empty() {
            return self.keeping(&to, &to_fd, new_name, rename);
        }
        // Nothing loses its name.
        rename()
    }
}
