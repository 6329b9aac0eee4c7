//! A study being measured.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::progress::Progress;
use super::read::{file_of, parse};
use super::{Cell, Header, Study};

/// Writes cells as they are finished, and knows those that are there.
pub(crate) struct Run {
    path: PathBuf,
    /// Locked: two runs do not write one file.
    file: File,
    study: Study,
    progress: Progress,
}

impl Run {
    /// Begins a run in a results directory, or goes on with the one that is
    /// there, if it began under the same conditions. `fresh` drops that one.
    pub(crate) fn open(directory: &Path, header: Header, fresh: bool) -> Result<Run> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make the results directory {}", directory.display()))?;
        let path = file_of(directory, &header.study);
        let what = || format!("open {}", path.display());
        let mut options = OpenOptions::new();
        let mut file = (options.read(true).write(true).create(true).truncate(false))
            .open(&path)
            .with_context(what)?;
        file.try_lock()
            .map_err(|e| anyhow!("{}: another run writes it ({e})", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(what)?;
        let (there, whole) = match fresh {
            true => (None, 0),
            false => parse(&path, &bytes)
                .context("these results cannot be gone on with: --fresh begins anew")?,
        };
        if let Some(there) = &there {
            same(&path, there, &header)?;
        }
        // What an interrupt tore is measured again.
        file.set_len(whole).with_context(what)?;
        file.seek(SeekFrom::Start(whole)).with_context(what)?;
        let begins = there.is_none();
        let study = there.unwrap_or_else(|| Study {
            header,
            cells: Vec::new(),
        });
        let mut run = Run {
            progress: Progress::new(&study.header.study),
            path,
            file,
            study,
        };
        if begins {
            let line = serde_json::to_vec(&run.study.header)?;
            run.write(line)?;
        }
        Ok(run)
    }

    /// Whether this cell is there. One that failed is not: it is tried again.
    pub(crate) fn has(&self, id: &str, stack: &str) -> bool {
        self.get(id, stack).is_some_and(|c| c.error.is_none())
    }

    /// The cell, failed ones too.
    pub(crate) fn get(&self, id: &str, stack: &str) -> Option<&Cell> {
        let mut cells = self.study.cells.iter();
        cells.find(|c| c.id == id && c.stack == stack)
    }

    /// All cells so far, those kept from an earlier run included.
    pub(crate) fn cells(&self) -> &[Cell] {
        &self.study.cells
    }

    /// Where the results are.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shows the progress towards these cells, by id and stack, those that are
    /// there included.
    pub(crate) fn plan_of(&mut self, cells: &[(String, String)]) {
        let kept = cells.iter().filter(|(id, stack)| self.has(id, stack));
        self.progress.plan(cells.len() as u64, kept.count() as u64);
    }

    /// As [`Run::plan_of`], for a run of all that a study has: so many cells.
    pub(crate) fn plan(&mut self, cells: usize) {
        let kept = self.study.cells.iter().filter(|c| c.error.is_none());
        let kept = kept.count().min(cells);
        self.progress.plan(cells as u64, kept as u64);
    }

    /// Says something on stderr without disturbing the progress bar.
    pub(crate) fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Writes a finished cell; it takes the place of an earlier one of its
    /// name.
    pub(crate) fn record(&mut self, cell: Cell) -> Result<()> {
        self.record_part(cell.clone())?;
        self.progress.record(&cell);
        Ok(())
    }

    /// The same without a step of the progress: for cells beside those that
    /// were planned.
    pub(crate) fn record_part(&mut self, cell: Cell) -> Result<()> {
        cell.check().map_err(|e| anyhow!(e))?;
        self.write(serde_json::to_vec(&cell)?)?;
        self.study.put(cell);
        Ok(())
    }

    /// One write a line, so that an interrupt tears at most the last.
    fn write(&mut self, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.flush());
        written.with_context(|| format!("write {}", self.path.display()))
    }
}

