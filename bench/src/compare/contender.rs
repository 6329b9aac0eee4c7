//! Who is compared: a program with its flags, and that program at work with a
//! session attached.
//!
//! Law: every contender is reached by the same front end with the same
//! settings, and none has a window.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use daxwindow_guest::session::{Session, SessionOptions};

use crate::attach;
use crate::daemon::{self, Daemon, Dax, Share};
use crate::vm::Kit;
use crate::vm::peers::Peer;

/// Guest memory: 16 requests of 1 MiB, each in a buffer of its own, and room.
const MEMORY_BYTES: u64 = 128 << 20;

/// Whose flags a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Daxwindowd,
    Virtiofsd,
}

impl Dialect {
    /// Asks the program what it is.
    fn of(program: &Path) -> Result<Dialect> {
        let version = daemon::version(program);
        if version.starts_with("daxwindowd") {
            Ok(Dialect::Daxwindowd)
        } else if version.starts_with("virtiofsd") {
            Ok(Dialect::Virtiofsd)
        } else {
            bail!(
                "{} is neither virtiofsd nor daxwindowd: its --version says {version:?}",
                program.display()
            )
        }
    }

    /// Request queues it can serve, of `wanted`.
    pub(super) fn queues(self, wanted: usize) -> usize {
        match self {
            Dialect::Daxwindowd => wanted,
            Dialect::Virtiofsd => 1,
        }
    }
}

/// A program and the flags it is started with.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    /// What tables call it.
    pub name: String,
    pub program: PathBuf,
    pub dialect: Dialect,
    /// Flags beside socket, directory and queues.
    pub flags: Vec<String>,
}

/// What virtiofsd is fastest with: no sandbox and no filter of system calls,
/// nodes as descriptors.
const LEAN: [&str; 3] = [
    "--sandbox=none",
    "--seccomp=none",
    "--inode-file-handles=never",
];

/// Sizes of virtiofsd's thread pool that are tried: which is best depends on
/// the operation.
const POOLS: [&str; 3] = [
    "--thread-pool-size=0",
    "--thread-pool-size=1",
    "--thread-pool-size=4",
];

/// Flags that were found to make nothing faster, on request: added to the
/// lean ones, or in their place.
const OTHERS: [&str; 6] = [
    "--cache=always",
    "--cache=metadata",
    "--cache=never",
    "--seccomp=kill",
    "--inode-file-handles=prefer",
    "--sandbox=namespace",
];

impl Contender {
    /// Ours.
    pub(super) fn ours(program: PathBuf, flags: &[String]) -> Contender {
        Contender {
            name: "ours".into(),
            program,
            dialect: Dialect::Daxwindowd,
            flags: flags.to_vec(),
        }
    }

    /// The peer in each set of flags it is tried with. `told` is the name of
    /// one in the kit or a path.
    pub(super) fn peers(told: &Path, offline: bool, all: bool) -> Result<Peers> {
        let kit = Kit::open(offline)?;
        let (program, version) = match Peer::named(&kit, told)? {
            Some(peer) => (peer.program, format!("virtiofsd {}", peer.version)),
            None => {
                let program = daemon::find(Some(told))?;
                let version = daemon::version(&program);
                (program, version)
            }
        };
        let dialect = Dialect::of(&program)?;
        let sets = match dialect {
            Dialect::Daxwindowd => vec![("as built".to_string(), vec![])],
            Dialect::Virtiofsd => flag_sets(all),
        };
        let contenders = sets.into_iter().map(|(name, flags)| Contender {
            name,
            program: program.clone(),
            dialect,
            flags,
        });
        Ok(Peers {
            version,
            contenders: contenders.collect(),
        })
    }

    fn arguments(&self, directory: &Path, queues: usize, socket: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = match self.dialect {
            Dialect::Daxwindowd => Share {
                readonly: false,
                request_queues: queues,
                ..Share::readonly(directory, Dax::Never, 0)
            }
            .arguments(socket),
            Dialect::Virtiofsd => vec![
                "--socket-path".into(),
                socket.into(),
                "--shared-dir".into(),
                directory.into(),
                "--log-level".into(),
                "error".into(),
            ],
        };
        arguments.extend(self.flags.iter().map(OsString::from));
        arguments
    }

    /// Starts it on `directory` and attaches.
    pub(super) fn start(&self, directory: &Path, queues: usize) -> Result<Running> {
        let queues = self.dialect.queues(queues);
        let daemon = Daemon::launch(&self.program, |socket| {
            self.arguments(directory, queues, socket)
        })?;
        let options = SessionOptions {
            memory_bytes: MEMORY_BYTES,
            request_queues: queues,
            dax: false,
            ..SessionOptions::new(daemon.socket())
        };
        let session = attach::patiently(|| Session::connect(options.clone()))
            .with_context(|| format!("open a session{}", daemon.last_words()))?;
        ensure!(session.window().is_none(), "there is a window");
        Ok(Running {
            session,
            daemon,
            queues,
        })
    }
}

/// The peer, once for each set of flags.
pub(super) struct Peers {
    pub version: String,
    pub contenders: Vec<Contender>,
}

fn flag_sets(all: bool) -> Vec<(String, Vec<String>)> {
    let lean = |last: &str| -> Vec<String> {
        let (key, _) = last.split_once('=').unwrap_or((last, ""));
        let kept = LEAN.iter().filter(|flag| !flag.starts_with(key));
        kept.copied().chain([last]).map(String::from).collect()
    };
    let others = if all { &OTHERS[..] } else { &[] };
    let sets = POOLS.iter().chain(others);
    sets.map(|flag| (flag.trim_start_matches("--").to_string(), lean(flag)))
        .collect()
}

/// A daemon with a session. The session goes first on drop.
pub(super) struct Running {
    pub session: Arc<Session>,
    pub daemon: Daemon,
    /// Request queues in use.
    pub queues: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_on_trial_takes_the_place_of_the_lean_one() {
        let sets = flag_sets(true);
        assert_eq!(sets.len(), POOLS.len() + OTHERS.len());
        let of = |name: &str| {
            let set = sets.iter().find(|(n, _)| n == name);
            set.expect("there").1.join(" ")
        };
        assert_eq!(
            of("thread-pool-size=4"),
            "--sandbox=none --seccomp=none --inode-file-handles=never --thread-pool-size=4"
        );
        assert_eq!(
            of("seccomp=kill"),
            "--sandbox=none --inode-file-handles=never --seccomp=kill"
        );
        assert_eq!(flag_sets(false).len(), 3);
    }

    #[test]
    fn a_stranger_is_refused() {
        let error = Contender::peers(Path::new("/bin/true"), true, false)
            .err()
            .expect("no daemon");
        assert!(format!("{error:#}").contains("neither"), "{error:#}");
    }

    #[test]
    fn virtiofsd_has_one_queue() {
        assert_eq!(Dialect::Virtiofsd.queues(2), 1);
        assert_eq!(Dialect::Daxwindowd.queues(2), 2);
    }
}
