//! Why an inode gets no DAX, for the log and the counters.

/// Why an inode gets no DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDax {
    /// Switched off.
    #[error("DAX is off for this share")]
    Off,
    /// Directories and special files have no pages to lend.
    #[error("not a regular file")]
    NotRegular,
    /// Below the threshold.
    #[error("smaller than the threshold for DAX")]
    Small,
    /// Mapped writable, it could not run on the host.
    #[error("executable")]
    Executable,
    /// Its name is excluded.
    #[error("excluded by name")]
    Excluded,
    /// Names were given to include, and it has none of them.
    #[error("not included by name")]
    NotIncluded,
    /// The share is read-only and the front end can only map writable.
    #[error("the share is read-only and the front end cannot map read-only")]
    ReadOnlyShare,
    /// The file ends inside a page or may grow, and the front end refuses
    /// ranges past the end.
    #[error("the front end refuses ranges past the end of a file")]
    PastEndOfFile,
    /// The daemon may not write it, and the front end can only map writable.
    #[error("not writable, and the front end cannot map read-only")]
    NotWritable,
    /// Opened for writing, it would be copied to the upper layer.
    #[error("on overlayfs, which copies a file up when it is opened for writing")]
    CopiesUp,
    /// The host's file system does not map it shared.
    #[error("cannot be mapped shared on the host")]
    NotMappable,
    /// A store into a hole would take the room of a large page.
    #[error("has holes, which stores through the front end's large pages would fill")]
    Sparse,
    /// Read at random through a window that is too small for it.
    #[error("read at random through a window that is too small for it")]
    Wasted,
}

impl NoDax {
    /// Names of the reasons, for reports.
    pub const REASONS: [&'static str; 13] = [
        "off",
        "not-regular",
        "small",
        "executable",
        "excluded",
        "not-included",
        "read-only-share",
        "past-end-of-file",
        "not-writable",
        "copies-up",
        "not-mappable",
        "sparse",
        "window-too-small",
    ];

    /// Index into [`NoDax::REASONS`].
    pub fn reason(self) -> usize {
        match self {
            NoDax::Off => 0,
            NoDax::NotRegular => 1,
            NoDax::Small => 2,
            NoDax::Executable => 3,
            NoDax::Excluded => 4,
            NoDax::NotIncluded => 5,
            NoDax::ReadOnlyShare => 6,
            NoDax::PastEndOfFile => 7,
            NoDax::NotWritable => 8,
            NoDax::CopiesUp => 9,
            NoDax::NotMappable => 10,
            NoDax::Sparse => 11,
            NoDax::Wasted => 12,
        }
    }
}
