//! `report`: results as a page that people look at, and as files that
//! programs read.
//!
//! Law: nothing that was measured is left out, and nothing is shown that was
//! not; a failed cell is shown as failed, with its reason.

mod baseline;
mod chart;
mod document;
mod gather;
mod names;
mod page;
mod sections;
mod studies;
mod summary;
mod write;

use std::path::PathBuf;

use anyhow::Result;

use crate::runs;
use document::Document;

/// Draw a report of what the other commands have measured
///
/// One HTML file that needs no network, and beside it JSON, CSV, SVG and PNG.
/// Without --from, results are taken from --results, and studies that are
/// missing there are measured quickly first (under 20 minutes in all); an
/// interrupted run goes on where it was.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A results directory to draw, and measure nothing; may be repeated
    #[arg(long, value_name = "DIR")]
    from: Vec<PathBuf>,

    /// Where studies have their results, and missing ones put them
    #[arg(long, value_name = "DIR", default_value = runs::DIRECTORY, conflicts_with = "from")]
    results: PathBuf,

    /// Where to put the report
    #[arg(long, value_name = "DIR", default_value = "target/report")]
    out: PathBuf,

    /// Show what changed beyond the noise since this: an earlier report.json,
    /// or a results directory
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
}

/// Draws it; true unless a study could not be measured.
pub(crate) fn run(args: &Args) -> Result<bool> {
    // Before anything takes long.
    let then = args.baseline.as_deref().map(Document::read).transpose()?;
    let (studies, problems) = match args.from.is_empty() {
        true => {
            let problems = gather::fill(&args.results)?;
            (gather::from(std::slice::from_ref(&args.results))?, problems)
        }
        false => (gather::from(&args.from)?, Vec::new()),
    };
    let document = Document::new(studies, problems);
    let sections = sections::sections(&document.studies)?;
    let comparison = then.map(|then| baseline::compare(&then.studies, &document.studies));
    let page = page::page(&document, &sections, comparison.as_ref());
    let path = write::write(&args.out, &document, &sections, &page)?;
    println!("{}", path.display());
    for problem in &document.problems {
        eprintln!("{problem}");
    }
    Ok(document.problems.is_empty())
}
