//! Flags about what a guest may spend: inodes, open files, mappings, requests.

use clap::Args;

use super::size::count;
use crate::fs::{InodeFileHandles, ShareOptions};

/// What a guest may know, open and map.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What a guest may spend")]
pub struct InodeFlags {
    /// Whether to keep the inodes that the guest knows by file handle, or each
    /// by an open descriptor
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub inode_file_handles: InodeFileHandles,

    /// Most inodes that a guest may know at a time, of some 200 bytes each;
    /// beyond, it gets ENFILE
    #[arg(
        long,
        value_name = "N",
        default_value_t = ShareOptions::default().max_inodes,
        value_parser = count(1..=u64::from(u32::MAX)),
    )]
    pub max_inodes: usize,

    /// Most files and directories that a guest may have open at a time, a
    /// descriptor each; beyond, it gets EMFILE [default: a quarter of the
    /// descriptors that the daemon may have, at most 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_open_files: Option<u64>,

    /// Most ranges of 2M, or smaller pieces, that a guest may have mapped at a
    /// time: the window is cut to them [default: what the VMM's memory slots allow]
    #[arg(long, value_name = "N", value_parser = count(1..))]
    pub max_mappings: Option<usize>,

    /// Most requests that a guest may have under way at a time, those that wait
    /// for locks included; beyond, it gets EBUSY, but for requests that give
    /// something back [default: what its queues and threads allow; beyond,
    /// requests wait in the guest]
    #[arg(long, value_name = "N", value_parser = count(1..=u64::from(u32::MAX)))]
    pub max_in_flight: Option<usize>,

    /// Most requests that may wait for locks (--locks) at a time; beyond, the
    /// guest gets ENOLCK
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = count(..=4096),
    )]
    pub max_lock_waits: usize,
}

impl InodeFlags {
    /// Fewest of what `max_maps` and the flag allow.
    pub fn max_maps(&self, max_maps: Option<usize>) -> Option<usize> {
        self.max_mappings.into_iter().chain(max_maps).min()
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
            ["--max-lock-waits", "4097"],
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
