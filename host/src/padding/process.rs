//! The process that serves the padded view.
//!
//! FUSE passthrough wants `CAP_SYS_ADMIN`, and what serves a guest must not
//! have it. So one process has it and does nothing else: it has no guest, no
//! share and no path to anything, and opens no file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::RecvFlags;

use super::orders::{receive, send};
use super::server::PaddedServer;
use super::view::{Mount, PaddedView};
use crate::isolation::seccomp::Seccomp;
use crate::isolation::{Alone, spawn};
use crate::logs::writer;

/// Its word that it serves; anything else is a sentence that says why not.
const READY: &[u8] = &[0];
/// Most bytes of such a sentence.
const MAX_SENTENCE: usize = 256;

/// Starts it, and returns once it serves; it ends when this process does, or
/// with the view. Needs `CAP_SYS_ADMIN`, of which more than this process are
/// to give up, and a process without threads. `keep` is what it logs to.
///
/// # Errors
///
/// What the kernel says.
pub fn start(seccomp: Seccomp, keep: &[RawFd]) -> io::Result<PaddedView> {
    let Mount { device, root } = Mount::new()?;
    let keep = [keep, &[device.as_raw_fd()]].concat();
    let line = spawn(c"daxwindowd-pad", &keep, |line| run(line, device, seccomp))?;
    let word = receive(&line, RecvFlags::empty())?.bytes;
    match &word[..] {
        READY => Ok(PaddedView::of(root, line)),
        [] => Err(io::Error::other("it ended at once")),
        why => Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
    }
}

/// The life of the process.
fn run(line: OwnedFd, device: OwnedFd, seccomp: Seccomp) {
    let line = Arc::new(line);
    match ready(&line, device, seccomp) {
        Ok(server) if send(&line, READY, None).is_ok() => server.until_the_end(),
        Ok(_) => {}
        Err(why) => {
            let why = why.as_bytes();
            let _ = send(&line, why.get(..MAX_SENTENCE).unwrap_or(why), None);
        }
    }
}

/// The server, in a process that can do nothing else any more.
fn ready(line: &Arc<OwnedFd>, device: OwnedFd, seccomp: Seccomp) -> Result<PaddedServer, String> {
    let isolated = |cause| format!("cannot isolate the process that pads: {cause}");
    let device = lowest(device).map_err(|cause| format!("cannot keep /dev/fuse: {cause}"))?;
    let alone = Alone::with_sys_admin().map_err(isolated)?;
    let server = PaddedServer::start(device, line.clone())
        .map_err(|cause| format!("cannot serve the view: {cause}"))?;
    alone.pads_only(seccomp).map_err(isolated)?;
    // Without it a log that is not read holds up what is padded meanwhile.
    let _ = writer::start();
    Ok(server)
}

/// The same under the lowest number there is. A process that ends closes its
/// descriptors in order of number, and the connection of the view must end
/// before anything is closed that another file system may keep waiting.
fn lowest(device: OwnedFd) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(&device, 3)
}
