//! The numbers behind the charts, and what has none.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::report::chart::{Range, number};
use crate::runs::{Cell, Study};

/// All cells of a study.
pub(super) fn cells(study: &Study) -> Markup {
    let latency = study.cells.iter().any(|c| c.latency.is_some());
    html! {
        details {
            summary { "All " (study.cells.len()) " numbers" }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "cell" } th { "stack" } th { "metric" } th.number { "median" }
                            th { "unit" } th.number { "lowest" } th.number { "highest" } th.number { "n" }
                            @if latency { th.number { "p50, us" } th.number { "p99, us" } }
                            th { "proof and details" }
                        }
                    }
                    tbody { @for cell in &study.cells { (row(cell, latency)) } }
                }
            }
        }
    }
}

fn row(cell: &Cell, latency: bool) -> Markup {
    let range = Range::of(&cell.values);
    let at = |quantile: f64| {
        let points = &cell.latency.as_ref()?.percentiles;
        points.iter().find(|p| p.0 >= quantile).map(|p| number(p.1))
    };
    html! {
        tr {
            td { (cell.id) }
            td { (cell.stack) }
            td { (cell.metric) }
            @match (&range, &cell.error) {
                (Some(range), None) => {
                    td.number { (number(range.median)) }
                    td { (cell.unit) }
                    td.number { (number(range.low)) }
                    td.number { (number(range.high)) }
                    td.number { (range.n) }
                }
                _ => td colspan="5" { "failed: " (cell.error.as_deref().unwrap_or("no value")) },
            }
            @if latency {
                td.number { (at(0.5).unwrap_or_default()) }
                td.number { (at(0.99).unwrap_or_default()) }
            }
            td { (side(&cell.proof)) " " (side(&cell.detail)) }
        }
    }
}

fn side(values: &BTreeMap<String, f64>) -> String {
    let one = |(name, value): (&String, &f64)| format!("{name} {}", number(*value));
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Failed cells and studies, each with its reason.
pub(super) fn failed(cells: &[(&Study, &Cell, &str)], problems: &[String]) -> Markup {
    html! {
        @if !cells.is_empty() || !problems.is_empty() {
            section id="failed" {
                h2 { "What failed" }
                p.about { "A measurement that failed, or that could not prove which way its bytes \
                    went, has a reason and no number." }
                @if !problems.is_empty() { ul { @for problem in problems { li { (problem) } } } }
                @if !cells.is_empty() {
                    div.wide {
                        table {
                            thead { tr { th { "study" } th { "cell" } th { "stack" } th { "reason" } } }
                            tbody {
                                @for (study, cell, reason) in cells {
                                    tr {
                                        td { (study.header.study) } td { (cell.id) }
                                        td { (cell.stack) } td { (reason) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
