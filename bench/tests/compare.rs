//! The comparison with virtiofsd runs: every operation once, for a moment, on
//! both daemons. Needs the peer's package, which it fetches.

use std::process::Command;

use serde_json::Value;

/// Every operation at depth 16, and memory.
const EXPECTED: [&str; 14] = [
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

fn compare(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().expect("directory");
    let output = Command::new(env!("CARGO_BIN_EXE_daxwindow-bench"))
        .args([
            "compare",
            "--json",
            "--quick",
            "--repetitions",
            "1",
            "--dir",
        ])
        .arg(directory.path())
        .args(arguments)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{text}");
    serde_json::from_str(&text).expect("JSON")
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
    }
    let memory = json["memory"].as_array().expect("memory");
    assert_eq!(memory.len(), 4, "ours and three sets of the peer's flags");
    let figures = json["figures"].as_array().expect("figures");
    let of = |name: &str| figures.iter().find(|figure| figure["name"] == name);
    for name in ["metadata_d16_q2", "data_4k_d16_q2", "metadata_cpu_d16_q2"] {
        let figure = of(name).unwrap_or_else(|| panic!("{name} in {figures:?}"));
        assert!(figure["met"].is_boolean() && figure["goal"].is_string());
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
