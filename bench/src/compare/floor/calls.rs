//! The host's part of each operation: the system calls without which no
//! answer can be given, and nothing else.
//!
//! Law: never more than our own daemon makes, and where a daemon has a choice
//! the cheapest. One that is not needed here makes the floor untrue.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom, StatxFlags};

use super::super::operations::Operation::{self, *};
use super::super::operations::WORKING_SET;
use super::super::share::{Files, SMALL_BYTES, entry, place_name, small_name};
use crate::raw::name_to_handle;
use crate::stats::Random;

/// Makes the calls of some units of work; how many.
pub(super) type Calls = Box<dyn FnMut() -> Result<u64>>;

/// Bytes of names a C library asks for at a time.
const LISTED_BYTES: usize = 32 << 10;
/// Descriptors that a process may have besides its others.
const DESCRIPTORS: usize = 500;
/// Attributes a reply has, and what tells inodes apart
/// (`STATX_MNT_ID_UNIQUE`).
const MASK: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::from_bits_retain(0x4000));

/// The calls of an operation with `depth` of it in flight; none for one of
/// the window. `seed` varies their choices.
pub(super) fn of(
    operation: Operation,
    files: &Files,
    depth: usize,
    seed: u64,
) -> Result<Option<Calls>> {
    let mut random = Random::new(seed);
    let calls: Calls = match operation {
        // Answered without a look at the host.
        Empty => Box::new(|| Ok(1)),
        LookupHot => looked_up(files, WORKING_SET, false, &mut random)?,
        LookupCold => looked_up(files, files.entries, true, &mut random)?,
        Getattr => attributes(files, &mut random)?,
        OpenRelease => opened(files, &mut random)?,
        ReaddirplusCold => listed(files, true)?,
        ReaddirplusHot => listed(files, false)?,
        CreateUnlink => created(files)?,
        Rename => renamed(files)?,
        Setattr => changed(files)?,
        Fsync => synced(files)?,
        SmallFiles => small_files(files, &mut random)?,
        Read(bytes) => read(files, bytes, depth, random)?,
        Write(bytes) => written(files, bytes, depth, random)?,
        DaxMap | DaxUnmap | DaxFirstRead | DaxHotRead => return Ok(None),
    };
    Ok(Some(calls))
}

fn path_only(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty());
    fd.with_context(|| format!("open {}", path.display()))
}

/// Names of `flat` in random order, at most so many.
fn names(files: &Files, most: usize, random: &mut Random) -> Result<Vec<CString>> {
    let order = random.permutation(most.min(files.entries));
    let names = order.into_iter().map(|index| CString::new(entry(index)));
    Ok(names.collect::<Result<_, _>>()?)
}

/// The indexes below `count` one after the other, over and over.
fn in_turn(count: usize) -> Result<impl FnMut() -> usize> {
    ensure!(count > 0, "there are no test files");
    let mut next = 0;
    Ok(move || {
        next = (next + 1) % count;
        next
    })
}

fn attributes_of(dir: impl AsFd, name: &CStr) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, MASK).context("statx")?;
    Ok(())
}

/// What a daemon can know an inode by later: a handle, or where the file
/// system has none a descriptor.
#[derive(Clone, Copy)]
enum Kept {
    Handle,
    Descriptor,
}

impl Kept {
    fn of(dir: &OwnedFd, name: &CStr) -> Kept {
        match name_to_handle(dir.as_fd(), name) {
            Ok(()) => Kept::Handle,
            Err(_) => Kept::Descriptor,
        }
    }

    fn keep(self, dir: &OwnedFd, name: &CStr) -> Result<()> {
        match self {
            Kept::Handle => name_to_handle(dir.as_fd(), name).context("name_to_handle_at"),
            Kept::Descriptor => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::empty()).context("openat")?;
                Ok(())
            }
        }
    }
}

fn looked_up(files: &Files, most: usize, is_new: bool, random: &mut Random) -> Result<Calls> {
    let flat = path_only(&files.directory.join("flat"))?;
    let names = names(files, most, random)?;
    let mut turn = in_turn(names.len())?;
    let kept = Kept::of(&flat, &names[0]);
    Ok(Box::new(move || {
        let name = &names[turn()];
        if is_new {
            kept.keep(&flat, name)?;
        }
        attributes_of(&flat, name)?;
        Ok(1)
    }))
}

fn attributes(files: &Files, random: &mut Random) -> Result<Calls> {
    let order = random.permutation(WORKING_SET.min(DESCRIPTORS).min(files.entries));
    let flat = files.directory.join("flat");
    let nodes = order
        .into_iter()
        .map(|index| path_only(&flat.join(entry(index))));
    let nodes = nodes.collect::<Result<Vec<_>>>()?;
    let mut turn = in_turn(nodes.len())?;
    Ok(Box::new(move || {
        rustix::fs::fstat(&nodes[turn()])?;
        Ok(1)
    }))
}

