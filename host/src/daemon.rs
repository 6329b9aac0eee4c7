//! The daemon's life: from flags to the last signal.

use std::error::Error;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Mode;
use rustix::process::umask;
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::{Task, ctl};
use crate::config::{Config, Listen};
use crate::dax::DaxMode;
use crate::fs::{InodeFileHandles, SharedDir, SoleIds};
use crate::isolation::root::{Root, Tree};
use crate::isolation::{self, Inside, Plan};
use crate::listen::Stop;
use crate::listen::socket::{Socket, SocketFile};
use crate::logs::{self, panics, writer};
use crate::padding::{self, Padding};
use crate::shares::control;
use crate::shares::name::NameError;
use crate::shares::share::Changes;
use crate::shares::{NewShare, ShareName, Shares};
use crate::status::ask::print_session;
use crate::status::capabilities::Capabilities;
use crate::status::socket as status_socket;
use crate::vhost::client_slot::Next;

/// Serves until a signal ends it, or asks a daemon that does.
///
/// # Errors
///
/// What keeps the daemon from starting, or broke its socket, with its cause.
pub fn run(task: Task) -> Result<(), Box<dyn Error>> {
    match task {
        Task::Serve(config) => start(*config)?,
        Task::Ctl(ctl) => print!("{}", ctl::client::run(&ctl)?),
        Task::PrintSession { socket, json } => print_session(&socket, json)?,
        Task::PrintCapabilities => println!("{}", Capabilities::ours().to_json()),
    }
    Ok(())
}

/// Makes what can only be made with all of the host to be seen, and serves.
fn start(mut config: Config) -> Result<(), Box<dyn Error>> {
    config.divide(isolation::set_nofile(config.rlimit_nofile)?)?;
    isolation::ignore_file_size_signal();
    let strays = isolation::inherited(&config.listeners.descriptors())?;
    config.share.ids.sole = sole_ids(&config);
    let logs = isolation::opened_by(|| logs::init(&config.log_level, config.syslog))?;
    panics::to_log();
    let log = logs.first().copied().unwrap_or(2);
    writer::write_only_if(move || isolation::takes_writes(log));
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    config.dax.padding = padding(&config, &logs);
    // Who sees a socket may already end the daemon in order.
    isolation::hold_signals()?;
    let mut outside = Outside::open(&config)?;
    let inside = isolation::launch(Plan {
        options: &config.isolation,
        root: root(&config),
        file_handles: config.share.inode_file_handles != InodeFileHandles::Never,
        files: outside.take_files(),
        logs,
        view: config.dax.padding.root(),
        strays,
    })?;
    serve(config, inside, outside)
}

/// The kinds of ids of which there will be one.
fn sole_ids(config: &Config) -> SoleIds {
    let is_sole = |ranges: &[isolation::IdMap], file: &str| {
        let around = std::fs::read_to_string(file).unwrap_or_default();
        isolation::has_one_id(ranges, &around)
    };
    SoleIds {
        uid: is_sole(&config.isolation.uid_map, "/proc/self/uid_map"),
        gid: is_sole(&config.isolation.gid_map, "/proc/self/gid_map"),
    }
}

/// The rest of a life, with nothing to be seen but what is shared.
fn serve(config: Config, mut inside: Inside, outside: Outside) -> Result<(), Box<dyn Error>> {
    // The guest says which mode a file gets; its kernel has applied the umask.
    umask(Mode::empty());
    SharedDir::prepare()?;
    writer::start()?;
    let fixed = fixed_shares(&config, &inside, outside.sockets)?;
    inside.close_trees();
    // Apart from what threads keep, which is never dropped.
    let _files = inside.take_files();
    let once = config.listeners.once;
    let shares = Shares::new(config);
    let stop = Stop::new()?;
    heed_signals(stop.clone(), shares.clone())?;
    inside.heeds_signals()?;
    let status = outside.status;
    let _status = status
        .map(|socket| status_socket::attend(socket, &shares))
        .transpose()?;
    let control = outside.control;
    let control = control
        .map(|socket| control::attend(socket, &shares))
        .transpose()?;
    let inside = Arc::new(inside);
    // Before there is a share, whose guest may come and go at once.
    let told = tell_changes(&inside, &shares, &stop, once);
    for share in fixed {
        shares.add(share)?;
    }
    told.ready(&inside, &shares);
    stop.wait();
    inside.is_stopping();
    // Nothing is added any more.
    drop(control);
    shares.end();
    if !told.left_alone.load(Ordering::SeqCst) {
        tracing::info!("ended by a signal");
    }
    Ok(())
}

/// What has been said of the daemon's guests.
#[derive(Default)]
struct Told {
    is_ready: AtomicBool,
    had_guest: AtomicBool,
    /// The end of the last guest is that of the daemon.
    left_alone: AtomicBool,
}

impl Told {
    /// Says that guests may come, and has what changes said from then on.
    fn ready(&self, inside: &Inside, shares: &Shares) {
        let said = shares.summary();
        inside.is_ready(&said);
        self.is_ready.store(true, Ordering::SeqCst);
        let now = shares.summary();
        if now != said {
            inside.has_changed(&now);
        }
    }

    /// Guests have come or gone. Answers whether the last has gone just now.
    fn changed(&self, inside: &Inside, shares: &Shares) -> bool {
        if self.is_ready.load(Ordering::SeqCst) {
            inside.has_changed(&shares.summary());
        }
        let guests = shares.guests();
        let had = self.had_guest.fetch_or(guests > 0, Ordering::SeqCst);
        guests == 0 && had
    }
}

