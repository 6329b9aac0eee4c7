//! Handling that can be left out, so that tests can show what it prevents.
//!
//! No command line of the daemon reaches this: `host/examples/naive.rs` is
//! the daemon that is built with it.

use std::str::FromStr;

/// What to leave out. Empty is the daemon as it is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Naive(u32);

impl Naive {
    /// Take the front end for one that maps with plain mmap, untried.
    pub const LEARN: Naive = Naive(1 << 0);
    /// Answer a setup at the acknowledgement, live or not.
    pub const WAIT_UNTIL_LIVE: Naive = Naive(1 << 1);
    /// Offer the window as asked and map without counting.
    pub const SLOT_LIMIT: Naive = Naive(1 << 2);
    /// Forget at DESTROY and INIT, without unmapping.
    pub const UNMAP_AT_END: Naive = Naive(1 << 3);
    /// Answer OPEN of a mapped inode without `FOPEN_KEEP_CACHE`.
    pub const KEEP_CACHE: Naive = Naive(1 << 4);
    /// Hold the memory table's lock while the front end is asked.
    pub const ASK_UNLOCKED: Naive = Naive(1 << 5);
    /// Map read-only first, and upgrade by unmapping and mapping anew.
    pub const WRITABLE_FIRST: Naive = Naive(1 << 6);
    /// Unmap neighbours as one, and forget what was refused.
    pub const EXACT_UNMAP: Naive = Naive(1 << 7);
    /// Map where the file has ended meanwhile.
    pub const CHECK_END: Naive = Naive(1 << 8);
    /// Take guest memory for memory that stays.
    pub const WATCH_MEMORY: Naive = Naive(1 << 9);
    /// Believe the memory table, however old it may be.
    pub const DOUBT_TABLE: Naive = Naive(1 << 10);

    const NAMES: [(&'static str, Naive); 11] = [
        ("learn", Naive::LEARN),
        ("wait-until-live", Naive::WAIT_UNTIL_LIVE),
        ("slot-limit", Naive::SLOT_LIMIT),
        ("unmap-at-end", Naive::UNMAP_AT_END),
        ("keep-cache", Naive::KEEP_CACHE),
        ("ask-unlocked", Naive::ASK_UNLOCKED),
        ("writable-first", Naive::WRITABLE_FIRST),
        ("exact-unmap", Naive::EXACT_UNMAP),
        ("check-end", Naive::CHECK_END),
        ("watch-memory", Naive::WATCH_MEMORY),
        ("doubt-table", Naive::DOUBT_TABLE),
    ];

    /// Whether all of `handling` is left out.
    pub fn leaves_out(self, handling: Naive) -> bool {
        self.0 & handling.0 == handling.0
    }

    /// Both.
    pub fn and(self, other: Naive) -> Naive {
        Naive(self.0 | other.0)
    }
}

impl FromStr for Naive {
    type Err = String;

    fn from_str(name: &str) -> Result<Naive, String> {
        let known = Naive::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, naive)| *naive).ok_or_else(|| {
            let names = Naive::NAMES.map(|(name, _)| name).join(", ");
            format!("{name:?} is not one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlings_are_named_and_apart() {
        let mut all = Naive::default();
        for (name, naive) in Naive::NAMES {
            assert_eq!(name.parse(), Ok(naive));
            assert!(!all.leaves_out(naive), "{name} has a bit of its own");
            all = all.and(naive);
            assert!(all.leaves_out(naive));
        }
        let error = "sense".parse::<Naive>().expect_err("unknown");
        assert!(error.contains("ask-unlocked"), "{error}");
    }
}
