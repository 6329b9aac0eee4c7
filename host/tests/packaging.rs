//! What packagers take: man pages and completions made from the flags, the
//! file for discovery, the units. `host/dist/check` has the tools that read
//! them look at them as well.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use common::DAEMON;
use daxwindow_host::cli::{Flags, Task};
use daxwindow_host::status::capabilities::Capabilities;
use tempfile::TempDir;

const BINARY: &str = "/usr/bin/daxwindowd";

fn dist(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("dist")
        .join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `generate` writes. `cargo test` builds it.
fn generated() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let generate = Path::new(DAEMON).with_file_name("examples/generate");
    let done = Command::new(generate).arg(dir.path()).status();
    assert!(done.expect("it runs (cargo build --examples)").success());
    dir
}

/// Flags as they are typed, short ones where there is no other.
fn flags() -> Vec<String> {
    let mut command = Flags::command();
    command.build();
    let visible = command.get_arguments().filter(|flag| !flag.is_hide_set());
    visible
        .map(|flag| match (flag.get_long(), flag.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => panic!("{} can only be typed by place", flag.get_id()),
        })
        .collect()
}

/// A man page as text, as far as that takes no tool.
fn plain(page: &str) -> String {
    let escapes = [("\\-", "-"), ("\\fB", ""), ("\\fI", ""), ("\\fR", "")];
    let plain = escapes
        .iter()
        .fold(page.to_owned(), |text, (from, to)| text.replace(from, to));
    plain.replace("\\*(Aq", "'").replace("\\(aq", "'")
}

#[test]
fn every_flag_has_its_place_in_the_man_page() {
    let dir = generated();
    let page = fs::read_to_string(dir.path().join("man/daxwindowd.8")).expect("a page");
    let text = plain(&page);
    for section in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "SIGNALS",
        "ENVIRONMENT",
        "EXIT",
        "SEE",
    ] {
        let line = |line: &str| {
            let title = line.strip_prefix(".SH ");
            title.is_some_and(|title| title.trim_matches('"').starts_with(section))
        };
        assert!(text.lines().any(line), "no section {section}");
    }
    for flag in flags() {
        let described = text.lines().any(|line| {
            let mut words = line.split([' ', ',', '=', '[']);
            words.any(|word| word == flag)
        });
        assert!(described, "{flag} is not in the man page");
    }
    // Each page begins with its title and names no macro that is not one.
    let mut pages = 0;
    for page in fs::read_dir(dir.path().join("man")).expect("pages") {
        let path = page.expect("a page").path();
        let text = fs::read_to_string(&path).expect("text");
        assert!(
            text.contains("\n.TH ") || text.starts_with(".TH "),
            "{path:?}"
        );
        for line in text.lines().filter(|line| line.starts_with('.')) {
            let name = line[1..].split(' ').next().unwrap_or_default();
            let known = [
                "TH", "SH", "SS", "TP", "PP", "RS", "RE", "IP", "br", "ie", "el", "nh",
            ];
            let known = known.contains(&name) || ["nf", "fi", "ds"].contains(&name);
            assert!(known, "{path:?}: {line}");
        }
        pages += 1;
    }
    assert!(pages >= 4, "the daemon's page and those of ctl: {pages}");
}

#[test]
fn every_flag_can_be_completed() {
    let dir = generated();
    for (file, as_written) in [
        ("bash/daxwindowd", "--"),
        ("zsh/_daxwindowd", "--"),
        ("fish/daxwindowd.fish", "-l "),
    ] {
        let text = fs::read_to_string(dir.path().join(file)).expect("completions");
        for flag in flags() {
            let Some(long) = flag.strip_prefix("--") else {
                continue;
            };
            assert!(
                text.contains(&format!("{as_written}{long}")),
                "{file}: {flag}"
            );
        }
    }
}

