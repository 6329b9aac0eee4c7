//! The report's files: the page, and a folder with its parts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::chart::{Range, standalone, to_png};
use super::document::Document;
use super::sections::Section;
use crate::runs::Better;

pub(super) const PAGE: &str = "report.html";
const JSON: &str = "report.json";
const CSV: &str = "cells.csv";
const CHARTS: &str = "charts";

/// Writes everything into a directory; returns where the page is.
pub(super) fn write(
    out: &Path,
    document: &Document,
    sections: &[Section<'_>],
    page: &str,
) -> Result<PathBuf> {
    let charts = out.join(CHARTS);
    // Of an earlier report that had others.
    if charts.is_dir() {
        std::fs::remove_dir_all(&charts).with_context(|| format!("empty {}", charts.display()))?;
    }
    std::fs::create_dir_all(&charts).with_context(|| format!("make {}", charts.display()))?;
    file(&out.join(JSON), &serde_json::to_vec_pretty(document)?)?;
    file(&out.join(CSV), &table(document)?)?;
    let groups = sections.iter().flat_map(|s| &s.groups);
    for chart in groups.flat_map(|g| g.charts.iter().chain(&g.more)) {
        let svg = standalone(&chart.svg);
        let png = to_png(&svg).with_context(|| format!("chart {}", chart.id))?;
        file(&charts.join(format!("{}.svg", chart.id)), svg.as_bytes())?;
        file(&charts.join(format!("{}.png", chart.id)), &png)?;
    }
    let path = out.join(PAGE);
    file(&path, page.as_bytes())?;
    Ok(path)
}

fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// One line a cell.
fn table(document: &Document) -> Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record([
        "study", "accel", "commit", "group", "cell", "what", "stack", "metric", "unit", "better",
        "n", "median", "lowest", "highest", "values", "p50_us", "p90_us", "p99_us", "p99.9_us",
        "goal", "met", "error",
    ])?;
    for study in &document.studies {
        let header = &study.header;
        for cell in &study.cells {
            let range = cell.series().and_then(|_| Range::of(&cell.values));
            let of = |get: fn(&Range) -> f64| range.as_ref().map(get).map_or(String::new(), exact);
            let at = |quantile: f64| {
                let points = cell.latency.iter().flat_map(|l| &l.percentiles);
                let mut found = points
                    .filter(|p| (p.0 - quantile).abs() < 1e-9)
                    .map(|p| p.1);
                found.next().map_or(String::new(), exact)
            };
            let values: Vec<String> = cell.values.iter().copied().map(exact).collect();
            out.write_record([
                header.study.clone(),
                header.accel.clone(),
                header.commit.clone(),
                cell.group.clone(),
                cell.id.clone(),
                cell.what.clone(),
                cell.stack.clone(),
                cell.metric.clone(),
                cell.unit.clone(),
                match cell.better {
                    Better::Higher => "higher".into(),
                    Better::Lower => "lower".into(),
                },
                cell.values.len().to_string(),
                of(|r| r.median),
                of(|r| r.low),
                of(|r| r.high),
                values.join(" "),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                cell.goal.map_or(String::new(), |g| g.to_string()),
                cell.met().map_or(String::new(), |met| met.to_string()),
                cell.error.clone().unwrap_or_default(),
            ])?;
        }
    }
    out.into_inner()
        .map_err(|e| anyhow::anyhow!("write {CSV}: {}", e.error()))
}

fn exact(value: f64) -> String {
    value.to_string()
}
