//! The device as vhost-user-backend sees it.
//!
//! The framework calls from its message thread (features, memory table, stop,
//! reset), where nothing may wait for the front end, nor for guest memory, for
//! longer than a stop may take. It has no workers:
//! requests are handled by threads of the queues' own, see `lane`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daxwindow_shared::virtiofs::Config;
use parking_lot::{Mutex, MutexGuard};
use tracing::Span;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use zerocopy::IntoBytes;

use crate::dax::whole::is_window;
use crate::dax::{CalledOff, Dax, TestFaults};
use crate::logs::Throttle;
use crate::server::Server;

use super::bounded::within;
use super::defect::Defects;
use super::handler::RequestHandler;
use super::lane::{DeviceContext, Lane};
use super::minding::Minding;
use super::parking::Parking;
use super::pool::Pool;
use super::ring::{Memory, Ring};
use super::withdrawal::withdraw;

/// Longest ring a guest may set up.
const MAX_QUEUE_SIZE: usize = 1024;
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
pub struct Device {
    server: Arc<Server>,
    context: Arc<DeviceContext>,
    config: Config,
    lanes: OnceLock<Vec<Arc<Lane>>>,
    window_reset: Mutex<Option<JoinHandle<()>>>,
    /// The client has gone, and the next one may be there: a message of the
    /// old one that is still being handled changes nothing.
    is_over: AtomicBool,
    /// Held until the client may have its first reply.
    greeting: Mutex<()>,
    /// Where its log belongs; the framework's threads do not know.
    span: Span,
}

/// How many threads and waits a device has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Threads beside one for each queue.
    pub(super) stand_ins: usize,
    /// Requests that may wait for locks.
    pub(super) parked: usize,
}

impl Device {
    /// A device with `config.num_request_queues` request queues, whose rings
    /// and buffers lie in `memory`.
    pub(super) fn new(
        server: Arc<Server>,
        config: Config,
        memory: Memory,
        limits: Limits,
    ) -> Device {
        let handler = Arc::new(RequestHandler::new(server.clone(), memory));
        let defects = Arc::new(Defects::default());
        let context = DeviceContext {
            parking: Parking::new(handler.clone(), defects.clone(), limits.parked),
            defects,
            handler,
            pool: Pool::new(limits.stand_ins),
            minding: Minding::default(),
            lanes: OnceLock::new(),
            complaints: Throttle::new(Duration::from_secs(10)),
            span: Span::current(),
        };
        Device {
            server,
            context: Arc::new(context),
            config,
            lanes: OnceLock::new(),
            window_reset: Mutex::new(None),
            is_over: AtomicBool::new(false),
            greeting: Mutex::default(),
            span: Span::current(),
        }
    }

    /// Lets the client have no reply until the guard is dropped: nobody's first
    /// is another than that to a question for features.
    pub(super) fn hold_features(&self) -> MutexGuard<'_, ()> {
        self.greeting.lock()
    }

    /// Has `hang_up` end the client if a thread of its queues meets a defect.
    pub(super) fn end_by(&self, hang_up: impl Fn() + Send + Sync + 'static) {
        self.context.defects.end_by(hang_up);
    }

    /// Takes over the rings that the framework has made, in their order, and
    /// starts a thread for each if `serve`.
    pub(super) fn adopt(&self, rings: Vec<Ring>, serve: bool) -> io::Result<()> {
        let tallies = self.server.queues().tallies(rings.len());
        let lanes = rings.into_iter().zip(tallies).enumerate();
        let lanes: Vec<Arc<Lane>> = lanes
            .map(|(index, (ring, tally))| Lane::new(index, ring, self.context.clone(), tally))
            .collect();
        let known = lanes.iter().map(Arc::downgrade).collect();
        if self.context.lanes.set(known).is_err() {
            return Err(io::Error::other("a device has its rings once"));
        }
        let started = lanes.iter().filter(|_| serve).try_for_each(Lane::start);
        // Set once, as the context's.
        let _ = self.lanes.set(lanes);
        started
    }

    fn lanes(&self) -> &[Arc<Lane>] {
        self.lanes.get().map_or(&[], Vec::as_slice)
    }

    /// The client is gone: nobody waits for it any more, and no thread takes
    /// requests.
    pub(super) fn hang_up(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.lanes().iter().for_each(|lane| lane.close());
        self.context.parking.close(END_PATIENCE);
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
        let stuck: Vec<usize> = self.lanes().iter().map(|l| l.join(deadline)).collect();
        for (queue, &stuck) in stuck.iter().enumerate() {
            if stuck > 0 {
                // In whatever request of whichever queue.
                self.lanes().iter().for_each(|lane| {
                    lane.ring().give_up();
                });
                self.server.queues().given_up(stuck as u64);
                tracing::warn!(
                    queue,
                    stuck,
                    "threads are stuck in requests and are given up"
                );
            }
        }
        self.context.handler.forget_memory();
        self.server.reset();
    }

    /// Ends the waits of one queue's requests, or of all, and waits for what
    /// these queues have under way. What takes too long is given up, and reaches
    /// nothing of the guest's memory any more.
    fn stop(&self, queue: Option<usize>) -> Option<CalledOff> {
        let parking = &self.context.parking;
        // A ring may run on while its device is reset.
        parking.refuse(queue);
        let called_off = self.cancel_waits(queue);
        let deadline = Instant::now() + STOP_PATIENCE;
        let all = self.lanes().iter().enumerate();
        let stopped = all.filter(|(index, _)| queue.is_none_or(|queue| queue == *index));
        let given_up: u32 = stopped
            .map(|(index, lane)| drain(index, lane, deadline))
            .sum();
        if given_up > 0 {
            withdraw(&self.context.handler, self.lanes(), given_up);
        }
        parking.admit(queue);
        called_off
    }

    /// In a thread that may be stuck: it answers requests, in memory that is
    /// the VMM's.
    fn cancel_waits(&self, queue: Option<usize>) -> Option<CalledOff> {
        let (server, context) = (self.server.clone(), self.context.clone());
        let cancelled = within(STOP_PATIENCE, "cancel", move || {
            let called_off = server.dax().cancel_waits_for_vmm();
            context.parking.cancel(queue);
            called_off
        });
        if cancelled.is_none() {
            tracing::warn!("requests that wait cannot be answered");
        }
        cancelled
    }

    fn check_client(&self) -> io::Result<()> {
        match self.is_over.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::NotConnected.into()),
            false => Ok(()),
        }
    }

    fn has_window(&self) -> bool {
        self.server.dax().window_bytes() > 0
    }
}

