//! The files that all guests read, each block at its place.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};

use super::pattern::BLOCK_BYTES;
use crate::files::{TestFile, word};
use crate::host_memory::cached_bytes;

/// How many files there are.
pub(super) const FILES: u64 = 4;
/// A page of any machine is whole pages of these.
const PAGE_BYTES: u64 = 4096;
/// What guests read before they are measured, in this file.
pub(super) const WARM_UP: &str = "warm-up";
/// Its bytes.
pub(super) const WARM_UP_BYTES: u64 = 8 << 20;

/// Where a block is: number of the file, and offset in it.
pub(super) fn place(block: u64, bytes: u64) -> (u64, u64) {
    let each = bytes / FILES / BLOCK_BYTES;
    (block / each, block % each * BLOCK_BYTES)
}

/// Name of a file.
pub(super) fn name(file: u64) -> String {
    format!("data{file}")
}

/// Fails unless each page of a block begins as it was written.
pub(super) fn check(file: u64, offset: u64, block: &[u8]) -> Result<()> {
    let pages = block.chunks_exact(PAGE_BYTES as usize);
    for (page, at) in pages.zip((offset..).step_by(PAGE_BYTES as usize)) {
        ensure!(
            page.starts_with(&word(file, at).to_le_bytes()),
            "{} holds something else at {at}",
            name(file)
        );
    }
    Ok(())
}

/// The files, in a directory of their own.
pub(super) struct Data {
    directory: PathBuf,
    files: Vec<TestFile>,
    pub bytes: u64,
}

impl Data {
    /// Writes them.
    pub(super) fn write(directory: &Path, bytes: u64) -> Result<Data> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let write = |file: u64| {
            let path = directory.join(name(file));
            TestFile::write(&path, bytes / FILES, file)
        };
        let files = (0..FILES).map(write).collect::<Result<_>>()?;
        // Of as many bytes as are read from it, so that it is no pattern's.
        TestFile::write(&directory.join(WARM_UP), WARM_UP_BYTES, FILES)?;
        Ok(Data {
            directory: directory.to_path_buf(),
            files,
            bytes,
        })
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the page cache holds of them.
    pub(super) fn cached(&self) -> u64 {
        cached_bytes(self.files.iter().map(|file| file.path.as_path()))
    }

    /// Asks the kernel to forget them, so that what is in the page cache later
    /// is what guests have read. On tmpfs they stay.
    pub(super) fn forget(&self) -> Result<()> {
        for file in &self.files {
            let what = || format!("drop {} from the page cache", file.path.display());
            let open = file.open()?;
            open.sync_data().with_context(what)?;
            fadvise(&open, 0, None, Advice::DontNeed).with_context(what)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_a_place_of_its_own() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let bytes = 16 * BLOCK_BYTES;
        let data = Data::write(&directory.path().join("share"), bytes)?;
        let places: std::collections::BTreeSet<_> =
            (0..16).map(|block| place(block, bytes)).collect();
        assert_eq!(places.len(), 16);
        for (file, offset) in places {
            let whole = std::fs::read(data.directory().join(name(file)))?;
            let offset = offset as usize;
            let block = &whole[offset..offset + BLOCK_BYTES as usize];
            check(file, offset as u64, block)?;
            assert!(check(file + 1, offset as u64, block).is_err());
        }
        assert_eq!(data.cached(), bytes);
        data.forget()?;
        assert!(data.cached() <= bytes);
        Ok(())
    }
}
