//! What a daemon says that it did, when it is asked by SIGUSR1: the proof that
//! bytes went through the window, or did not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daxwindow_vm::Vm;
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(300);
/// The last line of a report has this.
const LAST: &str = "window setups=";

/// One report.
#[derive(Debug)]
pub(crate) struct Counted {
    requests: BTreeMap<String, u64>,
    values: BTreeMap<String, u64>,
}

impl Counted {
    /// Asks the `share`th daemon of `vm`.
    pub(crate) fn by(vm: &Vm, share: usize) -> Counted {
        let pid = vm.daemon_pid(share).and_then(Pid::from_raw);
        let reports = |log: &str| log.matches(LAST).count();
        let before = reports(&vm.daemon_log(share));
        kill_process(pid.expect("a daemon of ours"), Signal::USR1).expect("runs");
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = vm.daemon_log(share);
            // Its last line is whole when another character follows.
            if reports(&log) > before && log.ends_with('\n') {
                return Counted::parse(&log);
            }
            assert!(Instant::now() < deadline, "no report:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn parse(log: &str) -> Counted {
        let mut counted = Counted {
            requests: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        let start = log.rfind(" malformed, ").unwrap_or(0);
        for line in log[start..].lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [name, count, "errors", ..] = words[..] {
                let count = count.parse().expect("a number of requests");
                counted.requests.insert(name.to_owned(), count);
            }
            for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
                if let Ok(value) = value.parse() {
                    counted.values.insert(name.to_owned(), value);
                }
            }
        }
        counted
    }

    /// How many requests of this kind came so far.
    pub(crate) fn requests(&self, kind: &str) -> u64 {
        self.requests.get(kind).copied().unwrap_or(0)
    }

    /// One of the numbers about the window, by its name in the log.
    pub(crate) fn window(&self, name: &str) -> u64 {
        let value = self.values.get(name).copied();
        value.unwrap_or_else(|| panic!("no {name} in {:?}", self.values))
    }
}

#[test]
fn a_report_is_read_from_the_log() {
    let log = "INFO x: 9 requests, 0 malformed, 0 unanswerable\n  Read 3  errors 0\n\
               INFO x: 1149 requests, 0 malformed, 0 unanswerable\n\
               \x20 Lookup       1  errors        1  mean     34.1 us  p50     41.0 us\n\
               \x20 Setupmapping 2  errors        0  mean    846.2 us\n\
               INFO x: live inodes=1 handles=0 mapped_ranges=2\nINFO x: window setups=2 removals=7\n";
    let counted = Counted::parse(log);
    assert_eq!(counted.requests("Setupmapping"), 2);
    assert_eq!(
        (counted.requests("Lookup"), counted.requests("Read")),
        (1, 0)
    );
    let window = ["setups", "removals", "mapped_ranges"].map(|name| counted.window(name));
    assert_eq!(window, [2, 7, 2]);
}
