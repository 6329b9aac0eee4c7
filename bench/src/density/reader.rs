//! A guest's reading program: this program again, as a process that is a
//! guest by itself, or inside a virtual machine.
//!
//! Laws: whatever it reads it checks; what a guest without DAX reads it keeps
//! in memory of its own, as a guest kernel keeps it in its page cache; what it
//! has, it keeps until its input ends.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::{Access, Guest, GuestOptions, SessionOptions, View};
use procfs::process::Process;
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use super::data::{self, FILES, WARM_UP, WARM_UP_BYTES, place};
use super::pattern::{BLOCK_BYTES, Part};
use crate::attach::patiently;
use crate::raw::{Region, Source};

/// Guest memory for queues and buffers.
const MEMORY_BYTES: u64 = 16 << 20;

/// Reads a guest's part of the data; `density` starts it
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    part: Part,
    /// Attach to this socket as a guest, read, and keep all until the input ends
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Ask for a window
    #[arg(long)]
    dax: bool,
    /// Read the files in this directory
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Read the warm-up file there instead
    #[arg(long)]
    warm_up: bool,
    /// By a mapping in place of read(2)
    #[arg(long)]
    mmap: bool,
}

/// What it has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Bytes read.
    pub bytes: u64,
    /// Page tables of its process before and after, in bytes.
    pub page_tables_before: u64,
    /// After.
    pub page_tables: u64,
    /// Pieces of its address space.
    pub areas: u64,
}

/// Does it, and says so in one line.
pub(crate) fn run(args: &Args) -> Result<bool> {
    match (&args.socket, &args.directory) {
        (Some(socket), None) => attached(args, socket)?,
        (None, Some(directory)) => tell(mounted(args, directory)?)?,
        _ => anyhow::bail!("either --socket or --directory"),
    }
    Ok(true)
}

