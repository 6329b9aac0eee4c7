//! What each message of the front end's does (vhost-user specification,
//! "Front-end message types").

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandler};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use super::backend::{Device, MAX_QUEUE_SIZE};
use super::regions::{self, Regions, failed};
use crate::queue::ring::Ring;

/// Memory regions that a front end may add one by one: as many as KVM has slots,
/// less a few.
const MAX_MEM_SLOTS: u64 = 509;
const UNSUPPORTED: Error = Error::InvalidOperation("not offered by this device");

/// What the two ends have agreed on.
#[derive(Default)]
pub(super) struct Negotiated {
    is_owned: bool,
    features: u64,
    protocol: u64,
    regions: Regions,
    /// The descriptor of the message under way, if it hands over a channel.
    pub(super) channel: Option<UnixStream>,
    /// A channel over which nothing is asked for. It stays open: front ends, UML
    /// for one, do not expect its end.
    idle_channel: Option<Backend>,
}

impl Device {
    fn ring(&self, index: u32) -> Result<&Ring> {
        let queue = self.queues().get(index as usize);
        queue.map(|queue| queue.ring()).ok_or(Error::InvalidParam)
    }

    fn has_negotiated(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.negotiated.lock().protocol & feature.bits() != 0
    }
}

impl VhostUserBackendReqHandler for Device {
    fn set_owner(&self) -> Result<()> {
        match std::mem::replace(&mut self.negotiated.lock().is_owned, true) {
            true => Err(Error::InvalidOperation("already claimed")),
            false => Ok(()),
        }
    }

    fn reset_owner(&self) -> Result<()> {
        let mut negotiated = self.negotiated.lock();
        negotiated.is_owned = false;
        (negotiated.features, negotiated.protocol) = (0, 0);
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        self.queues()
            .iter()
            .for_each(|queue| queue.ring().set_enabled(false));
        self.negotiated.lock().features = 0;
        self.reset();
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.features())
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if features & !self.features() != 0 {
            return Err(Error::InvalidParam);
        }
        self.negotiated.lock().features = features;
        let is_enabled_at_once = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for queue in self.queues() {
            if is_enabled_at_once {
                queue.ring().set_enabled(true);
            }
            let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
            queue.ring().set_event_idx(event_idx);
        }
        Ok(())
    }

    fn set_mem_table(
        &self,
        told: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut known = Regions::default();
        let mut mapped = Vec::with_capacity(told.len());
        for (region, file) in told.iter().zip(files) {
            mapped.push(regions::map(region, file)?);
            known.add(region);
        }
        let memory = GuestMemoryMmap::from_arc_regions(mapped);
        self.set_memory(memory.map_err(|error| failed(io::Error::other(error)))?)
            .map_err(failed)?;
        self.negotiated.lock().regions = known;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let ring = self.ring(index)?;
        let size = u16::try_from(num).ok();
        let size = size.filter(|size| (1..=MAX_QUEUE_SIZE).contains(size));
        ring.set_size(size.ok_or(Error::InvalidParam)?);
        Ok(())
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = self.ring(index)?;
        let [table, available, used] = {
            let negotiated = self.negotiated.lock();
            if negotiated.regions.is_empty() {
                return Err(Error::InvalidParam);
            }
            let outside = || failed(io::Error::other("a ring is outside of the memory table"));
            let guest = |address| negotiated.regions.guest_address(address);
            let [table, available, used] = [descriptor, available, used].map(guest);
            [
                table.ok_or_else(outside)?,
                available.ok_or_else(outside)?,
                used.ok_or_else(outside)?,
            ]
        };
        ring.set_addresses(table, available, used)
            .map_err(|_| Error::InvalidParam)?;
        ring.follow_used_index()
            .map_err(|_| Error::BackendInternalError)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.set_next_avail(base as u16);
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        ring.set_started(false);
        self.check_client().map_err(failed)?;
        // The front end answers nobody until it has our answer.
        drop(self.stop(Some(index as usize)));
        let next = ring.next_avail();
        ring.set_kick(None);
        ring.set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        ring.set_kick(fd);
        ring.start_if_kicked();
        Ok(())
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        ring.set_call(fd);
        ring.start_if_kicked();
        Ok(())
    }

    /// Nothing is ever told by it.
    fn set_vring_err(&self, index: u8, _fd: Option<File>) -> Result<()> {
        self.ring(index.into()).map(|_| ())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.protocol_features())
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.negotiated.lock().protocol = features;
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(self.queues().len() as u64)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        let needed = VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        if self.negotiated.lock().features & needed.bits() == 0 {
            return Err(Error::InactiveFeature(needed));
        }
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config_bytes(offset, size))
    }

    fn set_config(&self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(UNSUPPORTED)
    }

    /// The library keeps the descriptor to itself; that of the message under way
    /// is the same socket.
    fn set_backend_req_fd(&self, backend: Backend) {
        let socket = self.negotiated.lock().channel.take();
        let replies = self.has_negotiated(VhostUserProtocolFeatures::REPLY_ACK);
        let maps = self.has_negotiated(VhostUserProtocolFeatures::SHMEM);
        match socket {
            Some(socket) if replies && maps => self.set_channel(socket),
            _ => self.negotiated.lock().idle_channel = Some(backend),
        }
    }

    fn set_gpu_socket(&self, _gpu: GpuBackend) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(UNSUPPORTED)
    }

    fn get_inflight_fd(&self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(UNSUPPORTED)
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MAX_MEM_SLOTS)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let memory = self
            .memory()
            .memory()
            .insert_region(regions::map(region, file)?);
        self.set_memory(memory.map_err(|error| failed(io::Error::other(error)))?)
            .map_err(failed)?;
        self.negotiated.lock().regions.add(region);
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let start = GuestAddress(region.guest_phys_addr);
        let removed = self
            .memory()
            .memory()
            .remove_region(start, region.memory_size);
        let (memory, _) = removed.map_err(|error| failed(io::Error::other(error)))?;
        self.set_memory(memory).map_err(failed)?;
        let mut negotiated = self.negotiated.lock();
        negotiated.regions.remove(region.guest_phys_addr);
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(UNSUPPORTED)
    }

    fn check_device_state(&self) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Ok(self.shmem_config())
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }
}
