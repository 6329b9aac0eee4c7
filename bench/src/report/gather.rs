//! Where a report's results come from: directories that have them, or quick
//! runs of the studies that are missing.
//!
//! A study is run as a process of its own: what it holds (guests, daemons,
//! memory) is gone when it ends, and its failure is a line in the report. One
//! that hangs is ended in time, and goes on with the next report.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use daxwindow_vm::cleanup;

use super::studies::{KNOWN, Known, rank};
use crate::runs::{self, Study};

/// How long a quick study may take: several times what it does on two busy
/// processors.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long one may take to end its guests and daemons.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(50);

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
        let end = measure(&program, known, directory)?;
        if !matches!(end, End::TimeUp(_)) {
            std::fs::remove_file(&marker)
                .with_context(|| format!("remove {}", marker.display()))?;
        }
        match end {
            End::Well => {}
            End::Failed(problem) | End::TimeUp(problem) => problems.push(problem),
        }
    }
    Ok(problems)
}

/// How a study ended, and why if not well.
#[derive(Debug, PartialEq)]
enum End {
    Well,
    Failed(String),
    /// The next report goes on with it.
    TimeUp(String),
}

/// Runs one study.
fn measure(program: &Path, known: &Known, directory: &Path) -> Result<End> {
    eprintln!("{}: measuring quickly", known.name);
    let mut command = Command::new(program);
    command.args(known.quick).arg("--out").arg(directory);
    let line = format!("{}: daxwindow-bench {}", known.name, known.quick.join(" "));
    let started = Instant::now();
    let end = run(&mut command, &line, LIMIT)?;
    match &end {
        End::Well => eprintln!("{}: done, {} s", known.name, started.elapsed().as_secs()),
        End::Failed(problem) | End::TimeUp(problem) => eprintln!("{problem}"),
    }
    Ok(end)
}

/// Runs a command that problems call `line`.
fn run(command: &mut Command, line: &str, limit: Duration) -> Result<End> {
    // Its tables are on the page; what it says of its progress is for now.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("start {line}"))?;
    let pid = child.id() as i32;
    let started = Instant::now();
    cleanup::daemon_started(pid);
    let mut ended = wait(&mut child, limit)?;
    let took = started.elapsed().as_secs();
    let end = match ended {
        Some(status) if status.success() => End::Well,
        Some(status) => End::Failed(format!("{line} ended with {status} after {took} s")),
        None => {
            // By this it ends its own guests and daemons.
            cleanup::terminate(pid);
            ended = wait(&mut child, ENDS_WITHIN)?;
            End::TimeUp(format!(
                "{line} was ended after {took} s, the longest it may take; the next report goes \
                 on with it"
            ))
        }
    };
    if ended.is_none() {
        child.kill().context("end a study")?;
        child.wait().context("end a study")?;
    }
    cleanup::daemon_ended(pid);
    Ok(end)
}

/// How it ended, unless time is up before.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        let ended = child.try_wait().context("wait for a study")?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(STEP);
    }
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

    #[test]
    fn a_study_that_fails_is_a_line_in_the_report() {
        let place = tempfile::tempdir().expect("directory");
        let of = |program: &str| measure(Path::new(program), &KNOWN[0], place.path());
        assert_eq!(of("/bin/true").expect("runs"), End::Well);
        let End::Failed(told) = of("/bin/false").expect("runs") else {
            panic!("it fails");
        };
        let why = "fio --quick ended with exit status: 1";
        assert!(told.contains(why), "{told}");
        assert!(of("/no/such").is_err());
    }

    #[test]
    fn a_study_that_hangs_is_ended_in_time() {
        let begun = Instant::now();
        let mut hangs = Command::new("sleep");
        let end = run(hangs.arg("600"), "sleep 600", Duration::from_millis(200));
        let End::TimeUp(told) = end.expect("runs") else {
            panic!("it hangs");
        };
        assert!(told.starts_with("sleep 600 was ended"), "{told}");
        assert!(begun.elapsed() < ENDS_WITHIN, "it heard the signal");
    }
}
