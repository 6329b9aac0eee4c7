//! System calls that serving does not need, made by who serves.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::common::in_memory;
use crate::{confined, said};

/// Each kind of call that no list of docs/isolation.md has.
const FORBIDDEN: [&str; 10] = [
    "socket",
    "process",
    "mount",
    "namespace",
    "chroot",
    "limit",
    "signal",
    "executable-memory",
    "ioctl",
    "inotify",
];
const SANDBOXES: [&str; 3] = ["namespace", "chroot", "none"];

fn act(flags: &[&str], act: &str) -> Output {
    let share = in_memory();
    let mut command = confined(share.path(), flags);
    command.arg(act).output().expect("starts")
}

#[test]
fn what_serving_does_it_may() {
    for sandbox in SANDBOXES {
        let output = act(&["--sandbox", sandbox], "nothing");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(said(&output), ["nothing: done"]);
    }
}

#[test]
fn a_call_that_is_not_on_the_list_ends_the_daemon() {
    for sandbox in SANDBOXES {
        for forbidden in FORBIDDEN {
            // To heed the signal does not help.
            let output = act(&["--sandbox", sandbox, "--heed"], forbidden);
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGSYS),
                "{sandbox} {forbidden}: {output:?}"
            );
            assert_eq!(said(&output), [""; 0], "{sandbox} {forbidden}");
        }
    }
}

#[test]
fn with_trap_it_is_not_made_and_heard_as_a_signal() {
    for sandbox in SANDBOXES {
        let flags = ["--sandbox", sandbox, "--seccomp", "trap"];
        for forbidden in FORBIDDEN {
            // Who does not heed it ends by it.
            let output = act(&flags, forbidden);
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        }
        let heeding = [&flags[..], &["--heed"]].concat();
        for forbidden in ["limit", "inotify", "ioctl", "signal"] {
            let output = act(&heeding, forbidden);
            assert!(output.status.success(), "{output:?}");
            let said = said(&output);
            assert!(said.contains(&"SIGSYS heard".to_owned()), "{said:?}");
            if forbidden == "limit" {
                assert_eq!(said[0], "limit: not made");
            }
        }
    }
}

#[test]
fn with_log_and_none_it_is_made() {
    for seccomp in ["log", "none"] {
        for sandbox in SANDBOXES {
            let flags = ["--sandbox", sandbox, "--seccomp", seccomp];
            for forbidden in ["limit", "inotify", "socket"] {
                let output = act(&flags, forbidden);
                assert!(output.status.success(), "{seccomp} {sandbox}: {output:?}");
                assert_eq!(said(&output), [format!("{forbidden}: done")]);
            }
        }
    }
}

/// A request that meets an internal error of the daemon costs that request alone, also
/// where the environment asks for a walk of the stack.
#[test]
fn a_panic_is_logged_and_survived() {
    for sandbox in SANDBOXES {
        let share = in_memory();
        let mut command = confined(share.path(), &["--sandbox", sandbox]);
        command.env("RUST_BACKTRACE", "1").arg("panic");
        let output = command.output().expect("starts");
        assert!(output.status.success(), "{sandbox}: {output:?}");
        assert_eq!(said(&output), ["panic: done"]);
        let log = String::from_utf8_lossy(&output.stderr);
        let named = log.contains("panicked: struck in a test") && log.contains("confined.rs");
        assert!(named, "{log}");
    }
}

/// The daemon itself says what became of it, and how to find out more.
#[test]
fn who_looks_after_it_says_why_it_ended() {
    let share = in_memory();
    let mut command = confined(share.path(), &["--sandbox", "namespace"]);
    let output = command.arg("socket").output().expect("starts");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("--seccomp log has the kernel name it"),
        "{log}"
    );
}