fn same(path: &Path, there: &Study, header: &Header) -> Result<()> {
    let differences = header.differences(&there.header);
    ensure!(
        differences.is_empty(),
        "{} holds results of other conditions: {}. --fresh drops them, --out names another directory",
        path.display(),
        differences.join("; ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::runs::{Better, read};

    fn header() -> Header {
        let mut header = Header::new("fio", Machine::default());
        header.option("repetitions", 3);
        header
    }

    fn cell(id: &str, value: f64) -> Cell {
        let mut cell = Cell::new(id, "9p", "MB/s", Better::Higher);
        cell.values = vec![value];
        cell
    }

    fn open(directory: &Path) -> Run {
        Run::open(directory, header(), false).expect("opens")
    }

    fn ids(run: &Run) -> Vec<&str> {
        run.cells().iter().map(|c| c.id.as_str()).collect()
    }

    #[test]
    fn an_interrupted_run_goes_on_where_it_was() {
        let place = tempfile::tempdir().expect("directory");
        let directory = place.path().join("new/results");
        let mut run = open(&directory);
        run.plan(3);
        run.record(cell("one", 1.0)).expect("recorded");
        let mut failed = cell("two", 2.0);
        failed.values.clear();
        failed.error = Some("the guest hung".into());
        run.record(failed).expect("recorded");
        // Interrupted here: nothing is closed in order, but the lock goes.
        let path = run.path().to_owned();
        let before = std::fs::read(&path).expect("there");
        drop(run);
        assert_eq!(std::fs::read(&path).expect("there"), before);

        let mut run = open(&directory);
        run.plan(3);
        assert!(run.has("one", "9p") && !run.has("one", "other"));
        assert!(!run.has("two", "9p") && run.get("two", "9p").is_some());
        assert!(!run.has("three", "9p"));
        run.record(cell("two", 2.0)).expect("recorded");
        run.record(cell("three", 3.0)).expect("recorded");
        drop(run);
        let studies = read(&directory).expect("reads");
        let [study] = &studies[..] else {
            panic!("{studies:?}")
        };
        let found: Vec<_> = study.cells.iter().map(|c| (&*c.id, c.values[0])).collect();
        assert_eq!(found, [("one", 1.0), ("two", 2.0), ("three", 3.0)]);
        assert_eq!(study.header.options, header().options);
    }

    #[test]
    fn a_torn_last_line_is_cut_and_measured_again() {
        let place = tempfile::tempdir().expect("directory");
        let mut run = open(place.path());
        run.record(cell("one", 1.0)).expect("recorded");
        let whole = std::fs::metadata(run.path()).expect("there").len();
        run.record(cell("two", 2.0)).expect("recorded");
        let path = run.path().to_owned();
        drop(run);
        for left in [whole + 1, whole + 20] {
            let file = OpenOptions::new().write(true).open(&path).expect("opens");
            file.set_len(left).expect("torn");
            assert_eq!(read(place.path()).expect("reads")[0].cells.len(), 1);
            let mut run = open(place.path());
            assert_eq!(ids(&run), ["one"]);
            assert_eq!(std::fs::metadata(&path).expect("there").len(), whole);
            run.record(cell("two", 2.0)).expect("recorded");
            drop(run);
            assert_eq!(ids(&open(place.path())), ["one", "two"]);
        }
        // Torn within the header: nothing was measured.
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.set_len(9).expect("torn");
        assert_eq!(read(place.path()).expect("reads"), []);
        assert_eq!(ids(&open(place.path())), Vec::<&str>::new());
        assert_eq!(read(place.path()).expect("reads").len(), 1);
    }

    #[test]
    fn other_conditions_are_refused_by_name_and_fresh_drops_them() {
        let place = tempfile::tempdir().expect("directory");
        let mut run = open(place.path());
        run.record(cell("one", 1.0)).expect("recorded");
        let path = run.path().to_owned();
        drop(run);
        let before = std::fs::read(&path).expect("there");
        let mut other = header();
        other.option("repetitions", 5);
        let error = Run::open(place.path(), other.clone(), false);
        let told = format!("{:#}", error.err().expect("refused"));
        let named = "options.repetitions was \"3\", is \"5\"";
        assert!(told.contains(named) && told.contains("--fresh"), "{told}");
        assert_eq!(std::fs::read(&path).expect("there"), before, "untouched");
        let run = Run::open(place.path(), other.clone(), true).expect("opens");
        assert_eq!(ids(&run), Vec::<&str>::new());
        drop(run);
        let studies = read(place.path()).expect("reads");
        assert_eq!(studies[0].header.options, other.options);
    }

    #[test]
    fn a_spoilt_line_is_named_and_two_writers_are_kept_apart() {
        let place = tempfile::tempdir().expect("directory");
        let run = open(place.path());
        let second = Run::open(place.path(), header(), false);
        let told = format!("{:#}", second.err().expect("refused"));
        assert!(told.contains("another run"), "{told}");
        let path = run.path().to_owned();
        drop(run);
        let mut text = std::fs::read(&path).expect("there");
        text.extend_from_slice(b"{\"id\":1}\n");
        std::fs::write(&path, &text).expect("spoilt");
        let told = format!("{:#}", read(place.path()).expect_err("spoilt"));
        assert!(told.contains("fio.jsonl, line 2: not a cell"), "{told}");
        assert!(Run::open(place.path(), header(), false).is_err());
        assert!(Run::open(place.path(), header(), true).is_ok());
    }

    #[test]
    fn a_cell_against_the_laws_is_not_written() {
        let place = tempfile::tempdir().expect("directory");
        let mut run = open(place.path());
        let before = std::fs::metadata(run.path()).expect("there").len();
        assert!(run.record(cell("one", f64::INFINITY)).is_err());
        let after = std::fs::metadata(run.path()).expect("there").len();
        assert_eq!((before, run.cells().len()), (after, 0));
    }
}
