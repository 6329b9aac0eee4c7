//! The daemon as a client starts it: under virtiofsd's name, by that line, on
//! a socket that it makes or is given.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::table::{KUBEVIRT, Line};

/// What takes seconds may take minutes on a machine with other work.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_millis(5);
/// A group that every machine has.
pub(crate) const GROUP: &str = "tty";
const MOST_FILES: u64 = 1_048_576;
/// Gives the descriptor 0 another number, and runs the rest.
const PASSED: &str = "eval \"exec $0<&0 </dev/null\"; exec \"$@\"";

/// A daemon that runs, or has.
pub(crate) struct Started {
    pub line: &'static Line,
    pub directory: PathBuf,
    pub socket: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Started {
    /// Starts `program` by a line; what it needs is made in `folder`.
    pub(crate) fn by(line: &'static Line, program: &Path, folder: &Path) -> Started {
        eprintln!("{}, by {}:\n    {}", line.client, line.source, line.words);
        let path = |name: &str| folder.join(name);
        let (directory, place) = (path("share"), path("run"));
        for made in [folder, &directory, &place] {
            fs::create_dir(made).expect("made");
        }
        fs::write(directory.join("from-host"), line.client).expect("written");
        for own in [&directory, &directory.join("from-host")] {
            chown(own, Some(line.owner), Some(line.owner)).expect("ours");
        }
        chown(&place, Some(line.user), Some(line.user)).expect("ours");
        for promise in line.promises {
            promise.prepare(&directory);
        }
        let socket = place.join("fs.sock");
        let log = path("log");
        let file = File::create(&log).expect("made");
        let mut command = command(line, program, &directory, &socket);
        command
            .stdout(file.try_clone().expect("a copy"))
            .stderr(file);
        let child = command.spawn().expect("starts");
        let mut started = Started {
            line,
            directory,
            socket,
            log,
            child,
        };
        started.wait_for("its socket", |started| {
            let ended = started.child.try_wait().expect("ours");
            assert!(
                ended.is_none(),
                "{}: {ended:?}: {}",
                line.client,
                started.said()
            );
            fs::metadata(&started.socket).is_ok_and(|m| m.file_type().is_socket())
        });
        started
    }

    fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Started) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            let client = self.line.client;
            assert!(
                Instant::now() < deadline,
                "{client}: {what}: {}",
                self.said()
            );
            std::thread::sleep(STEP);
        }
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ends, which it does by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        self.wait_for("its end", |started| {
            status = started.child.try_wait().expect("ours");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Whether the socket is the daemon's own, to be removed by it.
    pub(crate) fn made_its_socket(&self) -> bool {
        self.line.words.contains("SOCKET")
    }

    /// The process that was started, and all that came of it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            next += 1;
        }
        all
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for promise in self.line.promises {
            promise.clear(&self.directory);
        }
    }
}

/// What root may ask for without the privilege to ask for more.
pub(crate) fn most_files() -> u64 {
    let limit = getrlimit(Resource::Nofile).maximum;
    limit.map_or(MOST_FILES, |limit| limit.min(MOST_FILES))
}

/// The line with this machine's paths in it.
fn words(line: &Line, directory: &Path, socket: &Path) -> Vec<OsString> {
    let processors = std::thread::available_parallelism().expect("known");
    let (directory, socket) = (directory.display(), socket.display());
    let words = line.words.split_whitespace().map(|word| {
        word.replace("DIR", &directory.to_string())
            .replace("SOCKET", &socket.to_string())
            .replace("GROUP", GROUP)
            .replace("NPROC", &processors.to_string())
            .replace("FILES", &most_files().to_string())
            .into()
    });
    words.collect()
}

/// The descriptor that the line passes.
fn passed(line: &Line) -> Option<&'static str> {
    let mut words = line.words.split_whitespace();
    let word = words.find(|word| word.starts_with("--fd"))?;
    word.strip_prefix("--fd=").or_else(|| words.next())
}

fn command(line: &Line, program: &Path, directory: &Path, socket: &Path) -> Command {
    let user = line.user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    if line.user == KUBEVIRT {
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
    }
    command.arg("--").current_dir(directory);
    command
        .env_remove("RUST_LOG")
        .envs(line.environment.iter().copied());
    match passed(line) {
        Some(descriptor) => {
            let listener = UnixListener::bind(socket).expect("free");
            let everybody = Permissions::from_mode(0o666);
            fs::set_permissions(socket, everybody).expect("ours");
            command.args(["sh", "-c", PASSED, descriptor]);
            command.stdin(OwnedFd::from(listener));
        }
        None => drop(command.stdin(Stdio::null())),
    }
    command.arg(program).args(words(line, directory, socket));
    command
}
