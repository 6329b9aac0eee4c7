//! Paths: what a [`Guest`] does by name.
//!
//! Paths are relative to the share's root and resolved one component at a
//! time. Law: every look-up made on the way is given back.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use daxwindow_shared::fuse::{EntryOut, ROOT_ID};
use rustix::io::Errno;

use super::inodes::OpenNode;
use super::{Access, DirEntry, File, FileType, Guest, Metadata, Shared, refused};
use crate::error::{Error, Result};
use crate::session::{Listed, Session};

/// A look-up that is given back on drop.
struct LookedUp {
    shared: Arc<Shared>,
    entry: EntryOut,
}

impl LookedUp {
    fn nodeid(&self) -> u64 {
        self.entry.nodeid
    }

    /// Passes the look-up on to an open node.
    fn into_node(self) -> OpenNode {
        let node = OpenNode::adopt(&self.shared, &self.entry);
        let mut this = self;
        this.entry.nodeid = ROOT_ID;
        node
    }
}

impl Drop for LookedUp {
    fn drop(&mut self) {
        // The root is not counted.
        if self.entry.nodeid != ROOT_ID && self.entry.nodeid != 0 {
            self.shared.session.forget(self.entry.nodeid, 1);
        }
    }
}

fn components(path: &Path) -> Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let what = format!("{}: a path may not go up", path.display());
                return Err(Error::Invalid(what));
            }
        }
    }
    Ok(names)
}

impl Guest {
    fn looked_up(&self, entry: EntryOut) -> LookedUp {
        LookedUp {
            shared: Arc::clone(&self.shared),
            entry,
        }
    }

    fn root(&self) -> LookedUp {
        self.looked_up(EntryOut {
            nodeid: ROOT_ID,
            ..EntryOut::default()
        })
    }

    fn step(&self, parent: &LookedUp, name: &OsStr) -> Result<LookedUp> {
        let entry = self.session().lookup(parent.nodeid(), name.as_bytes())?;
        if entry.nodeid == 0 {
            return Err(refused("LOOKUP", Errno::NOENT));
        }
        Ok(self.looked_up(entry))
    }

    fn walk(&self, names: &[&OsStr]) -> Result<LookedUp> {
        let mut at = self.root();
        for name in names {
            at = self.step(&at, name)?;
        }
        Ok(at)
    }

