//! The program that the library is preloaded into: this one, run again. It does
//! what it is told, a line at a time, and answers with a line.
//!
//! It calls the C library and not the kernel, so that the library stands in
//! front.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

mod calls;
mod churn;
mod devices;
mod passing;
mod readers;
mod role;
mod signals;

/// Says that this is the program, and not the tests.
const ROLE: &str = "DAXWINDOW_TEST_VMM";
/// Begins an answer, behind whatever the test harness has printed.
const ANSWER: char = '@';

/// The program, as the tests see it. It ends when it is told nothing more.
pub(crate) struct Vmm {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What it said when it was gone.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// What `cargo test` builds beside this program.
pub(crate) fn built(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("a path");
    let path = program.parent().expect("a directory").join(name);
    let cure = "cargo build -p daxwindow-preload --examples";
    assert!(path.exists(), "{} has to be built: {cure}", path.display());
    path
}

impl Vmm {
    pub(crate) fn start() -> Vmm {
        Vmm::preloading(&[])
    }

    /// With the stand-in for KVM and devices behind the library.
    pub(crate) fn with_devices() -> Vmm {
        Vmm::preloading(&[&built("../examples/libioctl_stand_in.so")])
    }

    /// With other libraries behind this one.
    fn preloading(others: &[&Path]) -> Vmm {
        let mut preload = built("libdaxwindow_preload.so").into_os_string();
        for other in others {
            preload.push(":");
            preload.push(other);
        }
        let program = std::env::current_exe().expect("a path");
        let mut child = Command::new(program)
            .args(["--exact", "vmm::role::vmm", "--nocapture"])
            .env(ROLE, "1")
            .env("LD_PRELOAD", preload)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Vmm {
            child,
            orders,
            answers,
        }
    }

    /// Says what to do.
    pub(crate) fn tell(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("not ended");
        writeln!(orders, "{order}").expect("it listens");
    }

    /// What the last order led to.
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.answers.read_line(&mut line).expect("text");
            if read == 0 {
                let end = self.wait();
                panic!("the program is gone: {}\n{}", end.status, end.stderr);
            }
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    /// The byte of a window.
    pub(crate) fn byte(&mut self, window: &str, at: u64) -> u8 {
        let answer = self.ask(&format!("load {window} {at}"));
        answer.parse().expect("a byte")
    }

    /// What is mapped there: protection, and the file.
    pub(crate) fn mapping(&mut self, window: &str, at: u64) -> String {
        self.ask(&format!("mapping {window} {at}"))
    }

    /// Has it end, and is told how.
    pub(crate) fn end(mut self) -> End {
        self.wait()
    }

    /// As [`end`](Self::end), where all has to be well.
    pub(crate) fn end_well(self) -> String {
        let End { status, stderr } = self.end();
        assert!(status.success(), "{status}\n{stderr}");
        stderr
    }

    fn wait(&mut self) -> End {
        self.orders = None;
        let mut stderr = String::new();
        let piped = self.child.stderr.as_mut().expect("piped");
        piped.read_to_string(&mut stderr).expect("text");
        let status = self.child.wait().expect("waited for");
        End { status, stderr }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Where the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the program has by name.
#[derive(Default)]
struct Things {
    sockets: HashMap<String, std::os::unix::net::UnixStream>,
    windows: HashMap<String, Place>,
    readers: Option<readers::Readers>,
    memfds: HashMap<String, std::os::fd::OwnedFd>,
}

#[derive(Clone, Copy)]
struct Place {
    address: usize,
    bytes: usize,
}
