//! What the threads of a queue sleep on: the guest's kicks, and a bell of our
//! own.
//!
//! Both are watched for edges, so that a kick costs one system call to hear
//! and none to read: a kick descriptor's counter only ever grows. An edge is
//! heard by one sleeper, the one that fell asleep last (whose memory is still
//! in a cache); one that comes while nobody sleeps is heard by the next who
//! would.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

/// One queue's.
#[derive(Debug)]
pub(super) struct Kicks {
    epoll: OwnedFd,
    /// Rung by this process.
    bell: OwnedFd,
}

/// Which of the two it was does not matter.
const NO_DATA: EventData = EventData::new_u64(0);

impl Kicks {
    pub(super) fn new() -> io::Result<Kicks> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, NO_DATA, EventFlags::IN | EventFlags::ET)?;
        Ok(Kicks { epoll, bell })
    }

    /// Hears what is written to `kick` from now on, and once if something was
    /// before.
    pub(super) fn watch(&self, kick: BorrowedFd<'_>) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(&self.epoll, kick, NO_DATA, flags)?)
    }

    /// Must come before `kick` is closed: the VMM has it open as well, so that
    /// it would be heard for ever.
    pub(super) fn forget(&self, kick: BorrowedFd<'_>) {
        // Fails only for one that could not be watched.
        let _ = epoll::delete(&self.epoll, kick);
    }

    /// Wakes one sleeper, or keeps the next from sleeping.
    pub(super) fn ring(&self) {
        // Fails only after 2^64 rings.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Sleeps until there is something to hear. False if `timeout` ended
    /// first.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> bool {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Room for both, lest one be heard later by somebody else.
        let mut heard = Vec::<Event>::with_capacity(2);
        match epoll::wait(&self.epoll, spare_capacity(&mut heard), timeout.as_ref()) {
            Ok(count) => count > 0,
            // A false alarm costs a look at the ring.
            Err(Errno::INTR) => true,
            Err(error) => {
                tracing::error!(%error, "cannot wait for a queue's kicks");
                // Not a reason to spin.
                std::thread::sleep(Duration::from_millis(100));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn each_ring_and_each_kick_is_heard_once() {
        let kicks = Kicks::new().expect("made");
        assert!(!kicks.wait(NOW));
        kicks.ring();
        assert!(kicks.wait(NOW) && !kicks.wait(NOW));
        let kick = eventfd(0, EventfdFlags::NONBLOCK).expect("made");
        let strike = || rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("written");
        strike();
        kicks.watch(kick.as_fd()).expect("watched");
        assert!(kicks.wait(NOW), "what was there before");
        assert!(!kicks.wait(NOW));
        for _ in 0..3 {
            strike();
            assert!(kicks.wait(NOW) && !kicks.wait(NOW));
        }
        kicks.forget(kick.as_fd());
        strike();
        assert!(!kicks.wait(NOW));
    }

    #[test]
    fn one_ring_wakes_one_sleeper() {
        let kicks = Kicks::new().expect("made");
        let timeout = Some(Duration::from_secs(60));
        std::thread::scope(|scope| {
            let sleepers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| kicks.wait(timeout)))
                .collect();
            for ended in 1..=4 {
                kicks.ring();
                while sleepers.iter().filter(|one| one.is_finished()).count() < ended {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(5));
                let now = sleepers.iter().filter(|one| one.is_finished()).count();
                assert_eq!(now, ended);
            }
        });
    }
}
