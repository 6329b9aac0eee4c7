//! Job files of fio, the shipped ones and the user's, and what cells come of
//! each.
//!
//! A job file is fio's own, with variables that fio replaces from its
//! environment: `${FILE}`, `${PART}` (bytes of it for each job), `${SOME}` (of
//! these, what a random load touches), `${BLOCK}`, `${JOBS}`, `${LOOPS}` and
//! `${PATTERN}`. Comments that begin with `;@` say what to run it with:
//!
//! | line | meaning | without |
//! | --- | --- | --- |
//! | `;@ blocks 4k 1m` | values of `${BLOCK}` | one run, as it is |
//! | `;@ jobs 1 4` | values of `${JOBS}` | 1 |
//! | `;@ passes first second host-cold` | see [`Pass`] | first and second |
//! | `;@ file read` | `read`, `large` or `write`: what `${FILE}` is | read |
//! | `;@ loops 8` | `${LOOPS}` in the second pass | 1 |
//! | `;@ windows small` | on stacks whose window is smaller than the file, and without one | `usual` |
//! | `;@ each whole` | each job has the whole file as its part, all of them the same | `part` |
//! | `;@ quick 1m/1 first` | what of it belongs to the quick set | nothing |
//!
//! Law: what cannot be understood is an error with the file's name and the
//! line, before anything boots.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::plan::{FileKind, Load, Pass};

/// What stands for the block size of a job file that does not vary it.
const AS_IT_IS: &str = "as-is";
/// Mark of a line for us.
const MARK: &str = ";@";

macro_rules! shipped {
    ($($name:literal),+ $(,)?) => {
        /// Name and text of each shipped job file.
        const SHIPPED: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../fio/", $name, ".fio")))),+
        ];
    };
}

shipped!(
    "seq-read-psync",
    "seq-read-mmap",
    "seq-read-libaio-direct",
    "rand-read-psync",
    "rand-read-psync-pressure",
    "rand-read-mmap",
    "rand-read-mmap-large",
    "rand-read-mmap-pressure",
    "rand-read-libaio-direct",
    "seq-write-psync",
    "seq-write-mmap",
    "rand-write-psync",
    "rand-write-mmap",
    "rand-write-libaio-direct",
    "mixed-psync",
    "mixed-libaio-direct",
);

/// A job file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// The file's name without its end.
    pub name: String,
    /// Its first comment.
    pub title: String,
    /// All of it.
    pub text: String,
    pub file: FileKind,
    /// It reads or writes the file that it is given; else it lays out files
    /// of its own.
    pub uses_file: bool,
    /// It fills what it writes with the pattern that it is given.
    pub has_pattern: bool,
    /// Past the guest's page cache.
    pub direct: bool,
    blocks: Vec<String>,
    jobs: Vec<u32>,
    passes: Vec<Pass>,
    loops: u32,
    /// It is for windows that are smaller than the file.
    pub small_windows: bool,
    /// The file is not shared out among the jobs.
    each_whole: bool,
    quick: Option<Quick>,
}

/// The part of a job file that the quick set has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Quick {
    block: String,
    jobs: u32,
    passes: Vec<Pass>,
}

/// The shipped job files, in the order in which they run.
pub(super) fn shipped() -> Result<Vec<Job>> {
    let parse = |(name, text): &(&str, &str)| Job::parse(name, text);
    SHIPPED.iter().map(parse).collect()
}

