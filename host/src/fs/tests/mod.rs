//! Tests of the room against real directories.
