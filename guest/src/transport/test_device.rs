//! A device for tests, in this process: the other side of the split queues,
//! and a transport that leads to it. What it answers, and how wrongly, is up
//! to each test.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::queue::Queue;
use super::split_queue::{
    Descriptor, F_INDIRECT, F_NEXT, F_WRITE, Layout, QueueFeatures, SplitQueue, UsedElement,
    crossed,
};
use super::{
    Calls, Chain, Completion, GuestAddr, GuestMemory, RawDescriptor, SubmitError, Transport, Wake,
};
use crate::error::Result;
use crate::window::Window;

/// The device's side of one split queue.
pub(crate) struct RingDevice {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) layout: Layout,
    size: u16,
    seen: u16,
    used: u16,
}

impl RingDevice {
    pub(crate) fn new(queue: &SplitQueue) -> RingDevice {
        RingDevice::at(queue.memory(), *queue.layout(), queue.size())
    }

    fn at(memory: &Arc<GuestMemory>, layout: Layout, size: u16) -> RingDevice {
        RingDevice {
            memory: Arc::clone(memory),
            layout,
            size,
            seen: 0,
            used: 0,
        }
    }

    /// Heads made available since the last call.
    pub(crate) fn take(&mut self) -> Vec<u16> {
        let idx = self
            .memory
            .word(self.layout.avail_idx())
            .load(Ordering::Acquire);
        let mut heads = Vec::new();
        while self.seen != idx {
            let slot = u64::from(self.seen % self.size);
            let entry = self.memory.word(self.layout.avail.plus(4 + 2 * slot));
            heads.push(entry.load(Ordering::Relaxed));
            self.seen = self.seen.wrapping_add(1);
        }
        heads
    }

    /// Asks for a kick; returns whether there is nothing to do.
    fn arm(&self) -> bool {
        let event = self.memory.word(self.layout.avail_event(self.size));
        event.store(self.seen, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.memory
            .word(self.layout.avail_idx())
            .load(Ordering::Acquire)
            == self.seen
    }

    /// The segments of a chain: address, length, whether writable.
    pub(crate) fn chain(&self, head: u16) -> Vec<(u64, u32, bool)> {
        let (mut table, mut index, mut out) = (self.layout.descriptors, head, Vec::new());
        loop {
            let d: Descriptor = self.memory.load(table.plus(16 * u64::from(index)));
            if d.flags & F_INDIRECT != 0 {
                (table, index) = (GuestAddr(d.addr), 0);
                continue;
            }
            out.push((d.addr, d.len, d.flags & F_WRITE != 0));
            if d.flags & F_NEXT == 0 {
                return out;
            }
            index = d.next;
        }
    }

    /// Puts an element into the used ring; returns whether to signal.
    pub(crate) fn give_back(&mut self, id: u32, len: u32) -> bool {
        let slot = u64::from(self.used % self.size);
        self.memory.store(
            self.layout.used.plus(4 + 8 * slot),
            &UsedElement { id, len },
        );
        let old = self.used;
        self.used = old.wrapping_add(1);
        self.set_used_idx(self.used);
        fence(Ordering::SeqCst);
        let event = self.memory.word(self.layout.used_event(self.size));
        crossed(event.load(Ordering::Relaxed), self.used, old)
    }

    pub(crate) fn set_used_idx(&self, index: u16) {
        self.memory
            .word(self.layout.used_idx())
            .store(index, Ordering::Release);
    }
}

/// A chain as a device program sees it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) queue: usize,
    pub(crate) head: u16,
    /// All readable bytes.
    pub(crate) request: Vec<u8>,
    /// Writable segments: address, length.
    pub(crate) room: Vec<(u64, u32)>,
}

/// What a device program works with: it gives chains back.
pub(crate) struct Bench {
    rings: Vec<RingDevice>,
    queues: Vec<Arc<Queue>>,
}

impl Bench {
    /// Writes `bytes` into the chain's room and gives it back.
    pub(crate) fn answer(&mut self, job: &Job, bytes: &[u8]) {
        self.write(job, bytes);
        self.give_back(job, bytes.len() as u32);
    }

    /// Writes into the chain's room.
    pub(crate) fn write(&self, job: &Job, mut bytes: &[u8]) {
        for (addr, len) in &job.room {
            let (now, later) = bytes.split_at(bytes.len().min(*len as usize));
            self.rings[job.queue].memory.write(GuestAddr(*addr), now);
            bytes = later;
        }
    }

    /// Gives the chain back with any used length.
    pub(crate) fn give_back(&mut self, job: &Job, len: u32) {
        if self.rings[job.queue].give_back(job.head.into(), len) {
            self.queues[job.queue].call().write(1).expect("call");
        }
    }

    /// Breaks a queue's used index.
    pub(crate) fn break_used_index(&mut self, queue: usize) {
        self.rings[queue].set_used_idx(self.rings[queue].used.wrapping_add(9999));
        self.queues[queue].call().write(1).expect("call");
    }
}

