//! What the serving process can reach by a path: a share, or nothing.
//!
//! Law: a directory that is handed on is the root of a mount of its own, where
//! the kernel gives one, so that not even `..` leads out of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::IsolationError;
use super::sys;

/// `MOUNT_ATTR_*` of linux/mount.h.
const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;

/// A directory to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its path.
    pub path: PathBuf,
    /// Nothing is to be changed there.
    pub readonly: bool,
}

/// What the serving process finds at `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The one share there is.
    Share(Tree),
    /// Nothing, for the shares have no place in common.
    Empty {
        /// Those that are there from the start.
        trees: Vec<Tree>,
        /// Whether others may come.
        more: bool,
    },
}

impl Root {
    /// The directories, in order.
    pub(super) fn trees(&self) -> &[Tree] {
        match self {
            Root::Share(tree) => std::slice::from_ref(tree),
            Root::Empty { trees, .. } => trees,
        }
    }
}

/// Directories as they are found once inside.
pub(super) struct Inside {
    /// The roots of the trees, `O_PATH`, in order.
    pub trees: Vec<OwnedFd>,
    /// `/proc/self/fd`, which is the working directory, too; none where it is
    /// to be found by path as before.
    pub proc_fd: Option<OwnedFd>,
}

/// The tree of mounts at `path` as one of its own, attached to nothing; set-id
/// bits and device nodes mean nothing there.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`, and whatever the path is wrong with.
pub fn clone_tree(tree: &Tree) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(CWD, &tree.path, flags)?;
    let mode = rustix::fs::fstat(&mount)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode) != rustix::fs::FileType::Directory {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    let readonly = if tree.readonly { RDONLY } else { 0 };
    sys::mount_setattr(mount.as_fd(), NOSUID | NODEV | readonly)?;
    Ok(mount)
}

/// In a mount namespace of our own: leaves everything behind but the trees.
pub(super) fn pivot(root: &Root) -> Result<Inside, IsolationError> {
    let failed =
        |action| move |cause: rustix::io::Errno| IsolationError::root(action, cause.into());
    // What the host mounts below a share is to be seen, and nothing of ours
    // out there.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(failed("make mounts private"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let proc_fd = rustix::mount::open_tree(CWD, "/proc/self/fd", flags)
        .map_err(failed("keep /proc/self/fd"))?;
    let clone = |tree: &Tree| clone_tree(tree).map_err(|cause| IsolationError::tree(tree, cause));
    let mut trees = Vec::new();
    let new_root = match root {
        Root::Share(tree) => clone(tree)?,
        Root::Empty { trees: several, .. } => {
            trees = several.iter().map(clone).collect::<Result<_, _>>()?;
            empty().map_err(|cause| IsolationError::root("make an empty root", cause))?
        }
    };
    pivot_into(&new_root).map_err(|cause| IsolationError::root("change the root", cause))?;
    if let Root::Share(_) = root {
        trees.push(open_path("/").map_err(failed("open the new root"))?);
    }
    rustix::process::fchdir(&proc_fd).map_err(failed("enter /proc/self/fd"))?;
    Ok(Inside {
        trees,
        proc_fd: Some(proc_fd),
    })
}

/// In a mount namespace of our own: leaves everything behind.
pub(super) fn pivot_into_nothing() -> io::Result<()> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave)?;
    pivot_into(&empty()?)
}

/// A directory in which nothing is and nothing can be made.
fn empty() -> io::Result<OwnedFd> {
    use rustix::mount as m;
    let context = m::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    m::fsconfig_set_string(&context, "mode", "0555")?;
    m::fsconfig_set_string(&context, "nr_inodes", "1")?;
    m::fsconfig_set_string(&context, "size", "4096")?;
    m::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(m::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn pivot_into(mount: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, "/", flags)?;
    rustix::process::fchdir(mount)?;
    // The old root ends up on top of the new one, pivot_root(2), and goes.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Without namespaces: the share becomes `/` all the same, which keeps paths
/// in but no descriptor.
pub(super) fn chroot(root: &Root) -> Result<Inside, IsolationError> {
    let failed =
        |action| move |cause: rustix::io::Errno| IsolationError::root(action, cause.into());
    let proc_fd = open_path("/proc/self/fd").map_err(failed("open /proc/self/fd"))?;
    let open = |tree: &Tree| {
        open_path(&tree.path).map_err(|cause| IsolationError::tree(tree, cause.into()))
    };
    let trees: Vec<OwnedFd> = root.trees().iter().map(open).collect::<Result<_, _>>()?;
    let nothing;
    let new_root = match (root, trees.first()) {
        (Root::Share(_), Some(share)) => share,
        _ => {
            nothing = removed_directory()
                .map_err(|cause| IsolationError::root("make an empty root", cause))?;
            &nothing
        }
    };
    rustix::process::fchdir(new_root).map_err(failed("enter the new root"))?;
    rustix::process::chroot(".").map_err(failed("change the root"))?;
    rustix::process::fchdir(&proc_fd).map_err(failed("enter /proc/self/fd"))?;
    Ok(Inside {
        trees,
        proc_fd: Some(proc_fd),
    })
}

/// Without anything: only opens.
pub(super) fn open(root: &Root) -> Result<Inside, IsolationError> {
    let open = |tree: &Tree| {
        open_path(&tree.path).map_err(|cause| IsolationError::tree(tree, cause.into()))
    };
    let trees = root.trees().iter().map(open).collect::<Result<_, _>>()?;
    Ok(Inside {
        trees,
        proc_fd: None,
    })
}

/// What to say besides of a directory that cannot be opened.
pub(crate) fn what_to_share(cause: &io::Error) -> &'static str {
    match cause.kind() {
        // Linux takes nothing else for the root of a virtio-fs mount.
        io::ErrorKind::NotADirectory => {
            "; guests mount directories only: share the one that the file is in"
        }
        _ => "",
    }
}

fn open_path(path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path.as_ref(), flags, Mode::empty())
}

/// In a directory that has no name any more, nothing can be made.
fn removed_directory() -> io::Result<OwnedFd> {
    let path = std::env::temp_dir().join(format!("daxwindowd-{}", std::process::id()));
    std::fs::create_dir(&path)?;
    let opened = open_path(&path);
    std::fs::remove_dir(&path)?;
    Ok(opened?)
}
