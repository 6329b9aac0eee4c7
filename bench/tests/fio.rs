//! fio in real guests: two cells on four stacks with small files, each with
//! its proof; of the stacks one lies. Needs what the guest tests need.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const FILE: u64 = 16 << 20;
const STACKS: [&str; 4] = ["dax-always", "dax-inode", "virtiofsd-always", "9p"];
const FIRST: &str = "seq-read-psync/1m/j1/first";
const SECOND: &str = "seq-read-psync/1m/j1/second";
const WRITE: &str = "seq-write-psync/1m/j1/first";

/// A daemon that has no window for the share `dax-inode`, whatever it is told;
/// a guest mounts that with `dax=inode` all the same.
fn liar(folder: &Path) -> PathBuf {
    let honest = Path::new(env!("CARGO_BIN_EXE_daxwindow-bench")).with_file_name("daxwindowd");
    let path = folder.join("daxwindowd");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' --tag dax-inode '*)\n\
         set -- $(echo \"$*\" | sed 's/--dax-window [0-9]*/--dax-window 0/');; esac\n\
         exec {} \"$@\"\n",
        honest.display()
    );
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
    path
}

fn fio(folder: &Path, stacks: &[&str], daemon: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daxwindow-bench"));
    command.args(["fio", "--quick", "--repetitions", "1", "--json"]);
    command.args(["--only", "seq-read-psync", "--only", "seq-write-psync"]);
    command.args(["--file-size", "16M", "--memory", "256M", "--window", "64M"]);
    for stack in stacks {
        command.args(["--stack", stack]);
    }
    command.arg("--out").arg(folder.join("results"));
    command.arg("--directory").arg(folder);
    command.arg("--daemon").arg(daemon);
    command.output().expect("the program starts")
}

fn cells(output: &Output) -> Vec<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {said}{text}"))
}

fn cell<'a>(cells: &'a [Value], id: &str, stack: &str) -> &'a Value {
    let found = cells.iter().find(|c| c["id"] == id && c["stack"] == stack);
    found.unwrap_or_else(|| panic!("no {id} on {stack} in {cells:#?}"))
}

/// A proof of a cell that has a value.
fn proof(cells: &[Value], id: &str, stack: &str, key: &str) -> u64 {
    let cell = cell(cells, id, stack);
    let value = cell["values"][0].as_f64();
    assert!(value.is_some_and(|v| v > 0.0), "{cell:#}");
    let latency = cell["latency"]["percentiles"].as_array();
    assert!(latency.is_some_and(|l| l.len() > 5), "{cell:#}");
    let proof = cell["proof"][key].as_f64();
    proof.unwrap_or_else(|| panic!("no {key} in {cell:#}")) as u64
}

#[test]
fn every_cell_has_its_proof_and_a_lie_is_an_error() {
    let folder = tempfile::tempdir().expect("directory");
    let daemon = liar(folder.path());
    let output = fio(folder.path(), &STACKS, &daemon);
    let all = cells(&output);
    let dax = "daxwindow dax=always";
    assert!(proof(&all, FIRST, dax, "setups") >= FILE >> 21);
    for id in [FIRST, SECOND, WRITE] {
        assert_eq!(proof(&all, id, dax, "fuse_reads"), 0);
        assert_eq!(proof(&all, id, dax, "fuse_writes"), 0);
        assert!(proof(&all, id, dax, "served_bytes") < FILE / 2);
    }
    assert!(proof(&all, SECOND, dax, "live_ranges") >= FILE >> 21);
    for stack in ["virtiofsd cache=always", "9p"] {
        assert!(proof(&all, FIRST, stack, "served_bytes") >= FILE);
        assert!(proof(&all, FIRST, stack, "guest_cache_bytes") >= FILE / 2);
        assert!(proof(&all, SECOND, stack, "served_bytes") < FILE / 2);
    }
    for stack in [dax, "virtiofsd cache=always", "9p"] {
        assert_eq!(proof(&all, WRITE, stack, "found_bytes"), FILE, "{stack}");
    }
    let ratio = cell(
        &all,
        "figure/psync-second",
        "daxwindow dax=always / virtiofsd cache=always",
    );
    assert!(ratio["values"][0].as_f64().is_some_and(|r| r > 0.0));
    // Mounted with dax=inode, but its files came by requests.
    for id in [FIRST, WRITE] {
        let lie = cell(&all, id, "daxwindow dax=inode");
        let why = lie["error"].as_str().unwrap_or_else(|| panic!("{lie:#}"));
        assert!(why.contains("not by the window"), "{why}");
        assert!(lie.get("values").is_none(), "{lie:#}");
    }
    assert!(!output.status.success(), "a failed cell fails the run");

    // What is there is not measured again.
    let again = fio(folder.path(), &STACKS[2..], &daemon);
    let kept = cells(&again);
    for stack in ["virtiofsd cache=always", "9p"] {
        assert_eq!(cell(&kept, FIRST, stack), cell(&all, FIRST, stack));
    }
}
