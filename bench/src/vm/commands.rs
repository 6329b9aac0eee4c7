//! `daxwindow-bench vm`: doctor, run, shell, boot, debian, and two figures.

use std::io::{stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use daxwindow_vm::options::{parse_file, parse_window};
use daxwindow_vm::{
    AccelChoice, Dax, Debian, DeviceChoice, Kit, ShareOptions, Vm, VmFailure, VmOptions,
    preload_library, script, terminal,
};

use daxwindow_shared::size::parse_bytes;

use super::{TOOK_TOO_LONG, VM_FAILED, break_even, doctor, mapping_cost};

/// Boots a real Linux guest on a stock QEMU with a share, without root.
/// Missing parts are fetched as Debian packages into the build's target folder.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Run(RunArgs),
    Shell(ShellArgs),
    Boot(BootArgs),
    BreakEven(break_even::Args),
    MappingCost(mapping_cost::Args),
    Debian(DebianArgs),
}

/// Runs a command in a guest, in the share, and ends with its exit status:
/// 125 when the guest itself failed, 124 when time was up.
#[derive(clap::Args)]
struct RunArgs {
    /// Directory to share; the command runs in it
    #[arg(long, value_name = "DIR")]
    share: PathBuf,

    #[command(flatten)]
    guest: GuestArgs,

    /// Seconds that the command may take
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,

    /// Keep the kernel's console in this file
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Fail when the guest's kernel printed a warning
    #[arg(long)]
    no_kernel_warnings: bool,

    /// Show what daemon and QEMU said, after the command
    #[arg(long)]
    logs: bool,

    /// The command, run as it is; for pipes and the like: -- sh -c '...'
    #[arg(last = true, required = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// Opens an interactive shell in a guest; Ctrl-] ends the guest.
#[derive(clap::Args)]
struct ShellArgs {
    /// Directory to share, at /mnt
    #[arg(long, value_name = "DIR")]
    share: PathBuf,

    #[command(flatten)]
    guest: GuestArgs,
}

/// Boots a guest from a directory, with no initramfs, and shows its console;
/// Ctrl-] ends the guest.
#[derive(clap::Args)]
struct BootArgs {
    /// Directory that becomes the guest's root file system
    #[arg(long, value_name = "DIR")]
    root: PathBuf,

    /// What the kernel starts; its own search by default
    #[arg(long, value_name = "PATH")]
    init: Option<String>,

    #[command(flatten)]
    guest: GuestArgs,
}

/// Makes a small Debian in a directory, for `vm boot --root`. Its apt knows a
/// repository in /srv/packages, so that packages can be installed without a
/// network. Needs root.
#[derive(clap::Args)]
struct DebianArgs {
    /// Directory to make, or an empty one
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Fetch nothing
    #[arg(long)]
    offline: bool,
}

/// What all guests have in common.
#[derive(clap::Args)]
struct GuestArgs {
    /// Which files the guest reaches through the window; always by default,
    /// inode for `vm boot`
    #[arg(long, value_name = "MODE")]
    dax: Option<Dax>,

    /// Mount with no option, whatever --dax tells the daemon
    #[arg(long)]
    plain_mount: bool,

    /// Size of the window
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_window)]
    window: u64,

    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_bytes)]
    memory: u64,

    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: usize,

    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: usize,

    /// Share nothing but for reading
    #[arg(long)]
    readonly: bool,

    /// Another vhost-user-fs daemon; the word virtiofsd means the one of
    /// Debian's unstable release, fetched into the kit
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// A further argument of the daemon; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    daemon_arg: Vec<String>,

    /// QEMU's device; by the daemon's help by default
    #[arg(long, value_name = "KIND", default_value = "auto")]
    device: DeviceChoice,

    /// What runs the guest's code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,

    /// A Debian package whose program the guest gets (fio, strace,
    /// package:program), or a crate (crate:fsx@0.3.2); may be repeated
    #[arg(long, value_name = "PACKAGE")]
    tool: Vec<String>,

    /// A program of the host that the guest gets, with its libraries, by its
    /// name; may be repeated
    #[arg(long, value_name = "PATH")]
    program: Vec<PathBuf>,

    /// A file of the host that the guest gets, executable; may be repeated
    #[arg(long, value_name = "HOST:/GUEST", value_parser = parse_file)]
    file: Vec<(String, PathBuf)>,

    /// A further word of the kernel's command line; may be repeated
    #[arg(long, value_name = "WORD")]
    kernel_arg: Vec<String>,

    /// A further argument of QEMU; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,

    /// Have QEMU map the window range by range, without the library that maps
    /// it in one piece
    #[arg(long)]
    no_preload: bool,

    /// Fetch nothing
    #[arg(long)]
    offline: bool,

    /// Seconds that booting may take
    #[arg(long, value_name = "S", default_value_t = 120)]
    boot_timeout: u64,
}

