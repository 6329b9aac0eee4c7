//! The command line: what was typed becomes a checked [`Config`].
//!
//! Flags of one family live in a file of their own and are flattened into
//! [`Flags`], each with a heading of its own in `--help`, and after the plain
//! ones, which would go under the heading before them. Where virtiofsd has a
//! flag, ours has its name and its meaning, or is refused with what to write
//! instead.

mod activation;
mod attributes;
mod cache;
mod compat;
pub mod ctl;
mod inodes;
mod listen;
mod logs;
mod migration;
mod queues;
mod report;
mod sandbox;
mod semantics;
mod size;
mod window;

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use daxwindow_shared::virtiofs;

use crate::config::Config;
use crate::dax::DaxMode;
use crate::fs::{IdMapError, ShareOptions};
use crate::fuse::ServerOptions;
use crate::vhost::serve::DeviceOptions;

pub use activation::{ActivationFlags, Group};
pub use attributes::AttributeFlags;
pub use cache::CacheFlags;
pub use compat::CompatFlags;
pub use ctl::{AddFlags, Command, Ctl, Order, RemoveFlags};
pub use inodes::InodeFlags;
pub use listen::ListenFlags;
pub use logs::LogFlags;
pub use migration::MigrationFlags;
pub use queues::QueueFlags;
pub use report::ReportFlags;
pub use sandbox::SandboxFlags;
pub use semantics::{SemanticsFlags, When};
pub use size::Bytes;
pub use window::WindowFlags;

/// Serves a directory to a virtual machine over virtio-fs, with a DAX window
/// on the host's page cache.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "daxwindowd",
    version,
    args_override_self = true,
    args_conflicts_with_subcommands = true
)]
pub struct Flags {
    /// What to do in place of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Unix socket to listen on for a VMM, one client at a time. May be
    /// repeated: each socket serves the directory to a guest of its own. The
    /// file PATH.pid has the id of the process to signal
    #[arg(long, visible_alias = "socket", value_name = "PATH")]
    pub socket_path: Vec<PathBuf>,

    /// Descriptor of a Unix socket that listens already, in place of
    /// --socket-path: 3 under a systemd socket unit
    #[arg(long, value_name = "FD", conflicts_with_all = ["socket_path", "print_session"])]
    pub fd: Option<RawFd>,

    /// Who may connect, and sockets that nobody named.
    #[command(flatten)]
    pub activation: ActivationFlags,

    /// Directory to share
    #[arg(long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,

    /// Name by which the guest mounts the share, at most 36 bytes; for VMMs that
    /// learn it from the daemon
    #[arg(long, value_parser = parse_tag)]
    pub tag: Option<String>,

    /// Refuse every request that would change the directory
    #[arg(long)]
    pub readonly: bool,

    /// Queues and threads.
    #[command(flatten)]
    pub queues: QueueFlags,

    /// Where VMMs connect besides.
    #[command(flatten)]
    pub listen: ListenFlags,

    /// Isolation.
    #[command(flatten)]
    pub sandbox: SandboxFlags,

    /// What guests keep.
    #[command(flatten)]
    pub cache: CacheFlags,

    /// What requests mean.
    #[command(flatten)]
    pub semantics: SemanticsFlags,

    /// What a guest may spend.
    #[command(flatten)]
    pub inodes: InodeFlags,

    /// Extended attributes and owners.
    #[command(flatten)]
    pub attributes: AttributeFlags,

    /// The DAX window.
    #[command(flatten)]
    pub window: WindowFlags,

    /// What is logged.
    #[command(flatten)]
    pub logs: LogFlags,

    /// What is told besides.
    #[command(flatten)]
    pub report: ReportFlags,

    /// What is said about migration.
    #[command(flatten)]
    pub migration: MigrationFlags,

    /// What is said in the old manner.
    #[command(flatten)]
    pub compat: CompatFlags,
}

/// What a command line asks for.
#[derive(Clone, Debug)]
pub enum Task {
    /// To serve.
    Serve(Box<Config>),
    /// To tell a daemon that runs about its shares.
    Ctl(Ctl),
    /// To ask a daemon that runs how things are.
    PrintSession {
        /// Its status socket.
        socket: PathBuf,
        /// Print the document itself.
        json: bool,
    },
    /// To print what a manager of virtual machines may expect.
    PrintCapabilities,
}

