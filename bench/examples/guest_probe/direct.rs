//! Transfers whose buffer is a mapped file: with DAX the buffer's pages lie in
//! the window, and so do the addresses that a device is given.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::map::{Access, Mapping};
use crate::{ended, mapped, open};

const SYSTEM_CALL_FAILED: u8 = 3;

/// Prints `read: N` and `write: N`, or an errno's name for N.
pub(crate) fn run(src: &Path, dst: &Path, len: u64) -> ExitCode {
    match transfers(src, dst, len as usize) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(SYSTEM_CALL_FAILED),
        Err(error) => ended(Err(error)),
    }
}

fn transfers(src: &Path, dst: &Path, len: usize) -> Result<bool> {
    let mapping = mapped(dst, 0, len, Access::LoadAndStore)?;
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(src)
        .with_context(|| format!("open {} with O_DIRECT", src.display()))?;
    let read = outcome("read", mapping.pread_into(len, &direct));
    if let Some(count) = read {
        compare("what was read", &mapping, src, count)?;
    }
    // Other bytes than those that are in SRC.
    for at in 0..len {
        mapping.store(at, !mapping.load(at));
    }
    let written = outcome("write", mapping.pwrite_from(len, &direct));
    if let Some(count) = written {
        compare("what was written", &mapping, src, count)?;
    }
    Ok(read.is_some() && written.is_some())
}

fn outcome(call: &str, result: rustix::io::Result<usize>) -> Option<usize> {
    match result {
        Ok(count) => println!("{call}: {count}"),
        Err(errno) => println!("{call}: {}", name(errno)),
    }
    result.ok()
}

/// Compares with SRC as an ordinary read sees it.
fn compare(what: &str, mapping: &Mapping, src: &Path, count: usize) -> Result<()> {
    let mut wanted = vec![0; count];
    open(src, false)?
        .read_exact_at(&mut wanted, 0)
        .with_context(|| format!("read {}", src.display()))?;
    let found = mapping.load_all(0, count);
    match found.iter().zip(&wanted).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => bail!(
            "WRONG BYTE in {what} at {at:#x}: {:#04x} in memory, {:#04x} in {}",
            found[at],
            wanted[at],
            src.display()
        ),
    }
}

fn name(errno: Errno) -> String {
    let known = [
        (Errno::IO, "EIO"),
        (Errno::FAULT, "EFAULT"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::PERM, "EPERM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NXIO, "ENXIO"),
        (Errno::CONNREFUSED, "ECONNREFUSED"),
    ];
    let found = known.iter().find(|(known, _)| *known == errno);
    match found {
        Some((_, name)) => (*name).to_owned(),
        None => format!("errno {}", errno.raw_os_error()),
    }
}
