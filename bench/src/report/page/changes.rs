//! What changed since the baseline.

use maud::{Markup, html};

use super::repeated;
use crate::report::baseline::{Change, Comparison, Verdict};
use crate::report::chart::number;

pub(super) fn changes(comparison: &Comparison) -> Markup {
    let of = |verdict| {
        comparison
            .changes
            .iter()
            .filter(move |c| c.verdict == verdict)
    };
    let beyond: Vec<&Change> = of(Verdict::Worse).chain(of(Verdict::Better)).collect();
    let counts = [Verdict::Worse, Verdict::Better, Verdict::Same].map(|v| comparison.count(v));
    html! {
        section id="changes" {
            h2 { "What changed against the baseline" }
            p {
                "Of " (comparison.changes.len()) " cells that were measured both times, "
                b { (counts[0]) " are worse" } ", " b { (counts[1]) " are better" } " and "
                (counts[2]) " are the same within the noise."
            }
            p.about {
                "Beyond the noise is a change whose ranges of repetitions do not overlap and whose \
                 medians are at least 5 % apart; 20 % where either was measured once."
            }
            @if !comparison.conditions.is_empty() {
                p { b { "The two were not measured alike, so a change need not be the program's:" } }
                ul { @for line in &comparison.conditions { li { (line) } } }
            }
            @if !beyond.is_empty() { (table(&beyond)) }
            @if !comparison.alone.is_empty() {
                details {
                    summary { (comparison.alone.len()) " cells cannot be compared" }
                    ul { @for line in &comparison.alone { li { (line) } } }
                }
            }
        }
    }
}

fn table(changes: &[&Change]) -> Markup {
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { "study" } th { "what" } th { "stack" } th.number { "then" }
                        th.number { "now" } th.number { "now / then" } th { "verdict" }
                    }
                }
                tbody { @for change in changes { (row(change)) } }
            }
        }
    }
}

fn row(change: &Change) -> Markup {
    let (class, word) = match change.verdict {
        Verdict::Worse => ("worse", "▼ worse"),
        Verdict::Better => ("better", "▲ better"),
        Verdict::Same => ("", "same"),
    };
    html! {
        tr {
            td { (change.study) }
            td { (change.what) }
            td { (change.stack) }
            td.number title=(repeated(&change.then)) { (number(change.then.median)) " " (change.unit) }
            td.number title=(repeated(&change.now)) { (number(change.now.median)) " " (change.unit) }
            td.number { (format!("{:.2}", change.ratio())) }
            td class=(class) { b { (word) } }
        }
    }
}
