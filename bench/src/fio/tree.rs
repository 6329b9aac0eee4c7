//! The files on the host: one to read, one larger than a guest's memory, and
//! one to write for each stack.
//!
//! Law: what a stack wrote is looked for in the host's file, not asked for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_vm::cleanup::Scratch;
use rustix::fs::{Advice, fadvise};

use super::plan::FileKind;
use super::stacks::Stack;
use crate::files::TestFile;
use crate::host_memory::cached_bytes;

const PAGE: usize = 4096;

/// The directory and what is in it.
pub(super) struct Tree {
    scratch: Scratch,
    shared: PathBuf,
    pub file_bytes: u64,
    pub large_bytes: u64,
}

impl Tree {
    /// Writes them below `parent`.
    pub(super) fn make(
        parent: &Path,
        stacks: &[Stack],
        kinds: &[FileKind],
        file_bytes: u64,
        large_bytes: u64,
    ) -> Result<Tree> {
        let scratch = Scratch::below(parent)?;
        let tree = Tree {
            shared: scratch.path().join("shared"),
            scratch,
            file_bytes,
            large_bytes,
        };
        let what = || format!("make files in {}", tree.shared.display());
        std::fs::create_dir(&tree.shared).with_context(what)?;
        for stack in stacks {
            std::fs::create_dir(tree.shared.join(stack.word())).with_context(what)?;
        }
        for kind in [FileKind::Read, FileKind::Large, FileKind::Write] {
            let whose = match kind {
                FileKind::Write => stacks,
                _ => &stacks[..1],
            };
            for &stack in whose {
                // A disk has to be there even when nobody reads it.
                let bytes = match kinds.contains(&kind) {
                    true => tree.bytes(kind),
                    false => 1 << 20,
                };
                TestFile::write(&tree.file(kind, stack), bytes, 1).with_context(what)?;
            }
        }
        Ok(tree)
    }

    /// What guests see.
    pub(super) fn shared(&self) -> &Path {
        &self.shared
    }

    /// Where a stack's daemon tells how things are.
    pub(super) fn status(&self, stack: Stack) -> PathBuf {
        self.scratch.path().join(format!("{}.status", stack.word()))
    }

    pub(super) fn bytes(&self, kind: FileKind) -> u64 {
        match kind {
            FileKind::Large => self.large_bytes,
            FileKind::Read | FileKind::Write => self.file_bytes,
        }
    }

    fn name(kind: FileKind, stack: Stack) -> String {
        match kind {
            FileKind::Read => "read".into(),
            FileKind::Large => "large".into(),
            FileKind::Write => format!("{}/write", stack.word()),
        }
    }

    /// The host's name of a file.
    pub(super) fn file(&self, kind: FileKind, stack: Stack) -> PathBuf {
        self.shared.join(Tree::name(kind, stack))
    }

    /// The guest's name of it.
    pub(super) fn in_guest(kind: FileKind, stack: Stack) -> String {
        match (stack, kind) {
            (Stack::Blk, FileKind::Read) => "/dev/vda".into(),
            (Stack::Blk, FileKind::Large) => "/dev/vdb".into(),
            (Stack::Blk, FileKind::Write) => "/dev/vdc".into(),
            _ => format!("{}/{}", stack.mount(), Tree::name(kind, stack)),
        }
    }

    /// In the order of their names in the guest.
    pub(super) fn disks(&self) -> Vec<PathBuf> {
        let kinds = [FileKind::Read, FileKind::Large, FileKind::Write];
        kinds.map(|kind| self.file(kind, Stack::Blk)).into()
    }
}

/// QEMU gives up what a guest has unmapped a moment after it has said so, and
/// until then its pages stay.
const COOLS_WITHIN: Duration = Duration::from_secs(3);

/// Has all of a file in the host's page cache.
pub(super) fn warm(path: &Path) -> Result<()> {
    let what = || format!("read {}", path.display());
    let bytes = path.metadata().with_context(what)?.len();
    for _ in 0..2 {
        if cached_bytes([path]) >= bytes {
            return Ok(());
        }
        let mut file = File::open(path).with_context(what)?;
        std::io::copy(&mut file, &mut std::io::sink()).with_context(what)?;
    }
    let cached = cached_bytes([path]);
    ensure!(
        cached >= bytes / 100 * 95,
        "the host keeps only {cached} of {bytes} bytes of {} in its page cache",
        path.display()
    );
    Ok(())
}

/// Has nothing of it there.
pub(super) fn cool(path: &Path) -> Result<()> {
    let what = || format!("drop the page cache of {}", path.display());
    let file = File::open(path).with_context(what)?;
    file.sync_all().with_context(what)?;
    let bytes = file.metadata().with_context(what)?.len();
    let deadline = Instant::now() + COOLS_WITHIN;
    loop {
        fadvise(&file, 0, None, Advice::DontNeed).with_context(what)?;
        let cached = cached_bytes([path]);
        if cached <= bytes / 20 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "this machine does not drop its page cache: {cached} of {bytes} bytes of {} stay",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes of the file's pages that are full of `pattern`.
pub(super) fn bytes_with(path: &Path, pattern: u64) -> Result<u64> {
    let what = || format!("read {}", path.display());
    let file = File::open(path).with_context(what)?;
    let bytes = file.metadata().with_context(what)?.len();
    let wanted = pattern.to_be_bytes().repeat(PAGE / 8);
    let mut chunk = vec![0; 256 * PAGE];
    let (mut at, mut found) = (0, 0);
    while at < bytes {
        let n = (chunk.len() as u64).min(bytes - at) as usize;
        file.read_exact_at(&mut chunk[..n], at).with_context(what)?;
        let pages = chunk[..n].chunks_exact(PAGE);
        found += pages.filter(|page| *page == wanted).count() as u64 * PAGE as u64;
        at += n as u64;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_warmed_and_cooled() {
        let parent = tempfile::tempdir().expect("directory");
        let stacks = [Stack::DaxAlways, Stack::Blk];
        let kinds = [FileKind::Read, FileKind::Write];
        let tree = Tree::make(parent.path(), &stacks, &kinds, 4 << 20, 8 << 20).expect("made");
        let read = tree.file(FileKind::Read, Stack::DaxAlways);
        assert_eq!(read.metadata().expect("there").len(), 4 << 20);
        for disk in tree.disks() {
            assert!(disk.is_file(), "{}", disk.display());
        }
        assert_eq!(read, tree.file(FileKind::Read, Stack::Blk), "one for all");
        warm(&read).expect("warm");
        assert_eq!(cached_bytes([read.as_path()]), 4 << 20);
        // A tmpfs keeps what it has.
        if cool(&read).is_ok() {
            assert!(cached_bytes([read.as_path()]) < 1 << 20);
            warm(&read).expect("warm again");
        }
    }

    #[test]
    fn what_was_written_is_found_page_by_page() {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("x");
        let pattern = 0x0102_0304_0506_0708u64;
        let mut bytes = vec![0u8; 3 * PAGE + 100];
        let page = pattern.to_be_bytes().repeat(PAGE / 8);
        bytes[PAGE..2 * PAGE].copy_from_slice(&page);
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(bytes_with(&path, pattern).expect("read"), PAGE as u64);
        bytes[PAGE + 5] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(bytes_with(&path, pattern).expect("read"), 0);
    }
}
