//! The operations, one small actor each.
//!
//! | file | operations |
//! | --- | --- |
//! | `lookup` | names looked up, known or not |
//! | `nodes` | requests about a known node: attributes, open and release, fsync, one that nobody serves |
//! | `changes` | create and unlink, rename |
//! | `listing` | READDIRPLUS |
//! | `data` | READ and WRITE |
//! | `tree` | a tree of small files, read whole |

mod changes;
mod data;
mod listing;
mod lookup;
mod nodes;
mod tree;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use daxwindow_guest::session::{Pipeline, Session};
use daxwindow_shared::fuse::ROOT_ID;

use super::driver::Actor;
use super::share::{Files, entry, place_name};
use crate::stats::Random;

/// Names that are used over and over.
pub(super) const WORKING_SET: usize = 1000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// A request that every daemon refuses without asking the host: the way to
    /// it and back.
    Empty,
    /// A name the daemon has a node for.
    LookupHot,
    /// A name it has none for; the host knows it.
    LookupCold,
    Getattr,
    OpenRelease,
    /// CREATE, RELEASE, UNLINK and FORGET.
    CreateUnlink,
    /// READDIRPLUS of a directory whose nodes the daemon does not know.
    ReaddirplusCold,
    /// And whose nodes it knows.
    ReaddirplusHot,
    Rename,
    /// A change of mode.
    Setattr,
    /// Of a clean file.
    Fsync,
    /// LOOKUP, OPEN, READ, RELEASE of each file of a tree.
    SmallFiles,
    /// At random offsets, of so many bytes.
    Read(usize),
    Write(usize),
    /// SETUPMAPPING of a range, until the front end has it.
    DaxMap,
    /// REMOVEMAPPING of a range.
    DaxUnmap,
    /// A file read through the window, of which nothing is mapped yet.
    DaxFirstRead,
    /// And with everything mapped.
    DaxHotRead,
}

use Operation::*;

impl Operation {
    /// Name in tables, JSON and `--only`.
    pub(super) fn name(self) -> String {
        let size = |bytes: usize| match bytes {
            bytes if bytes >= 1 << 20 => format!("{}m", bytes >> 20),
            bytes => format!("{}k", bytes >> 10),
        };
        match self {
            Empty => "empty".into(),
            LookupHot => "lookup_hot".into(),
            LookupCold => "lookup_cold".into(),
            Getattr => "getattr".into(),
            OpenRelease => "open_release".into(),
            CreateUnlink => "create_unlink".into(),
            ReaddirplusCold => "readdirplus_cold".into(),
            ReaddirplusHot => "readdirplus_hot".into(),
            Rename => "rename".into(),
            Setattr => "setattr".into(),
            Fsync => "fsync".into(),
            SmallFiles => "small_files".into(),
            Read(bytes) => format!("read_{}", size(bytes)),
            Write(bytes) => format!("write_{}", size(bytes)),
            DaxMap => "dax_map".into(),
            DaxUnmap => "dax_unmap".into(),
            DaxFirstRead => "dax_first_read".into(),
            DaxHotRead => "dax_hot_read".into(),
        }
    }

