//! What the daemon tells about itself: the status document.
//!
//! - [`document`]: the document, field by field.
//! - `collect`: how it is filled.
//! - `common`: what guests map in common.
//! - [`socket`]: who connects gets one.
//! - [`capabilities`]: what a manager of virtual machines asks for.
//! - [`ask`], `text`: the other end, and the document for people.
//!
//! Law: who asks pays; nothing is counted here while guests are served.

pub mod ask;
pub mod capabilities;
mod collect;
mod common;
pub mod document;
pub mod socket;
mod text;
