//! One byte in each range of a file: what a first touch costs, and mappings
//! that stay.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use daxwindow_shared::size::parse_bytes;

use crate::map::{Access, Mapping};
use crate::pattern::{self, Pattern};
use crate::{mapped, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    path: PathBuf,
    /// How many, from the file's start
    #[arg(long)]
    ranges: usize,
    /// Bytes of one
    #[arg(long, value_parser = parse_bytes, default_value = "2M")]
    range_bytes: u64,
    /// Touch by a store of the byte that is there
    #[arg(long)]
    write: bool,
}

impl Args {
    fn mapping(&self) -> Result<Mapping> {
        let access = match self.write {
            true => Access::LoadAndStore,
            false => Access::Load,
        };
        // The last range needs only its first byte.
        let whole = self.range_bytes as usize * self.ranges.saturating_sub(1) + 1;
        mapped(&self.path, 0, whole, access)
    }

    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let bytes = self.range_bytes as usize;
        (0..self.ranges).map(move |range| range * bytes)
    }

    fn touch(&self, mapping: &Mapping, at: usize) -> u8 {
        let byte = mapping.load(at);
        if self.write {
            mapping.store(at, byte);
        }
        byte
    }

    /// Pattern files tell what must be there; others may have anything.
    fn check(&self, found: &[u8]) -> Result<()> {
        if !pattern::is_one(&self.path) {
            return Ok(());
        }
        let pattern = Pattern::of(&self.path);
        (self.places().zip(found))
            .try_for_each(|(at, byte)| pattern.check(&self.path, at as u64, &[*byte]))
    }
}

/// Prints each first touch's microseconds, one a line.
pub(crate) fn touch(args: &Args) -> Result<()> {
    let mapping = args.mapping()?;
    let (mut took, mut found) = (Vec::new(), Vec::new());
    for at in args.places() {
        let start = Instant::now();
        found.push(args.touch(&mapping, at));
        took.push(start.elapsed().as_micros());
    }
    args.check(&found)?;
    let lines: String = took.iter().map(|us| format!("{us}\n")).collect();
    std::io::stdout().write_all(lines.as_bytes())?;
    Ok(())
}

pub(crate) fn hold(args: &Args) -> Result<()> {
    let mapping = args.mapping()?;
    let first: Vec<u8> = args.places().map(|at| args.touch(&mapping, at)).collect();
    args.check(&first)?;
    say("ready")?;
    let mut lines = 0;
    for line in std::io::stdin().lock().lines() {
        line.context("read the input")?;
        lines += 1;
        for (at, byte) in args.places().zip(&first) {
            let found = mapping.load(at);
            if found != *byte {
                bail!("WRONG BYTE at {at:#x}: {found:#04x}, was {byte:#04x}");
            }
        }
        say("same")?;
    }
    if lines > 0 {
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}
