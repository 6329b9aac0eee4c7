//! virtiofsd's flags about live migration, which this daemon does not do.
//!
//! Law: what asks for nothing more than virtiofsd does by default is taken,
//! so that a command line that spells the defaults out still starts; what
//! promises more is refused. The VMM learns in its own way that it cannot
//! migrate: `VHOST_USER_PROTOCOL_F_DEVICE_STATE` is not offered.

use clap::Args;
use clap::builder::PossibleValuesParser;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For command lines of virtiofsd")]
pub struct MigrationFlags {
    /// There is no live migration: only the default of virtiofsd is taken,
    /// and has no effect
    #[arg(
        long,
        value_name = "MODE",
        value_parser = PossibleValuesParser::new(["find-paths", "file-handles"]),
    )]
    pub migration_mode: Option<String>,

    /// As --migration-mode
    #[arg(
        long,
        value_name = "ACTION",
        value_parser = PossibleValuesParser::new(["abort", "guest-error"]),
    )]
    pub migration_on_error: Option<String>,

    /// Refused: there is no live migration
    #[arg(long)]
    pub migration_verify_handles: bool,

    /// Refused: there is no live migration
    #[arg(long)]
    pub migration_confirm_paths: bool,
}

impl MigrationFlags {
    /// The flag that cannot be heeded, if there is one, as it was typed.
    pub(super) fn refused(&self) -> Option<&'static str> {
        if self.migration_mode.as_deref() == Some("file-handles") {
            return Some("--migration-mode=file-handles");
        }
        if self.migration_on_error.as_deref() == Some("guest-error") {
            return Some("--migration-on-error=guest-error");
        }
        if self.migration_verify_handles {
            return Some("--migration-verify-handles");
        }
        self.migration_confirm_paths
            .then_some("--migration-confirm-paths")
    }
}

/// What to do instead.
pub(super) const REFUSAL: &str = "the daemon cannot hand over a guest's open files and mapped \
    ranges to another one, so a VM with this share does not migrate. Unmount the share in the \
    guest and remove its device before, and add it again at the destination; or serve this share \
    with virtiofsd";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Flags;

    fn settled(flag: &str) -> Result<Flags, clap::Error> {
        let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
        Flags::try_parse_from(base.iter().copied().chain([flag])).and_then(Flags::settled)
    }

    #[test]
    fn what_would_need_migration_is_refused_and_defaults_are_taken() {
        for flag in ["--migration-mode=find-paths", "--migration-on-error=abort"] {
            assert!(settled(flag).is_ok(), "{flag}");
        }
        for flag in [
            "--migration-mode=file-handles",
            "--migration-on-error=guest-error",
            "--migration-verify-handles",
            "--migration-confirm-paths",
        ] {
            let error = settled(flag).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            for word in [flag, "does not migrate", "virtiofsd"] {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
        assert!(settled("--migration-mode=somehow").is_err());
    }
}
