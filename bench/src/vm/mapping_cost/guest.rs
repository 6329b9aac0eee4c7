//! The guests that mapping-cost measures in.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use daxwindow_shared::window::RANGE_BYTES;
use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, daemon_status, example, preload_library};
use serde_json::Value;

use super::{Args, Point, Pressure, Unmount, Way};

const FILE_BYTES: u64 = 1 << 30;
/// A setup may be slow where hundreds live.
const LIMIT: Duration = Duration::from_secs(300);

/// A directory with a sparse file, and what boots guests on it.
pub(super) struct Scene<'a> {
    args: &'a Args,
    folder: tempfile::TempDir,
    probe: PathBuf,
}

impl Scene<'_> {
    pub(super) fn new(args: &Args) -> Result<Scene<'_>> {
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
        file.set_len(args.window.max(FILE_BYTES))
            .context("make a sparse file")?;
        Ok(scene)
    }

    pub(super) fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// A guest with a window of this size.
    pub(super) fn boot(&self, way: Way, window: u64) -> Result<Guest> {
        let status = self.folder.path().join("status");
        let mut share = ShareOptions::new(self.share(), Dax::Always);
        share.window_bytes = window;
        share.daemon = self.args.daemon.clone();
        let told: &[&str] = match way {
            Way::Whole => &["--dax-mapping", "whole"],
            Way::Ranges => &["--dax-mapping", "ranges"],
            Way::RangesWithoutSlots => &["--dax-mapping", "ranges", "--memory-slots", "off"],
        };
        let told = told.iter().chain(&["--no-slot-limit", "--status-socket"]);
        share.daemon_arguments = told.map(|s| (*s).into()).collect();
        let place = status.to_string_lossy().into_owned();
        share.daemon_arguments.push(place);
        let options = VmOptions {
            preload: match way {
                Way::Whole => Some(preload_library()?),
                Way::Ranges | Way::RangesWithoutSlots => None,
            },
            // A guest describes each page of the window.
            memory_bytes: (512 << 20) + window / 32,
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

/// One that has DAX.
pub(super) struct Guest {
    vm: Vm,
    status: PathBuf,
}

impl Guest {
    /// Accelerator and kernel.
    pub(super) fn about(&self) -> (&'static str, String) {
        (self.vm.accel().name(), self.vm.release().to_owned())
    }

    /// From few live ranges to many, and then none.
    pub(super) fn with_many_ranges(mut self, live: &[u64]) -> Result<(Vec<Point>, Unmount)> {
        let points: Result<Vec<Point>> = live.iter().map(|&n| self.point(n)).collect();
        let found = (points?, self.unmount()?);
        self.end().map(|()| found)
    }

    /// Thrashes, and ends.
    pub(super) fn with_a_small_window(mut self, window: u64) -> Result<Pressure> {
        let found = self.pressure(window)?;
        self.end().map(|()| found)
    }

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
