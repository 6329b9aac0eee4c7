//! Flags about what is logged.

use clap::Args;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs and reports")]
pub struct LogFlags {
    /// What to log: off, error, warn, info, debug, trace, or a list of
    /// target=level. The environment variable RUST_LOG wins over the flag
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// Log to syslog (facility user) in place of standard error
    #[arg(long)]
    pub syslog: bool,
}
