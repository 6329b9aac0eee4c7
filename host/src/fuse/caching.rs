//! What a guest may keep of what it was told, and for how long.
//!
//! The modes are virtiofsd's. They are about file data in the guest's page
//! cache, names and attributes; data of a DAX inode are never in the guest, so
//! that each mode leaves them as coherent as they are, and only says how long
//! the guest believes in their size.

use std::time::Duration;

use daxwindow_shared::fuse::Attr;
use daxwindow_shared::fuse::flags::OpenOutFlags;
use rustix::fs::FileType;

/// `--cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheMode {
    /// Names and attributes for a second; data until the file's size or
    /// modification time changes, or the guest opens it again.
    #[default]
    Auto,
    /// Everything for a day, directory listings included; for directories that
    /// nobody else changes.
    Always,
    /// Names, attributes and directory listings for a day; no data.
    Metadata,
    /// Nothing.
    Never,
}

/// How a share is cached by its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// What is kept.
    pub mode: CacheMode,
    /// Files whose data are not kept may be mapped shared all the same.
    pub allow_mmap: bool,
    /// Guests that have no window may keep back what is written.
    pub writeback: bool,
    /// Listings tell attributes too, where the mode keeps any.
    pub readdirplus: bool,
    /// Programs in several guests work on the same files and exclude each
    /// other by locks: in mode auto, names and attributes of all but directories
    /// are asked for each time, so that who holds the lock sees what was
    /// written, made and removed under it before. Data follow, by size and time.
    pub locks: bool,
}

impl Default for Caching {
    fn default() -> Self {
        Caching {
            mode: CacheMode::default(),
            allow_mmap: false,
            writeback: false,
            readdirplus: true,
            locks: false,
        }
    }
}

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

impl Caching {
    /// How long a name leads to what has these attributes, and they are as
    /// they were. A name that leads nowhere is asked for every time.
    pub(super) fn valid(self, attr: &Attr) -> Duration {
        let directory = FileType::from_raw_mode(attr.mode) == FileType::Directory;
        match self.mode {
            CacheMode::Auto if self.locks && !directory => Duration::ZERO,
            CacheMode::Auto => SHORT,
            CacheMode::Always | CacheMode::Metadata => LONG,
            CacheMode::Never => Duration::ZERO,
        }
    }

    /// What the guest is told of a regular file without DAX that it opens.
    pub(super) fn of_file(self) -> OpenOutFlags {
        match self.mode {
            CacheMode::Auto => OpenOutFlags::empty(),
            CacheMode::Always => OpenOutFlags::KEEP_CACHE,
            CacheMode::Metadata | CacheMode::Never => OpenOutFlags::DIRECT_IO,
        }
    }

    /// The same of a directory.
    pub(super) fn of_directory(self) -> OpenOutFlags {
        match self.mode {
            CacheMode::Auto | CacheMode::Never => OpenOutFlags::empty(),
            CacheMode::Always | CacheMode::Metadata => {
                OpenOutFlags::CACHE_DIR | OpenOutFlags::KEEP_CACHE
            }
        }
    }

    /// Whether listings tell attributes: they would be gone at once where
    /// nothing is kept.
    pub(super) fn lists_attributes(self) -> bool {
        self.readdirplus && self.mode != CacheMode::Never
    }
}
