//! The device as vhost-user-backend sees it.
//!
//! The framework calls from two sides: its message thread (features, memory
//! table, stop, reset), where nothing may wait for the front end, and one
//! worker per queue, where requests are handled.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use daxwindow_shared::virtiofs::Config;
use parking_lot::Mutex;
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
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};
use zerocopy::IntoBytes;

use crate::dax::{Channel, Naive};
use crate::guard;
use crate::observe::logs::Throttle;
use crate::server::Server;

use super::desk::{Desk, Handled};
use super::exit_fd::ExitFds;
use super::parking::{Parking, Waiting};
use super::patience::Patience;
use super::queue::{self, Gate, Memory, Taken, Vring};

/// Longest ring a guest may set up.
const MAX_QUEUE_SIZE: usize = 1024;
/// Most request queues: the framework maps queues to workers in a word of 64
/// bits, and the hiprio queue takes one.
pub const MAX_REQUEST_QUEUES: u32 = 63;
/// How long a queue that is being stopped waits for its requests. The VMM
/// does nothing else meanwhile.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Longest configuration space that is answered, padded with zeros.
const MAX_CONFIG_BYTES: usize = 256;

/// One client's device.
pub struct Device {
    server: Arc<Server>,
    desk: Arc<Desk>,
    parking: Parking,
    config: Config,
    memory: Memory,
    gates: Vec<Arc<Gate>>,
    patience: Vec<Patience>,
    closing: AtomicBool,
    exit_fds: ExitFds,
    window_reset: Mutex<Option<JoinHandle<()>>>,
    complaints: Throttle,
    front_end_timeout: Duration,
    /// Where its log belongs; the framework's threads do not know.
    span: Span,
}

impl Device {
    /// A device with `config.num_request_queues` request queues, whose rings
    /// and buffers lie in `memory`. The front end may take
    /// `front_end_timeout` over one map.
    pub(super) fn new(
        server: Arc<Server>,
        config: Config,
        memory: Memory,
        front_end_timeout: Duration,
    ) -> Device {
        let queues = 1 + config.num_request_queues.get() as usize;
        let desk = Arc::new(Desk::new(server.clone(), memory.clone()));
        Device {
            server,
            parking: Parking::new(desk.clone()),
            desk,
            config,
            memory,
            gates: (0..queues).map(|_| Arc::default()).collect(),
            patience: (0..queues).map(|_| Patience::default()).collect(),
            closing: AtomicBool::new(false),
            exit_fds: ExitFds::default(),
            window_reset: Mutex::new(None),
            complaints: Throttle::new(Duration::from_secs(10)),
            front_end_timeout,
            span: Span::current(),
        }
    }

    /// The client is gone: nobody waits for it any more, and workers stop
    /// taking requests.
    pub(super) fn hang_up(&self) {
        // Release pairs with the Acquire in `empty`.
        self.closing.store(true, Ordering::Release);
        self.parking.close();
        self.server.dax().cancel_waits();
        self.server.dax().set_front_end(None);
    }

    /// After the workers have ended: nothing of the client is left.
    pub(super) fn forget_client(&self) {
        if let Some(thread) = self.window_reset.lock().take() {
            let _ = thread.join();
        }
        self.server.reset();
        guard::prune();
    }

    /// Empties a ring until the guest has nothing more for it.
    fn serve_queue(
        &self,
        queue: usize,
        vring: &Vring,
        gate: &Arc<Gate>,
        patience: &Patience,
    ) -> Result<(), virtio_queue::Error> {
        let mut idle_rounds = 0;
        // One idle round may be a request that came between the last look and
        // `listen`. A ring that claims more and yields nothing again is broken.
        while idle_rounds < 2 {
            queue::hush(vring)?;
            let mut taken = self.empty(queue, vring, gate)?;
            while taken > 0 && patience.watch(|| queue::is_waiting(vring, &self.memory)) {
                match self.empty(queue, vring, gate)? {
                    0 => break,
                    more => taken += more,
                }
            }
            if !queue::listen(vring)? {
                return Ok(());
            }
            idle_rounds = if taken == 0 { idle_rounds + 1 } else { 0 };
        }
        Ok(())
    }

