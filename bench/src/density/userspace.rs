//! Guests that are processes: each attaches, reads its part and keeps what it
//! has while the next ones come.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use daxwindow_vm::cleanup;

use super::data::Data;
use super::memory::{Usage, memory_files};
use super::pattern::Part;
use super::point::{AREAS, PAGE_TABLES, Point, Series, mib};
use super::reader::Told;
use super::stage::{Counters, Stack, Stage, Wanted};

/// How long one guest may read.
const READS_WITHIN: Duration = Duration::from_secs(300);
/// Room in a window besides the data: a mapper keeps some ranges free.
const SPARE_WINDOW: u64 = 64 << 20;

/// What a sweep needs.
pub(super) struct Sweep<'a> {
    pub daemon: &'a Path,
    pub data: &'a Data,
    pub series: Series,
    /// Numbers of guests to stop at, ascending.
    pub counts: &'a [usize],
    /// Guests of the pattern, which may be more.
    pub of: usize,
    pub seed: u64,
}

/// Brings up one guest after the other; hands over a point at each number of
/// guests that is asked for.
pub(super) fn sweep(sweep: &Sweep<'_>, mut point: impl FnMut(&Point) -> Result<()>) -> Result<()> {
    let most = sweep.counts.last().copied().unwrap_or(0);
    sweep.data.forget()?;
    let window = sweep.data.bytes + sweep.data.bytes / 4 + SPARE_WINDOW;
    let wanted = Wanted {
        binary: sweep.daemon,
        directories: &[sweep.data.directory().to_path_buf()],
        guests: most,
        window_bytes: window.next_multiple_of(2 << 20),
        unlimited: true,
    };
    let stage = Stage::start(sweep.series.stack, &wanted)?;
    let mut guests = Guests::default();
    for guest in 0..most {
        guests.add(sweep, &stage, guest)?;
        if sweep.counts.contains(&(guest + 1)) {
            point(&guests.point(sweep, &stage)?)?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Guests {
    processes: Vec<Reader>,
    read: u64,
    counters: Counters,
    page_tables: u64,
    areas: u64,
}

impl Guests {
    fn add(&mut self, sweep: &Sweep<'_>, stage: &Stage, guest: usize) -> Result<()> {
        let part = sweep.series.part(sweep.data, sweep.of, guest, sweep.seed);
        let before = stage.counters(guest)?;
        let dax = sweep.series.stack == Stack::Dax;
        let mut reader = Reader::start(&part, stage.socket(guest)?, dax)?;
        let told = reader
            .told()
            .map_err(|error| anyhow!("guest {guest}: {error:#}{}", stage.last_words()))?;
        let now = stage.prove(guest, &before, told.bytes)?;
        self.counters.setups += now.setups;
        self.counters.live_ranges += now.live_ranges;
        self.counters.live_bytes += now.live_bytes;
        self.counters.reads += now.reads;
        self.counters.read_bytes += now.read_bytes.saturating_sub(before.read_bytes);
        self.read += told.bytes;
        self.page_tables += told.page_tables.saturating_sub(told.page_tables_before);
        self.areas += told.areas;
        self.processes.push(reader);
        Ok(())
    }

    fn point(&self, sweep: &Sweep<'_>, stage: &Stage) -> Result<Point> {
        let guests: Vec<i32> = self.processes.iter().map(Reader::pid).collect();
        let daemon = stage.processes();
        let all: Vec<i32> = guests.iter().chain(&daemon).copied().collect();
        let read_gib = self.read as f64 / (1u64 << 30) as f64;
        let inside = [
            (PAGE_TABLES, mib(self.page_tables) / read_gib),
            (AREAS, self.areas as f64 / guests.len() as f64),
        ];
        Ok(Point {
            guests: guests.len(),
            read: self.read,
            page_cache: sweep.data.cached(),
            processes: Usage::of(&guests)?,
            guest_ram: memory_files(&all)?,
            daemon: Usage::of(&daemon)?,
            idle: 0,
            counters: self.counters,
            inside: inside.map(|(name, value)| (name.into(), value)).into(),
        })
    }
}

/// A guest's process; ended on drop.
struct Reader {
    child: Child,
}

impl Reader {
    fn start(part: &Part, socket: &Path, dax: bool) -> Result<Reader> {
        let program = std::env::current_exe().context("find this executable")?;
        let child = Command::new(program)
            .arg(super::READER)
            .args(part.arguments())
            .arg("--socket")
            .arg(socket)
            .args(dax.then_some("--dax"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start a guest")?;
        cleanup::daemon_started(child.id() as i32);
        Ok(Reader { child })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until it has read.
    fn told(&mut self) -> Result<Told> {
        let output = self.child.stdout.take().context("a guest speaks once")?;
        let (sender, line) = mpsc::channel();
        std::thread::Builder::new()
            .name("guest".into())
            .spawn(move || {
                let mut line = String::new();
                let read = BufReader::new(output).read_line(&mut line);
                let _ = sender.send(read.map(|_| line));
            })
            .context("start a thread")?;
        let line = match line.recv_timeout(READS_WITHIN) {
            Ok(line) => line.context("hear of a guest")?,
            Err(_) => bail!("it has not read its part within {READS_WITHIN:?}"),
        };
        if line.is_empty() {
            let status = self.child.wait().context("wait for a guest")?;
            let mut said = String::new();
            if let Some(mut error) = self.child.stderr.take() {
                error.read_to_string(&mut said).context("hear of a guest")?;
            }
            bail!("it ended ({status}): {}", said.trim());
        }
        serde_json::from_str(&line).with_context(|| format!("understand {line:?}"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        cleanup::daemon_ended(self.pid());
    }
}
