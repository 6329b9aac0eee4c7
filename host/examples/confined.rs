//! A process that is isolated as the one that serves is, and then does what
//! that one never does, to show what comes of it. For tests; not for use.
//!
//! `confined <flags of isolation> --share DIR ACT [TARGET]`, and on standard
//! output a line for each thing tried: its name, and `done` or what the kernel
//! said.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, ValueEnum};
use daxwindow_host::cli::SandboxFlags;
use daxwindow_host::isolation::root::{Root, Tree};
use daxwindow_host::isolation::{self, Plan};
use daxwindow_host::logs::{self, panics};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    sandbox: SandboxFlags,
    /// The directory that is shared
    #[arg(long)]
    share: PathBuf,
    /// A directory elsewhere, open from before
    #[arg(long)]
    elsewhere: Option<PathBuf>,
    /// As a daemon that opens inodes by handle
    #[arg(long)]
    file_handles: bool,
    /// Heeds SIGSYS, which ends a process otherwise
    #[arg(long)]
    heed: bool,
    act: Act,
    target: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Act {
    /// What serving does as well
    Nothing,
    Socket,
    Process,
    Mount,
    Namespace,
    Chroot,
    Limit,
    Signal,
    ExecutableMemory,
    Ioctl,
    Inotify,
    /// Changes the directory elsewhere in every way
    Elsewhere,
    /// The same of the share
    Inside,
    /// Executes a program by path
    Execute,
    /// Connects to a port of this machine
    Tcp,
    /// Connects to an abstract socket
    Abstract,
    /// Panics, and goes on, as a request does that meets a defect
    Panic,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("confined: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |dir: &PathBuf| rustix::fs::openat(CWD, dir, path, Mode::empty());
    let elsewhere = flags.elsewhere.as_ref().map(open).transpose()?;
    logs::init("warn", false)?;
    panics::to_log();
    isolation::hold_signals()?;
    let inside = isolation::launch(Plan {
        options: &flags.sandbox.options(),
        root: Root::Share(Tree {
            path: flags.share.clone(),
            readonly: false,
        }),
        file_handles: flags.file_handles,
        files: Vec::new(),
        logs: Vec::new(),
        view: None,
        strays: Vec::new(),
    })?;
    let heard = Arc::new(AtomicBool::new(false));
    if flags.heed {
        signal_hook::flag::register(libc::SIGSYS, heard.clone())?;
    }
    inside.heeds_signals()?;
    let share = inside.tree(0)?;
    // As requests are: not on the first thread.
    let (act, target) = (flags.act, flags.target.clone().unwrap_or_default());
    let thread = std::thread::Builder::new().name("queue 1".into());
    let acted = thread.spawn(move || run_act(act, &target, &share, elsewhere.as_ref()))?;
    acted.join().map_err(|_| "the act panicked")?;
    if heard.load(Ordering::SeqCst) {
        println!("SIGSYS heard");
    }
    Ok(())
}

fn run_act(act: Act, target: &str, share: &OwnedFd, elsewhere: Option<&OwnedFd>) {
    match act {
        Act::Nothing => say("nothing", Ok::<_, io::Error>(())),
        Act::Socket => say("socket", socket()),
        Act::Process => say("process", Command::new("/bin/true").spawn()),
        Act::Mount => say("mount", rustix::mount::mount_bind("/", "/")),
        Act::Namespace => {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            let moved = rustix::thread::move_into_link_name_space(share.as_fd(), Some(kind));
            say("namespace", moved);
        }
        Act::Chroot => say("chroot", rustix::process::chroot("/")),
        Act::Limit => limit(),
        Act::Signal => {
            let pid = target.parse().ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.unwrap_or(rustix::process::Pid::INIT);
            say("signal", rustix::process::test_kill_process(pid));
        }
        Act::ExecutableMemory => {
            let memory = memmap2::MmapMut::map_anon(4096);
            say("executable memory", memory.and_then(|m| m.make_exec()));
        }
        Act::Ioctl => say("ioctl", rustix::io::ioctl_fionread(io::stdin())),
        Act::Inotify => {
            let flags = rustix::fs::inotify::CreateFlags::CLOEXEC;
            say("inotify", rustix::fs::inotify::init(flags));
        }
        Act::Elsewhere => elsewhere.map_or((), everything),
        Act::Inside => everything(share),
        Act::Execute => say("execute", Command::new(target).status()),
        Act::Tcp => say("connect", std::net::TcpStream::connect(target)),
        Act::Panic => {
            let panicked = std::panic::catch_unwind(|| panic!("struck in a test"));
            say("panic", panicked.err().ok_or(io::ErrorKind::Other));
        }
        Act::Abstract => {
            let address = SocketAddr::from_abstract_name(target);
            say(
                "connect",
                address.and_then(|a| UnixStream::connect_addr(&a)),
            );
        }
    }
}

fn say<T, E: Into<io::Error>>(what: impl Display, outcome: Result<T, E>) {
    match outcome.map_err(Into::into) {
        Ok(_) => println!("{what}: done"),
        Err(error) => println!("{what}: {}", error.raw_os_error().unwrap_or(-1)),
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, socket};
    socket(AddressFamily::INET, SocketType::STREAM, None)
}

/// Says what came of it, not what the kernel says.
fn limit() {
    let before = getrlimit(Resource::Nofile).current;
    let less = Rlimit {
        current: Some(17),
        maximum: Some(17),
    };
    let _ = setrlimit(Resource::Nofile, less);
    let changed = getrlimit(Resource::Nofile).current != before;
    println!("limit: {}", if changed { "done" } else { "not made" });
}

/// All that can be done by path in a directory with a file `secret`.
fn everything(dir: &OwnedFd) {
    let open = |name: &str, flags: OFlags| {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, mode)
    };
    say("read", open("secret", OFlags::RDONLY));
    say("write", open("secret", OFlags::WRONLY));
    say("truncate", open("secret", OFlags::WRONLY | OFlags::TRUNC));
    say("list", open(".", OFlags::RDONLY | OFlags::DIRECTORY));
    say("create", open("made", OFlags::WRONLY | OFlags::CREATE));
    let mode = Mode::from_raw_mode(0o700);
    say("mkdir", rustix::fs::mkdirat(dir, "dir", mode));
    say("symlink", rustix::fs::symlinkat("x", dir, "symlink"));
    let fifo = rustix::fs::FileType::Fifo;
    say("mknod", rustix::fs::mknodat(dir, "fifo", fifo, mode, 0));
    let link = rustix::fs::linkat(dir, "secret", dir, "link", AtFlags::empty());
    say("link", link);
    say("rename", rustix::fs::renameat(dir, "secret", dir, "got"));
    let _ = rustix::fs::renameat(dir, "got", dir, "secret");
    let unlinked = rustix::fs::unlinkat(dir, "secret", AtFlags::empty());
    say("unlink", unlinked);
}