    fn empty(
        &self,
        queue: usize,
        vring: &Vring,
        gate: &Arc<Gate>,
    ) -> Result<u64, virtio_queue::Error> {
        let mut taken = 0;
        while !self.closing.load(Ordering::Acquire) {
            match queue::take(vring, &self.memory, gate) {
                Taken::Request(chain, completion) => {
                    taken += 1;
                    match self.desk.handle(chain) {
                        Handled::Used(used) => completion.complete(used),
                        Handled::Waits(reply_at, parked) => {
                            self.parking.park(Waiting {
                                queue,
                                ring_size: queue::size(vring),
                                reply_at,
                                parked,
                                completion,
                            });
                            // Who stops a ring marks it and then cancels: it
                            // has found this request, or here is its mark.
                            if !queue::is_running(vring) {
                                self.parking.cancel(Some(queue));
                            }
                        }
                    }
                    self.desk.settle();
                }
                Taken::Nothing => break,
                Taken::Broken(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn complain(&self, queue: usize, error: &virtio_queue::Error) {
        if let Some(held_back) = self.complaints.pass() {
            tracing::warn!(queue, held_back, %error, "the guest's ring is broken");
        }
    }

    fn drain_all(&self) {
        for (queue, gate) in self.gates.iter().enumerate() {
            self.drain(queue, gate);
        }
    }

    fn drain(&self, queue: usize, gate: &Gate) {
        let given_up = gate.drain(STOP_PATIENCE);
        if given_up > 0 {
            tracing::warn!(queue, given_up, "requests outlived the stop of their queue");
        }
    }

    fn has_window(&self) -> bool {
        self.server.dax().window_bytes() > 0
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.parking.close();
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.gates.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// SHMEM only with a window: a front end that sees it asks for the
    /// regions and gives the guest what it is told, and a region of no bytes
    /// fails the guest's probe.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        let slots = self.server.dax().takes_memory_slots();
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
        let memory = memory.memory();
        if !self.server.dax().leaves_out(Naive::WATCH_MEMORY) {
            guard::watch(&memory)?;
        }
        // The framework looks at rings as well.
        self.desk.settle();
        let regions: Vec<(u64, u64)> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        if !self.server.dax().takes_memory_slots() {
            self.desk.note_regions(&regions);
        }
        self.server.dax().memory_table(&regions);
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: Backend) {
        let _in_span = self.span.enter();
        match Channel::new(channel, self.front_end_timeout) {
            Ok(channel) => self.server.dax().set_front_end(Some(Arc::new(channel))),
            Err(error) => tracing::error!(%error, "no channel for maps, so no DAX"),
        }
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let _in_span = self.span.enter();
        Ok(match self.server.dax().announce_window() {
            0 => VhostUserShMemConfig::default(),
            bytes => VhostUserShMemConfig::new(1, &[bytes]),
        })
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.gates.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_fds
            .create()
            .inspect_err(|error| tracing::error!(%error, "cannot create an event descriptor"))
            .ok()
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        let _in_span = self.span.enter();
        if let Some(gate) = self.gates.get(queue_index as usize) {
            // The front end answers nobody until it has our answer.
            self.server.dax().cancel_waits();
            self.parking.cancel(Some(queue_index as usize));
            self.drain(queue_index as usize, gate);
        }
        Ok(())
    }

    /// The window is cleared by a thread of its own, because the front end
    /// answers only after this call.
    fn reset_device(&self) {
        let _in_span = self.span.enter();
        tracing::info!("device reset");
        self.server.dax().cancel_waits();
        self.parking.cancel(None);
        self.drain_all();
        self.server.begin_reset();
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

    /// A kick. Never an error: the framework would end the worker.
    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread_id: usize,
    ) -> io::Result<()> {
        let _in_span = self.span.enter();
        let (Some(vring), Some(gate), Some(patience)) = (
            vrings.get(usize::from(device_event)),
            self.gates.get(thread_id),
            self.patience.get(thread_id),
        ) else {
            return Ok(());
        };
        if self.desk.has_stale_rings(vring) {
            if let Some(held_back) = self.complaints.pass() {
                tracing::warn!(
                    held_back,
                    "a ring is in a window whose maps are not announced"
                );
            }
        } else if let Err(error) = self.serve_queue(thread_id, vring, gate, patience) {
            self.complain(thread_id, &error);
        }
        self.desk.settle();
        Ok(())
    }
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
