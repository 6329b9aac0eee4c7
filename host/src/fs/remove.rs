//! Names taken away or moved.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

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
        rustix::fs::unlinkat(dir.fd()?, name.as_c_str(), flags)
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
        rustix::fs::renameat_with(from.fd()?, old, to.fd()?, new, flags)
    }
}