impl Flags {
    /// What the flags ask for. To be called before any fork, since sockets
    /// that a service manager passes are for one process.
    ///
    /// # Errors
    ///
    /// What is missing, or refused, as the parser itself would say it.
    pub fn task(mut self) -> Result<Task, clap::Error> {
        let error = |kind, message: String| Flags::command().error(kind, message);
        self.apply_compat()
            .map_err(|message| error(ErrorKind::InvalidValue, message))?;
        if let Some(Command::Ctl(ctl)) = self.command {
            return Ok(Task::Ctl(ctl));
        }
        if let Some(socket) = self.report.print_session {
            let json = self.report.json;
            return Ok(Task::PrintSession { socket, json });
        }
        if self.report.print_capabilities {
            return Ok(Task::PrintCapabilities);
        }
        let activated = match self.socket_path.is_empty() && self.fd.is_none() {
            true => self.activation.sockets(),
            false => Ok(Vec::new()),
        };
        let activated = activated.map_err(|message| error(ErrorKind::ValueValidation, message))?;
        let missing = self.missing(&activated);
        if !missing.is_empty() {
            let message = format!("missing: {}", missing.join(" and "));
            return Err(error(ErrorKind::MissingRequiredArgument, message));
        }
        match self.config(activated) {
            Ok(config) => Ok(Task::Serve(Box::new(config))),
            Err(cause) => Err(error(ErrorKind::ArgumentConflict, cause.to_string())),
        }
    }

    /// Flags without which there is nothing to serve.
    fn missing(&self, activated: &[RawFd]) -> Vec<&'static str> {
        let has_socket = !self.socket_path.is_empty() || self.fd.is_some() || !activated.is_empty();
        // Shares that are added bring their own directories.
        let needs_none = self.listen.socket_dir.is_some();
        let mut missing = Vec::new();
        if !has_socket && (!needs_none || self.shared_dir.is_some()) {
            missing.push("--socket-path PATH (or --fd FD, or a socket unit)");
        }
        if self.shared_dir.is_none() && (!needs_none || has_socket) {
            missing.push("--shared-dir DIR");
        }
        missing
    }

    /// What the flags mean for a daemon that serves.
    ///
    /// # Errors
    ///
    /// What the flags cannot mean together.
    fn config(self, activated: Vec<RawFd>) -> Result<Config, FlagError> {
        let mut dax = self.window.options(self.readonly)?;
        dax.max_maps = self.inodes.max_maps(dax.max_maps);
        dax.max_extents = self.inodes.max_maps(None).unwrap_or(dax.max_extents);
        let ids = self.attributes.ids()?;
        let (acls, labels) = (self.semantics.posix_acl, self.semantics.security_label);
        if acls != When::Never {
            self.attributes.check_acls()?;
        }
        let needs_xattr = acls != When::Never || labels != When::Never;
        let map = self.attributes.xattrmap;
        let mut warnings = self.cache.warnings(dax.mode != DaxMode::Never);
        warnings.extend(self.migration.warning());
        let queues = self.queues.num_request_queues;
        Ok(Config {
            listeners: self
                .listen
                .listeners(self.socket_path, self.fd, activated)?,
            socket_group: self.activation.socket_group.map(|group| group.0),
            // Missing only where there is no fixed socket.
            shared_dir: self.shared_dir.unwrap_or_default(),
            share: ShareOptions {
                readonly: self.readonly,
                inode_file_handles: self.inodes.inode_file_handles,
                max_inodes: self.inodes.max_inodes,
                locks: self.semantics.locks,
                posix_acl: acls != When::Never,
                xattr: self.attributes.xattr || map.is_some() || needs_xattr,
                xattr_map: map,
                ids,
                noatime: self.semantics.preserve_noatime,
                ..ShareOptions::default()
            },
            dax,
            server: ServerOptions {
                caching: self.cache.caching(self.semantics.locks),
                direct_io: self.cache.allow_direct_io,
                kill_priv: self.semantics.kill_priv(),
                submounts: !self.semantics.no_announce_submounts,
                security_labels: labels != When::Never,
                required: self.semantics.required(),
                max_in_flight: self.inodes.max_in_flight,
            },
            device: DeviceOptions {
                config: match &self.tag {
                    Some(tag) => virtiofs::Config::new(tag, queues)?,
                    None => virtiofs::Config::without_tag(queues),
                },
                thread_pool_size: self.queues.thread_pool_size,
                max_lock_waits: self.inodes.max_lock_waits,
            },
            isolation: self.sandbox.options(),
            rlimit_nofile: self.sandbox.rlimit_nofile,
            max_open_files: self.inodes.max_open_files,
            log_level: self.logs.log_level,
            syslog: self.logs.syslog,
            status_socket: self.report.status_socket,
            warnings,
        })
    }
}

fn parse_tag(text: &str) -> Result<String, virtiofs::TagError> {
    virtiofs::Config::new(text, 1)?;
    Ok(text.to_owned())
}

