//! The report as one HTML file that needs nothing else: no script, no
//! network, style and pictures inline.
//!
//! Law: the page forbids itself to load anything, so that a mistake here shows
//! as an error in the browser and not as a request.

mod changes;
mod conditions;
mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Range, inline, number};
use super::document::Document;
use super::names::slug;
use super::sections::{Chart, Group, Section};
use super::summary::{Figure, accel_words, failures, figures, headline};
use crate::report::baseline::Comparison;

const STYLE: &str = include_str!("../style.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The whole page.
pub(super) fn page(
    document: &Document,
    sections: &[Section<'_>],
    comparison: Option<&Comparison>,
) -> String {
    let failed = failures(&document.studies);
    let figures = figures(&document.studies);
    let problems = failed.len() + document.problems.len();
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="generator" content="daxwindow-bench report";
                title { "daxwindow, measured " (day(&document.made)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "daxwindow, measured" }
                    (conditions::at_a_glance(document))
                }
                main {
                    p.lead { (headline(&figures, failed.len())) }
                    (contents(sections, comparison.is_some(), problems))
                    (goals(&figures))
                    @if let Some(comparison) = comparison { (changes::changes(comparison)) }
                    @for section in sections { (one(section)) }
                    (tables::failed(&failed, &document.problems))
                    (conditions::conditions(document))
                }
            }
        }
    };
    markup.into_string()
}

/// The day of an RFC 3339 time.
fn day(time: &str) -> &str {
    time.split('T').next().unwrap_or(time)
}

fn contents(sections: &[Section<'_>], compared: bool, problems: usize) -> Markup {
    html! {
        nav aria-label="contents" {
            @if compared { a href="#changes" { "What changed" } }
            @for section in sections {
                a href={ "#" (slug(&section.study.header.study)) } { (section.heading) }
            }
            @if problems > 0 { a href="#failed" { "What failed" } }
            a href="#conditions" { "Conditions and how to repeat it" }
        }
    }
}

/// Figures with goals, as ratios.
fn goals(figures: &[Figure]) -> Markup {
    let rank = |f: &&Figure| match f.met() {
        Some(true) => 0,
        Some(false) => 1,
        None => 2,
    };
    let mut sorted: Vec<&Figure> = figures.iter().collect();
    sorted.sort_by_key(rank);
    html! {
        @if !sorted.is_empty() {
            ul.cards id="goals" {
                @for figure in sorted { (goal(figure)) }
            }
        }
    }
}

fn goal(figure: &Figure) -> Markup {
    let (class, verdict) = match figure.met() {
        Some(true) => ("card met", "✓ met"),
        Some(false) => ("card missed", "✗ missed"),
        None => ("card failed", "✗ failed"),
    };
    let accel = match figure.accel.as_str() {
        "none" | "" => String::new(),
        accel => format!(", {accel}"),
    };
    html! {
        li class=(class) {
            span.verdict { (verdict) }
            div.ratio {
                @match &figure.ratio { Ok(ratio) => (number(ratio.median)), Err(_) => "–" }
            }
            div.what { (figure.what) }
            @if figure.stack.contains(" / ") { small { (figure.stack) } }
            small { "goal: " (figure.goal_words()) " · " (figure.study) (accel) }
            @if let Some(at_best) = figure.at_best {
                small { "no daemon can do better here than " (number(at_best)) }
            }
            @match &figure.ratio {
                Ok(ratio) => small { (repeated(ratio)) },
                Err(reason) => small { (reason) },
            }
        }
    }
}

/// From where to where, over how many repetitions.
fn repeated(range: &Range) -> String {
    match range.n {
        1 => "measured once".into(),
        n => format!(
            "{} to {} over {n} repetitions",
            number(range.low),
            number(range.high)
        ),
    }
}

fn one(section: &Section<'_>) -> Markup {
    let header = &section.study.header;
    html! {
        section id=(slug(&header.study)) {
            h2 { (section.heading) }
            p.about { (section.about) }
            p {
                (conditions::badge(&header.accel))
                span.muted { (conditions::started(header)) ": " (accel_words(&header.accel)) "." }
            }
            @for block in blocks(&section.groups) { (charts(block)) }
            (tables::cells(section.study))
        }
    }
}

/// Groups of one chart, whose title says it all, stand side by side.
fn blocks(groups: &[Group]) -> Vec<&[Group]> {
    let alone = |g: &Group| g.charts.len() <= 1;
    groups.chunk_by(|a, b| alone(a) && alone(b)).collect()
}

fn charts(block: &[Group]) -> Markup {
    let all = || block.iter().flat_map(|g| &g.charts);
    let more = || block.iter().flat_map(|g| &g.more);
    html! {
        @if let [group] = block {
            @if all().count() > 1 && !group.heading.is_empty() { h3 { (group.heading) } }
        }
        div.charts { @for chart in all() { (figure(chart)) } }
        @if more().next().is_some() {
            details {
                summary { (more().count()) " latency curves" }
                div.charts { @for chart in more() { (figure(chart)) } }
            }
        }
    }
}

fn figure(chart: &Chart) -> Markup {
    html! { figure { (PreEscaped(inline(&chart.svg, &chart.id, &chart.name))) } }
}
