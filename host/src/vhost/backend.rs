//! One client's device: what it offers, its memory table, stop and reset.
//!
//! All this happens in the thread of the client's messages, where nothing may
//! wait for the front end, nor for guest memory, for longer than a stop may
//! take. Requests are handled by threads of the queues' own, see `device_queue`.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daxwindow_shared::virtiofs::Config;
use parking_lot::Mutex;
use tracing::Span;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zerocopy::IntoBytes;

use crate::dax::whole::is_window;
use crate::dax::{CalledOff, Dax, TestFaults};
use crate::fuse::Server;
use crate::logs::Throttle;

use super::messages::Negotiated;
use crate::queue::bounded::within;
use crate::queue::defect::Defects;
use crate::queue::device_queue::{DeviceContext, DeviceQueue};
use crate::queue::handler::RequestHandler;
use crate::queue::kicks::Kicks;
use crate::queue::lock_waits::LockWaits;
use crate::queue::multi_queue::MultiQueue;
use crate::queue::ring::{Memory, Ring};
use crate::queue::withdrawal::withdraw;
use crate::queue::workers::Workers;

/// Longest ring a guest may set up.
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;
/// Most request queues. More than that many processors submit nothing.
pub const MAX_REQUEST_QUEUES: u32 = 63;
/// How long a queue that is being stopped waits for its requests. The VMM
/// does nothing else meanwhile.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of a client waits for requests under way, and for the
/// message under way. What is stuck in the kernel after that is left to
/// itself.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(5);
/// Longest configuration space that is answered, padded with zeros.
const MAX_CONFIG_BYTES: usize = 256;

/// One client's device.
pub(super) struct Device {
    server: Arc<Server>,
    context: Arc<DeviceContext>,
    config: Config,
    queues: Vec<Arc<DeviceQueue>>,
    pub(super) negotiated: Mutex<Negotiated>,
    window_reset: Mutex<Option<JoinHandle<()>>>,
    /// The client has gone, and the next one may be there: a message of the
    /// old one that is still being handled changes nothing.
    is_over: AtomicBool,
}

/// How many threads and waits a device has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Threads beside one for each queue.
    pub(super) stand_ins: usize,
    /// Requests that may wait for locks.
    pub(super) lock_waits: usize,
}

