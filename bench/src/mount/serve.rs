//! The threads that carry requests: each reads one, sends it to the daemon,
//! waits, and writes the reply. The last thread that waits for the kernel
//! starts another one before it carries a request, up to a limit, so that
//! requests that wait do not keep others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, bail};
use daxwindow_guest::session::Relay;
use daxwindow_shared::fuse::{InHeader, Opcode, OutHeader};
use daxwindow_shared::virtiofs::{FIRST_REQUEST_QUEUE, HIPRIO_QUEUE};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::device::Device;
use super::init::{trim_answer, trim_offer};
use super::request::{MOST_BYTES, Request};

/// How serving ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody uses the mount any more.
    Unmounted,
    /// The daemon is gone, or cannot be worked with; why.
    Gone(String),
}

/// Carries INIT, which comes before all others.
pub(super) fn first_request(device: &Device, relay: &Relay) -> Result<()> {
    let mut buffer = vec![0; MOST_BYTES];
    let Some(bytes) = device.read(&mut buffer)? else {
        bail!("the directory was unmounted before the daemon was asked");
    };
    let bytes = &mut buffer[..bytes];
    let offer = trim_offer(bytes);
    let request = Request::parse(bytes).filter(|r| r.opcode() == Some(Opcode::Init));
    let request = request.context("the kernel's first request is no INIT")?;
    let sent = relay.send(FIRST_REQUEST_QUEUE, &request.parts(), &request.room());
    let mut reply = request.checked(sent.context("INIT")?);
    trim_answer(&mut reply, offer);
    answer(device, &request, &reply);
    match OutHeader::read_from_prefix(&reply) {
        Ok((OutHeader { error: 0, .. }, _)) => Ok(()),
        Ok((header, _)) => bail!(
            "the daemon refuses the session: {}; its log says why",
            Errno::from_raw_os_error(header.error.saturating_neg())
        ),
        Err(_) => bail!("the daemon's answer to INIT is too short"),
    }
}

/// Tells the daemon that the session has ended, which Linux does for disks
/// only.
pub(super) fn last_request(relay: &Relay) -> Result<()> {
    let header = InHeader {
        len: size_of::<InHeader>() as u32,
        opcode: Opcode::Destroy as u32,
        // Those of the kernel are even.
        unique: 1,
        ..InHeader::default()
    };
    let bytes = header.as_bytes();
    let request = Request::parse(bytes).context("DESTROY")?;
    let sent = relay.send(FIRST_REQUEST_QUEUE, &request.parts(), &request.room());
    sent.map(drop).context("DESTROY")
}

/// Starts to serve; how that ends comes through the channel.
pub(super) fn start(
    device: &Arc<Device>,
    relay: &Arc<Relay>,
    most_threads: usize,
) -> Result<Receiver<End>> {
    let (ends, receiver) = channel();
    let carriers = Arc::new(Carriers {
        device: Arc::clone(device),
        relay: Arc::clone(relay),
        most: most_threads,
        threads: AtomicUsize::new(0),
        idle: AtomicUsize::new(0),
    });
    carriers.spawn(&ends).context("start a thread")?;
    Ok(receiver)
}

struct Carriers {
    device: Arc<Device>,
    relay: Arc<Relay>,
    most: usize,
    /// Those that were started.
    threads: AtomicUsize,
    /// Those that wait for a request of the kernel's.
    idle: AtomicUsize,
}

impl Carriers {
    /// Starts one more thread, unless there are as many as may be.
    fn spawn(self: &Arc<Self>, ends: &Sender<End>) -> std::io::Result<()> {
        let more = |threads| (threads < self.most).then_some(threads + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let Ok(index) = self.threads.fetch_update(set, get, more) else {
            return Ok(());
        };
        let (carriers, ends) = (Arc::clone(self), ends.clone());
        self.idle.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name(format!("carrier{index}"));
        let work = move || {
            let end = carriers.run(index, &ends);
            // The receiver may have ended with the word of another thread.
            let _ = ends.send(end);
        };
        let started = thread.spawn(work);
        if started.is_err() {
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    fn run(self: &Arc<Self>, index: usize, ends: &Sender<End>) -> End {
        let queue = FIRST_REQUEST_QUEUE + index % self.relay.request_queues();
        let mut buffer = vec![0; MOST_BYTES];
        loop {
            let bytes = match self.device.read(&mut buffer) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return End::Unmounted,
                Err(error) => return End::Gone(format!("{error:#}")),
            };
            self.keep_one_idle(ends);
            if let Some(request) = Request::parse(&buffer[..bytes])
                && let Err(error) = self.carry(queue, &request)
            {
                return End::Gone(format!("{error:#}"));
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// To be called by a thread that was idle.
    fn keep_one_idle(self: &Arc<Self>, ends: &Sender<End>) {
        let was_last = self.idle.fetch_sub(1, Ordering::Relaxed) == 1;
        if was_last && let Err(error) = self.spawn(ends) {
            tracing::warn!("one thread fewer to carry requests: {error}");
        }
    }

    /// An error means that no request can be carried any more.
    fn carry(&self, queue: usize, request: &Request<'_>) -> Result<(), daxwindow_guest::Error> {
        let queue = match request.opcode() {
            // A virtio-fs device has no use for it.
            Some(Opcode::Interrupt) => return Ok(()),
            Some(Opcode::Forget | Opcode::BatchForget) => HIPRIO_QUEUE,
            _ => queue,
        };
        let sent = self.relay.send(queue, &request.parts(), &request.room());
        let reply = match sent {
            Ok(reply) => request.checked(reply),
            Err(error @ daxwindow_guest::Error::Local { .. }) => request.failed(error.errno()),
            Err(error) => return Err(error),
        };
        if !request.is_oneway() {
            answer(&self.device, request, &reply);
        }
        Ok(())
    }
}

/// A reply that the kernel refuses must not leave its request waiting. One
/// for which nobody waits any more is no error.
fn answer(device: &Device, request: &Request<'_>, reply: &[u8]) {
    if let Err(errno) = device.write(reply)
        && errno != Errno::NOENT
    {
        tracing::warn!(opcode = request.header.opcode, %errno, "the kernel refuses the reply");
        let _ = device.write(&request.failed(Errno::IO));
    }
}
