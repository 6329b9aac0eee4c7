//! pjdfstest's own words, and the table of what does not pass.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// The exceptions: rows of `| test | where | outcome | cause |`.
const DOCUMENT: &str = include_str!("../../../docs/pjdfstest.md");
/// Where the suite runs.
const PLACES: [&str; 7] = [
    "dax",
    "plain",
    "acl",
    "native",
    "virtiofsd",
    "tmpfs",
    "host",
];
pub(crate) const SUITE: &str = "pjdfstest@0.2.2";
/// Tests that the suite has.
const AT_LEAST: usize = 398;
/// What the names of tests have that make the file system read-only.
pub(crate) const REMOUNTING: &str = "::erofs_";

/// Naps are longer than the coarsest clock tick that time stamps are made of.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What the suite is told; whether it may make the file system read-only.
pub(crate) fn config(remount: bool) -> String {
    CONFIG.replace("REMOUNT", &remount.to_string())
}

/// Runs the suite, or the tests whose names have `name` in them, on this
/// machine in the directory `place`, and returns what it prints.
pub(crate) fn run_here(program: &Path, place: &Path, remount: bool, name: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), config(remount)).expect("written");
    let mut command = Command::new(program);
    command.arg("-c").arg(file.path()).arg("-p").arg(place);
    command.args(["-s", "/dev/shm"]).current_dir("/");
    command.envs([("NO_COLOR", "1"), ("RUST_BACKTRACE", "0")]);
    command.args((!name.is_empty()).then_some(name));
    let output = command.output().expect("starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tests by their outcome.
#[derive(Debug, Default)]
pub(crate) struct Results {
    passed: BTreeSet<String>,
    /// With what the suite said.
    failed: BTreeMap<String, String>,
    skipped: BTreeSet<String>,
}

impl Results {
    /// All tests, run by what is given whether file systems may be made
    /// read-only, and a test's name, or a part of names, or nothing.
    ///
    /// Tests that make the file system read-only go by themselves: others
    /// leave files open for writing, and then it cannot be made so. What fails
    /// is run once more by itself.
    pub(crate) fn of_all(mut run: impl FnMut(bool, &str) -> String) -> Results {
        let whole = run(false, "") + &run(true, REMOUNTING);
        let mut results = Results::parse(&whole);
        let failed: Vec<String> = results.failed.keys().cloned().collect();
        for name in failed {
            let text = run(name.contains(REMOUNTING), &name);
            let mut lines = text.lines().map(|line| line.split_whitespace());
            if lines.any(|words| words.eq([name.as_str(), "ok"])) {
                results.failed_by_chance(&name);
            }
        }
        results
    }

    pub(crate) fn parse(text: &str) -> Results {
        let mut results = Results::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, outcome] = words[..] else { continue };
            let name = name.to_owned();
            match outcome {
                "ok" => drop(results.passed.insert(name)),
                "skipped" => drop(results.skipped.insert(name)),
                "FAILED" => {
                    let said = lines.peek().map_or("", |line| line.trim());
                    results.failed.insert(name, said.to_owned());
                }
                _ => {}
            }
        }
        // A second run may have what the first had to leave out.
        let (passed, failed) = (&results.passed, &results.failed);
        let ran = |name: &String| passed.contains(name) || failed.contains_key(name);
        results.skipped.retain(|name| !ran(name));
        let total = results.passed.len() + results.failed.len() + results.skipped.len();
        assert!(total >= AT_LEAST, "only {total} tests:\n{text}");
        results
    }

    /// Leaves those out that make the file system read-only and were skipped.
    #[allow(dead_code, reason = "not every test has a place that stays writable")]
    pub(crate) fn without_remounting(mut self) -> Results {
        self.skipped.retain(|name| !name.contains(REMOUNTING));
        self
    }

    /// What did not pass: the test, and its outcome.
    pub(crate) fn others(&self) -> BTreeSet<(String, &'static str)> {
        let failed = self.failed.keys().map(|name| (name.clone(), "failed"));
        let skipped = self.skipped.iter().map(|name| (name.clone(), "skipped"));
        failed.chain(skipped).collect()
    }

    /// A test passed when it was run again.
    fn failed_by_chance(&mut self, name: &str) {
        let said = self.failed.remove(name).unwrap_or_default();
        println!("  {name} passed when run again; before: {said}");
        self.passed.insert(name.to_owned());
    }

    /// Prints them, and returns in what they differ from the rows of the
    /// document for `place`.
    pub(crate) fn report(&self, place: &str) -> String {
        println!(
            "pjdfstest on {place}: {} passed, {} failed, {} skipped",
            self.passed.len(),
            self.failed.len(),
            self.skipped.len()
        );
        for (test, said) in &self.failed {
            println!("  {test} failed: {said}");
        }
        let (is, named) = (self.others(), named(place));
        let unnamed = is.difference(&named);
        let unnamed = unnamed
            .map(|(test, outcome)| format!("{place}: {test} {outcome}, and no row says so\n"));
        let gone = named.difference(&is);
        let gone =
            gone.map(|(test, outcome)| format!("{place}: {test} is not {outcome} any more\n"));
        unnamed.chain(gone).collect()
    }
}

/// What does not pass at a place, by the document.
fn named(place: &str) -> BTreeSet<(String, &'static str)> {
    let mut named = BTreeSet::new();
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", test, places, outcome, cause, ""] = cells[..] else {
            continue;
        };
        let Some(test) = test.strip_prefix('`').and_then(|t| t.strip_suffix('`')) else {
            continue;
        };
        assert!(!cause.is_empty(), "no cause: {line}");
        for one in places.split(", ") {
            assert!(PLACES.contains(&one), "{one:?} is no place: {line}");
            if one == place {
                named.insert((test.to_owned(), outcome));
            }
        }
    }
    named
}