impl Device {
    /// A device with `config.num_request_queues` request queues, which nobody
    /// serves yet.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub(super) fn new(
        server: Arc<Server>,
        config: Config,
        memory: Memory,
        limits: Limits,
    ) -> io::Result<Device> {
        let handler = Arc::new(RequestHandler::new(server.clone(), memory.clone()));
        let defects = Arc::new(Defects::default());
        let kicks = Arc::new(Kicks::new()?);
        let queues = 1 + config.num_request_queues.get() as usize;
        let context = Arc::new(DeviceContext {
            lock_waits: LockWaits::new(handler.clone(), defects.clone(), limits.lock_waits),
            defects,
            handler,
            workers: Workers::new(Arc::clone(&kicks), queues, limits.stand_ins),
            multi_queue: MultiQueue::default(),
            queues: OnceLock::new(),
            complaints: Throttle::new(Duration::from_secs(10)),
            span: Span::current(),
        });
        let tallies = server.queues().tallies(queues).into_iter().enumerate();
        let queues = tallies.map(|(index, tally)| {
            let ring = Ring::new(index, Arc::clone(&kicks), memory.clone(), MAX_QUEUE_SIZE)?;
            Ok(DeviceQueue::new(index, ring, Arc::clone(&context), tally))
        });
        let queues = queues.collect::<Result<Vec<_>, virtio_queue::Error>>();
        let queues = queues.map_err(io::Error::other)?;
        // Set once.
        let _ = context
            .queues
            .set(queues.iter().map(Arc::downgrade).collect());
        Ok(Device {
            server,
            context,
            config,
            queues,
            negotiated: Mutex::default(),
            window_reset: Mutex::new(None),
            is_over: AtomicBool::new(false),
        })
    }

    /// Serves the queues from now on.
    ///
    /// # Errors
    ///
    /// When the process can have no more threads.
    pub(super) fn start(&self) -> io::Result<()> {
        self.context.start()
    }

    /// Nothing more is taken, and threads end as they come back.
    fn close(&self) {
        self.context.workers.close();
        self.queues.iter().for_each(|queue| queue.ring().close());
        self.context.lock_waits.close(END_PATIENCE);
    }

    /// Has `hang_up` end the client if a thread of its queues meets a defect.
    pub(super) fn end_by(&self, hang_up: impl Fn() + Send + Sync + 'static) {
        self.context.defects.end_by(hang_up);
    }

    /// The guest's memory.
    pub(super) fn memory(&self) -> &Memory {
        &self.context.handler.memory
    }

    pub(super) fn queues(&self) -> &[Arc<DeviceQueue>] {
        &self.queues
    }

    /// The client is gone: nobody waits for it any more, and no thread takes
    /// requests.
    pub(super) fn hang_up(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.close();
        self.server.dax().set_front_end(None);
    }

    /// After [`hang_up`](Self::hang_up), and with nobody to call us any more:
    /// nothing of the client is left but threads that the kernel does not let
    /// go. Those find nothing to do when they come back.
    pub(super) fn forget_client(&self) {
        if let Some(thread) = self.window_reset.lock().take() {
            let _ = thread.join();
        }
        let deadline = Instant::now() + END_PATIENCE;
        // A VMM that fills its call descriptor again and again keeps nobody
        // longer than that.
        let free = || {
            self.queues
                .iter()
                .for_each(|queue| queue.ring().free_senders())
        };
        let stuck = self.context.workers.join(deadline, free);
        if stuck > 0 {
            // In whatever request of whichever queue.
            self.queues.iter().for_each(|queue| {
                queue.ring().give_up();
            });
            self.server.queues().given_up(stuck as u64);
            tracing::warn!(stuck, "threads are stuck in requests and are given up");
        }
        self.context.handler.forget_memory();
        self.server.reset();
    }

    /// Ends the waits of one queue's requests, or of all, and waits for what
    /// these queues have under way. What takes too long is given up, and reaches
    /// nothing of the guest's memory any more.
    pub(super) fn stop(&self, queue: Option<usize>) -> Option<CalledOff> {
        let lock_waits = &self.context.lock_waits;
        // A ring may run on while its device is reset.
        lock_waits.refuse(queue);
        let called_off = self.cancel_waits(queue);
        let deadline = Instant::now() + STOP_PATIENCE;
        let all = self.queues().iter().enumerate();
        let stopped = all.filter(|(index, _)| queue.is_none_or(|queue| queue == *index));
        let given_up: u32 = stopped
            .map(|(index, queue)| drain(index, queue, deadline))
            .sum();
        if given_up > 0 {
            withdraw(&self.context.handler, self.queues(), given_up);
        }
        lock_waits.admit(queue);
        called_off
    }

    /// In a thread that may be stuck: it answers requests, in memory that is
    /// the VMM's.
    fn cancel_waits(&self, queue: Option<usize>) -> Option<CalledOff> {
        let (server, context) = (self.server.clone(), self.context.clone());
        let cancelled = within(STOP_PATIENCE, "cancel", move || {
            let called_off = server.dax().cancel_waits_for_vmm();
            context.lock_waits.cancel(queue);
            called_off
        });
        if cancelled.is_none() {
            tracing::warn!("requests that wait cannot be answered");
        }
        cancelled
    }

    pub(super) fn check_client(&self) -> io::Result<()> {
        match self.is_over.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::NotConnected.into()),
            false => Ok(()),
        }
    }

    fn has_window(&self) -> bool {
        self.server.dax().window_bytes() > 0
    }
}

