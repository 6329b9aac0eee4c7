//! `fio`: fio's own job files in a real guest, on every way by which a guest
//! gets at a file of the host.
//!
//! | file | owns |
//! | --- | --- |
//! | `jobs` | job files, and what is run of each |
//! | `plan` | loads, passes, cells |
//! | `stacks` | the ways, and the guests that have them |
//! | `tree` | the files on the host |
//! | `scene` | the running guests; one pass |
//! | `output` | what fio says |
//! | `proof` | which way the bytes went |
//! | `measure` | rounds, and the cells of a load |
//! | `figures`, `print` | figures with goals, tables |
//!
//! Law: a number counts only if the counters of its pass prove the way that
//! the stack's name claims.

mod figures;
mod jobs;
mod measure;
mod output;
mod plan;
mod print;
mod proof;
mod scene;
mod stacks;
mod tree;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use daxwindow_shared::size::parse_bytes;
use daxwindow_vm::accel::Accel;
use daxwindow_vm::kernel::Flavour;
use daxwindow_vm::options::parse_window;
use daxwindow_vm::peers::Peer;
use daxwindow_vm::{AccelChoice, Kit, package_version};

use self::jobs::Job;
use self::plan::{FileKind, Load};
use self::scene::Scene;
use self::stacks::{Setup, Stack};
use self::tree::Tree;
use crate::machine::Machine;
use crate::runs::{self, Header, Run};
use crate::vm::Surroundings;

const STUDY: &str = "fio";
/// Stacks that no figure needs.
const UNUSUAL: [Stack; 3] = [Stack::DaxInode, Stack::DaxHalf, Stack::DaxEighth];
/// QEMU's model where it emulates.
const TCG_MODEL: &str = "max,erms=off,fsrm=off";

/// Measures real guests by fio: the daemon with and without a window,
/// virtiofsd, 9p and virtio-blk, each cell with the proof of which way the
/// bytes went.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these stacks; may be repeated. Without, all, and with --quick those
    /// that figures need and virtio-blk
    #[arg(long, value_name = "STACK")]
    stack: Vec<Stack>,

    /// Only cells whose name contains this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,

    /// The cells of the figures, and few rounds
    #[arg(long)]
    quick: bool,

    /// Another job file of fio, run on every stack too; may be repeated
    #[arg(long, value_name = "FILE")]
    job: Vec<PathBuf>,

    /// Show which cells there are, and measure nothing
    #[arg(long)]
    list: bool,

    /// Rounds: 5, or 3 with --quick
    #[arg(long, value_name = "N")]
    repetitions: Option<usize>,

    /// Where the results are written
    #[arg(long, value_name = "DIR", default_value = runs::DIRECTORY)]
    out: PathBuf,

    /// Drop results that are there, instead of going on with them
    #[arg(long)]
    fresh: bool,

    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,

    /// Where the files are written; about as much as all file sizes
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Bytes of a file that fits into the guest's memory
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_bytes)]
    file_size: u64,

    /// Bytes of one that does not
    #[arg(long, value_name = "SIZE", default_value = "400M", value_parser = parse_bytes)]
    large_size: u64,

    /// Memory of each guest
    #[arg(long, value_name = "SIZE", default_value = "320M", value_parser = parse_bytes)]
    memory: u64,

    /// Processors of each guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: usize,

    /// Size of the window
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_window)]
    window: u64,

    /// The daemon; by default the one beside this program
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// A further argument of the daemon; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    daemon_arg: Vec<String>,

    /// What runs the guests' code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,

    /// QEMU's model of the guests' processor; by default the host's with kvm,
    /// and with tcg one that has no fast `rep movsb`, since emulation takes
    /// that byte by byte
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,

    /// Fetch nothing
    #[arg(long)]
    offline: bool,
}

/// Runs the subcommand; true if every cell could be measured.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let own: Vec<Job> = args
        .job
        .iter()
        .map(|p| Job::read(p))
        .collect::<Result<_>>()?;
    let loads = plan::loads(args.quick, &own, &args.only)?;
    let stacks = args.stacks();
    if args.list {
        list(&loads, &stacks);
        return Ok(true);
    }
    args.check()?;
    let kit = Kit::open(args.offline)?;
    let surroundings = Surroundings::find(&kit, args.accel, Flavour::Generic)?;
    let accel = surroundings.accel;
    let header = args.header(&kit, &surroundings, &own)?;
    let mut results = Run::open(&args.out, header, args.fresh)?;
    let mut done = measure_all(args, &kit, accel, &loads, &stacks, &mut results)?;
    let found = figures::figures(&results);
    for figure in &found {
        results.record_part(figure.clone())?;
    }
    let failures = print::failures(results.cells().iter());
    if args.json {
        println!("{}", serde_json::to_string_pretty(results.cells())?);
    } else {
        println!("{}", print::cells(&results));
        if !found.is_empty() {
            println!("{}", print::figures(&found));
        }
        println!(
            "{} under {}; results in {}",
            args.describe(),
            accel.name(),
            results.path().display()
        );
    }
    for failure in &failures {
        eprintln!("failed: {failure}");
    }
    done &= failures.is_empty();
    Ok(done)
}

