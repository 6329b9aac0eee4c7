//! The padded view: files that look longer than they are.
//!
//! Some front ends refuse to map past the end of a file, and a guest always
//! asks for whole ranges. This is a FUSE file system of the daemon's own,
//! mounted nowhere (the mount exists as a descriptor only), whose files claim
//! an enormous size and hand every mapping to a file of the share by FUSE
//! passthrough. A descriptor opened there shows a front end room enough, while
//! the pages it maps are the page cache of the real file: coherent both ways,
//! ending where the file ends, growing as it grows. Nothing can be grown or
//! truncated through it.
//!
//! This is its client: it hands a descriptor to the server
//! (`server`) and opens it under a number.
//!
//! Laws: the server never waits for the file system of a file. That file
//! system is asked by the kernel in the thread that opens the padded file, so
//! that nobody else waits for its answer. What opens in the view is another
//! process than the one that serves it, so that the end of the server ends
//! the requests of those who wait for it.
//!
//! Needs Linux 6.9 and `CAP_SYS_ADMIN`. Live mappings outlive the view.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::IntoBytes;

use super::orders::{Order, send};
use super::server::PaddedServer;

/// The client's half of a view. Dropping it ends the view; descriptors opened
/// through it keep their mappings.
#[derive(Debug)]
pub struct PaddedView {
    root: OwnedFd,
    /// To the server.
    line: OwnedFd,
    next_number: AtomicU64,
    next_share: AtomicU32,
    gone: AtomicBool,
}

/// The file system, mounted nowhere and not served yet.
pub(super) struct Mount {
    /// The server's half.
    pub(super) device: OwnedFd,
    /// The client's: the directory in which files are opened.
    pub(super) root: OwnedFd,
}

impl Mount {
    /// Mounts it.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub(super) fn new() -> std::io::Result<Mount> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|errno| {
            let cause = std::io::Error::from(errno);
            std::io::Error::new(cause.kind(), format!("/dev/fuse: {cause}"))
        })?;
        let root = mount(&device)?;
        Ok(Mount { device, root })
    }
}

impl PaddedView {
    /// Mounts a view and serves it by threads of this process, which must not
    /// be killed while it opens a file.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`, `EOPNOTSUPP` on a kernel without FUSE
    /// passthrough.
    pub fn new() -> std::io::Result<PaddedView> {
        let Mount { device, root } = Mount::new()?;
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let server = PaddedServer::start(device, Arc::new(theirs))?;
        std::thread::Builder::new()
            .name("padding".into())
            .spawn(move || server.until_the_end())?;
        Ok(PaddedView::of(root, ours))
    }

    /// The client of a server at the other end of `line`.
    pub(super) fn of(root: OwnedFd, line: OwnedFd) -> PaddedView {
        PaddedView {
            root,
            line,
            // The root is 1.
            next_number: AtomicU64::new(2),
            next_share: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// The directory in which padded files are opened.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A number for a share, to tell its files from those of others.
    pub(super) fn next_share(&self) -> u32 {
        self.next_share.fetch_add(1, Ordering::Relaxed)
    }

    /// A descriptor that maps the pages of `file` of a share and claims room
    /// past its end. `writable` needs a `file` open for reading and writing.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn pad(&self, share: u32, file: &OwnedFd, writable: bool) -> Result<Arc<OwnedFd>, Errno> {
        // An inode of the view has one backing file for life, so every
        // descriptor gets an inode of its own.
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (what, access) = match writable {
            true => (Order::WRITE, OFlags::RDWR),
            false => (Order::READ, OFlags::RDONLY),
        };
        let order = Order {
            number,
            share,
            what,
        };
        let opened = send(&self.line, order.as_bytes(), Some(file)).and_then(|()| {
            let flags = access | OFlags::CLOEXEC;
            openat(&self.root, number.to_string(), flags, Mode::empty())
        });
        if opened.is_err() {
            self.give_up(order);
        }
        opened.map(Arc::new)
    }

    /// Takes back an order that may not have been carried out.
    fn give_up(&self, order: Order) {
        let what = Order::WITHDRAW;
        // If it cannot be sent, there is nobody to take it back from.
        let _ = send(&self.line, Order { what, ..order }.as_bytes(), None);
        self.has_ended();
    }

    /// Finds out whether the server has ended, by asking it.
    pub fn has_ended(&self) -> bool {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let has_ended = statx(&self.root, "", flags, StatxFlags::TYPE).is_err();
        if has_ended && !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "dax: the process that pads files has ended; front ends that refuse ranges past \
                 the end of a file get no DAX for further files until the daemon is restarted"
            );
        }
        has_ended
    }

    /// Whether the server was found to have ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// A FUSE mount that is attached to no directory.
