//! What a daemon that somebody has taken over could do: seen from outside, in
//! procfs, and tried by who is confined as it is. Needs root, and a kernel
//! with Landlock.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod fence;
mod padding;
mod seen;
mod users;

use std::fs::read_link;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{DAEMON, Daemon, children_of, name_of};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP, as
/// docs/isolation.md lists them; by number in linux/capability.h.
pub(crate) const KEPT: [u32; 8] = [0, 1, 3, 4, 6, 7, 27, 31];
/// With file handles.
pub(crate) const DAC_READ_SEARCH: u32 = 2;
pub(crate) const DAC_OVERRIDE: u32 = 1;
pub(crate) const KILL: u32 = 5;
pub(crate) const SYS_ADMIN: u32 = 21;

pub(crate) fn mask(capabilities: &[u32]) -> u64 {
    capabilities.iter().map(|number| 1 << number).sum()
}

/// A field of `/proc/PID/status`.
pub(crate) fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let mut lines = status.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.expect("a field").trim().to_owned()
}

pub(crate) fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&field(pid, set), 16).expect("hexadecimal")
}

/// Every thread has exactly these, and cannot get others.
pub(crate) fn assert_capabilities(pid: u32, kept: u64) {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs") {
        let thread = thread.expect("an entry").file_name();
        let thread = thread
            .to_str()
            .expect("a number")
            .parse()
            .expect("a number");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(
                capabilities(thread, set),
                kept,
                "{set} of {}",
                name_of(thread)
            );
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(capabilities(thread, set), 0, "{set}");
        }
        assert_eq!(field(thread, "NoNewPrivs"), "1");
        assert_eq!(field(thread, "Seccomp"), "2", "{}", name_of(thread));
    }
}

pub(crate) fn namespace(pid: u32, which: &str) -> String {
    let link = read_link(format!("/proc/{pid}/ns/{which}")).expect("it runs");
    link.to_str().expect("UTF-8").to_owned()
}

/// The process that pads files for a daemon.
pub(crate) fn padding_of(daemon: &Daemon) -> u32 {
    let children = children_of(daemon.main_pid());
    let mut padding = children
        .into_iter()
        .filter(|pid| name_of(*pid) == "daxwindowd-pad");
    padding.next().expect("a process that pads")
}

/// A process that is confined as the one that serves, with `share` for its
/// share, about to do what that one does not: see the example itself, which
/// `cargo test` builds.
pub(crate) fn confined(share: &Path, flags: &[&str]) -> Command {
    let program = Path::new(DAEMON)
        .with_file_name("examples")
        .join("confined");
    let mut command = Command::new(program);
    command.arg("--share").arg(share).args(flags);
    command.stdin(Stdio::null());
    command
}

/// What it said, line by line.
pub(crate) fn said(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}