/// Has it said when guests come and go. With `once` the end of the last one is
/// that of the daemon.
fn tell_changes(inside: &Arc<Inside>, shares: &Arc<Shares>, stop: &Stop, once: bool) -> Arc<Told> {
    let told = Arc::new(Told::default());
    let (inside, stop, kept) = (inside.clone(), stop.clone(), told.clone());
    shares.observe(move |shares| {
        let is_last = told.changed(&inside, shares) && once;
        if is_last && !told.left_alone.swap(true, Ordering::SeqCst) {
            tracing::info!(
                "the last guest has gone, and the daemon ends (--once, or one socket without \
                 --keep-serving)"
            );
            stop.request();
        }
        match is_last {
            true => Next::End,
            false => Next::Client,
        }
    });
    kept
}

/// Sockets that listen, made where they can be seen.
struct Outside {
    sockets: Vec<Socket>,
    status: Option<Socket>,
    control: Option<Socket>,
}

impl Outside {
    fn open(config: &Config) -> Result<Outside, Box<dyn Error>> {
        let mut sockets = Vec::new();
        for listen in &config.listeners.fixed {
            let socket = match listen {
                Listen::Path(path) => Socket::bind_with_pid("--socket-path", path)?,
                Listen::Inherited(fd) => Socket::inherit(*fd)?,
                Listen::Activated(fd) => Socket::activated(*fd)?,
            };
            if let Some(group) = config.socket_group {
                socket.let_in(group)?;
            }
            sockets.push(socket);
        }
        let status = config.status_socket.as_deref().map(status_socket::bind);
        let directory = config.listeners.socket_dir.as_deref();
        Ok(Outside {
            sockets,
            status: status.transpose()?,
            control: directory.map(control::bind).transpose()?,
        })
    }

    /// The files of those that stay as long as the daemon. Where shares come
    /// and go, so do their sockets.
    fn take_files(&mut self) -> Vec<SocketFile> {
        let stays = |socket: &mut Socket| socket.take_file();
        let mut files: Vec<_> = self.status.iter_mut().filter_map(stays).collect();
        if self.control.is_none() {
            files.extend(self.sockets.iter_mut().filter_map(stays));
        }
        files
    }
}

/// What is to be seen of the host.
fn root(config: &Config) -> Root {
    let tree = Tree {
        path: config.shared_dir.clone(),
        readonly: config.share.readonly,
    };
    match config.listeners.socket_dir {
        None => Root::Share(tree),
        Some(_) => Root::Empty {
            trees: match config.listeners.fixed.is_empty() {
                true => Vec::new(),
                false => vec![tree],
            },
            more: true,
        },
    }
}

/// Files are padded by a process of its own, so that this one can give up the
/// privilege for it.
fn padding(config: &Config, logs: &[RawFd]) -> Padding {
    let dax = &config.dax;
    if (dax.mode == DaxMode::Never || dax.window_bytes == 0)
        && config.listeners.socket_dir.is_none()
    {
        return Padding::Off;
    }
    if !isolation::caps::may_mount() {
        return Padding::Failed("the daemon has no CAP_SYS_ADMIN".to_owned());
    }
    match padding::process::start(config.isolation.seccomp, logs) {
        Ok(view) => Padding::Process(Arc::new(view)),
        Err(cause) => Padding::Failed(format!("cannot start a process for it: {cause}")),
    }
}

/// What is served from the start: the same directory at each of the sockets.
fn fixed_shares(
    config: &Config,
    inside: &Inside,
    sockets: Vec<Socket>,
) -> Result<Vec<NewShare>, Box<dyn Error>> {
    let mut shares = Vec::<NewShare>::new();
    for socket in sockets {
        shares.push(NewShare {
            name: free_name(&shares, socket.path())?,
            root: inside.tree(0)?,
            directory: config.shared_dir.clone(),
            socket,
            changes: Changes::default(),
        });
    }
    Ok(shares)
}

/// A name after the socket's, with a number if need be.
fn free_name(shares: &[NewShare], socket: &Path) -> Result<ShareName, NameError> {
    let taken = |name: &ShareName| shares.iter().any(|share| share.name == *name);
    let wanted = match ShareName::of_socket(socket) {
        Some(name) if !taken(&name) => return Ok(name),
        Some(name) if name.as_str().len() < 60 => name.to_string(),
        _ => "share".to_owned(),
    };
    let mut number = shares.len() + 1;
    loop {
        let name = format!("{wanted}-{number}").parse()?;
        if !taken(&name) {
            return Ok(name);
        }
        number += 1;
    }
}

/// SIGUSR1 logs the counters; every other signal ends the daemon in order, a
/// second one at once. SIGHUP does not count as a second one: the end of a
/// terminal may come by way of its shell and of the kernel.
fn heed_signals(stop: Stop, shares: Arc<Shares>) -> std::io::Result<()> {
    let heeded = isolation::heeded_signals();
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        if heeded.contains(&signal) {
            signal_hook::flag::register_conditional_shutdown(signal, 1, second.clone())?;
            signal_hook::flag::register(signal, second.clone())?;
        }
    }
    let mut signals = Signals::new(heeded)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGUSR1 => shares.log_counters(),
                    _ => stop.request(),
                }
            }
        })?;
    Ok(())
}
