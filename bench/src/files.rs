//! Test files with a known pattern: the word at any offset follows from the
//! file's seed, so every read can be checked without a second copy.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::raw::Region;
use crate::stats::mix;

/// A file filled with the pattern of `seed`, in the page cache and clean.
pub(crate) struct TestFile {
    pub path: PathBuf,
    pub len: u64,
    pub seed: u64,
}

impl TestFile {
    /// Writes it; `len` is a multiple of 8.
    pub(crate) fn write(path: &Path, len: u64, seed: u64) -> Result<TestFile> {
        let what = || format!("write {}", path.display());
        let file = File::create(path).with_context(what)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        for at in (0..len).step_by(8) {
            out.write_all(&word(seed, at).to_le_bytes())
                .with_context(what)?;
        }
        let file = out
            .into_inner()
            .map_err(|e| e.into_error())
            .with_context(what)?;
        // Write-back in the middle of a measurement would disturb it.
        file.sync_data().with_context(what)?;
        Ok(TestFile {
            path: path.to_path_buf(),
            len,
            seed,
        })
    }

    /// A sparse file of `ranges` ranges with one byte each, [`mark`]; these
    /// bytes are in the page cache.
    pub(crate) fn sparse(path: &Path, ranges: u64, range_bytes: u64) -> Result<()> {
        let what = || format!("make the sparse file {}", path.display());
        let file = File::create(path).with_context(what)?;
        file.set_len(ranges * range_bytes).with_context(what)?;
        for range in 0..ranges {
            file.write_all_at(&[mark(range)], range * range_bytes)
                .with_context(what)?;
        }
        file.sync_data().with_context(what)
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("open {}", self.path.display()))
    }

    /// A fresh mapping of the host's own.
    pub(crate) fn map(&self) -> Result<Region> {
        let region = Region::of_file(&self.open()?, self.len as usize);
        region.with_context(|| format!("mmap {}", self.path.display()))
    }

    /// Name below the shared directory.
    pub(crate) fn name(&self) -> &Path {
        self.path.file_name().map_or(Path::new(""), Path::new)
    }
}

/// The first byte of a range of a sparse file, never zero.
pub(crate) fn mark(range: u64) -> u8 {
    mix(range) as u8 | 1
}

/// The pattern's word at `offset`, a multiple of 8.
pub(crate) fn word(seed: u64, offset: u64) -> u64 {
    mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset)
}

/// Whether `bytes`, read at `offset` (a multiple of 8), are the pattern's.
pub(crate) fn is_pattern(seed: u64, offset: u64, bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(8).zip((offset..).step_by(8));
    let right = |(bytes, at): (&[u8], u64)| *bytes == word(seed, at).to_le_bytes();
    bytes.len().is_multiple_of(8) && words.all(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_knows_file_and_offset() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = TestFile::write(&directory.path().join("f"), 16384, 5)?;
        let bytes = std::fs::read(&file.path)?;
        assert!(is_pattern(5, 0, &bytes) && is_pattern(5, 4096, &bytes[4096..8192]));
        assert!(!is_pattern(6, 0, &bytes));
        assert!(!is_pattern(5, 8, &bytes));
        assert!(!is_pattern(5, 0, &[0; 16]));
        assert_eq!(file.name(), Path::new("f"));
        let mut copy = vec![0; 16384];
        file.map()?.source().copy(0, &mut copy);
        assert_eq!(copy, bytes);
        Ok(())
    }
}
