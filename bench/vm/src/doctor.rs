//! What a guest needs, what is there, and how to get the rest.

use std::process::{Command, Stdio};

use anyhow::Result;
use serde::Serialize;

use super::accel;
use super::apt::{self, MIRROR_VARIABLE};
use super::kernel::{self, Kernel};
use super::kit::Kit;
use super::peers::{Peer, VIRTIOFSD};
use super::qemu::{self, QEMU_VARIABLE, Qemu};
use super::userland::{self, Userland};

/// Whether a part is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There.
    Ready,
    /// Comes by itself when a guest is booted.
    Fetched,
    /// Somebody has to bring it.
    Missing,
}

/// One part of what a guest needs.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Its name.
    pub part: &'static str,
    /// Whether it is there.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing needs to be done.
    pub remedy: String,
}

/// Looks for each part. With `fetch`, what is missing is fetched.
pub fn look(kit: &Kit, fetch: bool) -> Vec<Finding> {
    let source = packages();
    let can_fetch = source.state != State::Missing;
    let qemu = qemu_of(kit, fetch);
    let kernel = part(
        kit,
        kernel::SET,
        fetch,
        || Kernel::find(kit),
        Kernel::in_set,
    );
    let user = part(
        kit,
        userland::SET,
        fetch,
        || Userland::find(kit, &[]),
        Userland::in_set,
    );
    let accelerator = accelerator(kit, &qemu, &kernel);
    let mut findings = vec![
        finding("qemu", qemu, can_fetch, |q| {
            format!("{} ({:?})", q.version, q.origin)
        }),
        finding("kernel", kernel, can_fetch, |k| {
            format!("{} (Kit)", k.version)
        }),
        finding("userland", user, can_fetch, |u| {
            format!("busybox {} (Kit)", u.version)
        }),
        accelerator,
        daemon(),
    ];
    let complete = findings.iter().all(|f| f.state == State::Ready);
    if source.state != State::Missing || !complete {
        findings.push(source);
    }
    findings.push(peer(kit));
    findings
}

/// There, or why not.
type Part<T> = Result<Option<T>>;

fn part<T>(
    kit: &Kit,
    set: &str,
    fetch: bool,
    find: impl FnOnce() -> Result<T>,
    of_set: impl FnOnce(&super::kit::Set) -> Result<T>,
) -> Part<T> {
    match (fetch, kit.existing(set)) {
        (true, _) => find().map(Some),
        (false, Some(set)) => of_set(&set).map(Some),
        (false, None) => Ok(None),
    }
}

fn qemu_of(kit: &Kit, fetch: bool) -> Part<Qemu> {
    match Qemu::of_system() {
        Ok(qemu) => Ok(Some(qemu)),
        Err(error) if std::env::var_os(QEMU_VARIABLE).is_some() => Err(error),
        Err(_) => part(kit, qemu::SET, fetch, || Qemu::of_kit(kit), Qemu::in_set),
    }
}

fn finding<T>(
    part: &'static str,
    what: Part<T>,
    can_fetch: bool,
    describe: impl FnOnce(&T) -> String,
) -> Finding {
    let (state, found, remedy) = match what {
        Ok(Some(what)) => (State::Ready, describe(&what), String::new()),
        Ok(None) if can_fetch => (
            State::Fetched,
            "not in the kit yet".into(),
            "fetched by the first boot; now: vm doctor --fetch".into(),
        ),
        Ok(None) => (
            State::Missing,
            "not in the kit".into(),
            "see packages".into(),
        ),
        Err(error) => (
            State::Missing,
            format!("{error:#}"),
            "vm doctor --refresh --fetch".into(),
        ),
    };
    Finding {
        part,
        state,
        found,
        remedy,
    }
}

