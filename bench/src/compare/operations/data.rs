//! READ and WRITE at random offsets of a file in the page cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::session::{Answer, Pipeline};
use daxwindow_shared::fuse::{Opcode, ROOT_ID, ReadIn, WriteIn, WriteOut};

use super::super::driver::{Actor, Heard, Wire};
use super::super::share::DATA_SEED;
use super::Stage;
use crate::files::is_pattern;
use crate::stats::{Random, mix};

/// Every so many reads all bytes are checked; of the others the first and the
/// last word, since checking costs more than reading.
const CHECKED: u64 = 256;

/// A file open in the session, used in blocks.
#[derive(Clone, Copy)]
pub(super) struct OpenFile {
    node: u64,
    fh: u64,
    block: usize,
    blocks: u64,
}

impl OpenFile {
    pub(super) fn data(stage: &Stage<'_>, block: usize) -> Result<OpenFile> {
        let (read, _) = stage.session.most_bytes();
        ensure!(read >= block, "the daemon reads {read} bytes at most");
        OpenFile::open(stage, "data", libc::O_RDONLY, block)
    }

    pub(super) fn out(stage: &Stage<'_>, block: usize) -> Result<OpenFile> {
        let (_, written) = stage.session.most_bytes();
        ensure!(
            written >= block,
            "the daemon writes {written} bytes at most"
        );
        OpenFile::open(stage, "out", libc::O_RDWR, block)
    }

    fn open(stage: &Stage<'_>, name: &str, flags: i32, block: usize) -> Result<OpenFile> {
        let node = stage.lookup(ROOT_ID, name)?;
        let fh = stage.session.open(node, flags as u32).context("open")?.fh;
        Ok(OpenFile {
            node,
            fh,
            block,
            blocks: stage.files.bytes / block as u64,
        })
    }
}

/// Reads and checks.
pub(super) struct Reader {
    file: OpenFile,
    random: Random,
    offset: u64,
    count: u64,
    all: Vec<u8>,
}

impl Reader {
    pub(super) fn new(file: OpenFile, random: Random) -> Reader {
        Reader {
            file,
            random,
            offset: 0,
            count: 0,
            all: vec![0; file.block],
        }
    }
}

/// Checks what a READ at `offset` brought: all of it, or both ends.
pub(super) fn check_read(
    answer: &Answer<'_>,
    (seed, offset): (u64, u64),
    all: Option<&mut [u8]>,
    len: usize,
) -> Result<()> {
    let got = answer.data_bytes();
    ensure!(got == len, "READ at {offset}: {got} bytes of {len}");
    let good = match all {
        Some(bytes) => {
            answer.copy_data(0, bytes);
            is_pattern(seed, offset, bytes)
        }
        None => [0, len - 8].into_iter().all(|at| {
            let mut word = [0; 8];
            answer.copy_data(at, &mut word);
            is_pattern(seed, offset + at as u64, &word)
        }),
    };
    ensure!(good, "READ at {offset}: wrong bytes");
    Ok(())
}

impl Actor for Reader {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        self.offset = self.random.below(self.file.blocks) * self.file.block as u64;
        wire.begin(Opcode::Read, self.file.node)
            .arg(&ReadIn {
                fh: self.file.fh,
                offset: self.offset,
                size: self.file.block as u32,
                ..ReadIn::default()
            })
            .room(self.file.block);
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        let all = self.count.is_multiple_of(CHECKED);
        self.count += 1;
        let all = all.then_some(&mut self.all[..]);
        check_read(answer, (DATA_SEED, self.offset), all, self.file.block)?;
        Ok(Heard::Done(1))
    }
}

/// Fills each place's buffer with a word of its own, which no earlier
/// measurement has written; the words.
pub(super) fn stamp(pipeline: &mut Pipeline, stage: &Stage<'_>, block: usize) -> Result<Vec<u64>> {
    let depth = pipeline.depth();
    let one = |place| {
        let stamp = mix(mix(stage.seed) ^ place as u64);
        pipeline.fill(place, 0, &stamped(stamp, block))?;
        Ok(stamp)
    };
    (0..depth).map(one).collect()
}

fn stamped(stamp: u64, block: usize) -> Vec<u8> {
    stamp.to_le_bytes().repeat(block / 8)
}

/// Writes blocks that no other place writes.
pub(super) struct Writer {
    file: OpenFile,
    place: u64,
    places: u64,
    stamp: u64,
    random: Random,
    offset: u64,
    on_host: PathBuf,
}

impl Writer {
    pub(super) fn new(
        file: OpenFile,
        (place, places, stamp): (usize, usize, u64),
        stage: &Stage<'_>,
    ) -> Writer {
        Writer {
            file,
            place: place as u64,
            places: places as u64,
            stamp,
            random: stage.random(place),
            offset: 0,
            on_host: stage.files.directory.join("out"),
        }
    }
}

impl Actor for Writer {
    fn ask(&mut self, wire: &mut Wire) -> bool {
        let own = self.random.below(self.file.blocks / self.places);
        let block = own * self.places + self.place;
        self.offset = block * self.file.block as u64;
        wire.begin(Opcode::Write, self.file.node)
            .arg(&WriteIn {
                fh: self.file.fh,
                offset: self.offset,
                size: self.file.block as u32,
                ..WriteIn::default()
            })
            .payload(self.file.block)
            .reply::<WriteOut>();
        true
    }

    fn hear(&mut self, answer: &Answer<'_>) -> Result<Heard> {
        let put = answer.fixed::<WriteOut>().size as usize;
        ensure!(put == self.file.block, "WRITE took {put} bytes");
        Ok(Heard::Done(1))
    }

    /// The last block is on the host.
    fn check(&self) -> Result<()> {
        let mut bytes = vec![0; self.file.block];
        let file = File::open(&self.on_host)?;
        file.read_exact_at(&mut bytes, self.offset)?;
        let good = bytes == stamped(self.stamp, self.file.block);
        ensure!(good, "WRITE at {}: other bytes on the host", self.offset);
        Ok(())
    }
}
