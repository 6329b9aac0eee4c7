//! The whole window against model front ends: one that thinks in bytes like
//! a plain mmap, and one that thinks in exact maps and refuses overlaps.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use daxwindow_shared::fuse::{Attr, NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::Mutex;

use super::front_end::ShmemRequest;
use super::*;

mod agreement;
mod mapping;
mod past_end;
mod trial;

const RANGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// How a model front end behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// mmap(MAP_SHARED | MAP_FIXED) and munmap.
    Plain,
    /// Refuses overlaps, ranges past the end and read-only descriptors,
    /// grows empty files, unmaps exactly what was mapped.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    inode: u64,
    file_page: u64,
    writable: bool,
}

/// A front end that records what the guest would see in each page.
struct Model {
    kind: Kind,
    pages: Mutex<BTreeMap<u64, Shown>>,
    /// start -> bytes of each map, for the exact kind.
    maps: Mutex<BTreeMap<u64, u64>>,
    refuse_next: Mutex<u32>,
    messages: Mutex<u64>,
}

impl Model {
    fn new(kind: Kind) -> Arc<Model> {
        Arc::new(Model {
            kind,
            pages: Mutex::default(),
            maps: Mutex::default(),
            refuse_next: Mutex::default(),
            messages: Mutex::default(),
        })
    }

    fn refuses(&self) -> bool {
        *self.messages.lock() += 1;
        let mut left = self.refuse_next.lock();
        let refuse = *left > 0;
        *left = left.saturating_sub(1);
        refuse
    }

    fn exact_refuses(&self, range: WindowRange, fd: &OwnedFd, fd_offset: u64, w: bool) -> bool {
        let stat = rustix::fs::fstat(fd).expect("stat");
        let size = (stat.st_size as u64).next_multiple_of(PAGE);
        let overlaps = self
            .maps
            .lock()
            .iter()
            .any(|(start, len)| *start < range.end().0 && range.start().0 < start + len);
        overlaps || fd_offset + range.len() > size || !(w && is_writable(fd))
    }
}

fn is_writable(fd: &OwnedFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(fd).expect("flags");
    flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDWR
}

impl FrontEnd for Model {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        match request {
            ShmemRequest::Map(range, source) => {
                self.map(*range, source.fd, source.fd_offset, source.writable)
            }
            ShmemRequest::Unmap(range) => self.unmap(*range),
        }
    }
}

impl Model {
    fn map(
        &self,
        range: WindowRange,
        fd: &Arc<OwnedFd>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), FrontEndError> {
        let flags = rustix::fs::fcntl_getfl(&**fd).expect("flags");
        let unreadable = flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::WRONLY;
        let refused = self.refuses()
            || unreadable
            || (writable && !is_writable(fd))
            || (self.kind == Kind::Exact && self.exact_refuses(range, fd, fd_offset, writable));
        if refused {
            return Err(FrontEndError::Refused);
        }
        let inode = rustix::fs::fstat(&**fd).expect("stat").st_ino;
        self.maps.lock().insert(range.start().0, range.len());
        let mut pages = self.pages.lock();
        for i in 0..range.len() / PAGE {
            let shown = Shown {
                inode,
                file_page: fd_offset / PAGE + i,
                writable,
            };
            pages.insert(range.start().0 / PAGE + i, shown);
        }
        Ok(())
    }

    fn unmap(&self, range: WindowRange) -> Result<(), FrontEndError> {
        if self.refuses() {
            return Err(FrontEndError::Refused);
        }
        if self.kind == Kind::Exact {
            let mut maps = self.maps.lock();
            if maps.get(&range.start().0) != Some(&range.len()) {
                return Err(FrontEndError::Refused);
            }
            maps.remove(&range.start().0);
        }
        let (first, last) = (range.start().0 / PAGE, range.end().0 / PAGE);
        self.pages
            .lock()
            .retain(|page, _| *page < first || *page >= last);
        Ok(())
    }
}

/// Files by node id; counts how often one is opened.
struct Files {
    files: Vec<File>,
    opened: Mutex<u64>,
    refused: Mutex<Vec<u64>>,
}

impl Files {
    fn new(count: usize, bytes: u64) -> Files {
        let files = (0..count)
            .map(|_| {
                let file = tempfile::tempfile().expect("temporary file");
                file.set_len(bytes).expect("sparse");
                file
            })
            .collect();
        Files {
            files,
            opened: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    fn inode(&self, nodeid: u64) -> u64 {
        rustix::fs::fstat(&self.files[nodeid as usize])
            .expect("stat")
            .st_ino
    }
}

impl MapSource for Files {
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno> {
        use std::os::fd::AsRawFd;
        let file = self.files.get(nodeid as usize).ok_or(Errno::BADF)?;
        *self.opened.lock() += 1;
        let access = if writable {
            rustix::fs::OFlags::RDWR
        } else {
            rustix::fs::OFlags::RDONLY
        };
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let fd = rustix::fs::open(path, access, rustix::fs::Mode::empty())?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn refused(&self, nodeid: u64) {
        self.refused.lock().push(nodeid);
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        let file = self.files.get(nodeid as usize).ok_or(Errno::BADF)?;
        Ok(rustix::fs::fstat(file)?.st_size as u64)
    }
}

fn dax(kind: Kind, ranges: u64, options: DaxOptions) -> (Dax, Arc<Model>) {
    let dax = Dax::new(DaxOptions {
        mode: DaxMode::Always,
        window_bytes: ranges * RANGE,
        ..options
    });
    let model = Model::new(kind);
    dax.announce_window();
    dax.set_front_end(Some(model.clone()));
    assert!(dax.init().inode_dax);
    assert!(
        model.pages.lock().is_empty(),
        "the trial leaves nothing mapped"
    );
    (dax, model)
}

fn setup_in(file_range: u64, window_range: u64, write: bool) -> SetupMappingIn {
    SetupMappingIn {
        fh: NO_HANDLE,
        foffset: file_range * RANGE,
        len: RANGE,
        flags: if write { 3 } else { 2 },
        moffset: window_range * RANGE,
    }
}

fn remove_one(offset: u64, len: u64) -> [RemoveMappingOne; 1] {
    [RemoveMappingOne {
        moffset: offset,
        len,
    }]
}

/// What the ledger says each page shows.
fn entered(dax: &Dax, files: &Files) -> BTreeMap<u64, Shown> {
    let mut pages = BTreeMap::new();
    for extent in dax.state.lock().ledger.extents() {
        for i in 0..extent.range.len() / PAGE {
            let shown = Shown {
                inode: files.inode(extent.nodeid),
                file_page: extent.file_offset / PAGE + i,
                writable: extent.writable,
            };
            pages.insert(extent.range.start().0 / PAGE + i, shown);
        }
    }
    pages
}
