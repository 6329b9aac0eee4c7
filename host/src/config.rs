//! What a daemon is started with, checked.

use std::os::fd::RawFd;
use std::path::PathBuf;

use rustix::fs::Gid;

use crate::dax::DaxOptions;
use crate::fs::{InodeFileHandles, ShareOptions};
use crate::fuse::ServerOptions;
use crate::isolation;
use crate::vhost::serve::DeviceOptions;

/// Descriptors kept for inodes known by handle, at most.
const MOST_CACHED: usize = 1 << 14;

/// Everything the daemon needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listeners: Listeners,
    /// Who may connect besides the owner.
    pub socket_group: Option<Gid>,
    /// What to share.
    pub shared_dir: PathBuf,
    /// How it is shared.
    pub share: ShareOptions,
    /// The window.
    pub dax: DaxOptions,
    /// How requests are answered where there is a choice.
    pub server: ServerOptions,
    /// What the device tells the guest.
    pub device: DeviceOptions,
    /// How the daemon is isolated.
    pub isolation: isolation::Options,
    /// Descriptors that the process may have open, if not as many as it can.
    pub rlimit_nofile: Option<u64>,
    /// Files and directories that a guest may have open, if not as many as
    /// [`divide`](Config::divide) leaves for them.
    pub max_open_files: Option<u64>,
    /// What to log.
    pub log_level: String,
    /// Log to syslog.
    pub syslog: bool,
    /// Where to tell how things are.
    pub status_socket: Option<PathBuf>,
    /// Flags that do less than somebody may expect, to be logged.
    pub warnings: Vec<&'static str>,
}

/// A flag asks for more descriptors than there are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--max-open-files {asked}: of the {limit} descriptors that the daemon may have (RLIMIT_NOFILE), half may be spent on them"
)]
pub struct TooManyFiles {
    asked: u64,
    limit: u64,
}

impl Config {
    /// Divides the `descriptors` that the process may have open. Each share
    /// gets as many as the others. Of these a quarter goes to open files unless
    /// told otherwise, and half to inodes; the window's files and the daemon's
    /// own needs have the rest.
    ///
    /// # Errors
    ///
    /// More open files than half of the descriptors.
    pub fn divide(&mut self, descriptors: u64) -> Result<(), TooManyFiles> {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let limit = descriptors / self.listeners.max_shares as u64;
        let (quarter, share) = (limit / 4, &mut self.share);
        share.max_handles = match self.max_open_files {
            Some(asked) if asked > limit / 2 => return Err(TooManyFiles { asked, limit }),
            Some(asked) => count(asked),
            None => share.max_handles.min(count(quarter)),
        };
        // What more open files take, inodes do not get.
        let rest = limit - quarter - quarter.max(share.max_handles as u64);
        share.max_inode_descriptors = share.max_inode_descriptors.min(count(rest));
        share.max_cached_descriptors = match share.inode_file_handles {
            InodeFileHandles::Never => 0,
            _ => count(rest / 2).min(MOST_CACHED),
        };
        self.dax.max_files = self.dax.max_files.min(count(limit / 8));
        Ok(())
    }
}

/// Where the VMM connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket of our own at this path.
    Path(PathBuf),
    /// A socket that listens already.
    Inherited(RawFd),
    /// The same, as the service manager has passed it.
    Activated(RawFd),
}

/// All places where VMMs connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Open from the start, a guest each.
    pub fixed: Vec<Listen>,
    /// Where more may be opened.
    pub socket_dir: Option<PathBuf>,
    /// How many there may be.
    pub max_shares: usize,
    /// When the last guest has gone, the daemon ends.
    pub once: bool,
}

impl Listeners {
    /// Descriptors of sockets that this process was started with.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let descriptor = |listen: &Listen| match listen {
            Listen::Path(_) => None,
            Listen::Inherited(fd) | Listen::Activated(fd) => Some(*fd),
        };
        self.fixed.iter().filter_map(descriptor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::config;

    fn divided(flags: &[&str], descriptors: u64) -> Result<Config, TooManyFiles> {
        let mut config = config(flags).expect("valid");
        config.divide(descriptors).map(|()| config)
    }

    #[test]
    fn descriptors_are_divided_and_never_promised_twice() {
        for flags in [
            &[][..],
            &["--inode-file-handles", "never"],
            &["--inode-file-handles=mandatory"],
            &["--max-open-files", "7"],
            &["--max-open-files", "32"],
        ] {
            for descriptors in [64, 1024, 20_000, 1_000_000] {
                let share = divided(flags, descriptors).expect("enough").share;
                let promised = share.max_handles + share.max_inode_descriptors;
                assert!(share.max_cached_descriptors <= share.max_inode_descriptors);
                assert!(promised as u64 <= descriptors / 4 * 3, "{flags:?}");
                assert!(promised as u64 >= descriptors.min(1024) / 2, "{flags:?}");
            }
        }
        let plain = divided(&[], 1024).expect("enough");
        let (share, max_files) = (plain.share, plain.dax.max_files);
        assert_eq!(share.inode_file_handles, InodeFileHandles::Prefer);
        assert_eq!((share.max_inodes, share.max_handles), (4_194_304, 256));
        let descriptors = |share: &ShareOptions| {
            let (all, cached) = (share.max_inode_descriptors, share.max_cached_descriptors);
            (all, cached)
        };
        assert_eq!((descriptors(&share), max_files), ((512, 256), 128));
        let never = divided(&["--inode-file-handles=never"], 1024).expect("enough");
        assert_eq!(descriptors(&never.share), (512, 0));
        let error = divided(&["--max-open-files", "513"], 1024).expect_err("too many");
        assert!(
            error.to_string().contains("--max-open-files 513"),
            "{error}"
        );
    }

    #[test]
    fn descriptors_are_divided_among_the_shares_that_may_be() {
        let of = |extra: &[&str]| {
            let share = divided(extra, 8192).expect("enough").share;
            (share.max_inode_descriptors, share.max_handles)
        };
        assert_eq!(of(&[]), (4096, 2048));
        assert_eq!(of(&["--socket-path", "/b"]), (2048, 1024));
        assert_eq!(of(&["--socket-dir", "/run/x"]), (64, 32));
        let two = ["--socket-dir", "/run/x", "--max-shares", "2"];
        assert_eq!(of(&two), (2048, 1024));
    }
}
