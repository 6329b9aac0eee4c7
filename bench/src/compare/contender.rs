//! Who is compared: a program with its flags, and that program at work with a
//! session attached.
//!
//! Law: every contender is reached by the same front end with the same
//! settings, and either all have a window or none has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use daxwindow_guest::test_utils::Tuning;
use daxwindow_guest::{Session, SessionOptions};
use daxwindow_vm::Kit;
use daxwindow_vm::peers::{ALIOTH, Peer};

use super::flags::flag_sets;
use crate::attach;
use crate::daemon::{self, Daemon, Dax, KEEP_SERVING, Share};

/// Guest memory: 16 requests of 1 MiB, each in a buffer of its own, and room.
const MEMORY_BYTES: u64 = 128 << 20;

/// Whose flags a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Daxwindowd,
    Virtiofsd,
    Alioth,
}

impl Dialect {
    /// Asks the program what it is.
    fn of(program: &Path) -> Result<Dialect> {
        let version = daemon::version(program);
        let all = [Dialect::Daxwindowd, Dialect::Virtiofsd, Dialect::Alioth];
        match all.into_iter().find(|d| version.starts_with(d.name())) {
            Some(dialect) => Ok(dialect),
            None => bail!(
                "{} is neither virtiofsd nor alioth nor daxwindowd: its --version says {version:?}",
                program.display()
            ),
        }
    }

    /// What such a program is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Dialect::Daxwindowd => "daxwindowd",
            Dialect::Virtiofsd => "virtiofsd",
            Dialect::Alioth => ALIOTH,
        }
    }

    /// Request queues it can serve, of `wanted`.
    pub(super) fn queues(self, wanted: usize) -> usize {
        match self {
            Dialect::Daxwindowd => wanted,
            Dialect::Virtiofsd | Dialect::Alioth => 1,
        }
    }

    /// Whether it can have a window.
    pub(super) fn has_window(self) -> bool {
        self != Dialect::Virtiofsd
    }

    /// Whether it is a daemon that serves a part of the requests only, so
    /// that it is no failure of the comparison when it does not do one.
    pub(super) fn is_partial(self) -> bool {
        self == Dialect::Alioth
    }
}

/// A program and the flags it is started with.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    /// Who it is of those that `--peer` names; empty for ours.
    pub rival: String,
    /// What tables call this set of flags.
    pub name: String,
    pub program: PathBuf,
    pub dialect: Dialect,
    /// Flags beside socket, directory and queues.
    pub flags: Vec<String>,
}

/// How the front end reaches everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrontEnd {
    /// Chains as a Linux guest lays them out: some daemon understands no
    /// others.
    pub separate_headers: bool,
}

impl Contender {
    /// Ours.
    pub(super) fn ours(program: PathBuf, flags: &[String]) -> Contender {
        Contender {
            rival: String::new(),
            name: "ours".into(),
            program,
            dialect: Dialect::Daxwindowd,
            flags: flags.to_vec(),
        }
    }

