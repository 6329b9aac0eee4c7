//! From one process to the two that a daemon consists of: one serves, and has
//! given up everything else; one stays outside and looks after it.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use ::caps::{Capability, CapsHashSet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal, setsid};

use super::idmap::IdMaps;
use super::landlock::Fence;
use super::root::Root;
use super::seccomp::Seccomp;
use super::supervisor::{self, Word};
use super::sys::{self, Fork};
use super::{IsolationError, Options, Sandbox, calls, caps, landlock, namespaces, root, signals};
use crate::listen::main_pid;
use crate::listen::socket::SocketFile;
use crate::procfd::ProcFd;

/// What is to be isolated, and how.
pub struct Plan<'a> {
    /// The operator's choice.
    pub options: &'a Options,
    /// What is to be served.
    pub root: Root,
    /// Inodes are opened by handle, which takes `CAP_DAC_READ_SEARCH`.
    pub file_handles: bool,
    /// Files of sockets that listen, to be removed at the end.
    pub files: Vec<SocketFile>,
    /// What is logged to, besides standard error.
    pub logs: Vec<RawFd>,
    /// The directory in which padded files are opened.
    pub view: Option<BorrowedFd<'a>>,
    /// What the daemon was started with and has no use for. The process that
    /// was called keeps it, the one that serves, if that is another, does not.
    pub strays: Vec<RawFd>,
}

/// What the serving process has in hand.
pub struct Inside {
    trees: Vec<OwnedFd>,
    files: Vec<SocketFile>,
    outside: Outside,
}

/// Who does what can only be done outside.
enum Outside {
    Supervisor(UnixStream),
    /// Nobody: this process is outside itself.
    Here,
}

impl Inside {
    /// A descriptor, `O_PATH`, of a directory of the plan, by its place there.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none, and when descriptors have run out.
    pub fn tree(&self, index: usize) -> std::io::Result<OwnedFd> {
        self.trees.get(index).ok_or(Errno::NOENT)?.try_clone()
    }

    /// Closes the directories; who serves one has a descriptor of its own.
    pub fn close_trees(&mut self) {
        self.trees.clear();
    }

    /// Files of sockets that nobody outside removes, to be dropped at the end.
    pub fn take_files(&mut self) -> Vec<SocketFile> {
        std::mem::take(&mut self.files)
    }

    /// Signals have handlers: they are heeded from now on.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn heeds_signals(&self) -> Result<(), IsolationError> {
        signals::release()?;
        self.tell(Word::Heeding, "");
        Ok(())
    }

    /// Guests may come; `summary` says in a line how things are.
    pub fn is_ready(&self, summary: &str) {
        self.tell(Word::Ready, summary);
    }

    /// Things are otherwise now, as `summary` says.
    pub fn has_changed(&self, summary: &str) {
        self.tell(Word::Status, summary);
    }

    /// The daemon is about to end in order.
    pub fn is_stopping(&self) {
        self.tell(Word::Stopping, "");
    }

    fn tell(&self, word: Word, summary: &str) {
        match &self.outside {
            Outside::Supervisor(line) => {
                // Who has gone took this process along, or is about to.
                let _ = (&mut &*line).write_all(&word.as_line(summary));
            }
            Outside::Here => supervisor::tell_service_manager(word, summary),
        }
    }
}

/// Isolates the process. Returns in the process that serves, which must not
/// have had a thread before: to be called once everything is opened that
/// lies outside. The process that was called, if that is another, returns
/// nowhere, but ends with the exit code of the one that serves.
///
/// # Errors
///
/// [`IsolationError`].
pub fn launch(plan: Plan<'_>) -> Result<Inside, IsolationError> {
    main_pid();
    let read_search = Capability::CAP_DAC_READ_SEARCH;
    if plan.file_handles && plan.options.modcaps.drops(read_search) {
        return Err(IsolationError::NeedsReadSearch);
    }
    let of_the_file = caps::of_the_file()?;
    let maps = !plan.options.uid_map.is_empty() || !plan.options.gid_map.is_empty();
    match plan.options.sandbox {
        Sandbox::Namespace => in_namespaces(plan, of_the_file),
        _ if maps => Err(IsolationError::MapsWithoutNamespace),
        Sandbox::Chroot if !caps::has(Capability::CAP_SYS_CHROOT) => {
            Err(IsolationError::ChrootNotRoot)
        }
        Sandbox::Chroot => fork(plan, of_the_file, |plan| root::chroot(&plan.root)),
        Sandbox::None => here(plan, &of_the_file),
    }
}

fn in_namespaces(plan: Plan<'_>, of_the_file: CapsHashSet) -> Result<Inside, IsolationError> {
    let options = plan.options;
    let asked = !options.uid_map.is_empty() || !options.gid_map.is_empty();
    let maps = (asked || !caps::has(Capability::CAP_SYS_ADMIN))
        .then(|| IdMaps::new(&options.uid_map, &options.gid_map));
    namespaces::prepare(maps.as_ref())?;
    let withheld = match maps {
        // In a user namespace of its own there are others.
        Some(_) => CapsHashSet::new(),
        None => of_the_file,
    };
    fork(plan, withheld, |plan| {
        namespaces::enter()?;
        // As who was called, who may be the only one to see the directory.
        let inside = root::pivot(&plan.root)?;
        if let Some(maps) = maps {
            let (uid, gid) = maps.inside();
            // Groups that are not to be left are those of the user's own.
            let _ = sys::drop_groups();
            sys::become_user(uid, gid)
                .map_err(|cause| IsolationError::process("become root inside", cause))?;
        }
        Ok(inside)
    })
}

