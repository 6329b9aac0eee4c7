//! Handling that can be left out, so that tests can show what it prevents.
//!
//! A daemon built without the feature `test-faults` leaves nothing out. With it,
//! `host/examples/naive.rs` has a flag for this; `daxwindowd` has none.

#[cfg(feature = "test-faults")]
use std::str::FromStr;

/// What to leave out. Empty is the daemon as it is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestFaults(u32);

impl TestFaults {
    /// Take the front end for one that maps with plain mmap, untried.
    pub const LEARN: TestFaults = TestFaults(1 << 0);
    /// Answer a setup at the acknowledgement, live or not.
    pub const WAIT_UNTIL_LIVE: TestFaults = TestFaults(1 << 1);
    /// Offer the window as asked and map without counting.
    pub const SLOT_LIMIT: TestFaults = TestFaults(1 << 2);
    /// Forget at DESTROY and INIT, without unmapping.
    pub const UNMAP_AT_END: TestFaults = TestFaults(1 << 3);
    /// Answer OPEN of a mapped inode without `FOPEN_KEEP_CACHE`.
    pub const KEEP_CACHE: TestFaults = TestFaults(1 << 4);
    /// Hold the memory table's lock while the front end is asked.
    pub const ASK_UNLOCKED: TestFaults = TestFaults(1 << 5);
    /// Map read-only first, and upgrade by unmapping and mapping anew.
    pub const WRITABLE_FIRST: TestFaults = TestFaults(1 << 6);
    /// Unmap neighbours as one, and forget what was refused.
    pub const EXACT_UNMAP: TestFaults = TestFaults(1 << 7);
    /// Map where the file has ended meanwhile.
    pub const CHECK_END: TestFaults = TestFaults(1 << 8);
    /// Take guest memory for memory that stays.
    pub const WATCH_MEMORY: TestFaults = TestFaults(1 << 9);
    /// Believe the memory table, however old it may be.
    pub const DOUBT_TABLE: TestFaults = TestFaults(1 << 10);

    #[cfg(feature = "test-faults")]
    const NAMES: [(&'static str, TestFaults); 11] = [
        ("learn", TestFaults::LEARN),
        ("wait-until-live", TestFaults::WAIT_UNTIL_LIVE),
        ("slot-limit", TestFaults::SLOT_LIMIT),
        ("unmap-at-end", TestFaults::UNMAP_AT_END),
        ("keep-cache", TestFaults::KEEP_CACHE),
        ("ask-unlocked", TestFaults::ASK_UNLOCKED),
        ("writable-first", TestFaults::WRITABLE_FIRST),
        ("exact-unmap", TestFaults::EXACT_UNMAP),
        ("check-end", TestFaults::CHECK_END),
        ("watch-memory", TestFaults::WATCH_MEMORY),
        ("doubt-table", TestFaults::DOUBT_TABLE),
    ];

    /// Whether all of `handling` is left out.
    pub const fn injects(self, handling: TestFaults) -> bool {
        cfg!(feature = "test-faults") && self.0 & handling.0 == handling.0
    }

    /// Both.
    #[cfg(feature = "test-faults")]
    pub fn and(self, other: TestFaults) -> TestFaults {
        TestFaults(self.0 | other.0)
    }
}

#[cfg(feature = "test-faults")]
impl FromStr for TestFaults {
    type Err = String;

    fn from_str(name: &str) -> Result<TestFaults, String> {
        let known = TestFaults::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, fault)| *fault).ok_or_else(|| {
            let names = TestFaults::NAMES.map(|(name, _)| name).join(", ");
            format!("{name:?} is not one of {names}")
        })
    }
}

#[cfg(all(test, feature = "test-faults"))]
mod tests {
    use super::*;

    #[test]
    fn handlings_are_named_and_apart() {
        let mut all = TestFaults::default();
        for (name, fault) in TestFaults::NAMES {
            assert_eq!(name.parse(), Ok(fault));
            assert!(!all.injects(fault), "{name} has a bit of its own");
            all = all.and(fault);
            assert!(all.injects(fault));
        }
        let error = "sense".parse::<TestFaults>().expect_err("unknown");
        assert!(error.contains("ask-unlocked"), "{error}");
    }
}
