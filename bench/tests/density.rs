//! Guests on the same files: with the window a further guest adds next to
//! nothing, without it a copy of what it reads. Memory is counted, not time.
//! The virtual machines need what the tests in `guest` need, root included.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const DAX: &str = "daxwindow dax=always";
const PLAIN: &str = "daxwindow dax=never";

fn density(place: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_daxwindow-bench"))
        .args(["density", "--json", "--dir"])
        .arg(place.join("files"))
        .arg("--out")
        .arg(place.join("results"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn study(place: &Path, arguments: &[&str]) -> Value {
    let output = density(place, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn place() -> TempDir {
    tempfile::tempdir().expect("directory")
}

fn cell<'a>(study: &'a Value, id: &str, stack: &str) -> &'a Value {
    let cells = study["cells"].as_array().expect("cells");
    let found = cells.iter().find(|c| c["id"] == id && c["stack"] == stack);
    found.unwrap_or_else(|| panic!("{id} on {stack} in {study:#}"))
}

fn value(study: &Value, id: &str, stack: &str) -> f64 {
    let value = cell(study, id, stack)["values"][0].as_f64();
    value.unwrap_or_else(|| panic!("no value: {id} on {stack}"))
}

/// A point's page cache, what was read, and the proof.
fn side(study: &Value, id: &str, stack: &str, name: &str) -> f64 {
    let cell = cell(study, id, stack);
    let value = cell["detail"][name].as_f64();
    let value = value.or_else(|| cell["proof"][name].as_f64());
    value.unwrap_or_else(|| panic!("no {name}: {cell:#}"))
}

#[test]
fn a_further_userspace_guest_adds_little_with_the_window_and_a_copy_without() {
    let place = place();
    let arguments = ["--guests", "1,2,4", "--vms", "0", "--bytes", "32M"];
    let first = study(place.path(), &arguments);
    for (stack, low, high) in [(DAX, 0.0, 4.0), (PLAIN, 32.0, 36.0)] {
        let added = value(&first, "userspace/everything/slope", stack);
        assert!((low..high).contains(&added), "{stack}: {added} MiB a guest");
        for count in [1, 2, 4] {
            let side = |name| {
                side(
                    &first,
                    &format!("userspace/everything/{count}"),
                    stack,
                    name,
                )
            };
            assert_eq!(side("guests"), f64::from(count));
            assert_eq!(side("page_cache_mib"), 32.0, "held once");
            assert_eq!(side("read_mib"), 32.0 * f64::from(count));
            let (mapped, requests) = (side("setupmappings"), side("fuse_reads"));
            match stack {
                DAX => assert!(mapped > 0.0 && requests == 0.0, "{mapped} {requests}"),
                _ => assert!(mapped == 0.0 && requests > 0.0, "{mapped} {requests}"),
            }
        }
    }
    // Popular blocks are a part of all; a half that is a guest's own is held
    // once more by the host, and once more again without the window.
    let read = |pattern: &str| {
        let id = format!("userspace/{pattern}/4");
        (
            side(&first, &id, DAX, "read_mib"),
            side(&first, &id, PLAIN, "read_mib"),
        )
    };
    assert_eq!(read("zipf").0, read("zipf").1, "all stacks read the same");
    assert!(
        (4.0 * 8.0..4.0 * 24.0).contains(&read("zipf").0),
        "{:?}",
        read("zipf")
    );
    // 512 blocks of 64 KiB for the shared half and four others: 102 each.
    assert_eq!(read("halves"), (51.0, 51.0));
    let of = |stack| value(&first, "userspace/halves/slope", stack);
    assert!(of(PLAIN) > of(DAX) + 10.0, "{} {}", of(PLAIN), of(DAX));
    let goal = cell(&first, "userspace/everything/4/host-memory", DAX);
    assert_eq!(goal["goal"], "<= 1");

    // A second run finds all of it there, and other bytes are other results.
    let second = study(place.path(), &arguments);
    assert_eq!(first, second);
    let other = ["--guests", "1", "--vms", "0", "--bytes", "16M"];
    let refused = density(place.path(), &other);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("--fresh"),
        "{said}"
    );
    let left: Vec<_> = std::fs::read_dir(place.path().join("files"))
        .expect("there")
        .collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

#[test]
fn more_than_memory_holds_is_refused_at_once() {
    let place = place();
    let output = density(
        place.path(),
        &["--guests", "512", "--vms", "0", "--bytes", "64G"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("512 guests") && said.contains("may be used"),
        "{said}"
    );
    assert!(!place.path().join("files").exists(), "nothing was written");
}

#[test]
fn a_further_virtual_machine_adds_little_with_the_window_and_a_copy_without() {
    let place = place();
    let study = study(
        place.path(),
        &[
            "--guests",
            "0",
            "--vms",
            "2",
            "--vm-bytes",
            "64M",
            "--pattern",
            "everything",
            "--windows",
            "128M",
        ],
    );
    // What guests have freed since boot is used again before more is taken; a
    // guest with an overlay of its own has a daemon of its own, too.
    for (kind, most) in [("vm", 6.0), ("overlay", 16.0)] {
        for (stack, low, high) in [(DAX, -2.0, most), (PLAIN, 24.0, 80.0)] {
            let added = value(&study, &format!("{kind}/everything/slope"), stack);
            assert!(
                (low..high).contains(&added),
                "{kind}, {stack}: {added} MiB a guest"
            );
            let side = |name| side(&study, &format!("{kind}/everything/2"), stack, name);
            assert_eq!(side("page_cache_mib"), 64.0, "held once");
            let grown = side("guest_cached_growth_mib");
            match stack {
                DAX => assert!(grown < 4.0 && side("fuse_reads") == 0.0, "{grown}"),
                _ => assert!(grown >= 60.0 && side("setupmappings") == 0.0, "{grown}"),
            }
        }
    }
    let ratio = |kind| value(&study, &format!("{kind}/everything/slope/ratio"), DAX);
    assert!(ratio("vm") < 0.2, "{}", ratio("vm"));
    assert!(ratio("overlay") < 0.3, "{}", ratio("overlay"));
    // A page structure of 64 bytes for each 4 KiB of the window.
    assert_eq!(value(&study, "price/window-128M/guest-memory", DAX), 2.0);
    // The one that there is before anything is mapped.
    assert_eq!(value(&study, "price/window-128M/regions", DAX), 0.0);
    let page_tables = value(&study, "price/window-128M/page-tables", DAX);
    assert!((1.0..8.0).contains(&page_tables), "{page_tables} MiB a GiB");
    assert_eq!(study["header"]["options"]["vm guests"], "2");
    assert_eq!(study["header"]["options"]["overlay guests"], "2");
}