fn tell(told: Told) -> Result<()> {
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

fn page_tables() -> Result<u64> {
    let status = Process::myself().and_then(|p| p.status());
    let kib = status.context("read this process's status")?.vmpte;
    Ok(kib.unwrap_or(0) * 1024)
}

fn areas() -> Result<u64> {
    let maps = Process::myself().and_then(|p| p.maps());
    Ok(maps.context("read this process's map")?.iter().count() as u64)
}

/// Attached as a guest of the guest library.
fn attached(args: &Args, socket: &Path) -> Result<()> {
    let session = SessionOptions {
        memory_bytes: MEMORY_BYTES,
        dax: args.dax,
        ..SessionOptions::new(socket)
    };
    let options = GuestOptions::new(session);
    let guest = patiently(|| Guest::connect(options.clone())).context("attach to the daemon")?;
    let before = page_tables()?;
    let (bytes, _kept) = match args.dax {
        true => through_window(&guest, &args.part)?,
        false => by_requests(&guest, &args.part)?,
    };
    tell(Told {
        bytes,
        page_tables_before: before,
        page_tables: page_tables()?,
        areas: areas()?,
    })?;
    // Until whoever started this has seen enough, or is gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What a guest has when it has read its part.
struct Kept {
    _views: Vec<View>,
    _blocks: Vec<Box<[u8]>>,
}

fn open(guest: &Guest, dax: bool) -> Result<Vec<daxwindow_guest::File>> {
    let open = |file: u64| {
        let name = data::name(file);
        let file = guest.open(&name, Access::Read);
        let file = file.with_context(|| format!("open {name} in the guest"))?;
        ensure!(file.is_dax() == dax, "{name}: DAX is {}", file.is_dax());
        Ok(file)
    };
    (0..FILES).map(open).collect()
}

fn through_window(guest: &Guest, part: &Part) -> Result<(u64, Kept)> {
    let each = part.bytes / FILES;
    let views: Result<Vec<View>> = open(guest, true)?
        .iter()
        .map(|file| file.map(0, each, Access::Read).context("make a view"))
        .collect();
    let views = views?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut bytes = 0;
    for number in part.blocks() {
        let (file, offset) = place(number, part.bytes);
        let view = views.get(file as usize).context("a block of no file")?;
        Source::view(view).copy(offset as usize, &mut block);
        data::check(file, offset, &block)?;
        bytes += BLOCK_BYTES;
    }
    let kept = Kept {
        _views: views,
        _blocks: Vec::new(),
    };
    Ok((bytes, kept))
}

fn by_requests(guest: &Guest, part: &Part) -> Result<(u64, Kept)> {
    let files = open(guest, false)?;
    let mut blocks = Vec::new();
    for number in part.blocks() {
        let (file, offset) = place(number, part.bytes);
        let mut block = vec![0; BLOCK_BYTES as usize].into_boxed_slice();
        let open = files.get(file as usize).context("a block of no file")?;
        let count = open.read_at(&mut block, offset).context("read")?;
        ensure!(count as u64 == BLOCK_BYTES, "a read of {count} bytes");
        data::check(file, offset, &block)?;
        blocks.push(block);
    }
    let bytes = blocks.len() as u64 * BLOCK_BYTES;
    let kept = Kept {
        _views: Vec::new(),
        _blocks: blocks,
    };
    Ok((bytes, kept))
}

/// In a directory: inside a virtual machine, of a mounted share.
fn mounted(args: &Args, directory: &Path) -> Result<Told> {
    let before = page_tables()?;
    let part = &args.part;
    let names: Vec<String> = match args.warm_up {
        true => vec![WARM_UP.into()],
        false => (0..FILES).map(data::name).collect(),
    };
    let places: Vec<(u64, u64)> = match args.warm_up {
        true => (0..WARM_UP_BYTES / BLOCK_BYTES)
            .map(|block| (0, block * BLOCK_BYTES))
            .collect(),
        false => part
            .blocks()
            .into_iter()
            .map(|block| place(block, part.bytes))
            .collect(),
    };
    let open = |name: &String| Reading::open(&directory.join(name), args.mmap);
    let files = names.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    for (file, offset) in &places {
        let reading = files.get(*file as usize).context("a block of no file")?;
        reading.read(*offset, &mut block)?;
        // The warm-up file was written with the number behind the last.
        let seed = if args.warm_up { FILES } else { *file };
        data::check(seed, *offset, &block)?;
    }
    Ok(Told {
        bytes: places.len() as u64 * BLOCK_BYTES,
        page_tables_before: before,
        page_tables: page_tables()?,
        areas: areas()?,
    })
}

/// One file of a directory.
struct Reading {
    file: File,
    mapped: Option<Region>,
}

impl Reading {
    fn open(path: &Path, mmap: bool) -> Result<Reading> {
        let what = || format!("open {}", path.display());
        let file = File::open(path).with_context(what)?;
        // A guest reads its part and nothing ahead of it.
        fadvise(&file, 0, None, Advice::Random).with_context(what)?;
        let len = file.metadata().with_context(what)?.len();
        let mapped = match mmap {
            true => Some(Region::of_file(&file, len as usize).with_context(what)?),
            false => None,
        };
        Ok(Reading { file, mapped })
    }

    fn read(&self, offset: u64, block: &mut [u8]) -> Result<()> {
        match &self.mapped {
            None => self.file.read_exact_at(block, offset).context("read"),
            Some(region) => {
                let end = offset + block.len() as u64;
                ensure!(end <= region.source().len() as u64, "the file is short");
                region.source().copy(offset as usize, block);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::Data;
    use super::super::pattern::Pattern;
    use super::*;

    fn args(mmap: bool, warm_up: bool) -> Args {
        Args {
            part: Part {
                pattern: Pattern::Halves,
                bytes: 1 << 20,
                guests: 3,
                guest: 2,
                seed: 1,
            },
            socket: None,
            dax: false,
            directory: None,
            warm_up,
            mmap,
        }
    }

    #[test]
    fn files_are_read_in_part_and_checked() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let data = Data::write(folder.path(), 1 << 20)?;
        for mmap in [false, true] {
            let told = mounted(&args(mmap, false), data.directory())?;
            assert_eq!(told.bytes, 512 << 10);
            let told = mounted(&args(mmap, true), data.directory())?;
            assert_eq!(told.bytes, WARM_UP_BYTES);
        }
        // The last file is the third guest's own.
        let spoilt = folder.path().join(data::name(FILES - 1));
        std::fs::write(spoilt, vec![0; 256 << 10])?;
        let error = mounted(&args(false, false), data.directory()).expect_err("spoilt");
        assert!(error.to_string().contains("something else"), "{error}");
        Ok(())
    }
}
