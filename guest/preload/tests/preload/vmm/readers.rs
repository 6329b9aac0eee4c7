//! Threads that read a window as a guest's processors would.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{Place, calls};

/// Threads that read all pages, over and over.
pub(super) struct Readers {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<usize>>,
}

/// Whether a page of a range may begin so: with its number in the range, or
/// with nothing.
fn is_right(page: usize, byte: u8) -> bool {
    byte == 0 || byte == crate::page(page as u64 % 512)
}

impl Readers {
    pub(super) fn start(window: Place, count: usize) -> Readers {
        let is_over = Arc::new(AtomicBool::new(false));
        let read = move |is_over: Arc<AtomicBool>| {
            let pages = window.bytes / calls::PAGE;
            let mut wrong = 0;
            while !is_over.load(Ordering::Relaxed) {
                let bytes = (0..pages).map(|n| (n, calls::load(window.address + n * calls::PAGE)));
                wrong += bytes.filter(|(n, byte)| !is_right(*n, *byte)).count();
            }
            wrong
        };
        let start = |_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || read(is_over))
        };
        let threads = (0..count).map(start).collect();
        Readers { is_over, threads }
    }

    /// Ends them; how many wrong bytes they have seen.
    pub(super) fn stop(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let joined = self.threads.into_iter().map(JoinHandle::join);
        joined.map(|wrong| wrong.expect("no panic")).sum()
    }
}
