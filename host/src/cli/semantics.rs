//! Flags about what requests mean, under virtiofsd's names and meanings where
//! it has them.

use clap::{Args, ValueEnum};
use daxwindow_shared::fuse::flags::InitFlags;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What requests mean")]
pub struct SemanticsFlags {
    /// Take the guest's POSIX and flock locks on the host, where other guests
    /// and the host's own programs meet them
    #[arg(long)]
    pub locks: bool,

    /// Let POSIX ACLs of the share hold in the guest, and default ACLs for what
    /// it creates. The flag without a value means always
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "never",
        default_missing_value = "always"
    )]
    pub posix_acl: When,

    /// Take security labels with what the guest creates, and store them as
    /// extended attributes at once. The flag without a value means always
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "never",
        default_missing_value = "always"
    )]
    pub security_label: When,

    /// Clear set-id bits and capabilities of files that are written, in place
    /// of the guest: the default for guests without DAX, whose writes all pass
    /// through the daemon
    #[arg(long, overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Leave it to the guest to clear set-id bits and capabilities of files
    /// that are written
    #[arg(long, overrides_with = "killpriv_v2")]
    pub no_killpriv_v2: bool,

    /// Tell the guest which directories are mount points: the default
    #[arg(long, overrides_with = "no_announce_submounts")]
    pub announce_submounts: bool,

    /// Do not tell the guest which directories are mount points: all of the
    /// share is one file system there
    #[arg(long, overrides_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Let the guest's O_NOATIME reach the host, where only a file's owner may
    /// use it; by default the daemon leaves it out
    #[arg(long)]
    pub preserve_noatime: bool,
}

/// Whether to use a feature that not every guest offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Do not use the feature
    Never,
    /// Use the feature where the guest offers it
    Auto,
    /// Use the feature, and refuse guests that do not offer it
    Always,
}

impl SemanticsFlags {
    /// `--killpriv-v2`, or its opposite.
    pub(super) fn set_killpriv_v2(&mut self, on: bool) {
        (self.killpriv_v2, self.no_killpriv_v2) = (on, !on);
    }

    /// Whether set-id bits are the daemon's business; none: where it can be.
    pub(super) fn kill_priv(&self) -> Option<bool> {
        match (self.killpriv_v2, self.no_killpriv_v2) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }

    /// What a guest must offer.
    pub(super) fn required(&self) -> InitFlags {
        let mut required = InitFlags::empty();
        let acls = InitFlags::POSIX_ACL | InitFlags::DONT_MASK | InitFlags::SETXATTR_EXT;
        required.set(acls, self.posix_acl == When::Always);
        let labels = InitFlags::SECURITY_CTX;
        required.set(labels, self.security_label == When::Always);
        required
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Flags;
    use super::*;

    fn parse(extra: &[&str]) -> Result<SemanticsFlags, clap::Error> {
        let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
        let flags = Flags::try_parse_from(base.iter().chain(extra));
        flags.map(|flags| flags.semantics)
    }

    #[test]
    fn what_not_every_guest_offers_has_three_settings() {
        for (extra, acl, label) in [
            (&[][..], When::Never, When::Never),
            (&["--posix-acl"], When::Always, When::Never),
            (&["--posix-acl=auto"], When::Auto, When::Never),
            (&["--security-label"], When::Never, When::Always),
            (&["--security-label=never"], When::Never, When::Never),
        ] {
            let flags = parse(extra).expect("valid");
            assert_eq!((flags.posix_acl, flags.security_label), (acl, label));
        }
        assert!(parse(&["--posix-acl=sometimes"]).is_err());
        assert!(parse(&[]).expect("valid").required().is_empty());
        let strict = parse(&["--posix-acl", "--security-label"]).expect("valid");
        let required = strict.required();
        assert!(required.contains(InitFlags::POSIX_ACL | InitFlags::SECURITY_CTX));
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        let kills = |extra: &[&str]| parse(extra).expect("valid").kill_priv();
        assert_eq!(kills(&[]), None);
        assert_eq!(kills(&["--killpriv-v2"]), Some(true));
        assert_eq!(kills(&["--killpriv-v2", "--no-killpriv-v2"]), Some(false));
        let both = ["--no-announce-submounts", "--announce-submounts"];
        assert!(!parse(&both).expect("valid").no_announce_submounts);
        assert!(parse(&both[..1]).expect("valid").no_announce_submounts);
    }
}
