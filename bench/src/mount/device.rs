//! `/dev/fuse`, and the mount over the directory.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const PATH: &str = "/dev/fuse";
/// What `/proc/mounts` calls it: FUSE, of this program.
const KIND: &str = "fuse.daxwindow";

/// Who may do what in the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub readonly: bool,
    /// Other users than the one who mounts.
    pub others: bool,
}

/// The kernel's end of a FUSE connection. When the last one who has it open
/// closes it, the kernel fails all that is done in the directory.
pub(super) struct Device {
    file: File,
}

impl Device {
    /// Mounts over `directory`; nothing is served yet.
    pub(super) fn mount(socket: &Path, directory: &Path, access: Access) -> Result<Device> {
        let file = File::options().read(true).write(true).open(PATH);
        let file = file.with_context(|| {
            format!("open {PATH}; where it does not exist, modprobe fuse makes it")
        })?;
        let source = CString::new(socket.as_os_str().as_bytes()).context("the socket's path")?;
        let options = CString::new(options(&file, access)).context("mount options")?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, access.readonly);
        mount(&*source, directory, KIND, flags, &*options)
            .map_err(anyhow::Error::new)
            .with_context(|| format!("mount on {}{}", directory.display(), cure(directory)))?;
        Ok(Device { file })
    }

    /// The next request; `None` once the connection has ended.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.file, &mut *buffer) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(Errno::NODEV) => return Ok(None),
                // ENOENT: the request was interrupted before it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(errno) => return Err(errno).context(format!("read {PATH}")),
            }
        }
    }

    /// Answers a request.
    pub(super) fn write(&self, reply: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.file, reply).map(drop)
    }
}

/// The permissions are checked by the kernel, as in a guest.
fn options(file: &File, access: Access) -> String {
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        file.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    if access.others {
        options.push_str(",allow_other");
    }
    options
}

fn cure(directory: &Path) -> &'static str {
    match (directory.is_dir(), rustix::process::geteuid().is_root()) {
        (false, _) => ", which is no directory",
        (true, true) => "",
        (true, false) => {
            ", which needs root, or a namespace where this user is: \
             unshare --map-root-user --mount"
        }
    }
}

/// Takes the mount out of the directory tree; it ends with its last user.
pub(super) fn detach(directory: &Path) -> Result<()> {
    let done = unmount(directory, UnmountFlags::DETACH);
    done.with_context(|| format!("unmount {}", directory.display()))
}