fn opened(files: &Files, random: &mut Random) -> Result<Calls> {
    let flat = path_only(&files.directory.join("flat"))?;
    let names = names(files, WORKING_SET, random)?;
    let mut turn = in_turn(names.len())?;
    Ok(Box::new(move || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // Closed at once.
        rustix::fs::openat(&flat, &names[turn()], flags, Mode::empty())?;
        Ok(1)
    }))
}

fn listed(files: &Files, is_new: bool) -> Result<Calls> {
    let path = files.directory.join("flat");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let flat = rustix::fs::open(&path, flags, Mode::empty())?;
    let kept = Kept::of(&flat, &CString::new(entry(0))?);
    let mut room = vec![MaybeUninit::uninit(); LISTED_BYTES];
    Ok(Box::new(move || {
        rustix::fs::seek(&flat, SeekFrom::Start(0))?;
        let mut names = RawDir::new(&flat, &mut room);
        let mut count = 0;
        while let Some(entry) = names.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if is_new {
                kept.keep(&flat, name)?;
            }
            attributes_of(&flat, name)?;
            count += 1;
        }
        Ok(count)
    }))
}

/// The directory of the first place.
fn work(files: &Files) -> Result<OwnedFd> {
    path_only(&files.directory.join("work").join(place_name(0)))
}

fn created(files: &Files) -> Result<Calls> {
    let work = work(files)?;
    Ok(Box::new(move || {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&work, c"new", flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fstat(&file)?;
        drop(file);
        rustix::fs::unlinkat(&work, c"new", AtFlags::empty())?;
        Ok(1)
    }))
}

fn renamed(files: &Files) -> Result<Calls> {
    let work = work(files)?;
    Ok(Box::new(move || {
        rustix::fs::renameat(&work, c"a", &work, c"b")?;
        rustix::fs::renameat(&work, c"b", &work, c"a")?;
        Ok(2)
    }))
}

fn to_change(files: &Files) -> Result<File> {
    let path = files
        .directory
        .join("work")
        .join(place_name(0))
        .join("mode");
    let file = File::options().read(true).write(true).open(&path);
    file.with_context(|| format!("open {}", path.display()))
}

fn changed(files: &Files) -> Result<Calls> {
    let file = to_change(files)?;
    Ok(Box::new(move || {
        for mode in [0o600, 0o644] {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            rustix::fs::fstat(&file)?;
        }
        Ok(2)
    }))
}

fn synced(files: &Files) -> Result<Calls> {
    let file = to_change(files)?;
    Ok(Box::new(move || {
        rustix::fs::fsync(&file)?;
        Ok(1)
    }))
}

fn small_files(files: &Files, random: &mut Random) -> Result<Calls> {
    let tree = files.directory.join("tree");
    let mut directories: Vec<(String, OwnedFd)> = Vec::new();
    for index in 0..files.entries {
        let (directory, _) = small_name(index);
        if directories.last().is_none_or(|last| last.0 != directory) {
            let fd = path_only(&tree.join(&directory))?;
            directories.push((directory, fd));
        }
    }
    let place = |index| {
        let (directory, name) = small_name(index);
        let at = directories.partition_point(|known| known.0 < directory);
        anyhow::Ok((at, CString::new(name)?))
    };
    let order = random.permutation(files.entries).into_iter().map(place);
    let order = order.collect::<Result<Vec<_>>>()?;
    let mut turn = in_turn(order.len())?;
    let (at, name) = &order[0];
    let kept = Kept::of(&directories[*at].1, name);
    let mut bytes = vec![0; SMALL_BYTES as usize];
    Ok(Box::new(move || {
        let (at, name) = &order[turn()];
        let directory = &directories[*at].1;
        kept.keep(directory, name)?;
        attributes_of(directory, name)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let got = rustix::io::pread(&file, &mut bytes[..], 0)?;
        ensure!(got == bytes.len(), "{got} bytes of a small file");
        Ok(1)
    }))
}

/// As many buffers as requests are in flight: which one is filled is the
/// front end's choice.
fn buffers(bytes: usize, depth: usize) -> Vec<Vec<u8>> {
    vec![vec![0x5a; bytes]; depth]
}

fn read(files: &Files, bytes: usize, depth: usize, mut random: Random) -> Result<Calls> {
    let file = File::open(files.directory.join("data"))?;
    let mut buffers = buffers(bytes, depth);
    let blocks = files.bytes / bytes as u64;
    let mut turn = in_turn(depth)?;
    Ok(Box::new(move || {
        let offset = random.below(blocks) * bytes as u64;
        file.read_exact_at(&mut buffers[turn()], offset)?;
        Ok(1)
    }))
}

fn written(files: &Files, bytes: usize, depth: usize, mut random: Random) -> Result<Calls> {
    let path = files.directory.join("out");
    let file = File::options().write(true).open(path)?;
    let buffers = buffers(bytes, depth);
    let blocks = files.bytes / bytes as u64;
    let mut turn = in_turn(depth)?;
    Ok(Box::new(move || {
        let offset = random.below(blocks) * bytes as u64;
        file.write_all_at(&buffers[turn()], offset)?;
        Ok(1)
    }))
}