fn mount(device: &OwnedFd) -> Result<OwnedFd, Errno> {
    use rustix::mount as m;
    let context = m::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    m::fsconfig_set_string(&context, "fd", device.as_raw_fd().to_string())?;
    m::fsconfig_set_string(&context, "rootmode", "040000")?;
    m::fsconfig_set_string(
        &context,
        "user_id",
        rustix::process::geteuid().as_raw().to_string(),
    )?;
    m::fsconfig_set_string(
        &context,
        "group_id",
        rustix::process::getegid().as_raw().to_string(),
    )?;
    // The VMM that is given a descriptor may be another user's than the daemon,
    // and looks at the size. Nobody else finds a way in: the mount is nowhere,
    // and an open is answered once.
    m::fsconfig_set_flag(&context, "allow_other")?;
    m::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    m::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{SeekFrom, seek};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn share(file: &File) -> OwnedFd {
        file.try_clone().expect("clone").into()
    }

    /// Reads through a mapping, as a front end would.
    fn mapped(fd: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
        #[allow(unsafe_code)]
        // SAFETY: the test's file is not truncated while the mapping lives,
        // and only bytes below its end are touched.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                2 << 20,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::SHARED,
                fd,
                offset,
            )
        }
        .expect("maps past the end");
        #[allow(unsafe_code)]
        // SAFETY: `len` bytes lie in the mapping and below the file's end.
        let bytes = unsafe { std::slice::from_raw_parts(map.cast::<u8>(), len) }.to_vec();
        #[allow(unsafe_code)]
        // SAFETY: the mapping made above; no reference into it is left.
        unsafe { rustix::mm::munmap(map, 2 << 20) }.expect("unmaps");
        bytes
    }

    #[test]
    fn a_padded_file_is_long_and_shows_the_real_bytes() {
        let view = PaddedView::new().expect("root, Linux 6.9");
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(b"hello", 0).expect("written");
        let padded = view.pad(0, &share(&file), true).expect("padded");
        assert!(seek(&*padded, SeekFrom::End(0)).expect("seek") >= 1 << 40);
        assert_eq!(mapped(&padded, 0, 5), b"hello");
        // Growth and change are seen, nothing has grown by itself.
        file.write_all_at(b"HELLO, world", 0).expect("written");
        assert_eq!(mapped(&padded, 0, 12), b"HELLO, world");
        assert_eq!(file.metadata().expect("stat").len(), 12);
        let stat = rustix::fs::fstat(&*padded).expect("stat");
        assert!(stat.st_size as u64 >= 1 << 40);
    }

    #[test]
    fn the_view_lets_nobody_else_in_and_ends_cleanly() {
        let view = PaddedView::new().expect("root, Linux 6.9");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        for name in ["2", "0", "x", "18446744073709551615"] {
            let opened = rustix::fs::openat(&view.root, name, flags, Mode::empty());
            assert_eq!(opened.map(|_| ()), Err(Errno::NOENT), "{name}");
        }
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(b"still here", 0).expect("written");
        let padded = view.pad(0, &share(&file), false).expect("padded");
        let shown = mapped(&padded, 0, 10);
        drop(view);
        assert_eq!(shown, b"still here");
    }
}
