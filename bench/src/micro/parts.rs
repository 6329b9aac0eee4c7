//! The parts a cold range and a request are made of, measured bare: an
//! eventfd ping-pong, a socket ping-pong, an mmap, and a userfaultfd fault
//! that is answered by aliasing a range.
//!
//! Law: these do what any implementation must do and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daxwindow_shared::latency::Latency;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::raw::{Faults, Region};

/// Bytes of a range, as memory is counted.
const RANGE: usize = daxwindow_shared::window::RANGE_BYTES as usize;
/// Header and payload of one SHMEM_MAP message.
const MESSAGE_BYTES: usize = 52;

/// Median in microseconds.
pub(super) fn p50_micros(latency: &Latency) -> f64 {
    latency.summary().p50_ns as f64 / 1e3
}

/// One kick and one call through two eventfds and two threads.
pub(super) fn queue_round_trips(count: usize) -> Result<Latency> {
    let kick = eventfd(0, EventfdFlags::CLOEXEC)?;
    let call = eventfd(0, EventfdFlags::CLOEXEC)?;
    std::thread::scope(|scope| {
        let device = scope.spawn(|| -> Result<()> {
            for _ in 0..count {
                wait(&kick)?;
                signal(&call)?;
            }
            Ok(())
        });
        let latency = timed(count, || {
            signal(&kick)?;
            wait(&call)
        })?;
        join(device.join())?;
        Ok(latency)
    })
}

fn signal(fd: &OwnedFd) -> Result<()> {
    rustix::io::write(fd, &1u64.to_ne_bytes()).context("signal an eventfd")?;
    Ok(())
}

fn wait(fd: &OwnedFd) -> Result<()> {
    rustix::io::read(fd, &mut [0u8; 8]).context("wait for an eventfd")?;
    Ok(())
}

/// One message of a SHMEM_MAP's size and its answer.
pub(super) fn socket_round_trips(count: usize) -> Result<Latency> {
    let (mut near, mut far) = UnixStream::pair().context("make a socket pair")?;
    std::thread::scope(|scope| {
        let front_end = scope.spawn(move || -> Result<()> {
            let mut message = [0; MESSAGE_BYTES];
            for _ in 0..count {
                far.read_exact(&mut message)?;
                far.write_all(&message)?;
            }
            Ok(())
        });
        let mut message = [0; MESSAGE_BYTES];
        let latency = timed(count, || {
            near.write_all(&message)?;
            near.read_exact(&mut message)?;
            Ok(())
        })?;
        join(front_end.join())?;
        Ok(latency)
    })
}

/// mmap(MAP_FIXED) of ranges of `file` over reserved address space.
pub(super) fn range_mmaps(file: &File, ranges: usize) -> Result<Latency> {
    let window = Region::anonymous(ranges * RANGE)?;
    let mut at = 0;
    timed(ranges, || {
        window
            .map_file(at, file, at as u64, RANGE)
            .context("mmap a range")?;
        at += RANGE;
        Ok(())
    })
}

/// Touches one page of each range in `order`; the fault is answered by
/// aliasing the range out of a mapping of `file`.
pub(super) fn aliasing_faults(file: &File, order: &[usize]) -> Result<Latency> {
    let rig = FaultRig::start(file, order.len())?;
    let mut next = order.iter();
    let latency = timed(order.len(), || {
        let range = next.next().copied().unwrap_or(0);
        std::hint::black_box(rig.view.source().touch(range * RANGE));
        Ok(())
    })?;
    rig.stop()?;
    Ok(latency)
}

/// A view whose faults a thread answers.
struct FaultRig {
    view: Arc<Region>,
    stop: OwnedFd,
    handler: JoinHandle<Result<()>>,
}

impl FaultRig {
    fn start(file: &File, ranges: usize) -> Result<FaultRig> {
        let window = Region::anonymous(ranges * RANGE)?;
        for range in 0..ranges {
            window.map_file(range * RANGE, file, (range * RANGE) as u64, RANGE)?;
        }
        let view = Arc::new(Region::anonymous(ranges * RANGE)?);
        let faults = Faults::open().context("open a userfaultfd")?;
        faults
            .register(&view)
            .context("register with userfaultfd")?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (told, seen) = (stop.try_clone()?, Arc::clone(&view));
        let handler = std::thread::Builder::new()
            .name("faults".into())
            .spawn(move || answer_faults(&faults, &seen, &window, &told))?;
        Ok(FaultRig {
            view,
            stop,
            handler,
        })
    }

    fn stop(self) -> Result<()> {
        signal(&self.stop)?;
        join(self.handler.join())
    }
}

fn answer_faults(faults: &Faults, view: &Region, window: &Region, stop: &OwnedFd) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(faults.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, None).context("wait for faults")?;
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        while let Some(at) = faults.next(view).context("read a fault")? {
            let start = at / RANGE * RANGE;
            view.alias(start, window, start, RANGE)
                .context("alias a range")?;
            faults.wake(view, start, RANGE).context("wake")?;
        }
    }
}

fn timed(count: usize, mut work: impl FnMut() -> Result<()>) -> Result<Latency> {
    let mut latency = Latency::new();
    for _ in 0..count {
        let started = Instant::now();
        work()?;
        latency.record(started.elapsed().max(Duration::from_nanos(1)));
    }
    Ok(latency)
}

fn join(result: std::thread::Result<Result<()>>) -> Result<()> {
    result.unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Random;

    #[test]
    fn every_part_can_be_measured() -> Result<()> {
        let file = tempfile::tempfile()?;
        file.set_len(8 * RANGE as u64)?;
        let order = Random::new(3).permutation(8);
        for latency in [
            queue_round_trips(8)?,
            socket_round_trips(8)?,
            range_mmaps(&file, 8)?,
            aliasing_faults(&file, &order)?,
        ] {
            assert_eq!(latency.count(), 8);
            assert!(p50_micros(&latency) > 0.0);
        }
        Ok(())
    }
}
