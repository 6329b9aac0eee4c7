//! Flags about what a guest may spend: inodes, open files, mappings, requests.

use clap::Args;

use crate::fs::{InodeFileHandles, ShareOptions};

/// Descriptors kept for inodes known by handle, at most.
const MOST_CACHED: usize = 1 << 14;

/// What a guest may know, open and map.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What a guest may spend")]
pub struct InodeFlags {
    /// Whether inodes that the guest knows are kept by file handle or each by
    /// an open descriptor
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub inode_file_handles: InodeFileHandles,

    /// Inodes that a guest may know at a time, of some 200 bytes each; beyond,
    /// it gets ENFILE
    #[arg(
        long,
        value_name = "N",
        default_value_t = ShareOptions::default().max_inodes as u64,
        value_parser = clap::value_parser!(u64).range(1..=u64::from(u32::MAX)),
    )]
    pub max_inodes: u64,

    /// Files and directories that a guest may have open at a time, a
    /// descriptor each; beyond, it gets EMFILE [default: a quarter of the
    /// descriptors that the daemon may have, at most 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_open_files: Option<u64>,

    /// Ranges of 2M, or smaller pieces, that a guest may have mapped at a time:
    /// the window is cut to them [default: what the VMM's memory slots allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_mappings: Option<u64>,

    /// Requests that a guest may have under way at a time, those that wait for
    /// locks included; beyond, it gets EBUSY, but for what gives something
    /// back [default: what its queues and threads allow; beyond, requests wait
    /// in the guest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_in_flight: Option<u32>,

    /// Requests that may wait for locks (--locks) at a time; beyond, a guest
    /// gets ENOLCK
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(..=4096),
    )]
    pub max_parked: u16,
}

/// A flag asks for more descriptors than there are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--max-open-files {asked}: of the {limit} descriptors that the daemon may have (RLIMIT_NOFILE), half may be spent on them"
)]
pub struct TooManyFiles {
    asked: u64,
    limit: u64,
}

impl InodeFlags {
    /// Puts them into `options`, for a guest that may spend `descriptors`. A
    /// quarter goes to open files unless told otherwise and half to inodes;
    /// the window's files and the daemon's own needs have the rest.
    ///
    /// # Errors
    ///
    /// More open files than half of the descriptors.
    pub fn apply(
        &self,
        options: ShareOptions,
        descriptors: u64,
    ) -> Result<ShareOptions, TooManyFiles> {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let defaults = ShareOptions::default();
        let max_handles = match self.max_open_files {
            Some(asked) if asked > descriptors / 2 => {
                let limit = descriptors;
                return Err(TooManyFiles { asked, limit });
            }
            Some(asked) => count(asked),
            None => defaults.max_handles.min(count(descriptors / 4)),
        };
        // What more open files take, inodes do not get.
        let rest = descriptors - descriptors / 4 - (descriptors / 4).max(max_handles as u64);
        let cached = match self.inode_file_handles {
            InodeFileHandles::Never => 0,
            _ => count(rest / 2).min(MOST_CACHED),
        };
        Ok(ShareOptions {
            inode_file_handles: self.inode_file_handles,
            max_inodes: count(self.max_inodes),
            max_handles,
            max_inode_descriptors: defaults.max_inode_descriptors.min(count(rest)),
            max_cached_descriptors: cached,
            ..options
        })
    }

    /// Requests that may be under way, if they are counted.
    pub fn max_in_flight(&self) -> Option<usize> {
        self.max_in_flight
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// Fewest of what `max_maps` and the flag allow.
    pub fn max_maps(&self, max_maps: Option<usize>) -> Option<usize> {
        let asked = self
            .max_mappings
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        asked.into_iter().chain(max_maps).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: InodeFlags,
    }

    fn parse(flags: &[&str]) -> Result<InodeFlags, clap::Error> {
        Only::try_parse_from(["daxwindowd"].iter().chain(flags)).map(|only| only.flags)
    }

    fn options(flags: &[&str], descriptors: u64) -> Result<ShareOptions, TooManyFiles> {
        let flags = parse(flags).expect("valid");
        flags.apply(ShareOptions::default(), descriptors)
    }

    #[test]
    fn descriptors_are_divided_and_never_promised_twice() {
        for flags in [
            &[][..],
            &["--inode-file-handles", "never"],
            &["--inode-file-handles=mandatory"],
            &["--max-open-files", "7"],
            &["--max-open-files", "32"],
        ] {
            for descriptors in [64, 1024, 20_000, 1_000_000] {
                let options = options(flags, descriptors).expect("enough");
                let promised = options.max_handles + options.max_inode_descriptors;
                assert!(options.max_cached_descriptors <= options.max_inode_descriptors);
                assert!(promised as u64 <= descriptors / 4 * 3, "{flags:?}");
                assert!(promised as u64 >= descriptors.min(1024) / 2, "{flags:?}");
            }
        }
        let plain = options(&[], 1024).expect("enough");
        assert_eq!(plain.inode_file_handles, InodeFileHandles::Prefer);
        assert_eq!((plain.max_inodes, plain.max_handles), (4_194_304, 256));
        assert_eq!(
            (plain.max_inode_descriptors, plain.max_cached_descriptors),
            (512, 256)
        );
        let never = options(&["--inode-file-handles=never"], 1024).expect("enough");
        assert_eq!(
            (never.max_inode_descriptors, never.max_cached_descriptors),
            (512, 0)
        );
        let error = options(&["--max-open-files", "513"], 1024).expect_err("too many");
        assert!(
            error.to_string().contains("--max-open-files 513"),
            "{error}"
        );
    }

    #[test]
    fn the_old_name_is_understood_and_nonsense_refused() {
        let flags = parse(&["--inode-file-handles=fallback"]).expect("known");
        assert_eq!(flags.inode_file_handles, InodeFileHandles::Prefer);
        for bad in [
            ["--inode-file-handles", "sometimes"],
            ["--max-inodes", "0"],
            ["--max-open-files", "0"],
            ["--max-mappings", "0"],
            ["--max-in-flight", "0"],
            ["--max-parked", "4097"],
        ] {
            let error = parse(&bad).expect_err("refused").to_string();
            assert!(error.contains(bad[0]), "{error}");
        }
    }

    #[test]
    fn the_smaller_number_of_mappings_counts() {
        let flags = parse(&["--max-mappings", "100"]).expect("valid");
        assert_eq!(flags.max_maps(Some(448)), Some(100));
        assert_eq!(flags.max_maps(Some(64)), Some(64));
        assert_eq!(flags.max_maps(None), Some(100));
        let none = parse(&[]).expect("valid");
        assert_eq!(
            (none.max_maps(None), none.max_maps(Some(1))),
            (None, Some(1))
        );
    }
}
