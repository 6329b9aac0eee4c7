//! A window that comes and goes, with memory of the program's own in its place.

use std::io;
use std::os::fd::AsFd;

use super::{Place, Things, calls};

const OWN: u8 = 0xa5;

impl Things {
    /// Maps the window, unmaps it, and puts own memory there, `rounds` times;
    /// the number of bytes of own memory that somebody else has changed.
    pub(super) fn churn(&mut self, name: &str, rounds: usize) -> io::Result<String> {
        let Place { bytes, .. } = self.windows[name];
        let mut changed = 0;
        for _ in 0..rounds {
            let window = calls::map_as_qemu(self.memfds[name].as_fd(), bytes)?;
            std::thread::yield_now();
            calls::unmap(window, bytes + calls::PAGE)?;
            let own = calls::map_own(window, bytes)?;
            let pages = (own..own + bytes).step_by(calls::PAGE);
            pages.clone().for_each(|page| calls::store(page, OWN));
            std::thread::yield_now();
            changed += pages.filter(|page| calls::load(*page) != OWN).count();
            calls::unmap(own, bytes)?;
        }
        Ok(changed.to_string())
    }
}
