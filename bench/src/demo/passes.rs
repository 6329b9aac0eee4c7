//! One pass over files, the same for every way of reading them: copy every
//! byte into one reused buffer.
//!
//! Law: opening is outside the clock; setting the mapping up is inside the
//! first pass, for the guest's views and for the host's own mmap alike.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Access, File, Guest, View};

use super::select::Candidate;
use crate::raw::{Region, Source};

/// Bytes copied at a time.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

/// Bytes and the time they took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Lap {
    pub bytes: u64,
    pub time: Duration,
}

impl Lap {
    /// Adds another stretch.
    pub(crate) fn add(&mut self, other: Lap) {
        self.bytes += other.bytes;
        self.time += other.time;
    }

    /// 10^9 bytes a second; zero when nothing was timed.
    pub(crate) fn gigabytes_per_second(&self) -> f64 {
        match self.time.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.bytes as f64 / seconds / 1e9,
        }
    }
}

/// A file that is open and about to be read.
pub(crate) trait Readable {
    /// Bytes to read.
    fn len(&self) -> u64;
    /// Whatever must happen before the first byte; nothing the second time.
    fn prepare(&mut self) -> Result<()>;
    /// Copies `out.len()` bytes from `at`.
    fn copy(&self, at: u64, out: &mut [u8]) -> Result<()>;
}

/// Reads every byte of every file once.
pub(crate) fn pass<R: Readable>(files: &mut [R], buffer: &mut [u8]) -> Result<Lap> {
    let started = Instant::now();
    let mut bytes = 0;
    for file in files {
        file.prepare()?;
        for_each_chunk(file, buffer, |_| {})?;
        bytes += file.len();
    }
    Ok(Lap {
        bytes,
        time: started.elapsed(),
    })
}

/// The hash of one file, read like the passes read it.
pub(crate) fn hash(file: &mut impl Readable, buffer: &mut [u8]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    file.prepare()?;
    for_each_chunk(file, buffer, |chunk| {
        hasher.update(chunk);
    })?;
    Ok(hasher.finalize())
}

fn for_each_chunk(
    file: &impl Readable,
    buffer: &mut [u8],
    mut with: impl FnMut(&[u8]),
) -> Result<()> {
    let mut at = 0;
    while at < file.len() {
        let n = (file.len() - at).min(buffer.len() as u64);
        let chunk = &mut buffer[..n as usize];
        file.copy(at, chunk)?;
        with(chunk);
        at += n;
    }
    Ok(())
}

/// Through a faulted view: plain loads, as from an mmap.
pub(crate) struct Viewed {
    file: File,
    len: u64,
    view: Option<View>,
}

impl Viewed {
    /// Opens one; fails if its reads would not go through the window.
    pub(crate) fn open(guest: &Guest, file: &Candidate) -> Result<Viewed> {
        let (file, len) = open_on(guest, file, true)?;
        let view = None;
        Ok(Viewed { file, len, view })
    }
}

impl Readable for Viewed {
    fn len(&self) -> u64 {
        self.len
    }

    fn prepare(&mut self) -> Result<()> {
        if self.view.is_none() && self.len > 0 {
            self.view = Some(
                self.file
                    .map(0, self.len, Access::Read)
                    .context("make a view")?,
            );
        }
        Ok(())
    }

    fn copy(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let view = self.view.as_ref().context("the view is not made yet")?;
        Source::view(view).copy(at as usize, out);
        Ok(())
    }
}

/// Through `read_at`: the window, or FUSE_READ when DAX is off.
pub(crate) struct ReadAt {
    file: File,
    len: u64,
}

impl ReadAt {
    /// Opens one; `dax` is what must be true of it.
    pub(crate) fn open(guest: &Guest, file: &Candidate, dax: bool) -> Result<ReadAt> {
        let (file, len) = open_on(guest, file, dax)?;
        Ok(ReadAt { file, len })
    }
}

impl Readable for ReadAt {
    fn len(&self) -> u64 {
        self.len
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn copy(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let n = self.file.read_at(out, at).context("read_at")?;
        ensure!(
            n == out.len(),
            "read_at at {at}: {n} bytes instead of {}",
            out.len()
        );
        Ok(())
    }
}

fn open_on(guest: &Guest, candidate: &Candidate, dax: bool) -> Result<(File, u64)> {
    let what = || format!("open {} in the guest", candidate.path.display());
    let file = guest
        .open(&candidate.path, Access::Read)
        .with_context(what)?;
    let len = file.metadata().with_context(what)?.len();
    ensure!(
        len == candidate.len,
        "{}: {len} bytes in the guest, {} on the host",
        candidate.path.display(),
        candidate.len,
    );
    ensure!(
        file.is_dax() == dax,
        "{}: DAX is {} for it",
        candidate.path.display(),
        if dax {
            "not in use"
        } else {
            "in use although it is off"
        },
    );
    Ok((file, len))
}

/// The host's own mmap: what everything else is compared to.
pub(crate) struct HostMapped {
    file: std::fs::File,
    len: u64,
    region: Option<Region>,
}

impl HostMapped {
    /// Opens one.
    pub(crate) fn open(directory: &Path, candidate: &Candidate) -> Result<HostMapped> {
        let path = directory.join(&candidate.path);
        let file =
            std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(HostMapped {
            file,
            len: candidate.len,
            region: None,
        })
    }
}

impl Readable for HostMapped {
    fn len(&self) -> u64 {
        self.len
    }

    fn prepare(&mut self) -> Result<()> {
        if self.region.is_none() && self.len > 0 {
            self.region = Some(Region::of_file(&self.file, self.len as usize)?);
        }
        Ok(())
    }

    fn copy(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let region = self.region.as_ref().context("not mapped yet")?;
        region.source().copy(at as usize, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_reads_every_byte_and_hashes_agree() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut buffer = vec![0; 1000];
        for len in [0usize, 1, 999, 1000, 1001, 70_000] {
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(directory.path().join("f"), &content)?;
            let candidate = Candidate {
                path: "f".into(),
                len: len as u64,
            };
            let mut files = [HostMapped::open(directory.path(), &candidate)?];
            assert_eq!(pass(&mut files, &mut buffer)?.bytes, len as u64);
            assert_eq!(hash(&mut files[0], &mut buffer)?, blake3::hash(&content));
        }
        Ok(())
    }

    #[test]
    fn laps_add_up() {
        let mut lap = Lap::default();
        assert_eq!(lap.gigabytes_per_second(), 0.0);
        for _ in 0..2 {
            lap.add(Lap {
                bytes: 1_000_000_000,
                time: Duration::from_millis(500),
            });
        }
        assert_eq!(lap.gigabytes_per_second(), 2.0);
    }
}
