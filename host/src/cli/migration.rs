//! virtiofsd's flags about live migration, which this daemon does not do.
//!
//! Law: a command line of virtiofsd starts, whatever it says of migration, and
//! the log says once that nothing migrates if it asks for more than the
//! defaults. The VMM learns it in its own way:
//! `VHOST_USER_PROTOCOL_F_DEVICE_STATE` is not offered.

use clap::Args;
use clap::builder::PossibleValuesParser;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For command lines of virtiofsd")]
pub struct MigrationFlags {
    /// No effect: the daemon does not migrate live
    #[arg(
        long,
        value_name = "MODE",
        value_parser = PossibleValuesParser::new(["find-paths", "file-handles"]),
    )]
    pub migration_mode: Option<String>,

    /// No effect: the daemon does not migrate live
    #[arg(
        long,
        value_name = "ACTION",
        value_parser = PossibleValuesParser::new(["abort", "guest-error"]),
    )]
    pub migration_on_error: Option<String>,

    /// No effect: the daemon does not migrate live
    #[arg(long)]
    pub migration_verify_handles: bool,

    /// No effect: the daemon does not migrate live
    #[arg(long)]
    pub migration_confirm_paths: bool,
}

impl MigrationFlags {
    /// What to say of flags that ask for more than virtiofsd does by default.
    pub(super) fn warning(&self) -> Option<&'static str> {
        let asks = self.migration_mode.as_deref() == Some("file-handles")
            || self.migration_on_error.as_deref() == Some("guest-error")
            || self.migration_verify_handles
            || self.migration_confirm_paths;
        asks.then_some(WARNING)
    }
}

const WARNING: &str = "--migration-...: no effect, a VM with this share does not migrate: the \
    daemon cannot hand over a guest's open files and mapped ranges to another one. Unmount the \
    share in the guest and remove its device before, and add it again at the destination; or \
    serve this share with virtiofsd";

#[cfg(test)]
mod tests {
    use crate::cli::tests::config;

    #[test]
    fn every_command_line_about_migration_starts_and_is_warned_if_it_asks_for_some() {
        for (flag, asks) in [
            ("--migration-mode=find-paths", false),
            ("--migration-on-error=abort", false),
            ("--migration-mode=file-handles", true),
            ("--migration-on-error=guest-error", true),
            ("--migration-verify-handles", true),
            ("--migration-confirm-paths", true),
        ] {
            let warnings = config(&[flag]).expect(flag).warnings;
            let warned = warnings.iter().filter(|w| w.contains("migrate"));
            assert_eq!(warned.count(), usize::from(asks), "{flag}");
        }
        assert!(config(&["--migration-mode=somehow"]).is_err());
    }
}
