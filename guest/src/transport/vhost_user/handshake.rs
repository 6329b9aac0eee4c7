//! Negotiation with the back end and the set-up of memory and rings.
//!
//! Law: a feature is used only if the back end offered it. A back end
//! without CONFIG, BACKEND_REQ or SHMEM is served too, without a window;
//! where the caller said how large it may be, a back end without SHMEM gets
//! one by the messages from before.
//!
//! A back end with STATUS begins at DRIVER_OK (see `status`), and gets its
//! memory region by region, as from the front ends that know STATUS.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use daxwindow_front_end::internal::Language;
use daxwindow_shared::virtiofs::{Config, FIRST_REQUEST_QUEUE, SHMCAP_ID_CACHE};
use daxwindow_shared::window::RANGE_BYTES;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserShMemConfig,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::FromBytes;

use super::VhostUserOptions;
use crate::error::{Error, Result};
use crate::transport::GuestMemory;
use crate::transport::memory::MEMORY_BASE;
use crate::transport::queue::Queue;
use crate::transport::split_queue::QueueFeatures;

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Virtio features this driver can use.
const WANTED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | F_PROTOCOL_FEATURES;

/// Protocol features that a window needs; BACKEND_SEND_FD is taken if it is
/// offered, since some back ends send descriptors without it.
const FOR_WINDOW: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::SHMEM.union(VhostUserProtocolFeatures::BACKEND_REQ);

/// What a window by `FS_MAP` needs.
const FOR_LEGACY_WINDOW: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::BACKEND_REQ.union(VhostUserProtocolFeatures::BACKEND_SEND_FD);

/// Protocol features this front end can use.
const WANTED_PROTOCOL: VhostUserProtocolFeatures = FOR_WINDOW
    .union(VhostUserProtocolFeatures::BACKEND_SEND_FD)
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::STATUS)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// What both sides agreed on.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// Virtio feature bits.
    pub features: u64,
    /// vhost-user protocol feature bits.
    pub protocol: u64,
    /// Queues in use, hiprio included.
    pub queues: usize,
    /// Queues the device has.
    pub device_queues: usize,
    /// Entries of each queue.
    pub queue_size: u16,
    /// How the back end asks for maps.
    pub language: Language,
    /// Bytes of the window; zero without one. A multiple of 2 MiB.
    pub window_bytes: u64,
    /// The share's tag, if the device has a configuration space.
    pub tag: Option<String>,
}

impl Agreed {
    /// What the queues may use.
    pub(super) fn queue_features(&self) -> QueueFeatures {
        QueueFeatures {
            event_idx: self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            indirect: self.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
        }
    }

    /// Whether requests are acknowledged, in both directions.
    pub fn reply_ack(&self) -> bool {
        self.has(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Whether the device knows RESET_DEVICE.
    pub fn can_reset(&self) -> bool {
        self.has(VhostUserProtocolFeatures::RESET_DEVICE)
    }

    /// Whether the device waits for DRIVER_OK, and takes memory regions.
    fn begins_at_driver_ok(&self) -> bool {
        self.has(
            VhostUserProtocolFeatures::STATUS.union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS),
        )
    }

    fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol & feature.bits() == feature.bits()
    }
}

/// The control channel to the back end.
pub(super) struct Handshake {
    pub(super) front: Frontend,
    /// The same socket, for what the vhost crate cannot say.
    pub(super) socket: UnixStream,
}

impl Handshake {
    /// Talks over `stream`; nothing is sent yet.
    pub(super) fn new(stream: UnixStream, request_queues: usize) -> io::Result<Handshake> {
        let queues = (FIRST_REQUEST_QUEUE + request_queues) as u64;
        Ok(Handshake {
            socket: stream.try_clone()?,
            front: Frontend::from_stream(stream, queues),
        })
    }

