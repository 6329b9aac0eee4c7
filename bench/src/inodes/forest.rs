//! Very many empty files, in directories of ten thousand.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::ROOT_ID;

use crate::stats::Random;

const IN_A_DIRECTORY: usize = 10_000;

/// The files, numbered.
pub(super) struct Forest {
    root: PathBuf,
    count: usize,
}

/// A file by its number.
pub(super) struct Pick {
    pub directory: usize,
    pub name: String,
}

impl Forest {
    /// Makes `count` files below `root`.
    pub(super) fn grow(root: &Path, count: usize) -> Result<Forest> {
        let forest = Forest {
            root: root.to_path_buf(),
            count,
        };
        for number in 0..count {
            let pick = forest.file(number);
            let directory = root.join(directory_name(pick.directory));
            if number % IN_A_DIRECTORY == 0 {
                std::fs::create_dir(&directory)
                    .with_context(|| format!("create {}", directory.display()))?;
            }
            let path = directory.join(pick.name);
            File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(forest)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn directories(&self) -> usize {
        self.count.div_ceil(IN_A_DIRECTORY)
    }

    /// All of them.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.count
    }

    pub(super) fn file(&self, number: usize) -> Pick {
        Pick {
            directory: number / IN_A_DIRECTORY,
            name: format!("f{number:07}"),
        }
    }

    /// `count` of `range` at random; the same for the same seed.
    pub(super) fn picks(&self, range: &Range<usize>, count: usize, seed: u64) -> Vec<Pick> {
        let mut random = Random::new(seed);
        (0..count)
            .map(|_| self.file(range.start + random.below(range.len() as u64) as usize))
            .collect()
    }

    /// Node ids of the directories, each looked up.
    pub(super) fn enter(&self, session: &Session) -> Result<Vec<u64>> {
        (0..self.directories())
            .map(|directory| {
                let name = directory_name(directory);
                Ok(session.lookup(ROOT_ID, name.as_bytes())?.nodeid)
            })
            .collect()
    }

    /// Looks one file up.
    pub(super) fn look_up(&self, session: &Session, number: usize) -> Result<()> {
        let pick = self.file(number);
        let directory = directory_name(pick.directory);
        let node = session.lookup(ROOT_ID, directory.as_bytes())?.nodeid;
        session.lookup(node, pick.name.as_bytes())?;
        Ok(())
    }

    /// Lists everything with attributes, and answers the node ids of the
    /// files.
    pub(super) fn learn(&self, session: &Session) -> Result<Vec<u64>> {
        let mut known = Vec::with_capacity(self.count);
        for node in self.enter(session)? {
            let handle = session.opendir(node, 0)?.fh;
            let mut offset = 0;
            loop {
                let listed = session.readdirplus(node, handle, offset)?;
                let Some(last) = listed.last() else { break };
                offset = last.head.off;
                let ids = listed.iter().filter_map(|entry| entry.entry.as_ref());
                known.extend(ids.map(|entry| entry.nodeid).filter(|&id| id != 0));
            }
            session.releasedir(node, handle)?;
        }
        ensure!(
            known.len() == self.count,
            "{} of {} files were listed with a node id",
            known.len(),
            self.count
        );
        Ok(known)
    }

    /// An `O_PATH` descriptor of each directory, to make a daemon's system
    /// calls with.
    pub(super) fn open_directories(&self) -> Result<Vec<std::os::fd::OwnedFd>> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        (0..self.directories())
            .map(|directory| {
                let path = self.root.join(directory_name(directory));
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                openat(CWD, &path, flags, Mode::empty())
                    .with_context(|| format!("open {}", path.display()))
            })
            .collect()
    }
}

fn directory_name(directory: usize) -> String {
    format!("d{directory:04}")
}
