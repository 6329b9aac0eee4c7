//! Options in the manner of the first virtiofsd: `-o name[=value],...`, `-d`
//! and `-f`.
//!
//! Each sets the flag of today, after all others, as virtiofsd does.

use std::path::PathBuf;

use clap::Args;

use super::{Flags, When};
use crate::fuse::CacheMode;
use crate::isolation::Sandbox;

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For command lines of virtiofsd")]
pub struct CompatFlags {
    /// Options in the old manner of virtiofsd: source=DIR, xattr, cache=auto
    /// and so on; each sets the flag of today (deprecated)
    #[arg(short = 'o', value_name = "OPTION,...")]
    pub compat_options: Vec<String>,

    /// Same as --log-level debug (deprecated)
    #[arg(short = 'd')]
    pub compat_debug: bool,

    /// No effect: the daemon always stays in the foreground (deprecated)
    #[arg(short = 'f')]
    pub compat_foreground: bool,
}

impl Flags {
    /// Sets what `-o`, `-d` and `-f` say, and forgets that they did.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them, and what to write instead.
    pub(super) fn apply_compat(&mut self) -> Result<(), String> {
        let options = std::mem::take(&mut self.compat.compat_options);
        for option in options.iter().flat_map(|list| list.split(',')) {
            self.apply_option(option)?;
        }
        if std::mem::take(&mut self.compat.compat_debug) {
            self.logs.log_level = "debug".to_owned();
        }
        Ok(())
    }

    fn apply_option(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            Some((name, value)) => self.apply_pair(name, value),
            None => self.apply_switch(option),
        }
    }

    fn apply_pair(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bad = || Err(format!("-o {name}={value}: no such value"));
        match name {
            "xattrmap" => match value.parse() {
                Ok(map) => self.attributes.xattrmap = Some(map),
                Err(error) => return Err(format!("-o xattrmap={value}: {error}")),
            },
            "source" => self.shared_dir = Some(PathBuf::from(value)),
            "loglevel" => {
                let level = match value {
                    "debug" | "info" | "warn" => value,
                    "err" => "error",
                    _ => return bad(),
                };
                self.logs.log_level = level.to_owned();
            }
            "cache" => {
                self.cache.cache = match value {
                    "auto" => CacheMode::Auto,
                    "always" => CacheMode::Always,
                    "metadata" => CacheMode::Metadata,
                    "none" => CacheMode::Never,
                    _ => return bad(),
                };
            }
            "sandbox" => {
                self.sandbox.sandbox = match value {
                    "namespace" => Sandbox::Namespace,
                    "chroot" => Sandbox::Chroot,
                    _ => return bad(),
                };
            }
            "modcaps" => match value.parse() {
                Ok(changes) => self.sandbox.modcaps = Some(changes),
                Err(error) => return Err(format!("-o modcaps={value}: {error}")),
            },
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    fn apply_switch(&mut self, name: &str) -> Result<(), String> {
        let (cache, semantics) = (&mut self.cache, &mut self.semantics);
        match name {
            "xattr" => self.attributes.xattr = true,
            "no_xattr" => self.attributes.xattr = false,
            "readdirplus" => cache.no_readdirplus = false,
            "no_readdirplus" => cache.no_readdirplus = true,
            "writeback" => cache.writeback = true,
            "no_writeback" => cache.writeback = false,
            "allow_direct_io" => cache.allow_direct_io = true,
            "no_allow_direct_io" => cache.allow_direct_io = false,
            "announce_submounts" => semantics.no_announce_submounts = false,
            "killpriv_v2" => semantics.set_killpriv_v2(true),
            "no_killpriv_v2" => semantics.set_killpriv_v2(false),
            "posix_acl" => semantics.posix_acl = When::Always,
            "no_posix_acl" => semantics.posix_acl = When::Never,
            "security_label" => semantics.security_label = When::Always,
            "no_security_label" => semantics.security_label = When::Never,
            // Nothing is locked on the host unless that is asked for.
            "no_posix_lock" | "no_flock" => {}
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

/// An option that virtiofsd does not take either, with what its predecessors
/// took it for where that has a flag now.
fn unknown(name: &str) -> String {
    let instead = match name {
        "timeout" => "--cache, which decides how long names and attributes are believed",
        "flock" | "posix_lock" => "--locks, which takes both kinds of locks on the host",
        "vhost_user_socket" => "--socket-path",
        "fd" => "--fd",
        "thread_pool_size" => "--thread-pool-size",
        _ => return format!("-o {name}: no such option"),
    };
    format!("-o {name}: no such option; see {instead}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Task;
    use crate::cli::tests::config;
    use crate::config::Config;

    #[test]
    fn old_options_set_the_flags_of_today() {
        let config = |args: &[&str]| config(args).expect("valid");
        let plain = config(&["-o", "source=/old,loglevel=err,no_flock", "-f"]);
        assert_eq!(plain.shared_dir, PathBuf::from("/old"));
        assert_eq!(plain.log_level, "error");
        let old = "cache=none,no_readdirplus,writeback,posix_acl,killpriv_v2";
        let Config { share, server, .. } = config(&["--cache", "always", "-o", old]);
        assert_eq!(server.caching.mode, CacheMode::Never);
        assert!(!server.caching.readdirplus && server.caching.writeback);
        assert!(share.posix_acl && !server.required.is_empty());
        assert_eq!(server.kill_priv, Some(true));
        assert_eq!(config(&["-d", "--log-level", "warn"]).log_level, "debug");
        let enough = ["daxwindowd", "--socket-path", "/s", "-o", "source=/d"];
        let task = Flags::try_parse_from(enough).and_then(Flags::task);
        assert!(matches!(task, Ok(Task::Serve(_))));
    }

    #[test]
    fn what_an_old_option_has_become_is_named() {
        for (option, words) in [
            ("timeout=1", ["-o timeout", "--cache"]),
            ("flock", ["-o flock", "--locks"]),
            ("loglevel=loud", ["-o loglevel=loud", "no such value"]),
            ("frobnicate", ["-o frobnicate", "no such option"]),
            ("a=b=c", ["-o a", "no such option"]),
            ("", ["-o ", "no such option"]),
        ] {
            let error = config(&["-o", option]).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            for word in words {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
    }
}
