//! Where VMMs connect.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

use super::FlagError;
use super::size::count;
use crate::config::{Listen, Listeners};

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Many guests")]
pub struct ListenFlags {
    /// Directory for sockets that come and go: `daxwindowd ctl` adds shares at
    /// run time, each with a socket NAME.sock in the directory, and removes
    /// them; ctl talks to the daemon at the socket control.sock there
    #[arg(long, value_name = "DIR", conflicts_with = "print_session")]
    pub socket_dir: Option<PathBuf>,

    /// With --socket-dir: most shares at a time; each may use an equal part of
    /// the descriptors that the daemon may open
    #[arg(
        long,
        value_name = "N",
        requires = "socket_dir",
        default_value_t = 64,
        value_parser = count(1..=4096),
    )]
    pub max_shares: usize,

    /// End when the last guest has disconnected, as virtiofsd does: the default
    /// with one socket
    #[arg(
        long,
        conflicts_with = "print_session",
        overrides_with = "keep_serving"
    )]
    pub once: bool,

    /// Keep running when guests disconnect, and serve the next: the default
    /// with several sockets and with --socket-dir
    #[arg(long, conflicts_with = "print_session", overrides_with = "once")]
    pub keep_serving: bool,
}

impl ListenFlags {
    /// Where VMMs connect: at the paths, or the descriptor, or the `activated`
    /// ones, and where shares come and go.
    ///
    /// # Errors
    ///
    /// More sockets than `--max-shares` allows.
    pub(super) fn listeners(
        self,
        paths: Vec<PathBuf>,
        descriptor: Option<RawFd>,
        activated: Vec<RawFd>,
    ) -> Result<Listeners, FlagError> {
        let paths = paths.into_iter().map(Listen::Path);
        let descriptor = descriptor.map(Listen::Inherited);
        let activated = activated.into_iter().map(Listen::Activated);
        let fixed: Vec<Listen> = paths.chain(descriptor).chain(activated).collect();
        let max_shares = match &self.socket_dir {
            Some(_) => self.max_shares,
            None => fixed.len().max(1),
        };
        // What virtiofsd can be told.
        let is_one = fixed.len() == 1 && self.socket_dir.is_none();
        match fixed.len() > max_shares {
            true => Err(FlagError::TooManySockets(fixed.len())),
            false => Ok(Listeners {
                fixed,
                socket_dir: self.socket_dir,
                max_shares,
                once: self.once || is_one && !self.keep_serving,
            }),
        }
    }
}
