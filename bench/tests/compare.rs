//! The comparison runs: every operation once, for a moment, on ours and the
//! other daemons. Needs virtiofsd's package and alioth's crate, which it
//! fetches and builds.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Every operation at depth 16, and memory.
const EXPECTED: [&str; 15] = [
    "empty",
    "lookup_hot",
    "lookup_cold",
    "getattr",
    "open_release",
    "create_unlink",
    "readdirplus_hot",
    "rename",
    "setattr",
    "fsync",
    "small_files",
    "read_4k",
    "write_4k",
    "read_1m",
    "write_1m",
];

/// One run whose results go to `out`.
fn start(out: &Path, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("directory");
    Command::new(env!("CARGO_BIN_EXE_daxwindow-bench"))
        .args([
            "compare",
            "--json",
            "--quick",
            "--repetitions",
            "1",
            "--dir",
        ])
        .arg(directory.path())
        .arg("--out")
        .arg(out)
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn compare_into(out: &Path, arguments: &[&str]) -> Value {
    let output = start(out, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn compare(arguments: &[&str]) -> Value {
    let out = tempfile::tempdir().expect("directory");
    compare_into(out.path(), arguments)
}

/// The cells of a results directory: identifier and stack of each.
fn cells(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("compare.jsonl")).expect("results");
    let lines = text.lines().skip(1);
    lines
        .map(|line| serde_json::from_str(line).expect("a cell"))
        .collect()
}

#[test]
fn every_operation_is_measured_on_both() {
    let json = compare(&[
        "--peer",
        "virtiofsd",
        "--only",
        "d16_q2",
        "--only",
        "cold_d1",
        "--only",
        "memory",
    ]);
    let peer = json["peer"].as_str().expect("a peer");
    assert!(peer.starts_with("virtiofsd 1."), "{peer}");
    let loads = json["loads"].as_array().expect("loads");
    let names: Vec<_> = loads
        .iter()
        .filter_map(|row| row["name"].as_str())
        .collect();
    for operation in EXPECTED {
        let name = format!("{operation}_d16_q2");
        assert!(names.contains(&name.as_str()), "{name} of {names:?}");
    }
    assert!(names.contains(&"readdirplus_cold_d1_q1"), "{names:?}");
    for row in loads {
        for number in ["rate", "p50_us", "p99_us", "cpu_us"] {
            for side in ["ours", "peer", "ratio"] {
                let value = row[number][side].as_f64();
                assert!(value.is_some_and(|v| v > 0.0), "{number} {side} of {row}");
            }
        }
        let front_end = row["front_end_us"].as_f64();
        assert!(front_end.is_some_and(|us| us > 0.0), "{row}");
        let floor = |key: &str| row["floor"][key].as_f64().unwrap_or_default();
        assert!(floor("calls_us") > 0.0 && floor("at_best") > 0.0, "{row}");
        // Nobody is below it, noise aside: threads and processors are counted.
        let least = 1e6 / row["rate"]["ours"].as_f64().expect("a rate");
        assert!(floor("time_us") < 1.5 * least, "{row}");
    }
    let memory = json["memory"].as_array().expect("memory");
    assert_eq!(memory.len(), 4, "ours and three sets of the peer's flags");
    let figures = json["figures"].as_array().expect("figures");
    let of = |name: &str| figures.iter().find(|figure| figure["name"] == name);
    for name in ["metadata_d16_q2", "data_4k_d16_q2", "metadata_cpu_d16_q2"] {
        let figure = of(name).unwrap_or_else(|| panic!("{name} in {figures:?}"));
        assert!(figure["met"].is_boolean() && figure["goal"].is_string());
        let at_best = figure["detail"]["at_best"].as_f64();
        assert!(at_best.is_some_and(|ratio| ratio > 0.0), "{figure}");
    }
    assert!(
        of("metadata_d1").is_none(),
        "not all of its loads were measured"
    );
}

#[test]
fn another_build_of_ours_can_be_the_peer() {
    let bench = std::path::Path::new(env!("CARGO_BIN_EXE_daxwindow-bench"));
    let ours = bench.with_file_name("daxwindowd");
    let json = compare(&[
        "--peer",
        ours.to_str().expect("a path"),
        "--only",
        "getattr_d16_q2",
    ]);
    assert_eq!(json["loads"][0]["rate"]["flag"], "as built");
    assert_eq!(json["failures"].as_array().map(Vec::len), Some(0));
}

#[test]
fn the_other_daemon_with_a_window_is_measured_through_it() {
    let out = tempfile::tempdir().expect("directory");
    let arguments = [
        "--peer",
        "alioth",
        "--peer",
        "virtiofsd",
        "--only",
        "getattr_d1_q1",
        "--only",
        "setattr_d1_q1",
        "--only",
        "small_files_d1",
        "--only",
        "write_4k_d16_q1",
        "--only",
        "dax",
    ];
    let json = compare_into(out.path(), &arguments);
    assert_eq!(json["failures"], Value::Array(vec![]), "{json}");
    let loads = json["loads"].as_array().expect("loads");
    let measured = |name: &str, peer: &str| {
        loads
            .iter()
            .any(|row| row["name"] == name && row["peer"] == peer)
    };
    for name in ["getattr_d1_q1", "small_files_d1_q1", "write_4k_d16_q1"] {
        assert!(measured(name, "alioth"), "{name} of {loads:?}");
        assert!(measured(name, "virtiofsd"), "{name} of {loads:?}");
    }
    for name in ["dax_map", "dax_unmap", "dax_first_read", "dax_hot_read"] {
        let name = format!("{name}_d1_q1");
        assert!(measured(&name, "alioth"), "{name} of {loads:?}");
        assert!(!measured(&name, "virtiofsd"), "it has no window");
    }
    // What it does not serve is no failure, and said.
    assert!(measured("setattr_d1_q1", "virtiofsd"));
    assert!(!measured("setattr_d1_q1", "alioth"));
    let not_served = json["not_served"].as_array().expect("a list");
    let told = not_served[0].to_string();
    assert!(not_served.len() == 1 && told.contains("setattr"), "{told}");
    let figures = json["figures"].as_array().expect("figures");
    let p50 = figures.iter().find(|f| f["name"] == "dax_map_p50");
    let p50 = p50.expect("the figure");
    assert!(p50["value"].as_f64().is_some_and(|us| us > 0.0), "{p50}");
    assert_eq!(p50["goal"], "<= 1");

    // Every finished cell is there, with percentiles; a second run of the
    // same measures nothing again.
    let before = cells(out.path());
    let cell = |stack: &str| {
        let mut all = before.iter();
        let found = all.find(|c| c["id"] == "dax_map/d1/q1" && c["stack"] == stack);
        found.unwrap_or_else(|| panic!("{stack} in {before:?}"))
    };
    for stack in ["daxwindow dax=always", "alioth dax=always"] {
        let percentiles = cell(stack)["latency"]["percentiles"].as_array();
        assert!(percentiles.is_some_and(|p| p.len() > 4), "{stack}");
    }
    let refused = before.iter().find(|c| c["error"].is_string());
    let refused = refused.expect("SETATTR of alioth");
    assert_eq!(refused["stack"], "alioth dax=never");
    let again = compare_into(out.path(), &arguments);
    let ours = |json: &Value| -> Vec<(String, f64)> {
        let loads = json["loads"].as_array().expect("loads");
        let ours = loads.iter().map(|row| &row["rate"]["ours"]);
        let names = loads.iter().map(|row| row["name"].to_string());
        names.zip(ours.filter_map(Value::as_f64)).collect()
    };
    for ((name, kept), (before, measured)) in ours(&again).iter().zip(ours(&json)) {
        assert_eq!(*name, before);
        assert!((kept / measured - 1.0).abs() < 1e-9, "{name}: {kept}");
    }
    assert_eq!(ours(&again).len(), loads.len());
    let loads_of = |cells: &[Value]| {
        let sum = |c: &&Value| c["id"].as_str().is_some_and(|id| id.starts_with("sum/"));
        cells.iter().filter(|c| !sum(c)).count()
    };
    assert_eq!(loads_of(&cells(out.path())), loads_of(&before));
}

#[test]
fn other_conditions_are_not_mixed_with_earlier_results() {
    let out = tempfile::tempdir().expect("directory");
    let bench = Path::new(env!("CARGO_BIN_EXE_daxwindow-bench"));
    let ours = bench.with_file_name("daxwindowd");
    let peer = ours.to_str().expect("a path");
    let one = ["--peer", peer, "--only", "getattr_d1_q1"];
    compare_into(out.path(), &one);
    let flagged = [&one[..], &["--daemon-flag=--xattr"]].concat();
    let refused = start(out.path(), &flagged);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("--fresh"),
        "{said}"
    );
    let fresh = [&flagged[..], &["--fresh"]].concat();
    compare_into(out.path(), &fresh);
}