    /// A peer in each set of flags it is tried with. `told` is the name of
    /// one in the kit or a path.
    pub(super) fn peers(told: &Path, offline: bool, all: bool) -> Result<Peers> {
        let kit = Kit::open(offline)?;
        let (program, version) = if told == Path::new(ALIOTH) {
            let peer = Peer::alioth(&kit)?;
            (peer.program, format!("{ALIOTH} {}", peer.version))
        } else if let Some(peer) = Peer::named(&kit, told)? {
            (peer.program, format!("virtiofsd {}", peer.version))
        } else {
            let program = daemon::find(Some(told))?;
            let version = daemon::version(&program);
            (program, version)
        };
        let dialect = Dialect::of(&program)?;
        let sets = match dialect {
            Dialect::Daxwindowd | Dialect::Alioth => vec![("as built".to_string(), vec![])],
            Dialect::Virtiofsd => flag_sets(all),
        };
        let contenders = sets.into_iter().map(|(name, flags)| Contender {
            rival: dialect.name().into(),
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

    /// What tables call it.
    pub(super) fn title(&self) -> String {
        match self.dialect {
            Dialect::Alioth => self.rival.clone(),
            _ => self.name.clone(),
        }
    }

    /// What results call it: who, and with which flags.
    pub(super) fn stack(&self, window: bool) -> String {
        let dax = if window { "always" } else { "never" };
        match (self.rival.as_str(), self.dialect) {
            ("", _) => format!("daxwindow dax={dax}"),
            (rival, Dialect::Virtiofsd) => format!("{rival} {}", self.name),
            (rival, _) => format!("{rival} dax={dax}"),
        }
    }

    fn arguments(
        &self,
        directory: &Path,
        queues: usize,
        window_bytes: u64,
        socket: &Path,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = match self.dialect {
            Dialect::Daxwindowd => {
                let dax = match window_bytes {
                    0 => Dax::Never,
                    _ => Dax::Always,
                };
                let share = Share {
                    readonly: false,
                    request_queues: queues,
                    ..Share::readonly(directory, dax, window_bytes)
                };
                let mut arguments = share.arguments(socket);
                let keeps = daemon::has_flag(&self.program, KEEP_SERVING);
                arguments.retain(|flag| keeps || flag != KEEP_SERVING);
                arguments
            }
            Dialect::Virtiofsd => vec![
                "--socket-path".into(),
                socket.into(),
                "--shared-dir".into(),
                directory.into(),
                "--log-level".into(),
                "error".into(),
            ],
            Dialect::Alioth => {
                let mut shared = OsString::from("tag=compare,path=");
                shared.push(directory);
                vec![
                    // An error is a line on stderr for it, also where a
                    // request is refused in order.
                    "--log-spec".into(),
                    "off".into(),
                    "vu".into(),
                    "--socket".into(),
                    socket.into(),
                    "fs".into(),
                    "--param".into(),
                    shared,
                ]
            }
        };
        arguments.extend(self.flags.iter().map(OsString::from));
        arguments
    }

    /// Starts it on `directory` and attaches; with a window of so many bytes,
    /// or none.
    pub(super) fn start(
        &self,
        directory: &Path,
        queues: usize,
        window_bytes: u64,
        front_end: FrontEnd,
    ) -> Result<Running> {
        let queues = self.dialect.queues(queues);
        let daemon = Daemon::launch(&self.program, |socket| {
            self.arguments(directory, queues, window_bytes, socket)
        })?;
        let options = SessionOptions {
            memory_bytes: MEMORY_BYTES,
            request_queues: queues,
            dax: window_bytes > 0,
            ..SessionOptions::new(daemon.socket())
        };
        let tuning = Tuning {
            legacy_window_bytes: window_bytes,
            separate_headers: front_end.separate_headers,
            ..Tuning::default()
        };
        let session = connect(&daemon, &options, &tuning)?;
        Ok(Running {
            session: Some(session),
            options,
            tuning,
            daemon,
            dialect: self.dialect,
            queues,
        })
    }
}

fn connect(daemon: &Daemon, options: &SessionOptions, tuning: &Tuning) -> Result<Arc<Session>> {
    let connect = || Session::connect_with(options.clone(), tuning.clone());
    let session = attach::patiently(connect)
        .with_context(|| format!("open a session{}", daemon.last_words()))?;
    match options.dax {
        true => ensure!(session.window().is_some(), "there is no window"),
        false => ensure!(session.window().is_none(), "there is a window"),
    }
    Ok(session)
}

/// A peer, once for each set of flags.
pub(super) struct Peers {
    pub version: String,
    pub contenders: Vec<Contender>,
}

/// A daemon with a session. The session goes first on drop.
pub(super) struct Running {
    session: Option<Arc<Session>>,
    options: SessionOptions,
    tuning: Tuning,
    pub daemon: Daemon,
    pub dialect: Dialect,
    /// Request queues in use.
    pub queues: usize,
}

impl Running {
    /// The session.
    pub(super) fn session(&self) -> Result<&Arc<Session>> {
        self.session.as_ref().context("the session has ended")
    }

    /// The options it was opened with.
    pub(super) fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Ends the connection and makes a new one, as a guest that is started
    /// anew.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        self.session = None;
        self.session = Some(connect(&self.daemon, &self.options, &self.tuning)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_refused() {
        let error = Contender::peers(Path::new("/bin/true"), true, false)
            .err()
            .expect("no daemon");
        assert!(format!("{error:#}").contains("neither"), "{error:#}");
    }

    #[test]
    fn only_ours_has_more_than_one_queue() {
        assert_eq!(Dialect::Virtiofsd.queues(2), 1);
        assert_eq!(Dialect::Alioth.queues(2), 1);
        assert_eq!(Dialect::Daxwindowd.queues(2), 2);
    }

    #[test]
    fn stacks_are_told_apart() {
        let ours = Contender::ours("x".into(), &[]);
        let peer = |dialect: Dialect| Contender {
            rival: dialect.name().into(),
            name: "cache=always".into(),
            dialect,
            ..ours.clone()
        };
        assert_eq!(ours.stack(false), "daxwindow dax=never");
        assert_eq!(ours.stack(true), "daxwindow dax=always");
        assert_eq!(
            peer(Dialect::Virtiofsd).stack(false),
            "virtiofsd cache=always"
        );
        assert_eq!(peer(Dialect::Alioth).stack(true), "alioth dax=always");
        assert_eq!(
            peer(Dialect::Daxwindowd).stack(false),
            "daxwindowd dax=never"
        );
    }
}
