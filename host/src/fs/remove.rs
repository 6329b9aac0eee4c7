//! Names taken away or moved.

use rustix::fs::{AtFlags, FileType, RenameFlags, Statx};
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
        let dir = self.inode_to_change(parent)?;
        let fd = dir.fd()?;
        let victim = victim(&dir, &fd, name);
        self.keeping(&dir, victim, || {
            rustix::fs::unlinkat(&fd, name.as_c_str(), flags)
        })
    }

    /// Takes a name of `victim` away by `remove`. A node of it stays usable
    /// for as long as the guest knows it, as on any Linux file system: where
    /// only a handle is known of it, a descriptor keeps its inode from now on,
    /// if that was its last name.
    fn keeping(
        &self,
        dir: &Inode,
        victim: Option<Statx>,
        remove: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(victim) = victim else {
            return remove();
        };
        let nodes = self.inodes.candidates(dir, &victim);
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
        let from = self.inode_to_change(parent)?;
        let to = self.inode(new_parent)?;
        let (old, new) = (name.as_c_str(), new_name.as_c_str());
        let (from_fd, to_fd) = (from.fd()?, to.fd()?);
        let rename = |flags| rustix::fs::renameat_with(&from_fd, old, &to_fd, new, flags);
        if !flags.is_empty() || !to.mount().has_handles() {
            // Nothing loses its name, or what does is held by a descriptor.
            return rename(flags);
        }
        // One call where the new name is free, which it mostly is where it was
        // the last time.
        let mut refused = false;
        if to.mount().renames_to_free() && !to.hints().replaces() {
            match rename(RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                // Of a file system without flags, if it goes without.
                Err(Errno::INVAL) => refused = true,
                done => return done,
            }
        }
        let victim = victim(&to, &to_fd, new_name);
        to.hints().note_rename(victim.is_some());
        let done = self.keeping(&to, victim, || rename(flags));
        if refused && done.is_ok() {
            to.mount().note_no_flags();
        }
        done
    }
}

/// What loses a name that is taken away, where a node of it must be kept. What
/// fails here fails again, with the right error.
fn victim(dir: &Inode, fd: &NodeFd<'_>, name: Name<'_>) -> Option<Statx> {
    match dir.mount().has_handles() {
        true => stat_at(fd, name).ok(),
        false => None,
    }
}
