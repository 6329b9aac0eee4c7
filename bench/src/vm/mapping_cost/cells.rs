//! What mapping-cost found, as cells on disk.

use std::path::Path;

use anyhow::Result;
use daxwindow_vm::kernel::Flavour;
use daxwindow_vm::{AccelChoice, Kit};

use super::{Point, Pressure, Unmount, Way};
use crate::machine::Machine;
use crate::runs::{Better, Cell, Header};
use crate::vm::Surroundings;

/// Name of the study.
const STUDY: &str = "mapping-cost";

/// The guest of one setting with many ranges, or with a window of this size.
pub(super) fn stack(way: Way) -> String {
    format!("daxwindow {}", way.name())
}

/// The cell that comes last of a guest with many ranges.
pub(super) const UNMOUNT: &str = "unmount";

/// The cell of a guest with this window.
pub(super) fn pressure_id(window_bytes: u64) -> String {
    format!("pressure/{}M", window_bytes >> 20)
}

/// Conditions, known before a guest is booted.
pub(super) fn header(share: &Path, accel: AccelChoice, daemon: &str) -> Result<Header> {
    let kit = Kit::open(false)?;
    let mut header = Header::new(STUDY, Machine::detect(share));
    Surroundings::find(&kit, accel, Flavour::default())?.describe(&mut header);
    header.version("daxwindowd", daemon);
    Ok(header)
}

pub(super) fn point(way: Way, point: &Point) -> [Cell; 2] {
    let cell = |part: &str, metric: &str, us: f64, p90: f64| {
        let id = format!("first-touch/{part}/{}", point.live);
        let mut cell = Cell::new(id, stack(way), "ms", Better::Lower);
        cell.group = "first touch of a range".into();
        cell.what = format!("{metric} with {} ranges live", point.live);
        cell.metric = metric.into();
        cell.values = vec![us / 1e3];
        cell.detail.insert("live_ranges".into(), point.live as f64);
        cell.detail.insert("p90_ms".into(), p90 / 1e3);
        cell.detail.insert("samples".into(), point.samples as f64);
        // As many as the guest touched, or there would be no point.
        cell.proof.insert("setups".into(), point.samples as f64);
        cell
    };
    [
        cell(
            "guest",
            "median time",
            point.guest_p50_us,
            point.guest_p90_us,
        ),
        cell(
            "daemon",
            "of it the daemon, median",
            point.daemon_p50_us,
            point.daemon_p90_us,
        ),
    ]
}

pub(super) fn unmount(way: Way, unmount: &Unmount) -> Cell {
    let mut cell = Cell::new(UNMOUNT, stack(way), "s", Better::Lower);
    cell.group = "unmount".into();
    cell.what = format!("unmount with {} ranges live", unmount.live);
    cell.metric = "time".into();
    cell.values = vec![unmount.seconds];
    cell.proof.insert("live_ranges".into(), unmount.live as f64);
    cell
}

pub(super) fn pressure(way: Way, pressure: &Pressure) -> Cell {
    let id = pressure_id(pressure.window_bytes);
    let mut cell = Cell::new(id, stack(way), "mappings/s", Better::Higher);
    cell.group = "a file of 1 GiB through a window that it does not fit in".into();
    let mib = pressure.window_bytes >> 20;
    cell.what = format!("touching 1 GiB through a window of {mib} MiB");
    cell.metric = "mappings a second".into();
    cell.values = vec![pressure.mappings_per_second];
    cell.detail.insert("window_mib".into(), mib as f64);
    cell
}

/// A guest that could not be measured.
pub(super) fn failed(id: &str, way: Way, error: &anyhow::Error) -> Cell {
    let mut cell = Cell::new(id, stack(way), "", Better::Lower);
    cell.group = "failed".into();
    cell.what = format!("{id} {}", way.name());
    cell.metric = "time".into();
    cell.error = Some(format!("{error:#}"));
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_lies_on_two_lines() {
        let found = Point {
            live: 400,
            samples: 25,
            guest_p50_us: 9000.0,
            guest_p90_us: 12_000.0,
            daemon_p50_us: 8000.0,
            daemon_p90_us: 9000.0,
        };
        let [guest, daemon] = point(Way::Ranges, &found);
        assert_eq!(guest.stack, "daxwindow by ranges");
        assert_eq!((guest.values[0], daemon.values[0]), (9.0, 8.0));
        assert_eq!(guest.detail["live_ranges"], 400.0);
        assert_ne!((guest.metric, guest.id), (daemon.metric, daemon.id));
        assert_eq!(pressure_id(64 << 20), "pressure/64M");
        let error = anyhow::anyhow!("no guest");
        assert_eq!(
            failed(UNMOUNT, Way::RangesWithoutSlots, &error)
                .error
                .as_deref(),
            Some("no guest")
        );
    }
}
