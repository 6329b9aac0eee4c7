//! A window that comes and goes, with memory of the program's own in its place.

use std::io;
use std::os::fd::AsFd;

use super::{Place, Things, calls};

const OWN: u8 = 0xa5;

/// How often own memory is looked at: long enough for some maps.
const LOOKS: usize = 20;

impl Things {
    /// Maps the window, unmaps it, and puts own memory there, `rounds` times;
    /// the number of pages of own memory that somebody else has changed.
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
            for _ in 0..LOOKS {
                let is_changed = |page: &usize| calls::load(*page) != OWN;
                changed += pages.clone().filter(is_changed).count();
                std::thread::yield_now();
            }
            calls::unmap(own, bytes)?;
        }
        Ok(changed.to_string())
    }
}