    /// Agrees on features, queues and the size of the window.
    pub(super) fn negotiate(&mut self, options: &VhostUserOptions) -> Result<Agreed> {
        self.front.set_owner().map_err(failed("SET_OWNER"))?;
        let offered = self.front.get_features().map_err(failed("GET_FEATURES"))?;
        let features = offered & WANTED;
        if features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(broken(
                "GET_FEATURES",
                "the device does not offer VERSION_1",
            ));
        }
        let protocol = self.negotiate_protocol(features, options)?;
        let mut agreed = Agreed {
            features,
            protocol: protocol.bits(),
            queues: FIRST_REQUEST_QUEUE + 1,
            device_queues: 0,
            queue_size: options.queue_size,
            language: match protocol.contains(FOR_WINDOW) {
                true => Language::Shmem,
                false => Language::FsMap,
            },
            window_bytes: 0,
            tag: None,
        };
        let config = self.config(&agreed)?;
        agreed.tag = config.and_then(|c| c.tag().map(str::to_owned));
        (agreed.queues, agreed.device_queues) =
            self.queue_count(&agreed, config, options.request_queues)?;
        agreed.window_bytes = self.window_bytes(&agreed, options)?;
        Ok(agreed)
    }

    fn negotiate_protocol(
        &mut self,
        features: u64,
        options: &VhostUserOptions,
    ) -> Result<VhostUserProtocolFeatures> {
        if features & F_PROTOCOL_FEATURES == 0 {
            return Ok(VhostUserProtocolFeatures::empty());
        }
        let offered = self.front.get_protocol_features();
        let offered = offered.map_err(failed("GET_PROTOCOL_FEATURES"))?;
        let agreed = offered & wanted_protocol(offered, options);
        let set = self.front.set_protocol_features(agreed);
        set.map_err(failed("SET_PROTOCOL_FEATURES"))?;
        if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(agreed)
    }

    fn config(&mut self, agreed: &Agreed) -> Result<Option<Config>> {
        if !agreed.has(VhostUserProtocolFeatures::CONFIG) {
            return Ok(None);
        }
        let bytes = size_of::<Config>();
        let read = self.front.get_config(
            0,
            bytes as u32,
            VhostUserConfigFlags::WRITABLE,
            &vec![0; bytes],
        );
        let (_, payload) = read.map_err(failed("GET_CONFIG"))?;
        match Config::read_from_prefix(&payload) {
            Ok((config, _)) => Ok(Some(config)),
            Err(_) => Err(broken("GET_CONFIG", "the configuration space is too short")),
        }
    }

    fn queue_count(
        &mut self,
        agreed: &Agreed,
        config: Option<Config>,
        wanted: usize,
    ) -> Result<(usize, usize)> {
        let mut device_queues = FIRST_REQUEST_QUEUE + 1;
        let mut queues = FIRST_REQUEST_QUEUE.saturating_add(wanted);
        if let Some(config) = config {
            let has = usize::try_from(config.num_request_queues.get()).unwrap_or(usize::MAX);
            queues = queues.min(FIRST_REQUEST_QUEUE.saturating_add(has));
        }
        if agreed.has(VhostUserProtocolFeatures::MQ) {
            let has = self
                .front
                .get_queue_num()
                .map_err(failed("GET_QUEUE_NUM"))?;
            device_queues = usize::try_from(has).unwrap_or(usize::MAX);
        }
        queues = queues.min(device_queues);
        if queues <= FIRST_REQUEST_QUEUE {
            return Err(broken("GET_QUEUE_NUM", "the device has no request queue"));
        }
        Ok((queues, device_queues))
    }

    fn window_bytes(&mut self, agreed: &Agreed, options: &VhostUserOptions) -> Result<u64> {
        let limit = options.window_limit_bytes;
        if !agreed.has(FOR_WINDOW) {
            let wanted = match agreed.has(FOR_LEGACY_WINDOW) {
                true => options.legacy_window_bytes.min(limit),
                false => 0,
            };
            return Ok(wanted - wanted % RANGE_BYTES);
        }
        let config = self
            .front
            .get_shmem_config()
            .map_err(failed("GET_SHMEM_CONFIG"))?;
        Ok(usable_window(&config, limit))
    }

    /// Hands the back end its end of the channel for map requests.
    pub(super) fn offer_channel(&mut self, theirs: &UnixStream) -> Result<()> {
        let sent = self.front.set_backend_request_fd(theirs);
        sent.map_err(failed("SET_BACKEND_REQ_FD"))
    }

    /// Gives the device memory and rings, and starts them.
    pub(super) fn start(
        &mut self,
        agreed: &Agreed,
        memory: &GuestMemory,
        queues: &[Arc<Queue>],
    ) -> Result<()> {
        self.front
            .set_features(agreed.features)
            .map_err(failed("SET_FEATURES"))?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: MEMORY_BASE.0,
            memory_size: memory.bytes(),
            userspace_addr: memory.host_addr(MEMORY_BASE),
            mmap_offset: 0,
            mmap_handle: memory.file().as_raw_fd(),
        };
        if agreed.begins_at_driver_ok() {
            let added = self.front.add_mem_region(&region);
            added.map_err(failed("ADD_MEM_REG"))?;
        } else {
            let set = self.front.set_mem_table(&[region]);
            set.map_err(failed("SET_MEM_TABLE"))?;
        }
        for (index, queue) in queues.iter().enumerate() {
            self.start_ring(index, agreed, memory, queue)?;
        }
        for index in 0..queues.len() {
            if agreed.features & F_PROTOCOL_FEATURES != 0 {
                let enabled = self.front.set_vring_enable(index, true);
                enabled.map_err(failed("SET_VRING_ENABLE"))?;
            }
        }
        match agreed.begins_at_driver_ok() {
            true => self.begin(agreed),
            false => Ok(()),
        }
    }

    fn start_ring(
        &mut self,
        index: usize,
        agreed: &Agreed,
        memory: &GuestMemory,
        queue: &Queue,
    ) -> Result<()> {
        let layout = queue.layout();
        let address = VringConfigData {
            queue_max_size: agreed.queue_size,
            queue_size: agreed.queue_size,
            flags: 0,
            desc_table_addr: memory.host_addr(layout.descriptors),
            used_ring_addr: memory.host_addr(layout.used),
            avail_ring_addr: memory.host_addr(layout.avail),
            log_addr: None,
        };
        let front = &self.front;
        front
            .set_vring_num(index, agreed.queue_size)
            .map_err(failed("SET_VRING_NUM"))?;
        front
            .set_vring_addr(index, &address)
            .map_err(failed("SET_VRING_ADDR"))?;
        front
            .set_vring_base(index, 0)
            .map_err(failed("SET_VRING_BASE"))?;
        front
            .set_vring_call(index, queue.call())
            .map_err(failed("SET_VRING_CALL"))?;
        front
            .set_vring_kick(index, queue.kick())
            .map_err(failed("SET_VRING_KICK"))
    }

    /// Resets the device; afterwards it looks at no ring until it is started
    /// anew.
    pub(super) fn reset(&mut self, agreed: &Agreed) -> Result<()> {
        for index in 0..agreed.queues {
            // Stops the ring. Its base does not matter: the ring starts anew.
            let stopped = self.front.get_vring_base(index);
            stopped.map_err(failed("GET_VRING_BASE"))?;
        }
        self.front.reset_device().map_err(failed("RESET_DEVICE"))
    }
}

