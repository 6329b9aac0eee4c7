//! The descriptors that ranges are mapped from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::map_error::MapError;
use super::test_faults::TestFaults;
use super::{Connected, Dax, Generation, MapSource};

impl Dax {
    /// Opens the file as the policy wants it: writable from the start where
    /// that is allowed and makes no copy, read-only else.
    pub(super) fn open(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        file: (u64, Generation),
        write: bool,
    ) -> Result<(Arc<OwnedFd>, bool), MapError> {
        let (nodeid, generation) = file;
        let cached = |writable| self.kept_file(connected, file, writable);
        let can = &connected.can;
        if let Some(fd) = cached(true)
            && !self.options.test_faults.injects(TestFaults::WRITABLE_FIRST)
        {
            return Ok((fd, true));
        }
        if write || !can.readonly_fd {
            let writable = write || !self.options.test_faults.injects(TestFaults::WRITABLE_FIRST);
            return Ok((self.file(connected, source, file, true)?, writable));
        }
        if let Some(fd) = cached(false) {
            return Ok((fd, false));
        }
        let read_only = match can.follows_copies() {
            true => source.open_to_follow(nodeid),
            false => source.open_for_mapping(nodeid, false),
        };
        let read_only = read_only.map_err(MapError::File)?;
        let mode = stat(&read_only.fd)?.st_mode;
        if generation >= Generation::LAST
            && self.options.writable_from_the_start(mode, can)
            && let Ok(fd) = self.file(connected, source, file, true)
        {
            return Ok((fd, true));
        }
        Ok((self.pad(connected, read_only.fd, false)?, false))
    }

    fn file(
        &self,
        connected: &Arc<Connected>,
        source: &dyn MapSource,
        file: (u64, Generation),
        writable: bool,
    ) -> Result<Arc<OwnedFd>, MapError> {
        if let Some(fd) = self.kept_file(connected, file, writable) {
            return Ok(fd);
        }
        let opened = source
            .open_for_mapping(file.0, writable)
            .map_err(MapError::File)?;
        self.pad(connected, opened.fd, writable)
    }

    fn kept_file(
        &self,
        connected: &Arc<Connected>,
        (nodeid, generation): (u64, Generation),
        writable: bool,
    ) -> Option<Arc<OwnedFd>> {
        // It is padded.
        if connected.lacks_view() {
            return None;
        }
        let state = self.state.lock();
        state.ledger.file(nodeid, writable, generation)
    }

    /// What the front end is given for `fd`: itself, or its padded self.
    fn pad(
        &self,
        connected: &Arc<Connected>,
        fd: Arc<OwnedFd>,
        writable: bool,
    ) -> Result<Arc<OwnedFd>, MapError> {
        match &connected.view {
            Some(view) if !view.is_gone() => match view.pad(&fd, writable) {
                Err(_) if view.is_gone() => Ok(fd),
                padded => padded.map_err(MapError::File),
            },
            _ => Ok(fd),
        }
    }
}

fn stat(fd: &OwnedFd) -> Result<rustix::fs::Stat, MapError> {
    rustix::fs::fstat(fd).map_err(MapError::File)
}
