//! The window, which is a front end's half and in a crate of its own:
//! [`daxwindow_front_end`].

pub(crate) use daxwindow_front_end::area::{Area, Protection, Staged};
pub(crate) use daxwindow_front_end::{RegularFile, Window};