impl Job {
    /// The user's.
    pub(super) fn read(path: &Path) -> Result<Job> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the job file {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Job::parse(&name, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Job> {
        let what = || format!("the job file {name}");
        ensure!(!name.is_empty(), "a job file needs a name");
        ensure!(
            text.lines().any(|line| line.trim_start().starts_with('[')),
            "{}: no section, as fio needs one",
            what()
        );
        let title = text.lines().find_map(|line| {
            let comment = line.trim().strip_prefix(';')?;
            (!comment.starts_with('@')).then(|| comment.trim().trim_end_matches('.').to_owned())
        });
        let mut job = Job {
            name: name.to_owned(),
            title: title.unwrap_or_else(|| name.to_owned()),
            text: text.to_owned(),
            file: FileKind::Read,
            uses_file: text.contains("${FILE}"),
            has_pattern: text.contains("${PATTERN}"),
            direct: option_is(text, "direct", "1"),
            blocks: vec![AS_IT_IS.into()],
            jobs: vec![1],
            passes: vec![Pass::First, Pass::Second],
            loops: 1,
            small_windows: false,
            each_whole: false,
            quick: None,
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(rest) = line.trim().strip_prefix(MARK) {
                job.take(rest)
                    .with_context(|| format!("{}, line {}: {}", what(), number + 1, line.trim()))?;
            }
        }
        let varied = text.contains("${BLOCK}");
        ensure!(
            varied == (job.blocks != [AS_IT_IS]),
            "{}: ${{BLOCK}} and {MARK} blocks go together",
            what()
        );
        Ok(job)
    }

    fn take(&mut self, rest: &str) -> Result<()> {
        let mut words = rest.split_whitespace();
        let key = words.next().context("says nothing")?;
        let values: Vec<&str> = words.collect();
        ensure!(!values.is_empty(), "{key} has no value");
        let one = values[0];
        match key {
            "blocks" => self.blocks = values.iter().map(|&v| block(v)).collect::<Result<_>>()?,
            "jobs" => self.jobs = values.iter().map(|&v| count(v)).collect::<Result<_>>()?,
            "passes" => self.passes = passes(&values)?,
            "file" => self.file = FileKind::named(one)?,
            "loops" => self.loops = count(one)?,
            "windows" => {
                self.small_windows = match one {
                    "small" => true,
                    "usual" => false,
                    _ => bail!("{one:?} is neither small nor usual"),
                }
            }
            "each" => {
                self.each_whole = match one {
                    "whole" => true,
                    "part" => false,
                    _ => bail!("{one:?} is neither whole nor part"),
                }
            }
            "quick" => {
                let (size, jobs) = one.split_once('/').context("expected BLOCK/JOBS")?;
                self.quick = Some(Quick {
                    block: block(size)?,
                    jobs: count(jobs)?,
                    passes: passes(&values[1..])?,
                });
            }
            _ => {
                bail!("{key:?} is none of blocks, jobs, passes, file, loops, windows, each, quick")
            }
        }
        Ok(())
    }

    /// Among how many jobs the file is shared out, if so many run.
    pub(super) fn parts(&self, jobs: u32) -> u32 {
        if self.each_whole { 1 } else { jobs }
    }

    /// What to run: all of it, or its part of the quick set.
    pub(super) fn loads(&self, quick: bool) -> Vec<Load> {
        let load = |block: &str, jobs: u32, passes: &[Pass]| Load {
            job: self.clone(),
            block: block.to_owned(),
            jobs,
            passes: passes.to_vec(),
            loops: self.loops,
        };
        if quick {
            let quick = self.quick.iter();
            return quick.map(|q| load(&q.block, q.jobs, &q.passes)).collect();
        }
        let blocks = self.blocks.iter();
        blocks
            .flat_map(|block| self.jobs.iter().map(move |jobs| (block, *jobs)))
            .map(|(block, jobs)| load(block, jobs, &self.passes))
            .collect()
    }
}

/// Whether an option has this value in any section.
fn option_is(text: &str, option: &str, value: &str) -> bool {
    text.lines().any(|line| {
        let found = line.split_once('=').map(|(k, v)| (k.trim(), v.trim()));
        found == Some((option, value))
    })
}

fn count(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(n @ 1..=64) => Ok(n),
        _ => bail!("{text:?} is no number from 1 to 64"),
    }
}

fn block(text: &str) -> Result<String> {
    let number = text.trim_end_matches(['k', 'm']);
    ensure!(
        number.parse::<u32>().is_ok_and(|n| n > 0) && text.len() - number.len() <= 1,
        "{text:?} is no block size such as 4k or 1m"
    );
    Ok(text.to_owned())
}

fn passes(words: &[&str]) -> Result<Vec<Pass>> {
    let mut passes: Vec<Pass> = words
        .iter()
        .map(|w| Pass::named(w))
        .collect::<Result<_>>()?;
    ensure!(!passes.is_empty(), "no pass is named");
    passes.sort();
    passes.dedup();
    Ok(passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_set_is_well_formed_and_has_what_is_promised() {
        let jobs = shipped().expect("well formed");
        let all: Vec<Load> = jobs.iter().flat_map(|job| job.loads(false)).collect();
        for engine in ["psync", "mmap", "libaio"] {
            assert!(jobs.iter().any(|j| option_is(&j.text, "ioengine", engine)));
        }
        for order in ["read", "randread", "write", "randwrite", "randrw"] {
            assert!(jobs.iter().any(|j| option_is(&j.text, "rw", order)));
        }
        for block in ["4k", "64k", "1m"] {
            assert!(all.iter().any(|load| load.block == block));
        }
        assert!(all.iter().any(|load| load.jobs == 4));
        assert!(all.iter().any(|load| load.passes.contains(&Pass::HostCold)));
        for job in &jobs {
            let writes = job.text.contains("write") || job.text.contains("randrw");
            assert_eq!(job.has_pattern, writes, "{}", job.name);
            assert_eq!(job.file == FileKind::Write, writes, "{}", job.name);
            // Else fio drops the guest's cache itself, before each pass.
            assert!(job.uses_file && option_is(&job.text, "invalidate", "0"));
            assert!(job.direct == job.name.ends_with("-direct"), "{}", job.name);
            // In a mapping, fio 3.39 takes the offset of a job's part away
            // again: all would have the first part.
            let mapped = option_is(&job.text, "ioengine", "mmap");
            let parted = job.text.contains("offset_increment");
            assert!(!mapped || !parted, "{}", job.name);
            assert_eq!(job.each_whole, mapped, "{}", job.name);
            assert!(!job.title.is_empty() && job.text.contains(&format!("[{}]", job.name)));
        }
        let mut names: Vec<_> = jobs.iter().map(|job| &job.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), jobs.len());
    }

    #[test]
    fn every_job_file_of_the_folder_is_shipped() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fio");
        let files = std::fs::read_dir(folder).expect("a folder");
        for file in files {
            let path = file.expect("an entry").path();
            let job = Job::read(&path).expect("a job file");
            assert!(shipped().expect("all").contains(&job), "{}", path.display());
        }
    }

