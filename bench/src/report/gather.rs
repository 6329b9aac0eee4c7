//! Where a report's results come from: directories that have them, or quick
//! runs of the studies that are missing.
//!
//! A study is run as a process of its own: what it holds (guests, daemons,
//! memory) is gone when it ends, and its failure is a line in the report.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::studies::{KNOWN, Known, rank};
use crate::runs::{self, Study};

/// All studies of some directories.
pub(super) fn from(directories: &[PathBuf]) -> Result<Vec<Study>> {
    let mut studies: Vec<(Study, &PathBuf)> = Vec::new();
    for directory in directories {
        let found = runs::read(directory)?;
        if found.is_empty() {
            bail!("no results in {}", directory.display());
        }
        for study in found {
            let name = &study.header.study;
            let twice = studies.iter().find(|s| s.0.header.study == *name);
            if let Some((_, other)) = twice {
                bail!(
                    "{} and {} both have results of {name}: name one with --from, \
                     and the other with --baseline to compare them",
                    other.display(),
                    directory.display()
                );
            }
            studies.push((study, directory));
        }
    }
    let mut studies: Vec<Study> = studies.into_iter().map(|s| s.0).collect();
    studies.sort_by_key(|s| rank(&s.header.study));
    Ok(studies)
}

/// Measures quickly what a results directory does not have, or has only half
/// of; returns what could not be measured, and why.
pub(super) fn fill(directory: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("make the results directory {}", directory.display()))?;
    let there = runs::read(directory)?;
    let program = std::env::current_exe().context("find this program")?;
    let mut problems = Vec::new();
    for known in &KNOWN {
        let marker = directory.join(format!(".{}.unfinished", known.name));
        let has = there.iter().any(|s| s.header.study == known.name);
        if has && !marker.exists() {
            eprintln!("{}: taken from {}", known.name, directory.display());
            continue;
        }
        // It stays if this process is interrupted: then the run goes on
        // next time.
        std::fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))?;
        let problem = measure(&program, known, directory)?;
        problems.extend(problem);
        std::fs::remove_file(&marker).with_context(|| format!("remove {}", marker.display()))?;
    }
    Ok(problems)
}

/// Runs one study; the reason if it does not end well.
fn measure(program: &Path, known: &Known, directory: &Path) -> Result<Option<String>> {
    let started = Instant::now();
    eprintln!("{}: measuring quickly", known.name);
    let mut command = Command::new(program);
    command.args(known.quick).arg("--out").arg(directory);
    // Its tables are on the page; what it says of its progress is for now.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    let took = started.elapsed().as_secs();
    eprintln!("{}: {status}, {took} s", known.name);
    let line = || format!("daxwindow-bench {}", known.quick.join(" "));
    Ok((!status.success()).then(|| {
        format!(
            "{}: {} ended with {status} after {took} s",
            known.name,
            line()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::runs::{Better, Cell, Header, Run};

    fn results(directory: &Path, study: &str) {
        let header = Header::new(study, Machine::default());
        let mut run = Run::open(directory, header, false).expect("opens");
        let mut cell = Cell::new("one", "9p", "MB/s", Better::Higher);
        cell.values = vec![1.0];
        run.record(cell).expect("recorded");
    }

    #[test]
    fn directories_add_up_and_a_study_twice_is_refused() {
        let [one, other] = [0; 2].map(|_| tempfile::tempdir().expect("directory"));
        results(one.path(), "odd");
        results(one.path(), "density");
        results(other.path(), "fio");
        let both = [one.path().to_owned(), other.path().to_owned()];
        let studies = from(&both).expect("reads");
        let names: Vec<_> = studies.iter().map(|s| s.header.study.as_str()).collect();
        assert_eq!(names, ["fio", "density", "odd"]);
        results(other.path(), "odd");
        let told = format!("{:#}", from(&both).expect_err("twice"));
        assert!(told.contains("results of odd"), "{told}");
        let empty = tempfile::tempdir().expect("directory");
        let told = format!("{:#}", from(&[empty.path().to_owned()]).expect_err("none"));
        assert!(told.contains("no results"), "{told}");
    }

    /// `fill` itself: a study that is there is not measured again, one that
    /// fails is named.
    #[test]
    fn a_study_that_fails_is_a_line_in_the_report() {
        let place = tempfile::tempdir().expect("directory");
        let known = &KNOWN[0];
        let good = measure(Path::new("/bin/true"), known, place.path()).expect("runs");
        assert_eq!(good, None);
        let bad = measure(Path::new("/bin/false"), known, place.path()).expect("runs");
        let told = bad.expect("failed");
        assert!(
            told.contains("fio --quick ended with exit status: 1"),
            "{told}"
        );
        assert!(measure(Path::new("/no/such"), known, place.path()).is_err());
    }
}
