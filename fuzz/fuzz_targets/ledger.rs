//! Any sequence of SETUPMAPPING and REMOVEMAPPING, with any numbers, against
//! a front end that refuses now and then. What the front end was told to show
//! and what the ledger counts must agree after every step.
#![no_main]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use daxwindow_host::dax::front_end::ShmemRequest;
use daxwindow_host::dax::{Dax, DaxMode, DaxOptions, FrontEnd, FrontEndError, MapFile, MapSource};
use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use daxwindow_shared::window::WindowRange;
use libfuzzer_sys::fuzz_target;
use parking_lot::Mutex;
use rustix::io::Errno;

const PAGE: u64 = 4096;
const WINDOW: u64 = 8 << 20;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Small numbers, so that ranges meet.
    Near { nodeid: u8, file_page: u16, page: u16, pages: u16, write: bool },
    /// Whatever the guest can write into the request.
    Any { nodeid: u64, foffset: u64, len: u64, flags: u64, moffset: u64 },
    RemoveNear(Vec<(u16, u16)>),
    RemoveAny(Vec<(u64, u64)>),
    Refuse(u8),
    Init,
    Reset,
}

#[derive(Default)]
struct Shown {
    pages: BTreeSet<u64>,
    refuse: u8,
}

struct Window(Mutex<Shown>);

impl Window {
    fn change(&self, range: WindowRange, show: bool) -> Result<(), FrontEndError> {
        let mut shown = self.0.lock();
        if shown.refuse > 0 {
            shown.refuse -= 1;
            return Err(FrontEndError::Refused);
        }
        assert!(range.end().0 <= WINDOW, "outside the window");
        for page in range.start().0 / PAGE..range.end().0 / PAGE {
            if show {
                shown.pages.insert(page);
            } else {
                shown.pages.remove(&page);
            }
        }
        Ok(())
    }
}

impl FrontEnd for Window {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        let (range, source) = match *request {
            ShmemRequest::Unmap(range) => return self.change(range, false),
            ShmemRequest::Map(range, source) => (range, source),
        };
        let end = source.fd_offset.checked_add(range.len());
        assert!(end.is_some_and(|end| end <= i64::MAX as u64));
        let flags = rustix::fs::fcntl_getfl(&**source.fd).expect("flags");
        if flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::WRONLY {
            return Err(FrontEndError::Refused);
        }
        self.change(range, true)
    }
}

struct Files(Vec<Arc<OwnedFd>>);

impl MapSource for Files {
    fn open_for_mapping(&self, nodeid: u64, _writable: bool) -> Result<MapFile, Errno> {
        let fd = usize::try_from(nodeid).ok().and_then(|index| self.0.get(index));
        fd.map(|fd| MapFile { fd: fd.clone() }).ok_or(Errno::BADF)
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        let fd = usize::try_from(nodeid).ok().and_then(|index| self.0.get(index));
        let stat = rustix::fs::fstat(fd.ok_or(Errno::BADF)?)?;
        Ok(stat.st_size as u64)
    }
}

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let file = |i: u64| -> File {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(i << 21).expect("sparse");
        file
    };
    Files((0..4).map(|i| Arc::new(file(i).into())).collect())
});

fn near(page: u16, pages: u16) -> (u64, u64) {
    (u64::from(page) % 2100 * PAGE, (u64::from(pages) % 1030) * PAGE)
}

fuzz_target!(|steps: Vec<Step>| {
    let options = DaxOptions { mode: DaxMode::Always, window_bytes: WINDOW, ..Default::default() };
    let dax = Dax::new(options);
    let window = Arc::new(Window(Mutex::default()));
    dax.announce_window();
    dax.set_front_end(Some(window.clone()));
    dax.init();
    for step in steps {
        match step {
            Step::Near { nodeid, file_page, page, pages, write } => {
                let (moffset, len) = near(page, pages);
                let flags = if write { 3 } else { 2 };
                let foffset = u64::from(file_page) * PAGE;
                let args = SetupMappingIn { fh: NO_HANDLE, foffset, len, flags, moffset };
                let _ = dax.setup(&*FILES, u64::from(nodeid) % 5, &args);
            }
            Step::Any { nodeid, foffset, len, flags, moffset } => {
                let args = SetupMappingIn { fh: NO_HANDLE, foffset, len, flags, moffset };
                let _ = dax.setup(&*FILES, nodeid, &args);
            }
            Step::RemoveNear(ranges) => {
                let ranges: Vec<_> = ranges
                    .iter()
                    .map(|&(page, pages)| near(page, pages))
                    .map(|(moffset, len)| RemoveMappingOne { moffset, len })
                    .collect();
                let _ = dax.remove(&ranges);
            }
            Step::RemoveAny(ranges) => {
                let ranges: Vec<_> = ranges
                    .iter()
                    .map(|&(moffset, len)| RemoveMappingOne { moffset, len })
                    .collect();
                let _ = dax.remove(&ranges);
            }
            Step::Refuse(times) => window.0.lock().refuse = times % 4,
            Step::Init => {
                window.0.lock().refuse = 0;
                dax.init();
            }
            Step::Reset => {
                window.0.lock().refuse = 0;
                dax.reset();
                assert!(window.0.lock().pages.is_empty(), "reset leaves pages");
            }
        }
        let live = dax.stats().live_bytes / PAGE;
        assert_eq!(live, window.0.lock().pages.len() as u64, "ledger and window disagree");
    }
});
