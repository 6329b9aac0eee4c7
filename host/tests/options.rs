//! Every option of virtiofsd 1.14 is there under the same name, and the pages
//! about our flags are about all of them.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{CommandFactory, Parser};
use daxwindow_host::cli::{Flags, Task};

/// Names of its options, one a line.
const THEIRS: &str = include_str!("data/virtiofsd-1.14-options.txt");

/// What its `-o` takes, with a value for those that want one.
const THEIR_COMPAT: [&str; 30] = [
    "xattrmap=:map::user.v.:",
    "cache=auto",
    "cache=always",
    "cache=none",
    "cache=metadata",
    "loglevel=debug",
    "loglevel=info",
    "loglevel=warn",
    "loglevel=err",
    "sandbox=namespace",
    "sandbox=chroot",
    "source=/srv",
    "modcaps=+sys_admin",
    "xattr",
    "no_xattr",
    "readdirplus",
    "no_readdirplus",
    "writeback",
    "no_writeback",
    "allow_direct_io",
    "no_allow_direct_io",
    "announce_submounts",
    "killpriv_v2",
    "no_killpriv_v2",
    "posix_acl",
    "no_posix_acl",
    "security_label",
    "no_security_label",
    "no_posix_lock",
    "no_flock",
];

fn doc(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn task(extra: &[&str]) -> Result<Task, clap::Error> {
    let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
    Flags::try_parse_from(base.iter().chain(extra)).and_then(Flags::task)
}

/// Every way to type a flag.
fn ours() -> Vec<String> {
    let mut command = Flags::command();
    command.build();
    let flags = command.get_arguments().flat_map(|flag| {
        let longs = flag.get_long_and_visible_aliases().unwrap_or_default();
        let longs = longs.into_iter().map(|long| format!("--{long}"));
        longs.chain(flag.get_short().map(|short| format!("-{short}")))
    });
    flags.collect()
}

#[test]
fn every_option_of_virtiofsd_is_there() {
    let ours = ours();
    let missing: Vec<_> = THEIRS
        .lines()
        .filter(|name| !ours.iter().any(|our| our == name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(THEIRS.lines().count(), 43, "of virtiofsd 1.14");
}

/// As KubeVirt starts virtiofsd.
#[test]
fn what_is_said_of_migration_keeps_nothing_from_starting() {
    let flags = [
        "--sandbox=none",
        "--cache=auto",
        "--migration-on-error=guest-error",
        "--migration-mode=find-paths",
    ];
    assert!(task(&flags).is_ok());
}

#[test]
fn every_old_option_sets_a_flag() {
    for option in THEIR_COMPAT {
        if let Err(error) = task(&["-o", option]) {
            panic!("-o {option}: {error}");
        }
    }
    // And as one list.
    assert!(task(&["-o", &THEIR_COMPAT.join(",")]).is_ok());
}

/// Rows of the tables of a page: the first cell, and the others.
fn rows(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let rows = page.lines().filter_map(|line| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?;
        let mut cells = cells.split(" |").map(str::trim);
        Some((cells.next()?, cells.collect()))
    });
    rows.collect()
}

#[test]
fn the_page_side_by_side_has_every_option() {
    let page = doc("virtiofsd-options.md");
    let rows = rows(&page);
    let ours = ours();
    for name in THEIRS.lines() {
        let cell = format!("`{name}`");
        let row = rows.iter().find(|(first, _)| **first == cell);
        let (_, cells) = row.unwrap_or_else(|| panic!("no row for {name}"));
        assert_eq!(cells.len(), 2, "{name}");
        // What is said to be ours is.
        for flag in cells[0].split('`').filter(|word| word.starts_with('-')) {
            let flag = flag.split(['=', ' ']).next().unwrap_or_default();
            assert!(ours.iter().any(|our| our == flag), "{name}: {flag}");
        }
    }
    for option in THEIR_COMPAT {
        let name = option.split('=').next().unwrap_or_default();
        assert!(
            page.contains(&format!("`{name}`")) || page.contains(&format!("`{name}=")),
            "-o {name}"
        );
    }
}

#[test]
fn the_page_of_flags_has_every_flag() {
    let page = doc("flags.md");
    for flag in ours() {
        let said = ["`", " ", "=", "["]
            .iter()
            .any(|after| page.contains(&format!("`{flag}{after}")));
        assert!(said, "{flag} is not in docs/flags.md");
    }
}
