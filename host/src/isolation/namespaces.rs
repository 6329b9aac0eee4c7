//! Leaving the host's namespaces.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use rustix::thread::UnshareFlags;

use super::IsolationError;
use super::idmap::IdMaps;
use super::sys::{self, Fork};

/// Children of this process are in a process namespace of their own from now
/// on; and with `maps` it is in a user namespace, with those ids.
pub(super) fn prepare(maps: Option<&IdMaps>) -> Result<(), IsolationError> {
    let Some(maps) = maps else {
        return unshare("leave the process namespace", UnshareFlags::NEWPID);
    };
    // The ids are given from outside, so somebody has to stay there.
    let scribe = Scribe::start(maps)?;
    unshare(
        "make a user namespace",
        UnshareFlags::NEWUSER | UnshareFlags::NEWPID,
    )?;
    scribe.write().map_err(IsolationError::IdMaps)
}

/// Nothing of the host's mounts, network and IPC is seen by this process from
/// now on; mounts still are copies of the host's.
pub(super) fn enter() -> Result<(), IsolationError> {
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    unshare("leave the mount, network and IPC namespaces", namespaces)
}

fn unshare(action: &'static str, namespaces: UnshareFlags) -> Result<(), IsolationError> {
    sys::unshare(namespaces).map_err(|cause| IsolationError::Namespaces { action, cause })
}

/// A process that waits outside to write id maps.
struct Scribe {
    pid: Pid,
    line: UnixStream,
}

impl Scribe {
    fn start(maps: &IdMaps) -> Result<Scribe, IsolationError> {
        let failed = |cause| IsolationError::process("make a process", cause);
        let whom = getpid();
        let (line, mut other) = UnixStream::pair().map_err(failed)?;
        match sys::fork().map_err(failed)? {
            Fork::Parent(pid) => Ok(Scribe { pid, line }),
            Fork::Child => {
                drop(line);
                let mut go = [0];
                if other.read_exact(&mut go).is_ok() {
                    let said = maps.write(whom).err().unwrap_or_default();
                    let _ = other.write_all(said.as_bytes());
                    let _ = other.write_all(b".");
                }
                std::process::exit(0);
            }
        }
    }

    /// Has the maps written.
    fn write(mut self) -> Result<(), String> {
        let mut said = String::new();
        let told = self.line.write_all(b".");
        let heard = told.and_then(|()| self.line.read_to_string(&mut said));
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
        heard.map_err(|cause| cause.to_string())?;
        match said.strip_suffix('.') {
            Some("") => Ok(()),
            Some(error) => Err(error.to_owned()),
            None => Err("the process that writes them ended".to_owned()),
        }
    }
}
