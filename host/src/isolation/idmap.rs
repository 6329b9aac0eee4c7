//! Which users and groups of the host a user namespace has (`--uid-map`,
//! `--gid-map`), and how the kernel is told (user_namespaces(7)).

use std::fmt;
use std::io;
use std::process::Command;
use std::str::FromStr;

use rustix::process::Pid;

/// A range of ids. As text `:inside:outside:count:`, with any character that
/// is no letter or digit in place of the colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// First id as the daemon, and its guests, see it.
    pub inside: u32,
    /// First id as the host sees it.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

/// Why a text is no range of ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// It is written otherwise.
    #[error("expected :inside:outside:count:, with the same separator four times")]
    Form,
    /// A number is missing, or too large.
    #[error("{0:?} is not a number below 4294967295")]
    Number(String),
    /// It has no ids, or more than there are.
    #[error("a range has at least one id and ends below 4294967295")]
    Range,
}

impl FromStr for IdMap {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<IdMap, IdMapError> {
        let separator = text.chars().next().ok_or(IdMapError::Form)?;
        if separator.is_alphanumeric() {
            return Err(IdMapError::Form);
        }
        let fields: Vec<&str> = text.split(separator).collect();
        let &["", inside, outside, count, ""] = &fields[..] else {
            return Err(IdMapError::Form);
        };
        let number = |field: &str| match field.parse::<u32>() {
            Ok(number) if number != u32::MAX => Ok(number),
            _ => Err(IdMapError::Number(field.to_owned())),
        };
        let map = IdMap {
            inside: number(inside)?,
            outside: number(outside)?,
            count: number(count)?,
        };
        let ends = |first: u32| first.checked_add(map.count).is_some();
        match map.count > 0 && ends(map.inside) && ends(map.outside) {
            true => Ok(map),
            false => Err(IdMapError::Range),
        }
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Whether the daemon's user namespace has one id: by the ranges it is to have,
/// or without any by `around`, the text of `/proc/self/uid_map` or `gid_map`.
pub fn has_one_id(ranges: &[IdMap], around: &str) -> bool {
    let counts = around
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    let ids: u64 = match ranges {
        [] => counts.sum(),
        ranges => ranges.iter().map(|range| u64::from(range.count)).sum(),
    };
    ids == 1
}

/// Both maps of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdMaps {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

impl IdMaps {
    /// What was asked for; nothing means one's own id alone, under its own
    /// number.
    pub(super) fn new(uids: &[IdMap], gids: &[IdMap]) -> IdMaps {
        let own = |id: u32| {
            vec![IdMap {
                inside: id,
                outside: id,
                count: 1,
            }]
        };
        let or_own = |maps: &[IdMap], id: u32| match maps {
            [] => own(id),
            maps => maps.to_vec(),
        };
        IdMaps {
            uids: or_own(uids, rustix::process::geteuid().as_raw()),
            gids: or_own(gids, rustix::process::getegid().as_raw()),
        }
    }

    /// Who to be inside: root if the map has it, else the first there is.
    pub(super) fn inside(&self) -> (u32, u32) {
        let pick = |maps: &[IdMap]| match maps {
            maps if maps.iter().any(|map| map.inside == 0) => 0,
            maps => maps.first().map_or(0, |map| map.inside),
        };
        (pick(&self.uids), pick(&self.gids))
    }

    /// Tells the kernel which ids the user namespace of `pid` has. Runs
    /// outside of that namespace.
    ///
    /// # Errors
    ///
    /// A sentence that says what was tried and what came of it.
    pub(super) fn write(&self, pid: Pid) -> Result<(), String> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let is_own = |maps: &[IdMap], own: u32| matches!(maps, [IdMap { outside, count: 1, .. }] if *outside == own);
        let pid = pid.as_raw_nonzero();
        let write = |file: &str, text: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::write(&path, text).map_err(|cause| format!("{path}: {cause}"))
        };
        match () {
            () if uid.is_root() => write("uid_map", &lines(&self.uids))?,
            () if is_own(&self.uids, uid.as_raw()) => write("uid_map", &lines(&self.uids))?,
            () => ask("newuidmap", pid.get(), &self.uids)?,
        }
        match () {
            () if uid.is_root() => write("gid_map", &lines(&self.gids)),
            () if is_own(&self.gids, gid.as_raw()) => {
                // Who may not set groups outside must not drop them inside.
                write("setgroups", "deny")?;
                write("gid_map", &lines(&self.gids))
            }
            () => ask("newgidmap", pid.get(), &self.gids),
        }
    }
}

/// As the kernel wants it: all ranges in one write.
fn lines(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{map}\n")).collect()
}

/// Ranges of more than one's own id are given by a program that the host has
/// for it, according to /etc/subuid and /etc/subgid.
fn ask(program: &str, pid: i32, maps: &[IdMap]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for map in maps {
        command.args([map.inside, map.outside, map.count].map(|n| n.to_string()));
    }
    let output = command.output().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => format!(
            "{program} is not installed (package uidmap), and without it a user has no other \
             id than their own"
        ),
        _ => format!("{program}: {cause}"),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}", said.trim()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_with_any_separator() {
        let map = IdMap {
            inside: 0,
            outside: 100_000,
            count: 65_536,
        };
        for text in [":0:100000:65536:", "/0/100000/65536/", " 0 100000 65536 "] {
            assert_eq!(text.parse(), Ok(map), "{text:?}");
        }
        assert_eq!(lines(&[map, map]), "0 100000 65536\n0 100000 65536\n");
    }

    #[test]
    fn one_id_is_told_from_many() {
        let range = |text: &str| text.parse::<IdMap>().expect("valid");
        let (one, many) = (range(":0:1000:1:"), range(":1:100000:65535:"));
        let host = "         0          0 4294967295\n";
        let container = "         0       1000          1\n";
        assert!(has_one_id(&[one], host) && has_one_id(&[], container));
        assert!(!has_one_id(&[], host) && !has_one_id(&[one, many], container));
        assert!(!has_one_id(&[], ""), "unknown");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (text, error) in [
            ("", IdMapError::Form),
            ("0:0:1:", IdMapError::Form),
            (":0:0:1", IdMapError::Form),
            (":0:0:1/", IdMapError::Form),
            (":0:0:", IdMapError::Form),
            (":0:0:1:2:", IdMapError::Form),
            ("a0a0a1a", IdMapError::Form),
            (":0:x:1:", IdMapError::Number("x".into())),
            (":0:-1:1:", IdMapError::Number("-1".into())),
            (":4294967295:0:1:", IdMapError::Number("4294967295".into())),
            (":0:0:0:", IdMapError::Range),
            (":4294967294:0:2:", IdMapError::Range),
        ] {
            assert_eq!(text.parse::<IdMap>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn inside_one_is_root_if_there_is_one() {
        let map = |inside| IdMap {
            inside,
            outside: 5,
            count: 1,
        };
        let maps = IdMaps::new(&[map(7), map(0)], &[map(9), map(8)]);
        assert_eq!(maps.inside(), (0, 9));
    }
}
