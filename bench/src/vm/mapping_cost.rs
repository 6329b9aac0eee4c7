//! `vm mapping-cost`: what a mapping costs on this VMM as more of them live.
//!
//! For each setting of `--memory-slots` one guest touches range after range of
//! a sparse file, is timed at some numbers of live ranges, and unmounts with
//! all of them live; others then read the file through windows that it does
//! not fit in. The guest's times are those of a fault in a mapped file; the
//! daemon's are from SETUPMAPPING to its reply, by the difference of two
//! status documents.
//!
//! Law: a point counts only if the daemon set up as many ranges as the guest
//! touched, and has as many live.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use daxwindow_shared::window::RANGE_BYTES;
use serde::Serialize;
use serde_json::Value;

use super::options::{AccelChoice, Dax, ShareOptions, VmOptions, parse_window};
use super::program::example;
use super::{Vm, daemon_status};
use crate::figures::table::{bytes, short, table};
use crate::machine::Machine;

const FILE_BYTES: u64 = 1 << 30;
/// A setup may be slow where hundreds live.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures what mapping a range costs in a guest, with few ranges live and
/// with many, what an unmount costs, and mappings a second in a window that is
/// too small.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Settings of the daemon's --memory-slots to compare
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "auto,off"
    )]
    memory_slots: Vec<String>,

    /// Numbers of live ranges at which a first touch is timed; a guest keeps a
    /// fifth of the window's ranges free, so at most 400 with 1G
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "16,128,192,400"
    )]
    live: Vec<u64>,

    /// Window for that, offered whole whatever its slots
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_window)]
    window: u64,

    /// Windows to read a file of 1G through
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64M,128M,256M,512M",
        value_parser = parse_window)]
    pressure: Vec<u64>,

    /// The daemon
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// What runs the guest's code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,

    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// Everything measured.
#[derive(Debug, Serialize)]
struct Outcome {
    machine: Machine,
    commit: &'static str,
    accelerator: &'static str,
    guest_kernel: String,
    settings: Vec<Setting>,
}

/// One setting of `--memory-slots`.
#[derive(Debug, Serialize)]
struct Setting {
    memory_slots: String,
    points: Vec<Point>,
    unmount: Unmount,
    pressure: Vec<Pressure>,
}

/// A first touch with so many ranges live.
#[derive(Debug, Serialize)]
struct Point {
    live: u64,
    samples: usize,
    guest_p50_us: f64,
    guest_p90_us: f64,
    daemon_p50_us: f64,
    daemon_p90_us: f64,
}

/// The end of a mount.
#[derive(Debug, Serialize)]
struct Unmount {
    live: u64,
    seconds: f64,
}

/// A file read through a window that it does not fit in.
#[derive(Debug, Serialize)]
struct Pressure {
    window_bytes: u64,
    mappings_per_second: f64,
    bytes_per_second: f64,
}

/// Measures and prints.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let scene = Scene::new(args)?;
    let mut outcome = Outcome {
        machine: Machine::detect(&scene.share()),
        commit: crate::machine::COMMIT,
        accelerator: "",
        guest_kernel: String::new(),
        settings: Vec::new(),
    };
    for slots in &args.memory_slots {
        let mut guest = scene.boot(slots, args.window, &["--no-slot-limit"])?;
        outcome.accelerator = guest.vm.accel().name();
        outcome.guest_kernel = guest.vm.release().to_owned();
        let points: Result<Vec<Point>> = args.live.iter().map(|&n| guest.point(n)).collect();
        let (points, unmount) = (points?, guest.unmount()?);
        guest.end()?;
        let pressure = |&window: &u64| {
            let mut guest = scene.boot(slots, window, &["--no-slot-limit"])?;
            let found = guest.pressure(window)?;
            guest.end().map(|()| found)
        };
        let pressure: Result<Vec<Pressure>> = args.pressure.iter().map(pressure).collect();
        outcome.settings.push(Setting {
            memory_slots: slots.clone(),
            points,
            unmount,
            pressure: pressure?,
        });
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&outcome)?),
        false => print(&outcome),
    }
    Ok(ExitCode::SUCCESS)
}

/// A directory with a sparse file, and what boots guests on it.
struct Scene<'a> {
    args: &'a Args,
    folder: tempfile::TempDir,
    probe: PathBuf,
}

