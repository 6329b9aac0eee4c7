//! Takes the guest's memory from threads that are given up.
//!
//! A thread that is stuck in a request has buffers in guest memory, and so may
//! a system call in which it is stuck. The guest uses that memory for
//! something else once the stop or the reset is acknowledged. So the guest's
//! files are mapped once more for all requests to come, and the mapping that
//! the others have is taken away, see `sigbus::withdraw`.
//!
//! Requests of queues that were not stopped use the old mapping as well. Those
//! that take no longer than [`PATIENCE`] are waited for; others fail with
//! `EIO`, which is put where the guest expects it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegion;
use vm_memory::{
    GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::device_queue::DeviceQueue;
use super::handler::RequestHandler;

/// How long requests of other queues may still use what is replaced.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Leaves `given_up` threads without the guest's memory, and others with
/// another mapping of it.
pub(crate) fn withdraw(handler: &RequestHandler, queues: &[Arc<DeviceQueue>], given_up: u32) {
    let old = handler.memory.memory().into_inner();
    let fresh = map_again(&old).unwrap_or_else(|error| {
        tracing::error!(%error, "guest memory cannot be mapped again: its queues stand still");
        GuestMemoryMmap::new()
    });
    if let Err(error) = handler.watch(&fresh) {
        tracing::error!(%error, "guest memory cannot be watched");
    }
    handler.replace_memory(fresh);
    queues.iter().for_each(|queue| queue.ring().pass());
    let deadline = Instant::now() + PATIENCE;
    // One of them is this function's.
    let others = |old: &Arc<_>| Arc::strong_count(old) - 1;
    while others(&old) > given_up as usize && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
    drop(old);
    handler.take_back_memory();
}

fn map_again(memory: &GuestMemoryMmap) -> io::Result<GuestMemoryMmap> {
    let regions = memory.iter().map(region_again);
    let regions = regions.collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_arc_regions(regions).map_err(io::Error::other)
}

/// The same file, mapped once more. What is of no file stays as it is.
fn region_again(region: &GuestRegionMmap) -> io::Result<Arc<GuestRegionMmap>> {
    let mapping = region.get_mmap();
    let mapping = match mapping.file_offset() {
        None => mapping,
        Some(file) => {
            let (prot, flags) = (mapping.prot(), mapping.flags());
            let again = MmapRegion::build(Some(file.clone()), mapping.size(), prot, flags);
            Arc::new(again.map_err(io::Error::other)?)
        }
    };
    let region = GuestRegionMmap::with_arc(mapping, region.start_addr());
    region
        .map(Arc::new)
        .ok_or(io::ErrorKind::InvalidInput.into())
}