/// Boots guests only if something is missing.
fn measure_all(
    args: &Args,
    kit: &Kit,
    accel: Accel,
    loads: &[Load],
    stacks: &[Stack],
    results: &mut Run,
) -> Result<bool> {
    let on = |load: &Load| -> Vec<Stack> {
        let able = stacks.iter().copied();
        able.filter(|stack| load.runs_on(*stack)).collect()
    };
    let cells = |load: &Load| -> Vec<(String, String)> {
        let of = |stack: Stack| {
            let passes = load.passes.iter();
            passes.map(move |&pass| (load.id(pass), stack.name().to_owned()))
        };
        on(load).into_iter().flat_map(of).collect()
    };
    results.plan_of(&loads.iter().flat_map(cells).collect::<Vec<_>>());
    let is_missing = |load: &&Load| {
        let mut cells = cells(load).into_iter();
        cells.any(|(id, stack)| !results.has(&id, &stack))
    };
    let todo: Vec<&Load> = loads.iter().filter(is_missing).collect();
    if todo.is_empty() {
        return Ok(true);
    }
    let is_used = |stack: &Stack| todo.iter().any(|load| load.runs_on(*stack));
    let used: Vec<Stack> = stacks.iter().copied().filter(is_used).collect();
    let kinds: Vec<FileKind> = todo.iter().map(|load| load.job.file).collect();
    let parent = args.directory.clone().unwrap_or_else(std::env::temp_dir);
    let tree = Tree::make(&parent, &used, &kinds, args.file_size, args.large_size)?;
    let mut scene = Scene::new(kit.clone(), args.setup(accel), &used, tree)?;
    for load in todo {
        measure::measure(results, &mut scene, load, &on(load), args.rounds())?;
    }
    let complaints = scene.end()?;
    for complaint in &complaints {
        results.say(&format!("a guest's kernel said: {complaint}"));
    }
    Ok(complaints.is_empty())
}

fn list(loads: &[Load], stacks: &[Stack]) {
    for load in loads {
        for &pass in &load.passes {
            println!("{}", measure::labelled(load, stacks[0], pass).id);
        }
    }
    let names: Vec<_> = stacks.iter().map(|stack| stack.word()).collect();
    println!("on each of {}", names.join(", "));
}

impl Args {
    fn stacks(&self) -> Vec<Stack> {
        let all = Stack::value_variants().iter().copied();
        let wanted = |stack: &Stack| match (self.stack.is_empty(), self.quick) {
            (true, true) => !UNUSUAL.contains(stack),
            (true, false) => true,
            (false, _) => self.stack.contains(stack),
        };
        all.filter(wanted).collect()
    }

    fn rounds(&self) -> usize {
        let usual = if self.quick { 3 } else { 5 };
        self.repetitions.unwrap_or(usual).max(1)
    }

    fn check(&self) -> Result<()> {
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(8 << 20);
        ensure!(
            whole(self.file_size) && whole(self.large_size),
            "--file-size and --large-size must be multiples of 8M"
        );
        ensure!(
            self.file_size <= self.memory / 2,
            "--file-size must be at most half of --memory, so that the guest can keep the file"
        );
        ensure!(
            self.large_size > self.memory,
            "--large-size must be more than --memory"
        );
        Ok(())
    }

    /// What the kernel copies with is `rep movsb` on a processor that says it
    /// is fast, and `rep movsq` elsewhere.
    fn cpu_model(&self, accel: Accel) -> Option<String> {
        let told = self.cpu_model.clone();
        told.or_else(|| (accel == Accel::Tcg).then(|| TCG_MODEL.into()))
    }

    fn setup(&self, accel: Accel) -> Setup {
        Setup {
            cpu_model: self.cpu_model(accel),
            memory_bytes: self.memory,
            cpus: self.cpus,
            window_bytes: self.window,
            file_bytes: self.file_size,
            accel: self.accel,
            daemon: self.daemon.clone(),
            daemon_arguments: self.daemon_arg.clone(),
            offline: self.offline,
        }
    }

    fn describe(&self) -> String {
        format!(
            "guests of {} MiB and {} CPUs, {} rounds",
            self.memory >> 20,
            self.cpus,
            self.rounds()
        )
    }

    fn header(&self, kit: &Kit, surroundings: &Surroundings, own: &[Job]) -> Result<Header> {
        let parent = self.directory.clone().unwrap_or_else(std::env::temp_dir);
        let mut header = Header::new(STUDY, Machine::detect(&parent));
        surroundings.describe(&mut header);
        let model = self.cpu_model(surroundings.accel);
        header.option("cpu_model", model.unwrap_or("host".into()));
        for (name, value) in [
            ("file_bytes", self.file_size),
            ("large_bytes", self.large_size),
            ("memory_bytes", self.memory),
            ("cpus", self.cpus as u64),
            ("window_bytes", self.window),
            ("repetitions", self.rounds() as u64),
        ] {
            header.option(name, value);
        }
        if !self.daemon_arg.is_empty() {
            header.option("daemon_arg", self.daemon_arg.join(" "));
        }
        for job in own {
            let sum = blake3::hash(job.text.as_bytes()).to_hex();
            header.option(&format!("job {}", job.name), &sum[..16]);
        }
        let daemon = crate::daemon::find(self.daemon.as_deref())?;
        header.version("daxwindowd", crate::daemon::version(&daemon));
        header.version("virtiofsd", Peer::virtiofsd(kit)?.version);
        let fio = package_version(kit, "fio")?;
        header.version("fio", fio);
        Ok(header)
    }
}