impl GuestArgs {
    fn options(self, directory: PathBuf, dax: Dax) -> Result<VmOptions> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("find {}", directory.display()))?;
        let share = ShareOptions {
            plain_mount: self.plain_mount,
            window_bytes: self.window,
            queues: self.queues,
            readonly: self.readonly,
            daemon: self.daemon,
            daemon_arguments: self.daemon_arg,
            device: self.device,
            ..ShareOptions::new(directory, self.dax.unwrap_or(dax))
        };
        let preload = match self.no_preload {
            true => None,
            false => Some(preload_library()?),
        };
        Ok(VmOptions {
            preload,
            memory_bytes: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            tools: self.tool,
            programs: self.program,
            files: self.file,
            kernel_arguments: self.kernel_arg,
            qemu_arguments: self.qemu_arg,
            offline: self.offline,
            boot_limit: Duration::from_secs(self.boot_timeout),
            ..VmOptions::new(vec![share])
        })
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let done = match args.command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Run(args) => in_guest(args),
        Command::Shell(args) => {
            let options = args.guest.options(args.share, Dax::Always)?;
            terminal::shell(&options)
        }
        Command::MappingCost(args) => mapping_cost::run(&args),
        Command::Boot(args) => {
            let options = args.guest.options(args.root, Dax::Inode)?;
            terminal::boot(&options, args.init)
        }
        Command::BreakEven(args) => break_even::run(&args),
        Command::Debian(args) => make_debian(&args),
    };
    match done {
        Err(error)
            if error
                .downcast_ref()
                .is_some_and(|e: &VmFailure| e.timed_out) =>
        {
            eprintln!("daxwindow-bench: {error:#}");
            Ok(ExitCode::from(TOOK_TOO_LONG))
        }
        answer => answer,
    }
}

fn make_debian(args: &DebianArgs) -> Result<ExitCode> {
    let debian = Debian::find(&Kit::open(args.offline)?)?;
    debian.copy_to(&args.directory)?;
    println!(
        "{}: Debian of {} packages; boot it with: daxwindow-bench vm boot --root {0}",
        args.directory.display(),
        debian.packages().len()
    );
    Ok(ExitCode::SUCCESS)
}

fn in_guest(args: RunArgs) -> Result<ExitCode> {
    let options = args.guest.options(args.share, Dax::Always)?;
    let mut vm = Vm::boot(&options)?;
    let (accel, boot_time) = (vm.accel().name(), vm.boot_time());
    tracing::info!(kernel = vm.release(), accel, ?boot_time, "the guest is up");
    let script = script::command(&args.words, "/mnt");
    let limit = Duration::from_secs(args.timeout);
    let status = vm.stream(&script, &mut stdout(), &mut stderr(), limit);
    let off = status.is_ok().then(|| vm.shutdown());
    if let Some(path) = &args.console {
        let written = std::fs::write(path, vm.console());
        written.with_context(|| format!("write {}", path.display()))?;
    }
    if args.logs {
        eprintln!("-- daemon\n{}-- QEMU\n{}", vm.daemon_log(0), vm.qemu_log());
    }
    let status = status?;
    if let Some(Err(error)) = off {
        eprintln!("daxwindow-bench: {error:#}");
    }
    let warnings = vm.kernel_warnings();
    for line in &warnings {
        eprintln!("daxwindow-bench: the guest's kernel said: {line}");
    }
    match args.no_kernel_warnings && !warnings.is_empty() {
        true => Ok(ExitCode::from(VM_FAILED)),
        false => Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))),
    }
}