/// A device program: called with each batch of new chains, and with none when
/// a test prods it.
pub(crate) type Program = Box<dyn FnMut(&mut Bench, Vec<Job>) + Send>;

/// A transport to a device thread that runs a [`Program`].
pub(crate) struct TestTransport {
    memory: Arc<GuestMemory>,
    queues: Vec<Arc<Queue>>,
    depth: u16,
    bench: Arc<Mutex<Bench>>,
    connected: AtomicBool,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TestTransport {
    pub(crate) fn start(queues: usize, depth: u16, mut program: Program) -> Arc<TestTransport> {
        let memory = GuestMemory::new(8 << 20).expect("memory");
        let features = QueueFeatures {
            event_idx: true,
            indirect: true,
        };
        let queues: Vec<_> = (0..queues)
            .map(|_| Arc::new(Queue::new(&memory, depth, features).expect("queue")))
            .collect();
        let rings = queues
            .iter()
            .map(|queue| RingDevice::at(&memory, *queue.layout(), depth))
            .collect();
        let bench = Arc::new(Mutex::new(Bench {
            rings,
            queues: queues.clone(),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&bench), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let queues = shared.lock().queues.clone();
            let kicks = watch_kicks(&queues);
            while !stopped.load(Ordering::Acquire) {
                let jobs = collect(&mut shared.lock());
                program(&mut shared.lock(), jobs);
                if shared.lock().rings.iter().all(RingDevice::arm) {
                    sleep(&kicks, &queues);
                }
            }
        });
        Arc::new(TestTransport {
            memory,
            queues,
            depth,
            bench,
            connected: AtomicBool::new(true),
            stop,
            thread: Some(thread),
        })
    }

    /// Runs the program once more.
    pub(crate) fn prod(&self) {
        self.queues[0].kick().write(1).expect("kick");
    }
}

fn collect(bench: &mut Bench) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (queue, ring) in bench.rings.iter_mut().enumerate() {
        for head in ring.take() {
            let mut job = Job {
                queue,
                head,
                request: Vec::new(),
                room: Vec::new(),
            };
            for (addr, len, writable) in ring.chain(head) {
                if writable {
                    job.room.push((addr, len));
                } else {
                    let at = job.request.len();
                    job.request.resize(at + len as usize, 0);
                    ring.memory.read(GuestAddr(addr), &mut job.request[at..]);
                }
            }
            jobs.push(job);
        }
    }
    jobs
}

/// Sleeps until a kick, or a moment.
fn sleep(kicks: &Epoll, queues: &[Arc<Queue>]) {
    let _ = kicks.wait(50, &mut [EpollEvent::default()]);
    for queue in queues {
        let _ = queue.kick().read();
    }
}

fn watch_kicks(queues: &[Arc<Queue>]) -> Epoll {
    let kicks = Epoll::new().expect("epoll");
    for queue in queues {
        let event = EpollEvent::new(EventSet::IN, 0);
        kicks
            .ctl(ControlOperation::Add, queue.kick().as_raw_fd(), event)
            .expect("watch");
    }
    kicks
}

impl Transport for TestTransport {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
    fn queues(&self) -> usize {
        self.queues.len()
    }
    fn depth(&self) -> usize {
        self.depth.into()
    }
    fn submit(&self, queue: usize, chain: Chain<'_>, token: u32) -> Result<(), SubmitError> {
        if !self.is_connected() {
            return Err(SubmitError::Disconnected);
        }
        self.queues[queue].submit(chain, token)
    }
    fn submit_raw(
        &self,
        queue: usize,
        descriptors: &[RawDescriptor],
        token: u32,
    ) -> Result<(), SubmitError> {
        self.queues[queue].submit_raw(descriptors, token)
    }
    fn reap(&self, queue: usize, out: &mut [Completion]) -> Result<usize, SubmitError> {
        self.queues[queue].reap(out)
    }
    fn has_used(&self, queue: usize) -> bool {
        self.queues[queue].has_used()
    }
    fn wait(&self, queue: usize, deadline: Instant) -> Wake {
        self.queues[queue].wait(deadline, || self.is_connected())
    }
    fn watch_calls(&self, queues: &[usize]) -> Result<Calls> {
        Calls::new(&self.queues, queues)
    }
    fn wait_calls(&self, calls: &Calls, deadline: Instant) -> Wake {
        calls.wait(&self.queues, deadline, || self.is_connected())
    }
    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }
    fn window(&self) -> Option<&Arc<Window>> {
        None
    }
    fn reset(&self) -> Result<()> {
        let mut bench = self.bench.lock();
        for (ring, queue) in bench.rings.iter_mut().zip(&self.queues) {
            queue.reset();
            (ring.seen, ring.used) = (0, 0);
        }
        Ok(())
    }
    fn disconnect(&self) {
        self.connected.store(false, Ordering::Release);
        self.queues.iter().for_each(|queue| queue.wake());
    }
}

impl Drop for TestTransport {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.prod();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the device program panicked");
        }
    }
}