    /// The directory of `path`, and the name in it.
    fn parent<'a>(&self, path: &'a Path) -> Result<(LookedUp, &'a OsStr)> {
        let names = components(path)?;
        match names.split_last() {
            Some((name, directories)) => Ok((self.walk(directories)?, name)),
            None => Err(Error::Invalid("the path names the root".into())),
        }
    }

    /// Opens a file. Paths are relative to the share's root, resolved
    /// component by component; symlinks are not followed.
    pub fn open(&self, path: impl AsRef<Path>, access: Access) -> Result<File> {
        let found = self.walk(&components(path.as_ref())?)?;
        match FileType::from_mode(found.entry.attr.mode) {
            FileType::Symlink => return Err(refused("open", Errno::LOOP)),
            FileType::File => {}
            _ if found.nodeid() == ROOT_ID => return Err(refused("open", Errno::ISDIR)),
            FileType::Directory => return Err(refused("open", Errno::ISDIR)),
            _ => return Err(refused("open", Errno::OPNOTSUPP)),
        }
        let flags = match access {
            Access::Read => libc::O_RDONLY,
            Access::ReadWrite => libc::O_RDWR,
        };
        let open = self.session().open(found.nodeid(), flags as u32)?;
        let node = found.into_node();
        if access == Access::ReadWrite {
            node.shared.note_writer(&node.node);
        }
        Ok(File::new(node, open.fh, access))
    }

    /// Creates a file, or empties it, and opens it for reading and writing.
    /// `mode` is taken as it is: no umask.
    pub fn create(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        let (parent, name) = self.parent(path.as_ref())?;
        let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
        let (entry, open) =
            self.session()
                .create(parent.nodeid(), name.as_bytes(), flags, mode & 0o7777)?;
        let found = self.looked_up(entry);
        let node = found.into_node();
        node.shared.note_writer(&node.node);
        let file = File::new(node, open.fh, Access::ReadWrite);
        if entry.attr.size > 0 {
            file.truncate(0)?;
        }
        Ok(file)
    }

    /// Attributes of what `path` names; of a symlink, its own.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        let found = self.walk(&components(path.as_ref())?)?;
        let attr = match found.nodeid() {
            ROOT_ID => self.session().getattr(ROOT_ID, None)?,
            _ => found.entry.attr,
        };
        Ok(attr.into())
    }

    /// The target of a symlink.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let found = self.walk(&components(path.as_ref())?)?;
        let target = self.session().readlink(found.nodeid())?;
        Ok(OsString::from_vec(target).into())
    }

    /// The names in a directory, without "." and "..", in no order.
    ///
    /// # Errors
    ///
    /// A directory that would take more than 512 MiB of memory, which is
    /// about three million names, is not listed in one piece;
    /// [`Session::readdir`] reads it bit by bit. Otherwise as for any request.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        let directory = self.walk(&components(path.as_ref())?)?;
        let session = self.session();
        let flags = (libc::O_RDONLY | libc::O_DIRECTORY) as u32;
        let fh = session.opendir(directory.nodeid(), flags)?.fh;
        let entries = list_all(session, directory.nodeid(), fh);
        let closed = session.releasedir(directory.nodeid(), fh);
        let entries = entries?;
        closed?;
        Ok(entries)
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let target = self.step(&parent, name)?.nodeid();
        self.session().unlink(parent.nodeid(), name.as_bytes())?;
        // Its mappings would keep the data on the host's disk.
        self.shared.forget_unlinked(target);
        Ok(())
    }

    /// Renames, replacing the target.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from_parent, from_name) = self.parent(from.as_ref())?;
        let (to_parent, to_name) = self.parent(to.as_ref())?;
        let replaced = self.step(&to_parent, to_name).ok();
        self.session().rename(
            from_parent.nodeid(),
            from_name.as_bytes(),
            to_parent.nodeid(),
            to_name.as_bytes(),
        )?;
        if let Some(replaced) = replaced {
            self.shared.forget_unlinked(replaced.nodeid());
        }
        Ok(())
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let entry = self
            .session()
            .mkdir(parent.nodeid(), name.as_bytes(), mode)?;
        drop(self.looked_up(entry));
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        self.session().rmdir(parent.nodeid(), name.as_bytes())
    }

    /// Makes a symlink at `path`.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let target = target.as_ref().as_os_str().as_bytes();
        let entry = self
            .session()
            .symlink(parent.nodeid(), name.as_bytes(), target)?;
        drop(self.looked_up(entry));
        Ok(())
    }
}

/// Bytes that the entries of one listing may take.
const LISTING_BYTES: usize = 512 << 20;

/// Reads a directory to its end, or to the end of what is allowed: a daemon
/// may make entries up for ever, and such that are left out, too.
fn list_all(session: &Session, nodeid: u64, fh: u64) -> Result<Vec<DirEntry>> {
    let (mut all, mut bytes) = (Vec::new(), 0usize);
    let (mut offset, mut plus) = (0, true);
    let mut read = HashSet::from([offset]);
    loop {
        let result = match plus {
            true => session.readdirplus(nodeid, fh, offset),
            false => session.readdir(nodeid, fh, offset),
        };
        let batch = match result {
            Err(e) if plus && e.errno() == Errno::NOSYS => {
                plus = false;
                continue;
            }
            other => other?,
        };
        let Some(last) = batch.last() else {
            return Ok(all);
        };
        offset = last.head.off;
        let taken = batch
            .iter()
            .map(|item| item.name.len() + size_of::<DirEntry>());
        bytes = bytes.saturating_add(taken.sum());
        all.extend(batch.into_iter().filter_map(|item| listed(session, item)));
        may_go_on(read.insert(offset), bytes)?;
    }
}

/// Whether a listing goes on at an offset that is `new`, after `bytes` of
/// entries.
fn may_go_on(new: bool, bytes: usize) -> Result<()> {
    if !new {
        return Err(Error::Protocol {
            operation: "READDIRPLUS",
            what: "the directory does not go on".into(),
        });
    }
    if bytes > LISTING_BYTES {
        let what = format!("the names of a directory take more than {LISTING_BYTES} bytes");
        return Err(Error::Invalid(what));
    }
    Ok(())
}

fn listed(session: &Session, item: Listed) -> Option<DirEntry> {
    let looked_up = item.entry.filter(|entry| entry.nodeid != 0);
    if let Some(entry) = &looked_up {
        session.forget(entry.nodeid, 1);
    }
    let special = item.name == b"." || item.name == b"..";
    (!special).then(|| DirEntry {
        name: OsString::from_vec(item.name),
        ino: item.head.ino,
        file_type: FileType::from_dirent(item.head.typ),
        metadata: looked_up.map(|entry| entry.attr.into()),
    })
}