fn accelerator(kit: &Kit, qemu: &Part<Qemu>, kernel: &Part<Kernel>) -> Finding {
    let (state, found, remedy) = match (qemu, kernel) {
        (Ok(Some(qemu)), Ok(Some(kernel))) => match accel::verdict(kit, qemu, kernel) {
            Ok(verdict) if verdict.reason.is_empty() => {
                (State::Ready, verdict.accel.name().to_owned(), String::new())
            }
            Ok(verdict) => {
                let found = format!("{}: {}", verdict.accel.name(), verdict.reason);
                (
                    State::Ready,
                    found,
                    "a guest takes seconds longer to boot".to_owned(),
                )
            }
            Err(error) => (State::Missing, format!("{error:#}"), String::new()),
        },
        _ => (
            State::Fetched,
            "tried with QEMU and kernel".to_owned(),
            String::new(),
        ),
    };
    Finding {
        part: "accelerator",
        state,
        found,
        remedy,
    }
}

fn daemon() -> Finding {
    let (state, found, remedy) = match crate::daemon::find(None) {
        Ok(path) => (State::Ready, path.display().to_string(), String::new()),
        Err(error) => {
            let remedy = "cargo build --release --workspace, or --daemon PATH".into();
            (State::Fetched, format!("{error:#}"), remedy)
        }
    };
    Finding {
        part: "daemon",
        state,
        found,
        remedy,
    }
}

/// What `--daemon virtiofsd` would start. Nobody else needs it, so it is never
/// missing.
fn peer(kit: &Kit) -> Finding {
    let (state, found) = match kit.existing(VIRTIOFSD).map(|set| Peer::in_set(&set)) {
        Some(Ok(peer)) => (State::Ready, format!("virtiofsd {} (Kit)", peer.version)),
        Some(Err(error)) => (State::Fetched, format!("{error:#}")),
        None => (State::Fetched, "not in the kit yet".to_owned()),
    };
    let remedy = match state {
        State::Ready => "",
        _ => "fetched by the first --daemon virtiofsd",
    };
    Finding {
        part: "peer",
        state,
        found,
        remedy: remedy.into(),
    }
}

/// Where packages come from, and who vouches for them.
fn packages() -> Finding {
    let remedy = |text: &str| (State::Missing, text.to_owned());
    let (found, (state, remedy)) = match apt::mirrors() {
        Err(error) => {
            let wanted = format!("apt with a Debian mirror, or {MIRROR_VARIABLE}");
            (format!("{error:#}"), remedy(&wanted))
        }
        Ok(_) if !starts("dpkg-deb") => ("no dpkg-deb".into(), remedy("install dpkg")),
        Ok(mirrors) => match apt::keyring() {
            Some(keyring) => {
                let found = format!("{} mirrors, signed by {keyring}", mirrors.len());
                (found, (State::Ready, String::new()))
            }
            None => {
                let found = format!("{} mirrors, apt's own trusted keys", mirrors.len());
                (
                    found,
                    (
                        State::Ready,
                        "if refused: install debian-archive-keyring".into(),
                    ),
                )
            }
        },
    };
    Finding {
        part: "packages",
        state,
        found,
        remedy,
    }
}

fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_ready_comes_later_or_is_missing() {
        let of = |what: Part<u8>, can_fetch| finding("p", what, can_fetch, |v| v.to_string());
        let ready = of(Ok(Some(7)), false);
        assert_eq!((ready.state, ready.found.as_str()), (State::Ready, "7"));
        assert!(ready.remedy.is_empty());
        assert_eq!(of(Ok(None), true).state, State::Fetched);
        let missing = of(Ok(None), false);
        assert!(missing.state == State::Missing && !missing.remedy.is_empty());
        let broken = of(Err(anyhow::anyhow!("why")), true);
        assert!(broken.state == State::Missing && broken.found == "why");
    }

    #[test]
    fn an_empty_kit_is_looked_at_without_fetching() {
        let home = tempfile::tempdir().expect("directory");
        let findings = look(&Kit::at(home.path(), true), false);
        let parts: Vec<_> = findings.iter().map(|f| f.part).collect();
        assert!(parts.starts_with(&["qemu", "kernel", "userland", "accelerator", "daemon"]));
        assert!(
            std::fs::read_dir(home.path())
                .expect("there")
                .next()
                .is_none()
        );
    }
}
