//! Flags about what guests keep, under virtiofsd's names and meanings.

use clap::Args;

use crate::fuse::{CacheMode, Caching};

/// See `--help`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What guests keep")]
pub struct CacheFlags {
    /// What guests may keep, and how long
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub cache: CacheMode,

    /// With --cache metadata or never: let guests map files shared all the
    /// same. Only for a directory that nobody else changes
    #[arg(long)]
    pub allow_mmap: bool,

    /// Let guests keep back what is written, and hand it over in large pieces.
    /// Only for a directory that nobody else changes; has no effect on guests
    /// that map files through the DAX window
    #[arg(long)]
    pub writeback: bool,

    /// Let the guest's O_DIRECT reach the host's file, past the host's page
    /// cache; has no effect on files with DAX, since that is access to the cache
    #[arg(long)]
    pub allow_direct_io: bool,

    /// List directories without attributes; guests ask for those one by one
    #[arg(long)]
    pub no_readdirplus: bool,
}

impl CacheFlags {
    /// What the flags come to, with locks on the host or without.
    pub(super) fn caching(&self, locks: bool) -> Caching {
        Caching {
            mode: self.cache,
            allow_mmap: self.allow_mmap,
            writeback: self.writeback,
            readdirplus: !self.no_readdirplus,
            locks,
        }
    }

    /// What deserves a word before anything is served: with DAX for some files
    /// or all, or for none.
    pub(super) fn warnings(&self, dax: bool) -> Vec<&'static str> {
        let long = matches!(self.cache, CacheMode::Always | CacheMode::Metadata);
        let mut warnings = Vec::new();
        if dax && self.writeback {
            warnings.push(
                "--writeback: guests that use the DAX window go without it; --dax never serves \
                 all with it",
            );
        }
        if dax && long {
            warnings.push(
                "--cache: guests believe in the size of a file for a day; one with DAX that \
                 somebody else cuts short may end the virtual machine that reads it",
            );
        }
        if self.allow_mmap && !matches!(self.cache, CacheMode::Metadata | CacheMode::Never) {
            warnings.push("--allow-mmap: without --cache metadata or never it changes nothing");
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Flags;
    use super::*;

    fn flags(extra: &[&str]) -> CacheFlags {
        let base = ["daxwindowd", "--socket-path", "/s", "--shared-dir", "/d"];
        let flags = Flags::try_parse_from(base.iter().chain(extra));
        flags.expect("valid").cache
    }

    #[test]
    fn modes_have_virtiofsds_names() {
        for (name, mode) in [
            ("auto", CacheMode::Auto),
            ("always", CacheMode::Always),
            ("metadata", CacheMode::Metadata),
            ("never", CacheMode::Never),
        ] {
            assert_eq!(flags(&["--cache", name]).caching(false).mode, mode);
        }
        assert_eq!(flags(&[]).caching(false), Caching::default());
    }

    #[test]
    fn contradictions_are_told() {
        let count = |extra: &[&str], dax| flags(extra).warnings(dax).len();
        assert_eq!(count(&[], true), 0);
        assert_eq!(count(&["--writeback"], true), 1);
        assert_eq!(count(&["--writeback"], false), 0);
        assert_eq!(count(&["--cache", "always"], true), 1);
        assert_eq!(count(&["--cache", "always"], false), 0);
        assert_eq!(count(&["--allow-mmap"], false), 1);
        assert_eq!(count(&["--allow-mmap", "--cache", "never"], true), 0);
    }
}
