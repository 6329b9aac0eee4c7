//! What is measured: loads, each a job file with a block size and a number of
//! jobs, in passes; a pass of a load on a stack is a cell.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::jobs::{Job, shipped};
use super::stacks::Stack;

/// In which state of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pass {
    /// Neither the guest nor the host has any of the file.
    HostCold,
    /// The host has all of the file in its page cache, the guest nothing.
    First,
    /// Once more after that.
    Second,
}

impl Pass {
    pub(super) fn named(word: &str) -> Result<Pass> {
        let all = [Pass::HostCold, Pass::First, Pass::Second];
        match all.into_iter().find(|pass| pass.name() == word) {
            Some(pass) => Ok(pass),
            None => bail!("{word:?} is no pass: first, second or host-cold"),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Pass::HostCold => "host-cold",
            Pass::First => "first",
            Pass::Second => "second",
        }
    }

    /// In words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Pass::HostCold => "guest and host cold",
            Pass::First => "first pass, guest cold",
            Pass::Second => "second pass",
        }
    }
}

/// What a job file's `${FILE}` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKind {
    /// One for all stacks, that fits into the guest's memory.
    Read,
    /// One for all stacks, larger than the guest's memory.
    Large,
    /// One for each stack, that fits.
    Write,
}

impl FileKind {
    pub(super) fn named(word: &str) -> Result<FileKind> {
        match word {
            "read" => Ok(FileKind::Read),
            "large" => Ok(FileKind::Large),
            "write" => Ok(FileKind::Write),
            _ => bail!("{word:?} is no file: read, large or write"),
        }
    }
}

/// A job file with all its variables but those that differ between stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub job: Job,
    pub block: String,
    pub jobs: u32,
    /// In the order in which they are made.
    pub passes: Vec<Pass>,
    /// How often the second pass is made in one go.
    pub loops: u32,
}

impl Load {
    /// Without the pass.
    pub(super) fn name(&self) -> String {
        format!("{}/{}/j{}", self.job.name, self.block, self.jobs)
    }

    /// The cell's.
    pub(super) fn id(&self, pass: Pass) -> String {
        format!("{}/{}", self.name(), pass.name())
    }

    /// A job file that lays out files of its own does so in a directory; the
    /// stack without a file system has none. What is for windows that are too
    /// small is compared with none at all.
    pub(super) fn runs_on(&self, stack: Stack) -> bool {
        match (self.job.small_windows, stack.has_small_window()) {
            (true, is_small) => is_small || stack == Stack::DaxNever,
            (false, is_small) => !is_small && (self.job.uses_file || stack != Stack::Blk),
        }
    }
}

/// The loads asked for: the shipped set or its quick part, and the user's own
/// job files; of these, those whose cells' names contain one of `only`.
pub(super) fn loads(quick: bool, own: &[Job], only: &[String]) -> Result<Vec<Load>> {
    let shipped = shipped()?;
    let mut names = BTreeSet::new();
    for job in shipped.iter().chain(own) {
        ensure!(
            names.insert(&job.name),
            "two job files have the name {:?}",
            job.name
        );
    }
    let mut loads: Vec<Load> = shipped.iter().flat_map(|job| job.loads(quick)).collect();
    loads.extend(own.iter().flat_map(|job| job.loads(false)));
    for load in &mut loads {
        let name = load.name();
        let wanted = |pass: &Pass| {
            let id = format!("{name}/{}", pass.name());
            only.is_empty() || only.iter().any(|part| id.contains(part.as_str()))
        };
        let mut passes: Vec<Pass> = load.passes.iter().copied().filter(wanted).collect();
        // Nothing is second without a first.
        if passes.contains(&Pass::Second) {
            passes.push(Pass::First);
        }
        passes.sort();
        passes.dedup();
        load.passes = passes;
    }
    loads.retain(|load| !load.passes.is_empty());
    ensure!(
        !loads.is_empty(),
        "no cell has such a name: --list shows all"
    );
    Ok(loads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(loads: &[Load]) -> Vec<String> {
        let ids = |load: &Load| load.passes.iter().map(|&p| load.id(p)).collect::<Vec<_>>();
        loads.iter().flat_map(ids).collect()
    }

    #[test]
    fn the_quick_set_is_a_part_of_the_full_one() {
        let full = cells(&loads(false, &[], &[]).expect("all"));
        let quick = cells(&loads(true, &[], &[]).expect("some"));
        assert!(quick.len() < full.len() / 4, "{quick:?}");
        for cell in &quick {
            assert!(full.contains(cell), "{cell}");
        }
        let distinct: BTreeSet<_> = full.iter().collect();
        assert_eq!(distinct.len(), full.len());
    }

    #[test]
    fn a_second_pass_brings_the_first() {
        let only = ["seq-read-psync/1m/j1/second".to_owned()];
        let found = loads(false, &[], &only).expect("one");
        let wanted = ["seq-read-psync/1m/j1/first", "seq-read-psync/1m/j1/second"];
        assert_eq!(cells(&found), wanted);
        assert!(loads(false, &[], &["no such".to_owned()]).is_err());
    }

    #[test]
    fn names_are_not_taken_twice() {
        let own = shipped().expect("all").remove(0);
        let error = loads(true, &[own], &[]).expect_err("twice").to_string();
        assert!(error.contains("seq-read-psync"), "{error}");
    }
}