impl Scene<'_> {
    fn new(args: &Args) -> Result<Scene<'_>> {
        let most = args.window / RANGE_BYTES * 4 / 5;
        if let Some(n) = args.live.iter().find(|&&n| n > most || n < 8) {
            bail!("--live {n}: a guest keeps between 8 and {most} ranges of this window");
        }
        ensure!(args.live.is_sorted(), "--live must ascend");
        let folder = tempfile::tempdir().context("make a directory to share")?;
        let scene = Scene {
            args,
            probe: example("guest_probe")?,
            folder,
        };
        std::fs::create_dir(scene.share())?;
        let file = std::fs::File::create(scene.share().join("file"))?;
        file.set_len(FILE_BYTES).context("make a sparse file")?;
        Ok(scene)
    }

    fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    fn boot(&self, slots: &str, window: u64, flags: &[&str]) -> Result<Guest> {
        let status = self.folder.path().join("status");
        let mut share = ShareOptions::new(self.share(), Dax::Always);
        share.window_bytes = window;
        share.daemon = self.args.daemon.clone();
        let told = ["--memory-slots", slots, "--status-socket"];
        share.daemon_arguments = [&told, flags]
            .concat()
            .iter()
            .map(|s| (*s).into())
            .collect();
        share
            .daemon_arguments
            .insert(3, status.to_string_lossy().into_owned());
        let options = VmOptions {
            cpus: 2,
            accel: self.args.accel,
            programs: vec![self.probe.clone()],
            ..VmOptions::new(vec![share])
        };
        let mut guest = Guest {
            vm: Vm::boot(&options)?,
            status,
        };
        // A mount does not wait for its session, a look into it does.
        guest.vm.sh("ls /mnt")?.ok()?;
        let dax = guest.ask()?;
        let verdict = dax.pointer("/dax/verdict").and_then(Value::as_str);
        ensure!(
            verdict == Some("on"),
            "there is no DAX to measure: {}",
            dax.pointer("/dax/why").unwrap_or(&Value::Null)
        );
        Ok(guest)
    }
}

struct Guest {
    vm: Vm,
    status: PathBuf,
}

impl Guest {
    fn ask(&self) -> Result<Value> {
        daemon_status(&self.status)
    }

    /// Touches the file's first `ranges` ranges; microseconds of each.
    fn touch(&mut self, ranges: u64) -> Result<Vec<f64>> {
        let script = format!("guest_probe touch /mnt/file --ranges {ranges}");
        let out = self.vm.sh_within(&script, LIMIT)?.ok()?;
        let times: Result<Vec<f64>, _> = out.lines().map(str::parse).collect();
        let times = times.context("the guest's times")?;
        ensure!(times.len() as u64 == ranges, "{} times", times.len());
        Ok(times)
    }

    /// What a first touch costs when about `live` ranges are live.
    fn point(&mut self, live: u64) -> Result<Point> {
        let around = (live / 16).max(8).min(live);
        let first = live - around;
        if first > 0 {
            self.touch(first)?;
        }
        let before = self.ask()?;
        // A last touch at the guest's limit would be timed with a removal.
        let times = self.touch(live)?;
        let after = self.ask()?;
        let mut fresh = times.get(first as usize..).unwrap_or_default().to_vec();
        let mut setups = Buckets::between(&before, &after, "setup")?;
        let grown = number(&after, "/mappings/live_ranges")?;
        ensure!(
            setups.count() == around && grown == live,
            "{} setups and {grown} live ranges for {around} touches up to {live}",
            setups.count()
        );
        Ok(Point {
            live,
            samples: fresh.len(),
            guest_p50_us: quantile(&mut fresh, 0.5),
            guest_p90_us: quantile(&mut fresh, 0.9),
            daemon_p50_us: setups.quantile(0.5),
            daemon_p90_us: setups.quantile(0.9),
        })
    }

    fn unmount(&mut self) -> Result<Unmount> {
        let live = number(&self.ask()?, "/mappings/live_ranges")?;
        self.vm.sh_within("cd /; umount /mnt", LIMIT)?.ok()?;
        let after = self.ask()?;
        let us = after.pointer("/requests/by_opcode/Destroy/mean_us");
        let us = us.and_then(Value::as_f64).context("no DESTROY came")?;
        ensure!(
            number(&after, "/mappings/live_ranges")? == 0,
            "ranges are left"
        );
        Ok(Unmount {
            live,
            seconds: us / 1e6,
        })
    }