    /// What is counted.
    pub(super) fn unit(self) -> &'static str {
        match self {
            ReaddirplusCold | ReaddirplusHot => "entries/s",
            SmallFiles => "files/s",
            DaxFirstRead | DaxHotRead => "MB/s",
            _ => "ops/s",
        }
    }

    /// Whether it is about names and attributes, not data.
    pub(super) fn is_metadata(self) -> bool {
        !matches!(self, Empty | Fsync | SmallFiles | Read(_) | Write(_)) && !self.needs_window()
    }

    /// Whether it is about the window; the others are measured without one.
    pub(super) fn needs_window(self) -> bool {
        matches!(self, DaxMap | DaxUnmap | DaxFirstRead | DaxHotRead)
    }

    /// In words.
    pub(super) fn what(self) -> String {
        let size = |bytes: usize| format!("{} KiB at random offsets", bytes >> 10);
        match self {
            Empty => "a request that is refused at once".into(),
            LookupHot => "LOOKUP of known names".into(),
            LookupCold => "LOOKUP of unknown names".into(),
            Getattr => "GETATTR".into(),
            OpenRelease => "OPEN and RELEASE".into(),
            CreateUnlink => "CREATE, RELEASE, UNLINK and FORGET".into(),
            ReaddirplusCold => "READDIRPLUS of unknown nodes".into(),
            ReaddirplusHot => "READDIRPLUS of known nodes".into(),
            Rename => "RENAME".into(),
            Setattr => "SETATTR of a mode".into(),
            Fsync => "FSYNC of a clean file".into(),
            SmallFiles => "a tree of files of 4 KiB read whole".into(),
            Read(bytes) => format!("READ of {}", size(bytes)),
            Write(bytes) => format!("WRITE of {}", size(bytes)),
            DaxMap => "SETUPMAPPING of 2 MiB, the front end's mmap included".into(),
            DaxUnmap => "REMOVEMAPPING of 2 MiB".into(),
            DaxFirstRead => "a file read through the window, nothing mapped yet".into(),
            DaxHotRead => "a file read through the window, all mapped".into(),
        }
    }

    /// Requests of one unit. Those of listings are for very many entries.
    pub(super) fn requests(self) -> f64 {
        match self {
            ReaddirplusCold | ReaddirplusHot => 0.0,
            OpenRelease => 2.0,
            // FORGET included.
            CreateUnlink => 4.0,
            SmallFiles => 5.0,
            _ => 1.0,
        }
    }

    /// Whether the daemon must know no node but the root at the start.
    pub(super) fn needs_fresh_session(self) -> bool {
        matches!(self, LookupCold | ReaddirplusCold | SmallFiles)
    }

    /// Whether it is over when everything was done once.
    pub(super) fn is_one_pass(self) -> bool {
        self.needs_fresh_session()
    }

    /// Bytes of buffer each request in flight needs.
    pub(super) fn buffer_bytes(self) -> usize {
        match self {
            ReaddirplusCold | ReaddirplusHot => listing::ROOM_BYTES,
            SmallFiles => super::share::SMALL_BYTES as usize,
            Read(bytes) | Write(bytes) => bytes,
            _ => 0,
        }
    }

    /// Bytes of file data the daemon reads for one unit.
    pub(super) fn bytes_read(self) -> u64 {
        match self {
            SmallFiles => super::share::SMALL_BYTES,
            Read(bytes) => bytes as u64,
            _ => 0,
        }
    }

    /// An actor for each place of `pipeline`. `seed` varies their choices.
    pub(super) fn actors(
        self,
        stage: &Stage<'_>,
        pipeline: &mut Pipeline,
    ) -> Result<Vec<Box<dyn Actor>>> {
        let depth = pipeline.depth();
        let flat = stage.lookup(ROOT_ID, "flat")?;
        let parts = stage.parts(depth);
        match self {
            Empty => boxed(depth, |_| Ok(nodes::Refused)),
            LookupHot => {
                stage.working_set(flat)?;
                let names = (0..WORKING_SET.min(stage.files.entries)).map(entry);
                let names: Arc<[String]> = names.collect();
                boxed(depth, |place| {
                    let order = stage.random(place).permutation(names.len());
                    Ok(lookup::Hot::new(flat, Arc::clone(&names), order))
                })
            }
            LookupCold => boxed(depth, |place| {
                Ok(lookup::Cold::new(flat, parts[place].clone()))
            }),
            Getattr | OpenRelease => {
                let nodes: Arc<[u64]> = stage.working_set(flat)?.into();
                boxed(depth, |place| {
                    let order = stage.random(place).permutation(nodes.len());
                    Ok(match self {
                        Getattr => nodes::Known::getattr(Arc::clone(&nodes), order),
                        _ => nodes::Known::open_release(Arc::clone(&nodes), order),
                    })
                })
            }
            Setattr => boxed(depth, |place| {
                Ok(nodes::Mode::new(stage.lookup(stage.work(place)?, "mode")?))
            }),
            Fsync => boxed(depth, |place| {
                let node = stage.lookup(stage.work(place)?, "mode")?;
                let fh = stage.session.open(node, libc::O_RDWR as u32)?.fh;
                Ok(nodes::Fsync::new(node, fh))
            }),
            CreateUnlink => boxed(depth, |place| {
                let session = Arc::clone(stage.session);
                Ok(changes::CreateUnlink::new(session, stage.work(place)?))
            }),
            Rename => boxed(depth, |place| Ok(changes::Rename::new(stage.work(place)?))),
            ReaddirplusCold | ReaddirplusHot => {
                if self == ReaddirplusHot {
                    stage.list(flat)?;
                }
                boxed(depth, |_| {
                    let fh = stage.session.opendir(flat, 0)?.fh;
                    let passes = if self.is_one_pass() { 1 } else { u64::MAX };
                    Ok(listing::Listing::new(flat, fh, stage.files.entries, passes))
                })
            }
            SmallFiles => {
                let directories = tree::directories(stage)?;
                boxed(depth, |place| {
                    Ok(tree::Reader::new(
                        Arc::clone(&directories),
                        parts[place].clone(),
                    ))
                })
            }
            Read(bytes) => {
                let file = data::OpenFile::data(stage, bytes)?;
                boxed(depth, |place| {
                    Ok(data::Reader::new(file, stage.random(place)))
                })
            }
            Write(bytes) => {
                let file = data::OpenFile::out(stage, bytes)?;
                let stamps = data::stamp(pipeline, stage, bytes)?;
                boxed(depth, |place| {
                    let own = (place, depth, stamps[place]);
                    Ok(data::Writer::new(file, own, stage))
                })
            }
            DaxMap | DaxUnmap | DaxFirstRead | DaxHotRead => {
                bail!("{} is no matter of requests alone", self.name())
            }
        }
    }
}

