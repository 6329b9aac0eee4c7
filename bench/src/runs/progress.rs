//! How far a run is: a bar on a terminal, else a line a cell.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Cell;
use crate::figures::table::short;

/// Told of every cell.
pub(super) struct Progress {
    study: String,
    started: Instant,
    planned: u64,
    /// Finished by this process, and kept from an earlier one.
    done: u64,
    kept: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new(study: &str) -> Progress {
        Progress {
            study: study.into(),
            started: Instant::now(),
            planned: 0,
            done: 0,
            kept: 0,
            bar: None,
        }
    }

    /// So many cells in all, of which some are there from an earlier run.
    pub(super) fn plan(&mut self, planned: u64, kept: u64) {
        self.started = Instant::now();
        (self.planned, self.kept, self.done) = (planned, kept, 0);
        if kept > 0 {
            self.say(&format!("{}: {kept} cells kept, going on", self.study));
        }
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(planned)
                .with_position(kept)
                .with_style(style())
                .with_prefix(self.study.clone());
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_secs(1));
            self.bar = Some(bar);
        }
    }

    pub(super) fn record(&mut self, cell: &Cell) {
        self.done += 1;
        let told = tell(cell);
        if let Some(bar) = &self.bar {
            if cell.error.is_some() {
                bar.println(&told);
            }
            bar.set_message(told);
            bar.inc(1);
            return;
        }
        let place = match self.planned {
            0 => String::new(),
            planned => format!(" {}/{planned}", self.kept + self.done),
        };
        let left = self.left().map_or(String::new(), |left| {
            format!(" (about {} left)", clock(left))
        });
        eprintln!("{}{place}: {told}{left}", self.study);
    }

    /// A line that the bar does not disturb.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn left(&self) -> Option<Duration> {
        let left = self.planned.checked_sub(self.kept + self.done)?;
        let each = self.started.elapsed().as_secs_f64() / self.done.max(1) as f64;
        (left > 0).then(|| Duration::from_secs_f64(each * left as f64))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix} [{bar:24}] {pos}/{len}, {eta} left  {wide_msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn tell(cell: &Cell) -> String {
    let value = match (cell.series(), &cell.error) {
        (Some(series), None) => format!("{} {}", short(series.median), cell.unit),
        (_, error) => format!("failed: {}", error.as_deref().unwrap_or("no value")),
    };
    format!("{} on {}: {value}", cell.id, cell.stack)
}

/// Minutes and seconds.
fn clock(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 60 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Better;

    #[test]
    fn a_cell_is_told_in_one_line() {
        let mut cell = Cell::new("read", "9p", "MB/s", Better::Higher);
        cell.values = vec![1.0, 3.0, 2.0];
        assert_eq!(tell(&cell), "read on 9p: 2.00 MB/s");
        cell.values.clear();
        cell.error = Some("no guest".into());
        assert_eq!(tell(&cell), "read on 9p: failed: no guest");
        assert_eq!(clock(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(clock(Duration::from_secs(9)), "9 s");
    }

    #[test]
    fn the_time_left_counts_only_what_this_process_did() {
        let mut progress = Progress::new("fio");
        progress.plan(10, 8);
        progress.started = Instant::now() - Duration::from_secs(60);
        progress.done = 1;
        let left = progress.left().expect("one is left").as_secs();
        assert!((60..70).contains(&left), "{left}");
        progress.done = 2;
        assert_eq!(progress.left(), None);
    }
}
