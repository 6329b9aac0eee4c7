//! Flags about telling how things are, and programs that serve nothing.

use std::path::PathBuf;

use clap::Args;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs and reports")]
pub struct ReportFlags {
    /// Unix socket at which the daemon tells how things are, as one JSON
    /// document to each client
    #[arg(long, value_name = "PATH")]
    pub status_socket: Option<PathBuf>,

    /// Serve nothing: ask the daemon at this status socket how things are, and
    /// print above all whether its share has DAX, and if not why
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "shared_dir", "status_socket"])]
    pub print_session: Option<PathBuf>,

    /// With --print-session: print the JSON document itself
    #[arg(long, requires = "print_session")]
    pub json: bool,

    /// Serve nothing: print what a manager of virtual machines may expect of
    /// this program, as the vhost-user.json specification has it
    #[arg(long)]
    pub print_capabilities: bool,
}