fn drain(queue: usize, lane: &Lane, deadline: Instant) -> u32 {
    let given_up = lane.ring().drain(deadline);
    if given_up > 0 {
        tracing::warn!(queue, given_up, "requests outlived the stop of their queue");
    }
    given_up
}

impl Drop for Device {
    fn drop(&mut self) {
        self.lanes().iter().for_each(|lane| lane.close());
        self.context.parking.close(END_PATIENCE);
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        1 + self.config.num_request_queues.get() as usize
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        drop(self.greeting.lock());
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// SHMEM only with a window: a front end that sees it asks for the
    /// regions and gives the guest what it is told, and a region of no bytes
    /// fails the guest's probe. CONFIG only with a tag, which it is for: some
    /// front ends that have one already warn of it.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
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

    /// The framework keeps the setting in its rings.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config_bytes(&self.config, offset as usize, size as usize)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let _in_span = self.span.enter();
        self.check_client()?;
        let memory = memory.memory();
        if !self.server.dax().injects(TestFaults::WATCH_MEMORY) {
            self.context.handler.watch(&memory)?;
        }
        // The framework looks at rings as well.
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

    fn set_backend_req_fd(&self, channel: Backend) {
        let _in_span = self.span.enter();
        if self.check_client().is_err() {
            return;
        }
        // What waits for the channel before is answered, which may be stuck.
        let server = self.server.clone();
        let set = within(STOP_PATIENCE, "front-end", move || {
            server.dax().open_channel(channel);
        });
        if set.is_none() {
            tracing::error!("a request for the last front end is stuck, so no DAX");
        }
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let _in_span = self.span.enter();
        Ok(match self.server.dax().announce_window() {
            0 => VhostUserShMemConfig::default(),
            bytes => VhostUserShMemConfig::new(1, &[bytes]),
        })
    }

    /// The framework has no workers, see `lane`.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        let _in_span = self.span.enter();
        self.check_client()?;
        // The front end answers nobody until it has our answer.
        drop(self.stop(Some(queue_index as usize)));
        Ok(())
    }

    /// The window is cleared by a thread of its own, because the front end
    /// answers only after this call.
    fn reset_device(&self) {
        let _in_span = self.span.enter();
        if self.check_client().is_err() {
            return;
        }
        tracing::info!("device reset");
        let called_off = self.stop(None);
        self.server.begin_reset();
        drop(called_off);
        let (server, span) = (self.server.clone(), self.span.clone());
        let thread = std::thread::Builder::new()
            .name("window-reset".into())
            .spawn(move || span.in_scope(|| server.finish_reset()));
        let mut slot = self.window_reset.lock();
        match thread {
            Ok(thread) => drop(slot.replace(thread)),
            Err(error) => tracing::error!(%error, "the window is cleared at the next INIT only"),
        }
    }

    /// Called by workers, of which there are none.
    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        _vrings: &[Ring],
        _thread_id: usize,
    ) -> io::Result<()> {
        Ok(())
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
