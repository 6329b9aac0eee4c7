//! Whether a node has DAX: decided once and kept while the node lives, since
//! a guest drops an inode from its cache when it hears otherwise; which is what
//! it is to do with a file that turns out not to be mapped.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::FileType;

#[derive(Debug)]
pub(super) struct DaxOnce(AtomicU8);

impl DaxOnce {
    const OPEN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;

    /// Only regular files have a choice.
    pub(super) fn new(kind: FileType) -> DaxOnce {
        DaxOnce(AtomicU8::new(match kind {
            FileType::RegularFile => DaxOnce::OPEN,
            _ => DaxOnce::NO,
        }))
    }

    pub(super) fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            DaxOnce::OPEN => None,
            decided => Some(decided == DaxOnce::YES),
        }
    }

    /// It has none from now on, whatever was decided.
    pub(super) fn withdraw(&self) {
        self.0.store(DaxOnce::NO, Ordering::Relaxed);
    }

    /// Decides, unless somebody has; answers what holds.
    pub(super) fn settle(&self, dax: bool) -> bool {
        let wanted = if dax { DaxOnce::YES } else { DaxOnce::NO };
        let (open, relaxed) = (DaxOnce::OPEN, Ordering::Relaxed);
        match self.0.compare_exchange(open, wanted, relaxed, relaxed) {
            Ok(_) => dax,
            Err(decided) => decided == DaxOnce::YES,
        }
    }
}