#[test]
fn bash_completes() {
    let dir = generated();
    let file = dir.path().join("bash/daxwindowd");
    let checked = Command::new("bash").arg("-n").arg(&file).output();
    let checked = checked.expect("bash runs");
    assert!(checked.status.success(), "{checked:?}");
    let complete = |words: &[&str]| {
        let script = format!(
            "source {}; COMP_WORDS=(daxwindowd {}); COMP_CWORD={}; \
             _daxwindowd daxwindowd \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            file.display(),
            words.join(" "),
            words.len(),
        );
        let output = Command::new("bash").args(["-c", &script]).output();
        let output = output.expect("bash runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .expect("text")
            .trim()
            .to_owned()
    };
    assert_eq!(complete(&["--shared"]), "--shared-dir");
    assert_eq!(complete(&["--readonly", "--xattrm"]), "--xattrmap");
    assert_eq!(complete(&["--dax", "al"]), "always");
}

#[test]
fn the_file_for_discovery_says_what_the_program_does() {
    let found: serde_json::Value = serde_json::from_str(&dist("60-daxwindowd.json")).expect("JSON");
    let says: serde_json::Value =
        serde_json::from_str(&Capabilities::ours().to_json()).expect("JSON");
    assert_eq!(found["type"], says["type"]);
    assert_eq!(found["features"], says["features"]);
    assert_eq!(found["binary"], BINARY);
    assert!(found["description"].is_string());
}

/// A manager takes the first file that suits it, by name.
#[test]
fn the_file_for_discovery_takes_no_domain_from_virtiofsd() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let names = fs::read_dir(dir).expect("there").filter_map(|entry| {
        let name = entry.expect("an entry").file_name().into_string().ok()?;
        name.ends_with(".json").then_some(name)
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].as_str() > "50-virtiofsd.json", "{names:?}");
}

/// Sections of a unit: keys and values in order.
type Unit = BTreeMap<String, Vec<(String, String)>>;

fn unit(file: &str) -> Unit {
    let mut unit = Unit::new();
    let mut section = String::new();
    for line in dist(&format!("systemd/{file}")).lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(!section.is_empty() && !line.ends_with('\\'), "{line}");
        let at = unit.entry(section.clone()).or_default();
        at.push((key.to_owned(), value.to_owned()));
    }
    unit
}

fn value<'u>(unit: &'u Unit, section: &str, key: &str) -> &'u str {
    let mut all = unit[section].iter().filter(|(name, _)| name == key);
    let (_, value) = all
        .next()
        .unwrap_or_else(|| panic!("no {key} in [{section}]"));
    assert!(all.next().is_none(), "{key} twice in [{section}]");
    value
}

#[test]
fn the_units_belong_together_and_start_what_there_is() {
    let (socket, service) = (unit("daxwindowd@.socket"), unit("daxwindowd@.service"));
    let socket_path = value(&socket, "Socket", "ListenStream");
    assert_eq!(socket_path, "/run/daxwindowd/%i.sock");
    assert_eq!(value(&socket, "Socket", "SocketMode"), "0660");
    assert_eq!(value(&service, "Unit", "Requires"), "daxwindowd@%i.socket");
    assert_eq!(value(&service, "Service", "Type"), "notify");
    let hardened = [
        "NoNewPrivileges",
        "PrivateNetwork",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectControlGroups",
        "RestrictRealtime",
        "LockPersonality",
        "MemoryDenyWriteExecute",
    ];
    for key in hardened {
        assert_eq!(value(&service, "Service", key), "yes", "{key}");
    }
    // What would take from the guest what is its own.
    let not_set = [
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "RestrictSUIDSGID",
    ];
    let set = service["Service"].iter();
    let set = set.filter(|(key, _)| not_set.contains(&key.as_str()));
    assert_eq!(set.count(), 0);

    // The command line, as systemd would make it of the example's file.
    let line = value(&service, "Service", "ExecStart");
    assert!(line.starts_with(&format!("{BINARY} ")));
    let options = example("OPTIONS=");
    let line = line
        .replace("${SHARED_DIR}", &example("SHARED_DIR="))
        .replace("%i", "data")
        .replace("$OPTIONS", &options);
    assert!(!line.contains(['$', '%']), "{line}");
    let words = line.split_whitespace().chain(["--fd", "3"]);
    let task = Flags::try_parse_from(words).and_then(Flags::task);
    let Task::Serve(config) = task.unwrap_or_else(|error| panic!("{line}: {error}")) else {
        panic!("{line} serves nothing");
    };
    assert_eq!(config.shared_dir, PathBuf::from("/srv/data"));
    assert_eq!(config.device.config.tag(), Some("data"));
    assert!(config.share.readonly);
    assert!(!config.listeners.once, "guests come and go");
}

/// A line of the file that the service's comment shows.
fn example(key: &str) -> String {
    let text = dist("systemd/daxwindowd@.service");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("#     ")?.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no example of {key}"))
        .to_owned()
}
