//! Flags about extended attributes and owners.

use clap::Args;

use crate::fs::{IdMap, IdRule, Ids, XattrMap};

use super::FlagError;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Attributes and owners")]
pub struct AttributeFlags {
    /// Let the guest use extended attributes
    #[arg(long)]
    pub xattr: bool,

    /// Rules for the names that extended attributes have on the host, as in
    /// :map::user.virtiofs.: (implies --xattr)
    #[arg(long, value_name = "RULES")]
    pub xattrmap: Option<XattrMap>,

    /// Which users of the guest are which on the host, as
    /// TYPE:FROM:TO:COUNT, where TYPE is guest, host, squash-guest,
    /// squash-host or map, or as forbid-guest:FROM:COUNT; may be repeated
    #[arg(long, value_name = "RULE")]
    pub translate_uid: Vec<IdRule>,

    /// Which groups of the guest are which on the host, in the form of
    /// --translate-uid; may be repeated
    #[arg(long, value_name = "RULE")]
    pub translate_gid: Vec<IdRule>,
}

impl AttributeFlags {
    /// Who is who.
    ///
    /// # Errors
    ///
    /// [`FlagError::Ids`].
    pub(super) fn ids(&self) -> Result<Ids, FlagError> {
        let map = |flag, rules: &[IdRule]| {
            IdMap::new(rules).map_err(|cause| FlagError::Ids { flag, cause })
        };
        Ok(Ids {
            uid: map("--translate-uid", &self.translate_uid)?,
            gid: map("--translate-gid", &self.translate_gid)?,
            ..Ids::default()
        })
    }

    /// What cannot be together with POSIX ACLs.
    ///
    /// # Errors
    ///
    /// [`FlagError::TranslatedAcls`] and [`FlagError::MappedAcls`].
    pub(super) fn check_acls(&self) -> Result<(), FlagError> {
        if !self.translate_uid.is_empty() || !self.translate_gid.is_empty() {
            return Err(FlagError::TranslatedAcls);
        }
        if self.xattrmap.as_ref().is_some_and(|map| !map.passes_acls()) {
            return Err(FlagError::MappedAcls);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::tests::config;

    #[test]
    fn attributes_are_off_unless_something_needs_them() {
        for (flags, on) in [
            (&[][..], false),
            (&["--xattr"], true),
            (&["-o", "xattr"], true),
            (&["--xattr", "-o", "no_xattr"], false),
            (&["--xattrmap", ":map::user.v.:"], true),
            (&["-o", "xattrmap=:map::user.v.:,no_xattr"], true),
            (&["--posix-acl"], true),
            (&["--security-label=auto"], true),
            (&["--posix-acl=never"], false),
        ] {
            assert_eq!(config(flags).expect("valid").share.xattr, on, "{flags:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let shift = "--translate-uid=map:0:1000:10";
        let again = "--translate-uid=guest:5:0:1";
        for (flags, words) in [
            (&[shift, again][..], "--translate-uid: guest:5:0:1 is about"),
            (&["--translate-gid", "shift:1:2:3"], "--translate-gid"),
            (&["--posix-acl", shift], "--uid-map"),
            (
                &["--posix-acl", "--xattrmap", ":map::user.v.:"],
                ":ok:all:system.",
            ),
            (&["--xattrmap", ":ok:all"], "rule 1: it ends before"),
            (&["--xattrmap", ":ok:client:::"], "--xattrmap"),
            (&["-o", "xattrmap=:ok:client:::"], "match no rule"),
        ] {
            let error = config(flags).expect_err("refused");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        let both = ["--posix-acl", "--xattrmap", ":map:trusted.:user.v.:"];
        assert!(config(&both).is_ok(), "ACLs go past these rules");
    }
}
