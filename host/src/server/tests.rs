//! (tests come with the shared directory)
