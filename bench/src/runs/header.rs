//! Under which conditions a study was measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::{COMMIT, Machine};

/// What a results file begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Name of the study and of its file.
    pub study: String,
    /// When the run began, RFC 3339.
    pub started: String,
    /// The command line that does it again.
    pub command: Vec<String>,
    /// What changes the cells.
    pub options: BTreeMap<String, String>,
    /// Where it ran.
    pub machine: Machine,
    /// What ran: `daxwindowd`, `virtiofsd`, `qemu`, `guest kernel`.
    pub versions: BTreeMap<String, String>,
    /// Commit of this program.
    pub commit: String,
    /// `kvm` or `tcg` where a guest ran, `none` where there was no virtual
    /// machine.
    pub accel: String,
}

/// An accelerator where no virtual machine runs.
pub(crate) const NO_VM: &str = "none";

impl Header {
    /// A header of now, by this program, called as it was; options, versions
    /// and accelerator are to be filled in.
    pub(crate) fn new(study: &str, machine: Machine) -> Header {
        let now = jiff::Timestamp::now();
        Header {
            study: study.into(),
            started: now.round(jiff::Unit::Second).unwrap_or(now).to_string(),
            command: std::env::args().collect(),
            machine,
            commit: COMMIT.into(),
            accel: NO_VM.into(),
            ..Header::default()
        }
    }

    /// Adds an option.
    pub(crate) fn option(&mut self, name: &str, value: impl ToString) {
        self.options.insert(name.into(), value.to_string());
    }

    /// Adds a version.
    pub(crate) fn version(&mut self, name: &str, version: impl ToString) {
        self.versions.insert(name.into(), version.to_string());
    }

    /// How this run differs from that one, in what the cells depend on: when
    /// it began and how its command line is spelled do not count.
    pub(crate) fn differences(&self, other: &Header) -> Vec<String> {
        let plain = |header: &Header| {
            let same = Header {
                started: String::new(),
                command: Vec::new(),
                ..header.clone()
            };
            serde_json::to_value(same).unwrap_or_default()
        };
        let mut found = Vec::new();
        compare("", &plain(self), &plain(other), &mut found);
        found
    }
}

fn compare(path: &str, now: &Value, then: &Value, found: &mut Vec<String>) {
    match (now, then) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or(Value::Null)
                };
                compare(&path, &of(a), &of(b), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => {
            let word = |v: &Value| match v {
                Value::Null => "not set".to_owned(),
                other => other.to_string(),
            };
            found.push(format!("{path} was {}, is {}", word(b), word(a)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_time_is_none() {
        let mut one = Header::new("fio", Machine::default());
        one.option("repetitions", 5);
        one.version("qemu", "11.1");
        let mut other = one.clone();
        other.started = "1970-01-01T00:00:00Z".into();
        other.command = vec!["elsewhere/daxwindow-bench".into()];
        assert_eq!(one.differences(&other), Vec::<String>::new());
        other.option("repetitions", 3);
        other.version("virtiofsd", "1.14");
        other.machine.cpus = 64;
        let told = one.differences(&other).join("; ");
        assert_eq!(
            told,
            "machine.cpus was 64, is 0; options.repetitions was \"3\", is \"5\"; \
             versions.virtiofsd was \"1.14\", is not set"
        );
    }
}
