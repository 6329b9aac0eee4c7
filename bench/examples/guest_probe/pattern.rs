//! Files whose every byte follows from the file's name and its offset.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::RANGE_BYTES;

/// What a file of some name has to contain.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(crate) fn of(path: &Path) -> Pattern {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // FNV-1a: the same in every build of this program.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Pattern { seed }
    }

    pub(crate) fn byte(self, offset: u64) -> u8 {
        mixed(self.seed.wrapping_add(offset / 8)).to_le_bytes()[(offset % 8) as usize]
    }

    pub(crate) fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        (offset..offset + len as u64)
            .map(|at| self.byte(at))
            .collect()
    }

    fn write_all(self, path: &Path, bytes: u64) -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        for word in 0..bytes.div_ceil(8) {
            let word_bytes = mixed(self.seed.wrapping_add(word)).to_le_bytes();
            let len = (bytes - word * 8).min(8) as usize;
            file.write_all(&word_bytes[..len])?;
        }
        file.flush()
    }

    /// The first word of each range; the rest are holes.
    fn write_starts(self, path: &Path, bytes: u64) -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(bytes)?;
        for at in (0..bytes).step_by(RANGE_BYTES as usize) {
            file.write_all_at(&self.bytes(at, 8.min(bytes - at) as usize), at)?;
        }
        Ok(())
    }

    /// Compares what was read at `offset` with what must be there.
    pub(crate) fn check(self, path: &Path, offset: u64, found: &[u8]) -> Result<()> {
        let wrong = (offset..)
            .zip(found)
            .find(|(at, byte)| self.byte(*at) != **byte);
        match wrong {
            None => Ok(()),
            Some((at, byte)) => bail!(
                "WRONG BYTE in {} at {at:#x}: {byte:#04x}, not {:#04x}",
                path.display(),
                self.byte(at)
            ),
        }
    }
}

/// The finishing steps of splitmix64: neighbours have nothing in common.
pub(crate) fn mixed(number: u64) -> u64 {
    let z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the files `pattern-0`, `pattern-1` and so on.
pub(crate) fn write(folder: &Path, files: usize, bytes: u64, sparse: bool) -> Result<()> {
    for index in 0..files {
        let path = folder.join(format!("pattern-{index}"));
        let pattern = Pattern::of(&path);
        let written = match sparse {
            true => pattern.write_starts(&path, bytes),
            false => pattern.write_all(&path, bytes),
        };
        written.with_context(|| format!("write {}", path.display()))?;
    }
    println!("{files} files of {bytes} bytes");
    Ok(())
}

/// By its name.
pub(crate) fn is_one(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("pattern-")
}

/// The pattern files in a folder with their sizes.
pub(crate) fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let what = || format!("read {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        let entry = entry.with_context(what)?;
        let bytes = entry.metadata().with_context(what)?.len();
        if is_one(&entry.path()) && bytes > 0 {
            files.push((entry.path(), bytes));
        }
    }
    files.sort();
    match files.is_empty() {
        true => bail!("{} has no pattern files", folder.display()),
        false => Ok(files),
    }
}
