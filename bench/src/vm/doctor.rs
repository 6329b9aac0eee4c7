//! `vm doctor`: what the kit has and lacks, printed.

use std::process::ExitCode;

use anyhow::Result;
use daxwindow_vm::Kit;
use daxwindow_vm::doctor::{Finding, State, look};
use daxwindow_vm::kit::HOME_VARIABLE;

/// Says what of a guest's needs is there, what is missing, and how to get it.
/// Ends with 0 when a guest can be booted, maybe after fetching packages.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Fetch what is missing and try the accelerators
    #[arg(long)]
    fetch: bool,

    /// Throw the kit away first
    #[arg(long)]
    refresh: bool,

    /// Fetch nothing
    #[arg(long, conflicts_with_all = ["fetch", "refresh"])]
    offline: bool,
}

/// Looks, and prints what it saw.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let kit = Kit::open(args.offline)?;
    if args.refresh {
        kit.forget()?;
    }
    let findings = look(&kit, args.fetch);
    let usable = findings
        .iter()
        .all(|finding| finding.state != State::Missing);
    if args.json {
        let report = serde_json::json!({
            "kit": kit.home(), "usable": usable, "findings": findings,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&kit, &findings);
    }
    Ok(if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(kit: &Kit, findings: &[Finding]) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["part", "state", "found", "remedy"]);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    for finding in findings {
        let state = match finding.state {
            State::Ready => "ready",
            State::Fetched => "later",
            State::Missing => "missing",
        };
        table.add_row([finding.part, state, &finding.found, &finding.remedy]);
    }
    println!("{table}");
    println!("kit: {} (elsewhere: {HOME_VARIABLE})", kit.home().display());
}
