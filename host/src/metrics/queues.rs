//! What was counted of each queue: how busy it is, and what was done about
//! requests that take long. They count from the start of the daemon on, over
//! all clients.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

/// All queues of one share.
#[derive(Debug, Default)]
pub struct QueueTallies {
    queues: Mutex<Vec<Arc<QueueTally>>>,
    given_up: AtomicU64,
    refused_in_flight: AtomicU64,
    refused_waits: AtomicU64,
}

/// One queue. Written by the threads that serve it.
#[derive(Debug, Default)]
pub struct QueueTally {
    requests: AtomicU64,
    served_beside: AtomicU64,
    gave_way: AtomicU64,
    stuck: AtomicU64,
    came_back: AtomicU64,
    stand_ins: AtomicU64,
    short: AtomicU64,
    longest_ns: AtomicU64,
}

impl QueueTally {
    /// So many requests were taken from its ring.
    pub fn served(&self, requests: u64) {
        self.requests.fetch_add(requests, Relaxed);
    }

    /// Of these so many by a thread of another queue.
    pub fn served_beside(&self, requests: u64) {
        self.served_beside.fetch_add(requests, Relaxed);
    }

    /// A request that was known to take long gave up the lead.
    pub fn gave_way(&self) {
        self.gave_way.fetch_add(1, Relaxed);
    }

    /// A request was found to take long.
    pub fn found_stuck(&self) {
        self.stuck.fetch_add(1, Relaxed);
    }

    /// One of either kind is done, after so long.
    pub fn came_back(&self, taken: Duration) {
        self.came_back.fetch_add(1, Relaxed);
        let ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns.fetch_max(ns, Relaxed);
    }

    /// A thread more was started.
    pub fn stand_in_started(&self) {
        self.stand_ins.fetch_add(1, Relaxed);
    }

    /// A thread more was needed and could not be had.
    pub fn short_of_threads(&self) {
        self.short.fetch_add(1, Relaxed);
    }

    fn report(&self) -> QueueReport {
        // Before those that it is taken from: never more than those.
        let came_back = self.came_back.load(Relaxed);
        let (gave_way, stuck) = (self.gave_way.load(Relaxed), self.stuck.load(Relaxed));
        let served_beside = self.served_beside.load(Relaxed);
        QueueReport {
            requests: self.requests.load(Relaxed),
            served_beside,
            gave_way,
            stuck,
            away: (gave_way + stuck).saturating_sub(came_back),
            stand_ins: self.stand_ins.load(Relaxed),
            short_of_threads: self.short.load(Relaxed),
            longest_ns: self.longest_ns.load(Relaxed),
        }
    }
}

impl QueueTallies {
    /// Those of the first `count` queues.
    pub fn tallies(&self, count: usize) -> Vec<Arc<QueueTally>> {
        let mut queues = self.queues.lock();
        if queues.len() < count {
            queues.resize_with(count, Arc::default);
        }
        queues.iter().take(count).cloned().collect()
    }

    /// So many threads of a client that is gone are stuck in the kernel.
    pub fn given_up(&self, threads: u64) {
        self.given_up.fetch_add(threads, Relaxed);
    }

    /// A request was one too many under way.
    pub fn refused_in_flight(&self) {
        self.refused_in_flight.fetch_add(1, Relaxed);
    }

    /// A request was one too many to wait for a lock.
    pub fn refused_wait(&self) {
        self.refused_waits.fetch_add(1, Relaxed);
    }

    /// Everything counted so far.
    pub fn report(&self) -> QueuesReport {
        QueuesReport {
            queues: self
                .queues
                .lock()
                .iter()
                .map(|queue| queue.report())
                .collect(),
            given_up: self.given_up.load(Relaxed),
            refused_in_flight: self.refused_in_flight.load(Relaxed),
            refused_waits: self.refused_waits.load(Relaxed),
        }
    }
}

/// What was counted of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueReport {
    /// Requests taken.
    pub requests: u64,
    /// Of these, by a thread of another queue.
    pub served_beside: u64,
    /// Of these, known to take long: others went on meanwhile.
    pub gave_way: u64,
    /// Of these, found to take long.
    pub stuck: u64,
    /// Of both, under way now.
    pub away: u64,
    /// Threads started beside the first.
    pub stand_ins: u64,
    /// How often one more would have been needed.
    pub short_of_threads: u64,
    /// The longest of those that took long and are done.
    pub longest_ns: u64,
}

/// What was counted of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuesReport {
    /// By number; the first is for FORGET, the others for requests.
    pub queues: Vec<QueueReport>,
    /// Threads that were stuck when their client had gone.
    pub given_up: u64,
    /// Requests refused, as the guest had as many under way as it may.
    pub refused_in_flight: u64,
    /// Requests that may not wait for a lock, as so many did.
    pub refused_waits: u64,
}

impl fmt::Display for QueuesReport {
    /// One line per queue.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "queues: {} threads given up, {} requests and {} waits over budget",
            self.given_up, self.refused_in_flight, self.refused_waits
        )?;
        for (index, queue) in self.queues.iter().enumerate() {
            write!(
                f,
                "\n  queue {index}: {} requests, {} of them beside another queue's, {} gave way, {} found stuck, {} of both under way, \
                 longest {:.1} ms, {} stand-ins started, short of one {} times",
                queue.requests,
                queue.served_beside,
                queue.gave_way,
                queue.stuck,
                queue.away,
                queue.longest_ns as f64 / 1e6,
                queue.stand_ins,
                queue.short_of_threads,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_away_is_what_has_not_come_back() {
        let tallies = QueueTallies::default();
        let [_, queue] = &tallies.tallies(2)[..] else {
            panic!("two were asked for");
        };
        queue.served(5);
        queue.served_beside(2);
        queue.gave_way();
        queue.found_stuck();
        queue.came_back(Duration::from_millis(3));
        // Of the next client.
        let again = tallies.tallies(2);
        again[1].served(1);
        let report = tallies.report();
        assert_eq!(report.queues.len(), 2);
        let queue = report.queues[1];
        assert_eq!((queue.requests, queue.served_beside, queue.away), (6, 2, 1));
        assert_eq!(queue.longest_ns, 3_000_000);
        assert!(
            report.to_string().contains("queue 1: 6 requests"),
            "{report}"
        );
    }
}
