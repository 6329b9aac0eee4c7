//! Reading results: one study, or a whole directory of them.
//!
//! Law: a line that cannot be understood is an error that names it, but for
//! the last one, which an interrupt may have torn.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Cell, Header};

/// How a results file's name ends.
pub(super) const EXTENSION: &str = "jsonl";

/// All results of one study.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Study {
    /// Under which conditions.
    pub header: Header,
    /// In the order they were finished; of a cell measured again, the last.
    pub cells: Vec<Cell>,
}

impl Study {
    /// Takes a cell in, in place of an earlier one of that name.
    pub(super) fn put(&mut self, cell: Cell) {
        let name = |c: &Cell| (c.id == cell.id) && (c.stack == cell.stack);
        match self.cells.iter().position(name) {
            Some(place) => self.cells[place] = cell,
            None => self.cells.push(cell),
        }
    }
}

/// Reads every study of a results directory, by name.
pub(crate) fn read(directory: &Path) -> Result<Vec<Study>> {
    let what = || format!("read the results in {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(what)? {
        let path = entry.with_context(what)?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            files.push(path);
        }
    }
    files.sort();
    let mut studies = Vec::new();
    for file in &files {
        // A run that was interrupted before its first line has nothing.
        studies.extend(read_file(file)?.0);
    }
    Ok(studies)
}

/// Reads one file: the study, if the header is there, and how many bytes are
/// whole lines.
pub(super) fn read_file(path: &Path) -> Result<(Option<Study>, u64)> {
    let what = || format!("read {}", path.display());
    let bytes = std::fs::read(path).with_context(what)?;
    parse(path, &bytes)
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(Option<Study>, u64)> {
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
    let mut lines = bytes[..whole].split_inclusive(|&b| b == b'\n').enumerate();
    let Some((_, first)) = lines.next() else {
        return Ok((None, 0));
    };
    let at = |number: usize| format!("{}, line {}", path.display(), number + 1);
    let header: Header = serde_json::from_slice(first)
        .with_context(|| format!("{}: not a header of results", at(0)))?;
    let stem = path.file_stem().unwrap_or_default();
    ensure!(
        stem == header.study.as_str(),
        "{}: holds the study {:?}",
        path.display(),
        header.study
    );
    // Where in `cells` each one is: files may have thousands.
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    let mut study = Study {
        header,
        cells: Vec::new(),
    };
    for (number, line) in lines {
        let cell: Cell =
            serde_json::from_slice(line).with_context(|| format!("{}: not a cell", at(number)))?;
        if let Err(e) = cell.check() {
            bail!("{}: {e}", at(number));
        }
        let key = (cell.id.clone(), cell.stack.clone());
        match places.get(&key) {
            Some(&place) => study.cells[place] = cell,
            None => {
                places.insert(key, study.cells.len());
                study.cells.push(cell);
            }
        }
    }
    Ok((Some(study), whole as u64))
}

/// The file of a study.
pub(super) fn file_of(directory: &Path, study: &str) -> PathBuf {
    directory.join(format!("{study}.{EXTENSION}"))
}