    #[test]
    fn a_plain_job_file_of_the_user_will_do() {
        let text = "[global]\nrw=randread\nsize=8m\n[mine]\nbs=8k\n";
        let job = Job::parse("mine", text).expect("fine");
        let loads = job.loads(false);
        assert_eq!(loads.len(), 1);
        assert!(!job.uses_file && !job.has_pattern && !job.direct);
        assert_eq!(loads[0].passes, [Pass::First, Pass::Second]);
        assert_eq!(loads[0].id(Pass::First), "mine/as-is/j1/first");
        assert!(job.loads(true).is_empty(), "not in the quick set");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (line, cause) in [
            (";@ blocks 4x", "4x"),
            (";@ jobs 0", "1 to 64"),
            (";@ passes third", "third"),
            (";@ file other", "other"),
            (";@ quick 4k first", "BLOCK/JOBS"),
            (";@ quick 4k/1", "no pass"),
            (";@ colour red", "colour"),
            (";@ loops", "no value"),
            (";@ each half", "neither"),
            (";@ windows none", "neither"),
        ] {
            let text = format!("; x\n{line}\n[a]\n");
            let error = Job::parse("a", &text).expect_err(line);
            let said = format!("{error:#}");
            assert!(said.contains(cause) && said.contains("line 2"), "{said}");
        }
        for text in ["rw=read", "[a]\nbs=${BLOCK}", ";@ blocks 4k\n[a]\nbs=4k"] {
            assert!(Job::parse("a", text).is_err(), "{text}");
        }
    }
}
