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
//! Needs Linux 6.9 and `CAP_SYS_ADMIN`. Live mappings outlive the view.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyEmpty,
    ReplyEntry, ReplyOpen, Request, SessionACL,
};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Size every file claims: beyond any range a guest can ask for, and a
/// multiple of every page size.
const CLAIMED_BYTES: u64 = 1 << 62;
/// Attributes never change, so the kernel need not ask twice.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// A running view. Dropping it ends the file system; descriptors opened
/// through it keep their mappings.
pub struct PaddedView {
    root: OwnedFd,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    session: Option<BackgroundSession>,
}

impl std::fmt::Debug for PaddedView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PaddedView").finish_non_exhaustive()
    }
}

/// Files on their way through an open of the view, by inode number there, and
/// whether that open is for writing.
type Waiting = Mutex<HashMap<u64, (Arc<OwnedFd>, bool)>>;

/// The file system, mounted nowhere and not served yet.
pub struct Mount {
    device: OwnedFd,
    root: OwnedFd,
}

impl Mount {
    /// Mounts it.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn new() -> std::io::Result<Mount> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|errno| {
            let cause = std::io::Error::from(errno);
            std::io::Error::new(cause.kind(), format!("/dev/fuse: {cause}"))
        })?;
        let root = mount(&device)?;
        Ok(Mount { device, root })
    }

    /// Starts the thread that serves it.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` on a kernel without FUSE passthrough.
    pub fn serve(self) -> std::io::Result<PaddedView> {
        let Mount { device, root } = self;
        let waiting = Arc::new(Waiting::default());
        let files = Files {
            waiting: waiting.clone(),
            backings: Mutex::default(),
        };
        let session = fuser::Session::from_fd(files, device, SessionACL::All, Config::default())?;
        let session = session.spawn()?;
        Ok(PaddedView {
            root,
            waiting,
            next: AtomicU64::new(2),
            session: Some(session),
        })
    }
}

impl PaddedView {
    /// Mounts the view and starts its thread.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`, `EOPNOTSUPP` on a kernel without FUSE
    /// passthrough.
    pub fn new() -> std::io::Result<PaddedView> {
        Mount::new()?.serve()
    }

    /// The descriptor in which its files are opened.
    pub fn root_fd(&self) -> RawFd {
        self.root.as_raw_fd()
    }

    /// A descriptor that maps the pages of `file` and claims room past its
    /// end. `writable` needs a `file` open for reading and writing.
    pub fn pad(&self, file: &Arc<OwnedFd>, writable: bool) -> Result<Arc<OwnedFd>, Errno> {
        // An inode of the view has one backing file for life, so every
        // descriptor gets an inode of its own.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(number, (file.clone(), writable));
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let name = number.to_string();
        let opened = rustix::fs::openat(&self.root, name, access | OFlags::CLOEXEC, Mode::empty());
        self.waiting.lock().remove(&number);
        opened.map(Arc::new)
    }
}

impl Drop for PaddedView {
    fn drop(&mut self) {
        // The session ends when the kernel drops the mount, which happens
        // when the last descriptor opened through it is closed: it must not
        // be waited for here.
        drop(self.session.take());
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
    // and looks at the size. Whoever is given none finds no way in: the mount
    // is nowhere, and an open is answered once.
    m::fsconfig_set_flag(&context, "allow_other")?;
    m::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    m::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The file system itself: a flat directory whose names are numbers.
struct Files {
    waiting: Arc<Waiting>,
    /// Backing files by handle, registered until the handle is released.
    backings: Mutex<HashMap<u64, fuser::BackingId>>,
}

impl Files {
    fn is_file(&self, inode: INodeNo) -> bool {
        inode != INodeNo::ROOT
    }
}

fn attributes(inode: INodeNo) -> FileAttr {
    let directory = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if directory { 0 } else { CLAIMED_BYTES },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if directory { 0o500 } else { 0o600 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let unsupported = || std::io::Error::from(Errno::OPNOTSUPP);
        config
            .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
            .map_err(|_| unsupported())?;
        // Depth 2 lets a backing file lie on a stacked file system itself.
        config
            .set_max_stack_depth(2)
            .map(|_| ())
            .map_err(|_| unsupported())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse().ok());
        match number
            .filter(|number| parent == INodeNo::ROOT && self.waiting.lock().contains_key(number))
        {
            Some(number) => {
                reply.entry(&Duration::ZERO, &attributes(INodeNo(number)), Generation(0));
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(inode));
    }

    /// Once for each: only the descriptor that `pad` asks for is ever opened,
    /// and with the access that it asks for, since the kernel opens the file
    /// behind it with the same.
    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let waiting = self.waiting.lock().remove(&inode.0);
        let Some((file, writable)) = waiting.filter(|_| self.is_file(inode)) else {
            reply.error(fuser::Errno::ENOENT);
            return;
        };
        let allowed = match writable {
            true => OpenAccMode::O_RDWR,
            false => OpenAccMode::O_RDONLY,
        };
        if flags.acc_mode() != allowed {
            reply.error(fuser::Errno::EACCES);
            return;
        }
        match reply.open_backing(&*file) {
            Ok(backing) => {
                reply.opened_passthrough(FileHandle(inode.0), FopenFlags::empty(), &backing);
                self.backings.lock().insert(inode.0, backing);
            }
            Err(error) => {
                tracing::debug!(%error, "padded view: the file cannot back a passthrough");
                reply.error(fuser::Errno::EOPNOTSUPP);
            }
        }
    }

    /// Once, and the kernel asks no more.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.backings.lock().remove(&handle.0);
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{SeekFrom, seek};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn share(file: &File) -> Arc<OwnedFd> {
        Arc::new(file.try_clone().expect("clone").into())
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
        let padded = view.pad(&share(&file), true).expect("padded");
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
        let padded = view.pad(&share(&file), false).expect("padded");
        let shown = mapped(&padded, 0, 10);
        drop(view);
        assert_eq!(shown, b"still here");
    }
}
