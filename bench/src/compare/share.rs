//! The directory that every contender serves, and how it is put back.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files::{TestFile, word};

/// Requests in flight at most, each with a directory of its own for what it
/// changes: a guest's kernel does not make two files in one directory at a
/// time either.
pub(super) const PLACES: usize = 16;
/// Bytes of a small file.
pub(super) const SMALL_BYTES: u64 = 4096;
/// Small files in each directory of the tree.
const IN_A_DIRECTORY: usize = 100;

/// What is in the share.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub directory: PathBuf,
    /// Entries of `flat`, and small files in `tree`.
    pub entries: usize,
    /// Bytes of `data` and `out`.
    pub bytes: u64,
    /// Bytes of the file that is mapped, whole ranges; zero without one.
    pub dax_bytes: u64,
}

impl Files {
    /// Writes them, durably and into the page cache.
    pub(super) fn write(
        directory: &Path,
        entries: usize,
        bytes: u64,
        dax_bytes: u64,
    ) -> Result<Files> {
        let files = Files {
            directory: directory.to_path_buf(),
            entries,
            bytes,
            dax_bytes,
        };
        files
            .fill()
            .with_context(|| format!("write test files below {}", directory.display()))?;
        Ok(files)
    }

    fn fill(&self) -> Result<()> {
        fs::create_dir_all(self.directory.join("flat"))?;
        for index in 0..self.entries {
            fs::write(self.directory.join("flat").join(entry(index)), b"")?;
            let small = self.directory.join(small_file(index));
            if index.is_multiple_of(IN_A_DIRECTORY)
                && let Some(parent) = small.parent()
            {
                fs::create_dir_all(parent)?;
            }
            fs::write(small, small_content(index))?;
        }
        for place in 0..PLACES {
            let own = self.work(place);
            fs::create_dir_all(&own)?;
            fs::write(own.join("a"), b"")?;
            fs::write(own.join("mode"), b"")?;
        }
        for (name, seed) in [("data", DATA_SEED), ("out", DATA_SEED + 1)] {
            TestFile::write(&self.directory.join(name), self.bytes, seed)?;
        }
        if self.dax_bytes > 0 {
            let path = self.directory.join(DAX_FILE);
            TestFile::write(&path, self.dax_bytes, DAX_SEED)?;
        }
        rustix::fs::syncfs(fs::File::open(&self.directory)?)?;
        Ok(())
    }

    /// Directory of a place's own.
    fn work(&self, place: usize) -> PathBuf {
        self.directory.join("work").join(place_name(place))
    }

    /// Puts back what a measurement moved or left.
    pub(super) fn restore(&self) -> Result<()> {
        for place in 0..PLACES {
            let own = self.work(place);
            if own.join("b").exists() {
                fs::rename(own.join("b"), own.join("a")).context("put a renamed file back")?;
            }
            if own.join("new").exists() {
                fs::remove_file(own.join("new")).context("remove a new file")?;
            }
        }
        Ok(())
    }
}

/// Seed of `data`.
pub(super) const DATA_SEED: u64 = 11;
/// The file that is mapped.
pub(super) const DAX_FILE: &str = "mapped";
pub(super) const DAX_SEED: u64 = 17;

/// Name in `flat`.
pub(super) fn entry(index: usize) -> String {
    format!("entry-{index:05}")
}

/// Name in `work`.
pub(super) fn place_name(place: usize) -> String {
    format!("p{place:02}")
}

/// Directory in `tree`, and name in it.
pub(super) fn small_name(index: usize) -> (String, String) {
    let directory = format!("d{:03}", index / IN_A_DIRECTORY);
    (directory, format!("file-{index:05}"))
}

fn small_file(index: usize) -> PathBuf {
    let (directory, name) = small_name(index);
    Path::new("tree").join(directory).join(name)
}

/// Seed of a small file's content.
pub(super) fn small_seed(index: usize) -> u64 {
    1000 + index as u64
}

fn small_content(index: usize) -> Vec<u8> {
    let words = (0..SMALL_BYTES).step_by(8);
    words
        .flat_map(|at| word(small_seed(index), at).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::is_pattern;

    #[test]
    fn a_share_is_written_and_put_back() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let files = Files::write(directory.path(), 101, 1 << 20, 2 << 20)?;
        assert_eq!(fs::read_dir(directory.path().join("flat"))?.count(), 101);
        assert_eq!(fs::read_dir(directory.path().join("tree"))?.count(), 2);
        let small = fs::read(directory.path().join("tree/d001/file-00100"))?;
        assert!(is_pattern(small_seed(100), 0, &small) && small.len() == 4096);
        let own = files.work(3);
        fs::rename(own.join("a"), own.join("b"))?;
        fs::write(own.join("new"), b"")?;
        files.restore()?;
        assert!(own.join("a").exists() && !own.join("b").exists() && !own.join("new").exists());
        Ok(())
    }
}