/// What is wrong with flags that are right one by one.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// The tag.
    #[error("--tag: {0}")]
    Tag(#[from] virtiofs::TagError),
    /// More than may be.
    #[error("--max-shares: {0} sockets are named")]
    TooManySockets(usize),
    /// The patterns, all together.
    #[error("--dax-include, --dax-exclude: {0}")]
    Patterns(#[from] globset::Error),
    /// Rules about owners, all together.
    #[error("{flag}: {cause}")]
    Ids {
        /// The flag that gave them.
        flag: &'static str,
        /// What is wrong.
        cause: IdMapError,
    },
    /// An ACL names users and groups by number.
    #[error(
        "--posix-acl: not together with --translate-uid or --translate-gid, which do not \
         translate the users and groups in ACLs; map ids with --uid-map and --gid-map, or do \
         without ACLs"
    )]
    TranslatedAcls,
    /// An ACL that the host does not know is not kept.
    #[error(
        "--posix-acl: not together with an --xattrmap that keeps ACLs from the host; put \
         :ok:all:system.posix_acl_:system.posix_acl_: before its rules"
    )]
    MappedAcls,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dax::DaxOptions;
    use crate::isolation;

    fn parse(extra: &[&str]) -> Result<Flags, clap::Error> {
        let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
        Flags::try_parse_from(base.iter().chain(extra))
    }

    /// What a daemon with these flags, a socket and a directory is started with.
    pub(crate) fn config(extra: &[&str]) -> Result<Config, clap::Error> {
        match parse(extra)?.task()? {
            Task::Serve(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    fn alone(args: &[&str]) -> Result<Task, clap::Error> {
        Flags::try_parse_from([&["daxwindowd"], args].concat()).and_then(Flags::task)
    }

    #[test]
    fn defaults_are_a_window_of_a_quarter_gibibyte_for_chosen_inodes() {
        let config = config(&[]).expect("valid");
        assert_eq!(config.dax.window_bytes, 256 << 20);
        assert_eq!(config.dax.mode, DaxMode::Inode);
        assert_eq!(config.device.config.tag(), None);
        assert_eq!(config.device.config.num_request_queues.get(), 1);
    }

    #[test]
    fn what_the_flags_say_without_any_is_what_options_say_by_default() {
        let config = config(&[]).expect("valid");
        let all = |options: &dyn std::fmt::Debug| format!("{options:?}");
        assert_eq!(all(&config.dax), all(&DaxOptions::default()));
        assert_eq!(all(&config.share), all(&ShareOptions::default()));
        assert_eq!(all(&config.server), all(&ServerOptions::default()));
        assert_eq!(config.isolation, isolation::Options::default());
    }

    #[test]
    fn mappings_are_bounded_in_both_ways() {
        let few = config(&["--max-mappings", "7"]).expect("valid").dax;
        assert_eq!((few.max_maps, few.max_extents), (Some(7), 7));
    }

    #[test]
    fn bad_flags_are_named() {
        for (flags, word) in [
            (vec!["--tag", ""], "--tag"),
            (vec!["--tag", "a\nb"], "--tag"),
            (vec!["--num-request-queues", "0"], "--num-request-queues"),
            (vec!["--num-request-queues", "64"], "--num-request-queues"),
            (vec!["--dax-window", "1M"], "--dax-window"),
            (vec!["--dax", "often"], "--dax"),
            (vec!["--dax-min-size", "small"], "--dax-min-size"),
            (vec!["--dax-executables", "some"], "--dax-executables"),
            (vec!["--dax-include", "[x"], "--dax-include"),
            (vec!["--dax-include", "[x"], "'[x'"),
            (vec!["--dax-exclude", "dir/"], "--dax-exclude"),
            (vec!["--dax-exclude", "dir/"], "dir/**"),
            (vec!["--memory-slots", "many"], "--memory-slots"),
            (vec!["--slot-reserve", "512"], "--slot-reserve"),
            (
                vec!["--slot-reserve", "64", "--no-slot-limit"],
                "--no-slot-limit",
            ),
            (vec!["--front-end-timeout", "0"], "--front-end-timeout"),
        ] {
            let error = config(&flags).expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn asking_needs_no_share_and_serving_does() {
        let asked = alone(&["--print-session", "/s", "--json"]).expect("enough");
        let wanted = |socket: &PathBuf| socket.as_os_str() == "/s";
        assert!(matches!(asked, Task::PrintSession { socket, json: true } if wanted(&socket)));
        for few in [vec!["--shared-dir", "/d"], vec!["--json"], vec![]] {
            assert!(alone(&few).is_err());
        }
        assert!(
            config(&["--print-session", "/x"]).is_err(),
            "one or the other"
        );
    }

    #[test]
    fn the_last_of_a_flag_given_twice_counts() {
        let flags = parse(&["--tag", "one", "--tag", "two", "--socket", "/t"]).expect("valid");
        assert_eq!(flags.tag.as_deref(), Some("two"));
        assert_eq!(
            flags.socket_path,
            [PathBuf::from("/s"), PathBuf::from("/t")]
        );
    }

    #[test]
    fn no_window_means_no_dax() {
        let config = config(&["--dax-window", "0", "--dax", "always"]).expect("valid");
        assert_eq!(config.dax.mode, DaxMode::Never);
    }
}
