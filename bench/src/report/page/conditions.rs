//! Where, with what and how it was measured.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::day;
use crate::report::document::Document;
use crate::report::names::in_order;
use crate::runs::Header;

/// An accelerator, so that nobody overlooks it.
pub(super) fn badge(accel: &str) -> Markup {
    let words = match accel {
        "kvm" => "kvm",
        "tcg" => "tcg: emulated",
        "none" | "" => "no virtual machine",
        other => other,
    };
    html! { span.badge { (words) } }
}

/// When a study began.
pub(super) fn started(header: &Header) -> String {
    format!("{}, commit {}", day(&header.started), header.commit)
}

/// The first lines of a report.
pub(super) fn at_a_glance(document: &Document) -> Markup {
    let headers = || document.studies.iter().map(|s| &s.header);
    let machines = in_order(headers().map(|h| h.machine.to_string()));
    let accels = in_order(headers().map(|h| h.accel.as_str()).filter(|a| *a != "none"));
    let commits = in_order(headers().map(|h| h.commit.as_str()));
    html! {
        p {
            @for accel in accels { (badge(accel)) }
            span.muted { (day(&document.made)) ", commit " (commits.join(", ")) }
        }
        @for machine in machines { p.muted { (machine) } }
    }
}

/// Machine, versions, options, and command lines.
pub(super) fn conditions(document: &Document) -> Markup {
    html! {
        section id="conditions" {
            h2 { "Conditions and how to repeat it" }
            div.wide {
                table {
                    caption { "Machine, versions and options of each study" }
                    tbody { @for study in &document.studies { (rows(&study.header)) } }
                }
            }
            h3 { "Command lines" }
            pre { (commands(document)) }
            h3 { "How to read it" }
            p { "Every number is the median of its repetitions; the thin line over a bar or dot \
                goes from the lowest to the highest of them. Repetitions of all stacks took turns, \
                so a slow moment of the machine met all of them; a ratio is the median of the \
                ratios of repetitions that were neighbours. A long thin line says that the machine \
                had other things to do: measure again." }
            p { "Under emulation (tcg) the guest's own code costs many times what it costs on \
                hardware, the host's does not. What is mostly host work then looks better than it \
                is, what is mostly guest work worse." }
        }
    }
}

fn rows(header: &Header) -> Markup {
    let list = |values: &BTreeMap<String, String>| {
        let all = values.iter().map(|(name, value)| format!("{name} {value}"));
        all.collect::<Vec<_>>().join(", ")
    };
    let accel = match header.accel.as_str() {
        "none" | "" => "no virtual machine",
        accel => accel,
    };
    html! {
        tr { th colspan="2" { (header.study) } }
        tr { td { "measured" } td { (header.started) } }
        tr { td { "commit" } td { (header.commit) } }
        tr { td { "machine" } td { (header.machine.to_string()) } }
        tr { td { "accelerator" } td { (accel) } }
        tr { td { "versions" } td { (list(&header.versions)) } }
        @if !header.options.is_empty() {
            tr { td { "options" } td { (list(&header.options)) } }
        }
    }
}

fn commands(document: &Document) -> String {
    let headers = || document.studies.iter().map(|s| &s.header);
    let mut lines = Vec::new();
    for commit in in_order(headers().map(|h| h.commit.as_str())) {
        lines.push(format!("git checkout {commit}"));
        lines.push("cargo build --release --workspace --bins --examples".into());
        lines.extend(headers().filter(|h| h.commit == commit).map(command));
    }
    lines.join("\n")
}

/// As it was typed, but for where the program lay.
fn command(header: &Header) -> String {
    let mut words = vec!["target/release/daxwindow-bench".to_owned()];
    words.extend(header.command.iter().skip(1).map(|word| quoted(word)));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let words = ["/x/daxwindow-bench", "fio", "--job", "a b", "it's"];
        let header = Header {
            command: words.map(String::from).to_vec(),
            ..Header::default()
        };
        let typed = "target/release/daxwindow-bench fio --job 'a b' 'it'\\''s'";
        assert_eq!(command(&header), typed);
    }
}