fn drain(index: usize, queue: &DeviceQueue, deadline: Instant) -> u32 {
    let given_up = queue.ring().drain(deadline);
    if given_up > 0 {
        tracing::warn!(
            queue = index,
            given_up,
            "requests outlived the stop of their queue"
        );
    }
    given_up
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the client offers is answered here; which message asks for it is the
/// business of `messages`.
impl Device {
    pub(super) fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// SHMEM only with a window: a front end that sees it asks for the
    /// regions and gives the guest what it is told, and a region of no bytes
    /// fails the guest's probe. CONFIG only with a tag, which it is for: some
    /// front ends that have one already warn of it.
    pub(super) fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        let tagged = self.config.tag().is_some();
        features.set(VhostUserProtocolFeatures::CONFIG, tagged);
        let slots = self.server.dax().offer_memory_slots();
        features.set(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, slots);
        features.set(VhostUserProtocolFeatures::SHMEM, self.has_window());
        features
    }

    /// `size` bytes of the configuration space.
    pub(super) fn config_bytes(&self, offset: u32, size: u32) -> Vec<u8> {
        config_bytes(&self.config, offset as usize, size as usize)
    }

    /// Takes over the memory table.
    ///
    /// # Errors
    ///
    /// When it cannot be watched.
    pub(super) fn set_memory(&self, memory: GuestMemoryMmap) -> io::Result<()> {
        self.check_client()?;
        self.context.handler.replace_memory(memory.clone());
        if !self.server.dax().injects(TestFaults::WATCH_MEMORY) {
            self.context.handler.watch(&memory)?;
        }
        self.context.handler.settle();
        let regions: Vec<(u64, u64)> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        if !self.server.dax().takes_memory_slots() {
            self.context.handler.note_regions(&regions);
        }
        let windows = windows(&memory);
        self.context.handler.note_windows(windows.iter().map(place));
        let dax = self.server.dax();
        let ours = windows.iter().find(|region| is_of(region, dax));
        dax.memory_table(&regions, ours.map(|region| place(region).0));
        Ok(())
    }

    /// Takes the channel for requests of ours.
    pub(super) fn set_channel(&self, socket: UnixStream) {
        if self.check_client().is_ok() {
            self.server.dax().open_channel(socket);
        }
    }

    /// The regions of shared memory: the window, if there is one.
    pub(super) fn shmem_config(&self) -> VhostUserShMemConfig {
        match self.server.dax().announce_window() {
            0 => VhostUserShMemConfig::default(),
            bytes => VhostUserShMemConfig::new(1, &[bytes]),
        }
    }

    /// The window is cleared by a thread of its own, because the front end
    /// answers only after this call.
    pub(super) fn reset(&self) {
        if self.check_client().is_err() {
            return;
        }
        tracing::info!("device reset");
        let called_off = self.stop(None);
        self.server.begin_reset();
        drop(called_off);
        let (server, span) = (self.server.clone(), Span::current());
        let thread = std::thread::Builder::new()
            .name("window-reset".into())
            .spawn(move || span.in_scope(|| server.finish_reset()));
        let mut slot = self.window_reset.lock();
        match thread {
            Ok(thread) => drop(slot.replace(thread)),
            Err(error) => tracing::error!(%error, "the window is cleared at the next INIT only"),
        }
    }
}

type Region = <GuestMemoryMmap as GuestMemoryBackend>::R;

/// Windows in one piece, which show files to the guest and nothing to who maps
/// them by their descriptors.
fn windows(memory: &GuestMemoryMmap) -> Vec<&Region> {
    let is_window = |region: &&Region| {
        let file = region.file_offset();
        file.is_some_and(|file| is_window(file.file(), file.start(), region.len()))
    };
    memory.iter().filter(is_window).collect()
}

fn is_of(region: &Region, dax: &Dax) -> bool {
    let file = region.file_offset();
    file.is_some_and(|file| dax.is_own_window(file.file()))
}

fn place(region: &&Region) -> (u64, u64) {
    (region.start_addr().0, region.len())
}

/// `size` bytes of configuration space from `offset` on. What lies behind its
/// end reads as zero; nothing is answered to who starts there.
fn config_bytes(config: &Config, offset: usize, size: usize) -> Vec<u8> {
    let Some(known) = config.as_bytes().get(offset..).filter(|k| !k.is_empty()) else {
        return Vec::new();
    };
    let mut bytes = vec![0; size.min(MAX_CONFIG_BYTES)];
    let common = known.len().min(bytes.len());
    bytes[..common].copy_from_slice(&known[..common]);
    bytes
}

#[cfg(test)]
#[path = "backend_test.rs"]
mod tests;
