//! How fsx is told what to do.

/// The crate.
pub(crate) const FSX: &str = "fsx@0.3.2";

/// A configuration: most bytes of the file, most bytes of an operation, and
/// whether each store through a mapping is followed by msync.
pub(crate) fn config(file: u64, step: u64, syncs: bool) -> String {
    format!(
        "flen = {file}\nnomsyncafterwrite = {}\n[opsize]\nmin = 1\nmax = {step}\n\
         [weights]\nmapread = 12\nmapwrite = 12\nread = 8\nwrite = 8\n\
         truncate = 2\npunch_hole = 2\nposix_fallocate = 2\ncopy_file_range = 2\n\
         close_open = 1\nsendfile = 1\nposix_fadvise = 0.5\ninvalidate = 0.5\n\
         fsync = 0.05\nfdatasync = 0.05\n",
        !syncs
    )
}