/// What to agree to of what is offered: the channel only for a window.
fn wanted_protocol(
    offered: VhostUserProtocolFeatures,
    options: &VhostUserOptions,
) -> VhostUserProtocolFeatures {
    let mut wanted = WANTED_PROTOCOL;
    let window = options.window_limit_bytes > 0;
    let shmem = window && offered.contains(FOR_WINDOW);
    let legacy = window && options.legacy_window_bytes > 0 && offered.contains(FOR_LEGACY_WINDOW);
    if !shmem {
        wanted.remove(VhostUserProtocolFeatures::SHMEM);
    }
    if !shmem && !legacy {
        wanted.remove(FOR_LEGACY_WINDOW);
    }
    wanted
}

/// Bytes of region 0 that are used: whole ranges, at most `limit`.
fn usable_window(config: &VhostUserShMemConfig, limit: u64) -> u64 {
    let (regions, sizes) = (config.nregions, config.memory_sizes);
    if regions == 0 {
        return 0;
    }
    if regions > 1 {
        tracing::warn!(
            regions,
            "the device has more than one shared memory region; 0 is used"
        );
    }
    let offered = sizes[usize::from(SHMCAP_ID_CACHE)];
    if offered > limit {
        tracing::warn!(
            offered,
            limit,
            "the window is larger than the limit; its start is used"
        );
    }
    let bytes = offered.min(limit);
    bytes - bytes % RANGE_BYTES
}

