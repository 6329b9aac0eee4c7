//! For packagers: the man pages and shell completions of `daxwindowd`, from
//! its flags. See docs/packaging.md.
//!
//! `generate DIRECTORY`

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use daxwindow_host::cli::Flags;

/// Of the manual: system administration.
const SECTION: &str = "8";

/// Writes the man pages and shell completions of daxwindowd.
#[derive(Parser)]
struct Arguments {
    /// Where to, in the folders man, bash, zsh and fish
    directory: PathBuf,
}

fn main() -> ExitCode {
    let to = Arguments::parse().directory;
    match man_pages(&to.join("man")).and_then(|()| completions(&to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {}: {error}", to.display());
            ExitCode::FAILURE
        }
    }
}

/// One for the daemon, and one for each of its commands.
fn man_pages(to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut command = Flags::command().disable_help_subcommand(true);
    command.build();
    let (page, text) = (format!("daxwindowd.{SECTION}"), daemon_page(&command)?);
    fs::write(to.join(page), text)?;
    let mut below: Vec<&Command> = command.get_subcommands().collect();
    while let Some(command) = below.pop() {
        let name = command.get_display_name().unwrap_or_default();
        let page = format!("{name}.{SECTION}");
        fs::write(to.join(page), command_page(command)?)?;
        below.extend(command.get_subcommands());
    }
    Ok(())
}

fn page(command: &Command) -> Man {
    Man::new(command.clone().disable_help_subcommand(true))
        .section(SECTION)
        .manual("System Manager's Manual")
}

fn command_page(command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page(command).render(&mut text)?;
    see_also(&mut text, &["daxwindowd"])?;
    Ok(text)
}

fn daemon_page(command: &Command) -> io::Result<Vec<u8>> {
    // All the flags once more would fill a screen.
    let command = command.clone().override_usage(
        "daxwindowd --socket-path PATH --shared-dir DIR [OPTIONS]\n\
         daxwindowd ctl --socket-dir DIR COMMAND",
    );
    let man = page(&command);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    man.render_subcommands_section(&mut text)?;
    list(
        &mut text,
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT, SIGQUIT, SIGHUP",
                "end the daemon in order; a second one ends it at once, but for SIGHUP. SIGQUIT and SIGHUP do nothing to a daemon that was started to ignore them",
            ),
            ("SIGUSR1", "logs what was counted so far"),
        ],
    )?;
    list(
        &mut text,
        "ENVIRONMENT",
        &[
            ("RUST_LOG", "what to log, in place of --log-level"),
            (
                "LISTEN_FDS, LISTEN_PID",
                "sockets that a service manager passes, from descriptor 3 on: each is served to a guest of its own if neither --socket-path nor --fd is given",
            ),
            (
                "NOTIFY_SOCKET",
                "where a service manager is told that the daemon is ready, and that it ends",
            ),
        ],
    )?;
    list(
        &mut text,
        "EXIT STATUS",
        &[
            (
                "0",
                "a signal or its last guest ended it, or what was asked for is printed",
            ),
            ("1", "it cannot serve, for the reason that it has said"),
            ("2", "the flags cannot be, for the reason that it has said"),
        ],
    )?;
    man.render_version_section(&mut text)?;
    see_also(&mut text, &["daxwindowd-ctl", "systemd.socket", "qemu"])?;
    Ok(text)
}

fn list(to: &mut impl Write, title: &str, items: &[(&str, &str)]) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, what) in items {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*what)]);
    }
    roff.to_writer(to)
}

fn see_also(to: &mut impl Write, pages: &[&str]) -> io::Result<()> {
    let section = |page: &str| match page {
        "systemd.socket" => "5",
        "qemu" => "1",
        _ => SECTION,
    };
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (index, page) in pages.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        line.push(roman(comma));
        line.push(bold(*page));
        line.push(roman(format!("({})", section(page))));
    }
    roff.text(line);
    roff.to_writer(to)
}

/// Under the names that the shells look for.
fn completions(to: &Path) -> io::Result<()> {
    for (shell, folder, installed) in [
        (Shell::Bash, "bash", "daxwindowd"),
        (Shell::Zsh, "zsh", "_daxwindowd"),
        (Shell::Fish, "fish", "daxwindowd.fish"),
    ] {
        let folder = to.join(folder);
        fs::create_dir_all(&folder)?;
        let written = generate_to(shell, &mut Flags::command(), "daxwindowd", &folder)?;
        fs::rename(written, folder.join(installed))?;
    }
    Ok(())
}