fn boxed<A: Actor + 'static>(
    depth: usize,
    make: impl Fn(usize) -> Result<A>,
) -> Result<Vec<Box<dyn Actor>>> {
    let one = |place| Ok(Box::new(make(place)?) as Box<dyn Actor>);
    (0..depth).map(one).collect()
}

/// Where actors are set up: a session on the test files.
pub(super) struct Stage<'a> {
    pub session: &'a Arc<Session>,
    pub files: &'a Files,
    /// Different for each measurement.
    pub seed: u64,
}

impl Stage<'_> {
    fn lookup(&self, parent: u64, name: &str) -> Result<u64> {
        let entry = self.session.lookup(parent, name.as_bytes());
        Ok(entry.with_context(|| format!("look {name} up"))?.nodeid)
    }

    fn random(&self, place: usize) -> Random {
        Random::new(crate::stats::mix(self.seed) ^ place as u64)
    }

    /// The directory a place may change.
    fn work(&self, place: usize) -> Result<u64> {
        let work = self.lookup(ROOT_ID, "work")?;
        self.lookup(work, &place_name(place))
    }

    /// Nodes of the names that are used over and over.
    fn working_set(&self, flat: u64) -> Result<Vec<u64>> {
        let names = (0..WORKING_SET.min(self.files.entries)).map(entry);
        names.map(|name| self.lookup(flat, &name)).collect()
    }

    /// Makes all of a directory known.
    fn list(&self, node: u64) -> Result<()> {
        let fh = self.session.opendir(node, 0)?.fh;
        let mut offset = 0;
        loop {
            let listed = self.session.readdirplus(node, fh, offset)?;
            match listed.last() {
                Some(last) => offset = last.head.off,
                None => return Ok(self.session.releasedir(node, fh)?),
            }
        }
    }

    /// Indexes of all entries in random order, a part for each place.
    fn parts(&self, depth: usize) -> Vec<Vec<usize>> {
        let all = self.random(0).permutation(self.files.entries);
        let part = |place| all.iter().skip(place).step_by(depth).copied().collect();
        (0..depth).map(part).collect()
    }
}