    /// Touches all of the file, once to fill the window, and then on.
    fn pressure(&mut self, window: u64) -> Result<Pressure> {
        let all = FILE_BYTES / RANGE_BYTES;
        self.touch((window / RANGE_BYTES).min(all) / 2)?;
        let before = number(&self.ask()?, "/mappings/setups")?;
        let start = Instant::now();
        self.touch(all)?;
        let seconds = start.elapsed().as_secs_f64();
        let setups = number(&self.ask()?, "/mappings/setups")? - before;
        let rate = setups as f64 / seconds;
        Ok(Pressure {
            window_bytes: window,
            mappings_per_second: rate,
            bytes_per_second: rate * RANGE_BYTES as f64,
        })
    }

    fn end(mut self) -> Result<()> {
        self.vm.shutdown()?;
        let warnings = self.vm.kernel_warnings();
        ensure!(warnings.is_empty(), "the guest's kernel said {warnings:?}");
        Ok(())
    }
}

fn number(document: &Value, pointer: &str) -> Result<u64> {
    let found = document.pointer(pointer).and_then(Value::as_u64);
    found.with_context(|| format!("the status document has no {pointer}"))
}

/// Upper ends in microseconds, and how many samples.
struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    fn of(document: &Value, what: &str) -> Result<Vec<(f64, u64)>> {
        let found = document.pointer(&format!("/mappings/{what}/buckets_us"));
        let found = found.context("the status document has no buckets")?;
        Ok(serde_json::from_value(found.clone())?)
    }

    /// What came between two documents.
    fn between(before: &Value, after: &Value, what: &str) -> Result<Buckets> {
        let before = Buckets::of(before, what)?;
        let earlier = |end: f64| before.iter().find(|b| b.0 == end).map_or(0, |b| b.1);
        let after = Buckets::of(after, what)?;
        let grown = after
            .into_iter()
            .map(|(end, n)| (end, n.saturating_sub(earlier(end))));
        Ok(Buckets(grown.filter(|b| b.1 > 0).collect()))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|b| b.1).sum()
    }

    /// Rounded up to the bucket's end, by 10 % at most.
    fn quantile(&mut self, q: f64) -> f64 {
        let rank = (self.count() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for &(end, n) in &self.0 {
            seen += n;
            if seen >= rank {
                return end;
            }
        }
        0.0
    }
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * q).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn print(outcome: &Outcome) {
    println!(
        "{}\nguest: Linux {}, {}; commit {}",
        outcome.machine, outcome.guest_kernel, outcome.accelerator, outcome.commit
    );
    let ms = |us: f64| format!("{} ms", short(us / 1e3));
    let mut points = table(&[
        "--memory-slots, live ranges",
        "first touch p50",
        "p90",
        "of it the daemon p50",
        "p90",
    ]);
    let mut others = table(&["--memory-slots", "measured", "value"]);
    for setting in &outcome.settings {
        let slots = &setting.memory_slots;
        for p in &setting.points {
            points.add_row([
                format!("{slots}, {}", p.live),
                ms(p.guest_p50_us),
                ms(p.guest_p90_us),
                ms(p.daemon_p50_us),
                ms(p.daemon_p90_us),
            ]);
        }
        let unmount = &setting.unmount;
        others.add_row([
            slots.clone(),
            format!("unmount with {} ranges live", unmount.live),
            format!("{} s", short(unmount.seconds)),
        ]);
        for p in &setting.pressure {
            others.add_row([
                slots.clone(),
                format!("1G through a window of {}", bytes(p.window_bytes)),
                format!(
                    "{} mappings/s, {}/s",
                    short(p.mappings_per_second),
                    bytes(p.bytes_per_second as u64)
                ),
            ]);
        }
    }
    println!("{points}\n{others}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_came_between_two_documents() {
        let document = |buckets: Value| json!({"mappings": {"setup": {"buckets_us": buckets}}});
        let before = document(json!([[10.0, 5], [20.0, 1]]));
        let after = document(json!([[10.0, 5], [20.0, 4], [40.0, 1]]));
        let mut grown = Buckets::between(&before, &after, "setup").expect("buckets");
        assert_eq!(grown.0, [(20.0, 3), (40.0, 1)]);
        assert_eq!((grown.quantile(0.5), grown.quantile(0.9)), (20.0, 40.0));
        assert!(Buckets::between(&json!({}), &after, "setup").is_err());
    }

    #[test]
    fn quantiles_are_samples() {
        let mut values = [3.0, 1.0, 2.0, 4.0];
        assert_eq!(quantile(&mut values, 0.5), 2.0);
        assert_eq!(quantile(&mut values, 0.9), 4.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
