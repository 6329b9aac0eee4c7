//! Which files the demo reads.
//!
//! Law: regular files only, in name order; everything left out is counted by
//! reason, nothing is left out silently.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

/// A directory with at least this much in its files makes a good demo.
const WORTH_SHOWING_BYTES: u64 = 500_000_000;

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Relative to the shared directory.
    pub path: PathBuf,
    /// Size when it was found, bytes.
    pub len: u64,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub files: Vec<Candidate>,
    pub bytes: u64,
    pub symlinks: u64,
    pub special: u64,
    pub unreadable: u64,
    pub other_file_systems: u64,
    /// Regular files past the limit.
    pub over_limit: u64,
}

impl Selection {
    /// Everything that was left out, in words; empty when nothing was.
    pub(crate) fn left_out(&self) -> String {
        let reasons = [
            (self.symlinks, "symlinks"),
            (self.special, "special files"),
            (self.unreadable, "unreadable"),
            (self.other_file_systems, "on other file systems"),
            (self.over_limit, "over --max-bytes"),
        ];
        let some = reasons.iter().filter(|(n, _)| *n > 0);
        some.map(|(n, what)| format!("{n} {what}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// All regular files below `directory`, up to `max_bytes` of content.
pub(crate) fn select(directory: &Path, max_bytes: u64) -> Result<Selection> {
    let device = directory
        .metadata()
        .with_context(|| format!("look at {}", directory.display()))?
        .dev();
    ensure!(
        directory.is_dir(),
        "{} is not a directory",
        directory.display()
    );
    let mut selection = Selection::default();
    for entry in WalkDir::new(directory).sort_by_file_name() {
        let Ok(entry) = entry else {
            selection.unreadable += 1;
            continue;
        };
        let kind = entry.file_type();
        if kind.is_symlink() {
            selection.symlinks += 1;
        } else if kind.is_file() {
            selection.take(directory, entry.path(), device, max_bytes);
        } else if !kind.is_dir() {
            selection.special += 1;
        }
    }
    Ok(selection)
}

impl Selection {
    fn take(&mut self, directory: &Path, path: &Path, device: u64, max_bytes: u64) {
        let opened = File::open(path).and_then(|f| f.metadata());
        let relative = path.strip_prefix(directory);
        let (Ok(metadata), Ok(relative)) = (opened, relative) else {
            self.unreadable += 1;
            return;
        };
        if metadata.dev() != device {
            self.other_file_systems += 1;
        } else if self.bytes.saturating_add(metadata.len()) > max_bytes {
            self.over_limit += 1;
        } else {
            self.bytes += metadata.len();
            self.files.push(Candidate {
                path: relative.to_path_buf(),
                len: metadata.len(),
            });
        }
    }
}

/// A directory that this machine is sure to have with enough in it: a Rust
/// toolchain, or the system's own libraries.
pub(crate) fn default_directory() -> Result<PathBuf> {
    let mut largest = (0, None);
    for directory in likely_directories() {
        let bytes = bytes_below(&directory, WORTH_SHOWING_BYTES);
        if bytes >= WORTH_SHOWING_BYTES {
            return Ok(directory);
        }
        if bytes > largest.0 {
            largest = (bytes, Some(directory));
        }
    }
    largest
        .1
        .context("find a directory with files to read; name one")
}

fn likely_directories() -> Vec<PathBuf> {
    let rustup = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".rustup"))
        });
    let mut found = Vec::new();
    if let Some(toolchains) = rustup.map(|r| r.join("toolchains")) {
        let entries = std::fs::read_dir(toolchains)
            .into_iter()
            .flatten()
            .flatten();
        found.extend(entries.map(|e| e.path().join("lib")));
    }
    found.sort();
    found.extend(["/usr/lib", "/usr/share", "/usr", "/opt"].map(PathBuf::from));
    found.retain(|d| d.is_dir());
    found
}

/// Bytes in regular files, counted until `enough`.
fn bytes_below(directory: &Path, enough: u64) -> u64 {
    let mut bytes = 0u64;
    for entry in WalkDir::new(directory)
        .same_file_system(true)
        .into_iter()
        .flatten()
    {
        if entry.file_type().is_file() {
            bytes = bytes.saturating_add(entry.metadata().map_or(0, |m| m.len()));
        }
        if bytes >= enough {
            break;
        }
    }
    bytes
}

/// Splits the files so that each batch fits `ranges` ranges of `range_bytes`
/// and `most_files` files; a file larger than that is a batch of its own.
pub(crate) fn batches(
    files: &[Candidate],
    range_bytes: u64,
    ranges: u64,
    most_files: usize,
) -> Vec<&[Candidate]> {
    let mut batches = Vec::new();
    let (mut start, mut used) = (0, 0u64);
    for (i, file) in files.iter().enumerate() {
        let needed = file.len.div_ceil(range_bytes);
        if i > start && (used + needed > ranges || i - start >= most_files) {
            batches.push(&files[start..i]);
            (start, used) = (i, 0);
        }
        used += needed;
    }
    if start < files.len() {
        batches.push(&files[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("sub"))?;
        std::fs::write(at("a"), [1; 10])?;
        std::fs::write(at("sub/b"), [1; 10])?;
        std::fs::write(at("z"), [1; 100])?;
        std::os::unix::fs::symlink("a", at("link"))?;
        let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
        let found = select(directory.path(), 50)?;
        let names: Vec<_> = found
            .files
            .iter()
            .map(|f| f.path.to_str().unwrap_or(""))
            .collect();
        assert_eq!(names, ["a", "sub/b"]);
        assert_eq!(found.bytes, 20);
        assert_eq!(
            found.left_out(),
            "1 symlinks, 1 special files, 1 over --max-bytes"
        );
        assert!(select(&at("a"), 50).is_err());
        assert!(select(&at("missing"), 50).is_err());
        Ok(())
    }

    #[test]
    fn this_machine_has_a_default() -> Result<()> {
        assert!(default_directory()?.is_dir());
        Ok(())
    }

    #[test]
    fn batches_fit_and_lose_nothing() {
        let file = |len| Candidate {
            path: PathBuf::new(),
            len,
        };
        let files: Vec<_> = [0, 1, 2, 100, 3, 10, 11].map(file).to_vec();
        let split = batches(&files, 10, 2, 3);
        let sizes: Vec<Vec<u64>> = split
            .iter()
            .map(|b| b.iter().map(|f| f.len).collect())
            .collect();
        assert_eq!(sizes, [vec![0, 1, 2], vec![100], vec![3, 10], vec![11]]);
        assert!(batches(&[], 10, 2, 3).is_empty());
    }
}
