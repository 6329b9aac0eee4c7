//! The report as one JSON object, which a later report takes for a baseline.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::runs::{self, Study};

/// Raised when a reader of an older one would misread it.
const FORMAT: u32 = 1;

/// Everything a report shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Document {
    pub format: u32,
    /// When it was made, RFC 3339.
    pub made: String,
    pub studies: Vec<Study>,
    /// Studies that could not be measured, and why.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Document {
    pub(super) fn new(studies: Vec<Study>, problems: Vec<String>) -> Document {
        let now = jiff::Timestamp::now();
        let made = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
        Document {
            format: FORMAT,
            made,
            studies,
            problems,
        }
    }

    /// An earlier report's JSON, or a results directory.
    pub(super) fn read(path: &Path) -> Result<Document> {
        if path.is_dir() {
            let studies = runs::read(path)?;
            ensure!(!studies.is_empty(), "no results in {}", path.display());
            return Ok(Document::new(studies, Vec::new()));
        }
        let what = || format!("read the baseline {}", path.display());
        let text = std::fs::read(path).with_context(what)?;
        let document: Document = serde_json::from_slice(&text).with_context(what)?;
        ensure!(
            document.format == FORMAT,
            "{}: format {} is not known, {FORMAT} is",
            path.display(),
            document.format
        );
        Ok(document)
    }
}
