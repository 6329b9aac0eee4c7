//! Flags of isolation.

use clap::Args;

use crate::isolation::caps::ModCaps;
use crate::isolation::seccomp::Seccomp;
use crate::isolation::{IdMap, Options, Sandbox};

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Isolation")]
pub struct SandboxFlags {
    /// How to keep the daemon from the rest of the host
    #[arg(long, value_name = "SANDBOX", value_enum, default_value_t)]
    pub sandbox: Sandbox,

    /// What to do when the daemon makes a system call that serving does not
    /// need
    #[arg(long, value_name = "ACTION", value_enum, default_value_t)]
    pub seccomp: Seccomp,

    /// Capabilities to add to those that the daemon keeps, or to take away, as
    /// in +sys_admin:-chown
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub modcaps: Option<ModCaps>,

    /// Most descriptors that the daemon may have open; 0 leaves the limit as it
    /// is [default: 1000000, or as many as the host gives]
    #[arg(long, value_name = "N")]
    pub rlimit_nofile: Option<u64>,

    /// Users of the user namespace, as :inside:outside:count: with any
    /// separator; may be repeated. By default a user other than root maps only
    /// their own id, and root makes no user namespace
    #[arg(long, value_name = "MAP")]
    pub uid_map: Vec<IdMap>,

    /// Groups of the user namespace, in the form of --uid-map; may be repeated
    #[arg(long, value_name = "MAP")]
    pub gid_map: Vec<IdMap>,
}

impl SandboxFlags {
    /// What the flags mean.
    pub fn options(&self) -> Options {
        Options {
            sandbox: self.sandbox,
            seccomp: self.seccomp,
            modcaps: self.modcaps.clone().unwrap_or_default(),
            uid_map: self.uid_map.clone(),
            gid_map: self.gid_map.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        flags: SandboxFlags,
    }

    fn parse(flags: &[&str]) -> Result<SandboxFlags, clap::Error> {
        let all = ["x"].iter().chain(flags);
        Alone::try_parse_from(all).map(|alone| alone.flags)
    }

    #[test]
    fn isolation_is_on_unless_told_otherwise() {
        let options = parse(&[]).expect("good").options();
        assert_eq!(options, Options::default());
        assert_eq!(options.sandbox, Sandbox::Namespace);
        assert_eq!(options.seccomp, Seccomp::Kill);
    }

    #[test]
    fn flags_mean_what_they_say() {
        let flags = [
            "--sandbox=chroot",
            "--seccomp=trap",
            "--modcaps",
            "-chown:+sys_admin",
            "--rlimit-nofile=0",
            "--uid-map=:0:100000:65536:",
            "--uid-map=/65536/7/1/",
            "--gid-map= 0 5 1 ",
        ];
        let flags = parse(&flags).expect("good");
        assert_eq!(flags.rlimit_nofile, Some(0));
        let options = flags.options();
        assert_eq!(options.sandbox, Sandbox::Chroot);
        assert_eq!(options.seccomp, Seccomp::Trap);
        assert!(options.modcaps.drops(::caps::Capability::CAP_CHOWN));
        assert_eq!((options.uid_map.len(), options.gid_map.len()), (2, 1));
    }

    #[test]
    fn bad_flags_are_named() {
        for (flags, word) in [
            (["--sandbox", "jail"], "--sandbox"),
            (["--seccomp", "allow"], "--seccomp"),
            (["--modcaps", "chown"], "--modcaps"),
            (["--modcaps", "+chow"], "chow"),
            (["--rlimit-nofile", "many"], "--rlimit-nofile"),
            (["--uid-map", "0:0:1"], "--uid-map"),
            (["--gid-map", ":0:0:0:"], "--gid-map"),
        ] {
            let error = parse(&flags).expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
