//! Directories of a daemon that is not honest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use daxwindow_shared::fuse::dirent::push_dirent;
use daxwindow_shared::fuse::{Dirent, OpenOut};
use rustix::io::Errno;

use super::*;
use crate::file::{Guest, GuestOptions};

/// A guest whose daemon answers each READDIR by what `list` makes of the
/// offset asked for.
fn guest(list: impl Fn(&ReadIn) -> Vec<u8> + Send + 'static) -> Guest {
    let lie = move |bench: &mut Bench, job: &Job| {
        let unique = header(job).unique;
        match Opcode::from_u32(header(job).opcode) {
            Some(Opcode::Opendir) => {
                bench.answer(job, &good(unique, OpenOut::default().as_bytes()));
            }
            Some(Opcode::Readdirplus) => {
                let error = OutHeader::failure(unique, Errno::NOSYS.raw_os_error());
                bench.answer(job, error.as_bytes());
            }
            Some(Opcode::Readdir) => {
                let read = ReadIn::read_from_prefix(&job.request[40..]);
                bench.answer(job, &good(unique, &list(&read.expect("READDIR").0)));
            }
            _ => return false,
        }
        true
    };
    let (session, _transport) = session(2, 8, LONG, program(lie));
    let options = GuestOptions::new(SessionOptions::new("unused"));
    Guest::over(session, &options).expect("a guest")
}

/// One entry, after which the listing goes on at `next`.
fn entry(name: &[u8], next: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = Dirent {
        off: next,
        ..Dirent::default()
    };
    assert!(push_dirent(&mut bytes, 4096, head, name));
    bytes
}

#[test]
fn names_that_no_directory_can_hold_are_an_error() {
    for bad in [&b"a/b"[..], b"../../etc/passwd", b"/", b"", b"a\0b"] {
        let guest = guest(move |read| match read.offset {
            0 => [entry(b"good", 1), entry(bad, 2)].concat(),
            _ => Vec::new(),
        });
        let error = guest.list("").expect_err("no such name");
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
        let error = guest.session().readdir(1, 0, 0).expect_err("no such name");
        assert!(error.to_string().contains("is no name"), "{error}");
    }
}

#[test]
fn dots_are_left_out_and_names_are_bytes() {
    let guest = guest(|read| match read.offset {
        0 => [entry(b".", 1), entry(b"..", 2)].concat(),
        2 => [entry(b"...", 3), entry(b"\xff", 4)].concat(),
        _ => Vec::new(),
    });
    let names = guest.list("").expect("listed");
    let names: Vec<_> = names.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [&b"..."[..], b"\xff"].map(OsStr::from_bytes));
}

#[test]
fn a_listing_that_comes_back_to_where_it_was_is_an_error() {
    let guest = guest(|read| entry(b"again", (read.offset + 1) % 5));
    let error = guest.list("").expect_err("a circle");
    assert!(error.to_string().contains("does not go on"), "{error}");
}

#[test]
fn a_listing_that_never_ends_is_given_up_even_if_nothing_of_it_is_kept() {
    let guest = guest(|read| {
        let mut bytes = Vec::new();
        let mut head = Dirent {
            off: read.offset + 1,
            ..Dirent::default()
        };
        while push_dirent(&mut bytes, read.size as usize, head, b".") {
            head.off += 1;
        }
        bytes
    });
    let error = guest.list("").expect_err("no end");
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    assert!(error.to_string().contains("more than"), "{error}");
}