/// Makes the serving process, which then does `enter` and keeps none of the
/// capabilities `withheld`.
fn fork(
    plan: Plan<'_>,
    withheld: CapsHashSet,
    enter: impl FnOnce(&Plan<'_>) -> Result<root::Inside, IsolationError>,
) -> Result<Inside, IsolationError> {
    let failed = |action| move |cause| IsolationError::process(action, cause);
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a pair of sockets"))?;
    match sys::fork().map_err(failed("make a process"))? {
        Fork::Parent(pid) => {
            drop(theirs);
            supervisor::supervise(pid, ours, plan)
        }
        Fork::Child => {
            drop(ours);
            let mut plan = plan;
            #[allow(unsafe_code)]
            // SAFETY: nobody owns what came through an exec, but for what
            // `inherited` was told to leave out.
            unsafe {
                sys::close_strays(&plan.strays);
            }
            plan.files.drain(..).for_each(SocketFile::leave);
            // Signals from the terminal come by way of the supervisor.
            setsid().map_err(|errno| failed("leave the session")(errno.into()))?;
            let inside = enter(&plan)?;
            drop_groups()?;
            follow(&theirs)?;
            lock(&plan, &inside.trees, &withheld, calls::serving())?;
            if let Some(proc_fd) = inside.proc_fd {
                ProcFd::is_working_directory(proc_fd);
            }
            Ok(Inside {
                trees: inside.trees,
                files: Vec::new(),
                outside: Outside::Supervisor(theirs),
            })
        }
    }
}

fn here(plan: Plan<'_>, withheld: &CapsHashSet) -> Result<Inside, IsolationError> {
    let inside = root::open(&plan.root)?;
    drop_groups()?;
    lock(&plan, &inside.trees, withheld, calls::serving_alone())?;
    Ok(Inside {
        trees: inside.trees,
        files: plan.files,
        outside: Outside::Here,
    })
}

/// Who acts for others must not have groups that they have not.
fn drop_groups() -> Result<(), IsolationError> {
    if !caps::has(Capability::CAP_SETGID) {
        return Ok(());
    }
    match sys::drop_groups() {
        // A user namespace whose owner may not drop them outside either; in
        // it nobody can act for others.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        done => done.map_err(|cause| IsolationError::process("drop groups", cause)),
    }
}

/// Ends with the supervisor, however that ends.
fn follow(line: &UnixStream) -> Result<(), IsolationError> {
    let failed =
        |cause: Errno| IsolationError::process("be told of the supervisor's end", cause.into());
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    // It may have ended before.
    let mut fds = [PollFd::from_borrowed_fd(line.as_fd(), PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).map_err(failed)?;
    match fds[0].revents().is_empty() {
        true => Ok(()),
        false => Err(failed(Errno::SRCH)),
    }
}

/// Gives up what can be given up.
fn lock(
    plan: &Plan<'_>,
    trees: &[OwnedFd],
    withheld: &CapsHashSet,
    allowed: super::seccomp::Allowed,
) -> Result<(), IsolationError> {
    let options = plan.options;
    let refused = options.modcaps.adds(withheld);
    if !refused.is_empty() {
        return Err(IsolationError::OfTheFile(names(&refused)));
    }
    let mut keep = options.modcaps.keeps(plan.file_handles);
    keep.retain(|capability| !withheld.contains(capability));
    let left = caps::keep_only(&keep)?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| IsolationError::process("set no_new_privs", errno.into()))?;
    let landlock = match options.sandbox {
        Sandbox::None => "off",
        _ => landlock::restrict(&Fence {
            trees,
            view: plan.view,
            more_trees: matches!(plan.root, Root::Empty { more: true, .. }),
            file_handles: plan.file_handles,
        })?,
    };
    tracing::info!(
        sandbox = ?options.sandbox,
        seccomp = ?options.seccomp,
        landlock,
        capabilities = %names(&left),
        "isolated"
    );
    if options.sandbox == Sandbox::None || options.seccomp == Seccomp::None {
        tracing::warn!("what is not isolated can be reached by a guest that takes over the daemon");
    }
    let allowed = match plan.logs.is_empty() {
        true => allowed,
        // The C library connects anew when the log daemon is; it cannot.
        false => allowed.refused(libc::SYS_socket),
    };
    Ok(allowed.enforce(options.seccomp)?)
}

fn names(capabilities: &CapsHashSet) -> String {
    let mut names: Vec<String> = capabilities
        .iter()
        .map(|capability| capability.to_string().to_lowercase().replace("cap_", ""))
        .collect();
    names.sort();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(","),
    }
}