/// Turns a failure of the control channel into this crate's error.
pub(super) fn failed(operation: &'static str) -> impl Fn(vhost::Error) -> Error {
    use vhost::vhost_user::Error as Vu;
    move |error| match error {
        vhost::Error::VhostUserProtocol(
            Vu::Disconnected | Vu::PartialMessage | Vu::SocketBroken(_),
        ) => Error::Disconnected,
        vhost::Error::VhostUserProtocol(Vu::SocketError(source)) => {
            Error::Local { operation, source }
        }
        other => Error::Protocol {
            operation,
            what: other.to_string(),
        },
    }
}

pub(super) fn broken(operation: &'static str, what: &str) -> Error {
    Error::Protocol {
        operation,
        what: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_is_agreed_to_only_for_a_window_of_its_language() {
        let options = |limit, legacy| VhostUserOptions {
            socket: "none".into(),
            memory_bytes: 1 << 20,
            queue_size: 16,
            request_queues: 1,
            window_limit_bytes: limit,
            legacy_window_bytes: legacy,
            control_timeout: std::time::Duration::ZERO,
            hook: None,
        };
        let agreed = |offered: VhostUserProtocolFeatures, limit, legacy| {
            let wanted = wanted_protocol(offered, &options(limit, legacy)) & offered;
            (
                wanted.contains(VhostUserProtocolFeatures::SHMEM),
                wanted.contains(VhostUserProtocolFeatures::BACKEND_REQ),
            )
        };
        let all = VhostUserProtocolFeatures::all();
        let old = all - VhostUserProtocolFeatures::SHMEM;
        assert_eq!(agreed(all, 1, 0), (true, true));
        assert_eq!(agreed(all, 1, 1), (true, true));
        assert_eq!(agreed(all, 0, 1), (false, false));
        assert_eq!(agreed(old, 1, 0), (false, false));
        assert_eq!(agreed(old, 1, 1), (false, true));
        assert_eq!(agreed(old, 0, 1), (false, false));
        let no_files = old - VhostUserProtocolFeatures::BACKEND_SEND_FD;
        assert_eq!(agreed(no_files, 1, 1), (false, false));
    }

    #[test]
    fn any_shmem_config_gives_a_sane_window() {
        const GIB: u64 = 1 << 30;
        let window = |n, sizes: &[u64]| usable_window(&VhostUserShMemConfig::new(n, sizes), GIB);
        assert_eq!(window(0, &[GIB]), 0);
        assert_eq!(window(1, &[GIB]), GIB);
        assert_eq!(window(3, &[0, GIB, GIB]), 0);
        assert_eq!(window(2, &[4 << 20, GIB]), 4 << 20);
        assert_eq!(window(u32::MAX, &[u64::MAX]), GIB);
        assert_eq!(window(1, &[(2 << 20) - 1]), 0);
        assert_eq!(window(1, &[(4 << 20) + 4096]), 4 << 20);
    }
}
