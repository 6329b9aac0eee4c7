//! What the threads of a device sleep on: the kicks of its queues, and a bell of
//! our own.
//!
//! All are watched for edges, so that a kick costs one system call to hear and
//! none to read: a kick descriptor's counter only ever grows. An edge is heard
//! by one sleeper, the one that fell asleep last (whose memory is still in a
//! cache); one that comes while nobody sleeps is heard by the next who would.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

/// One device's.
#[derive(Debug)]
pub(crate) struct Kicks {
    epoll: OwnedFd,
    /// Rung by this process.
    bell: OwnedFd,
    /// For which queues, one bit for each.
    rung: AtomicU64,
}

/// What a sleeper is woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// There may be something in this queue.
    Queue(usize),
    /// The time is over, or the alarm false.
    Nothing,
}

/// No queue has this number.
const BELL: u64 = u64::MAX;

impl Kicks {
    pub(crate) fn new() -> io::Result<Kicks> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(BELL);
        epoll::add(&epoll, &bell, data, EventFlags::IN | EventFlags::ET)?;
        Ok(Kicks {
            epoll,
            bell,
            rung: AtomicU64::new(0),
        })
    }

    /// Hears what is written to `kick` from now on, and once if something was
    /// before.
    pub(super) fn watch(&self, queue: usize, kick: BorrowedFd<'_>) -> io::Result<()> {
        let (data, flags) = (queue as u64, EventFlags::IN | EventFlags::ET);
        Ok(epoll::add(
            &self.epoll,
            kick,
            EventData::new_u64(data),
            flags,
        )?)
    }

    /// Must come before `kick` is closed: the VMM has it open as well, so that
    /// it would be heard for ever.
    pub(super) fn forget(&self, kick: BorrowedFd<'_>) {
        // Fails only for one that could not be watched.
        let _ = epoll::delete(&self.epoll, kick);
    }

    /// Wakes one sleeper for this queue, or keeps the next from sleeping.
    pub(super) fn ring(&self, queue: usize) {
        let bit = 1u64.checked_shl(queue as u32).unwrap_or(0);
        self.rung.fetch_or(bit, SeqCst);
        self.ring_nobody();
    }

    /// Wakes one sleeper.
    pub(super) fn ring_nobody(&self) {
        // Fails only after 2^64 rings.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Sleeps until there is something to hear, or `timeout` ends.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Heard {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Room for one: what else there is wakes another.
        let mut heard = Vec::<Event>::with_capacity(1);
        match epoll::wait(&self.epoll, spare_capacity(&mut heard), timeout.as_ref()) {
            // A false alarm costs a look at who else sleeps.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for a device's kicks");
                // Not a reason to spin.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        match heard.first().map(|event| event.data.u64()) {
            None => Heard::Nothing,
            Some(BELL) => self.take_rung(),
            Some(queue) => Heard::Queue(queue as usize),
        }
    }

    /// One of the queues for which the bell was rung; others wake others.
    fn take_rung(&self) -> Heard {
        let first = |rung: u64| (rung != 0).then(|| rung & (rung - 1));
        let Ok(rung) = self.rung.fetch_update(SeqCst, SeqCst, first) else {
            return Heard::Nothing;
        };
        if !rung.is_power_of_two() {
            self.ring_nobody();
        }
        Heard::Queue(rung.trailing_zeros() as usize)
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
        let heard = || kicks.wait(NOW);
        assert_eq!(heard(), Heard::Nothing);
        kicks.ring(3);
        assert_eq!([heard(), heard()], [Heard::Queue(3), Heard::Nothing]);
        kicks.ring(0);
        kicks.ring(63);
        let both = [heard(), heard(), heard()];
        assert_eq!(both, [Heard::Queue(0), Heard::Queue(63), Heard::Nothing]);
        let kick = eventfd(0, EventfdFlags::NONBLOCK).expect("made");
        let strike = || rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("written");
        strike();
        kicks.watch(7, kick.as_fd()).expect("watched");
        assert_eq!(heard(), Heard::Queue(7), "what was there before");
        assert_eq!(heard(), Heard::Nothing);
        for _ in 0..3 {
            strike();
            assert_eq!([heard(), heard()], [Heard::Queue(7), Heard::Nothing]);
        }
        kicks.forget(kick.as_fd());
        strike();
        assert_eq!(heard(), Heard::Nothing);
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
                kicks.ring(1);
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
