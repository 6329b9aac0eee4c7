//! The run: line after line, each point recorded when it is there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use daxwindow_vm::cleanup::Scratch;
use daxwindow_vm::kernel::Flavour;
use daxwindow_vm::{AccelChoice, Kit};

use super::ask::{Line, Room};
use super::data::Data;
use super::point::{Kind, Point};
use super::price::{self, Market};
use super::{Args, Plan, print, summary, userspace, vms};
use crate::daemon;
use crate::machine::Machine;
use crate::runs::{Better, Cell, Header, Run, read};
use crate::vm::Surroundings;

/// The study's name, and that of its file.
const NAME: &str = "density";

/// A run and what it needs.
pub(super) struct Study<'a> {
    args: &'a Args,
    binary: PathBuf,
    plan: &'a Plan,
    run: Run,
    accel: AccelChoice,
    scratch: Scratch,
    complete: bool,
}

impl Study<'_> {
    /// Begins, or goes on with the results that are there.
    pub(super) fn open<'a>(args: &'a Args, binary: &Path, plan: &'a Plan) -> Result<Study<'a>> {
        let scratch = Scratch::below(&args.parent()?)?;
        let mut header = Header::new(NAME, Machine::detect(scratch.path()));
        header.version("daxwindowd", daemon::version(binary));
        header.option("seed", args.seed);
        for kind in Kind::ALL {
            if let Some(most) = args.counts(kind)?.last() {
                header.option(&format!("{} bytes", kind.name()), args.bytes_of(kind));
                // The random patterns depend on how many guests there are.
                header.option(&format!("{} guests", kind.name()), most);
            }
        }
        let machines = plan.lines.iter().any(|line| line.series.kind.is_machine());
        if machines || !plan.windows.is_empty() {
            let kit = Kit::open(args.offline)?;
            Surroundings::find(&kit, args.accel, Flavour::default())?.describe(&mut header);
        }
        let mut run = Run::open(&args.out, header, args.fresh)?;
        let points: usize = plan.lines.iter().map(|line| line.counts.len()).sum();
        let prices = plan.windows.len() * price::CELLS;
        run.plan(points + prices + summary::count(&plan.lines));
        for said in &plan.said {
            run.say(said);
        }
        Ok(Study {
            args,
            binary: binary.to_path_buf(),
            plan,
            run,
            accel: args.accel,
            scratch,
            complete: true,
        })
    }

    /// Measures what is not there yet; true when all is there at the end.
    pub(super) fn measure(&mut self) -> Result<bool> {
        for kind in Kind::ALL {
            self.lines(kind)?;
        }
        let missing = |window: &&u64| !self.run.has(&price::id(**window), super::Stack::Dax.name());
        let windows: Vec<u64> = self.plan.windows.iter().filter(missing).copied().collect();
        if !windows.is_empty() {
            self.prices(&windows)?;
        }
        let summed = summary::summary(self.run.cells(), &self.plan.lines);
        for cell in summed {
            if self.run.get(&cell.id, &cell.stack) != Some(&cell) {
                self.run.record(cell)?;
            }
        }
        Ok(self.complete)
    }

    fn lines(&mut self, kind: Kind) -> Result<()> {
        let missing: Vec<&Line> = (self.plan.lines.iter())
            .filter(|line| line.series.kind == kind)
            .filter(|line| !self.missing(line).is_empty())
            .collect();
        let Some(first) = missing.first() else {
            return Ok(());
        };
        let data = self.data(kind.name(), first.bytes)?;
        for line in missing {
            // Others may have taken memory since the plan was made.
            let done = line
                .check(Room::now()?)
                .and_then(|()| self.line(line, &data));
            if let Err(error) = done {
                self.failed(line, &error)?;
            }
        }
        Ok(())
    }

    /// Files of their own, gone when the scratch directory is.
    fn data(&self, name: &str, bytes: u64) -> Result<Data> {
        Data::write(&self.scratch.path().join(name), bytes)
    }

    fn missing(&self, line: &Line) -> Vec<usize> {
        let stack = line.series.stack.name();
        let missing = |count: &&usize| !self.run.has(&line.series.id(**count), stack);
        line.counts.iter().filter(missing).copied().collect()
    }

    fn line(&mut self, line: &Line, data: &Data) -> Result<()> {
        let missing = self.missing(line);
        let (seed, binary, accel) = (self.args.seed, self.binary.clone(), self.accel);
        let record = |point: &Point| {
            if missing.contains(&point.guests) {
                self.run.record(point.cell(&line.series))?;
            }
            Ok(())
        };
        match line.series.kind {
            Kind::Userspace => {
                let sweep = userspace::Sweep {
                    daemon: &binary,
                    data,
                    series: line.series,
                    counts: &missing,
                    of: line.of,
                    seed,
                };
                userspace::sweep(&sweep, record)
            }
            Kind::Vms | Kind::Overlays => {
                let sweep = vms::Sweep {
                    daemon: &binary,
                    data,
                    accel,
                    series: line.series,
                    count: missing.last().copied().unwrap_or(0),
                    of: line.of,
                    seed,
                };
                vms::sweep(&sweep, record)
            }
        }
    }

    /// The points that a line has not come to carry the reason.
    fn failed(&mut self, line: &Line, error: &anyhow::Error) -> Result<()> {
        self.complete = false;
        for count in self.missing(line) {
            let mut cell = line.series.cell(count);
            cell.error = Some(format!("{error:#}"));
            self.run.record(cell)?;
        }
        Ok(())
    }

    fn prices(&mut self, windows: &[u64]) -> Result<()> {
        let data = self.data("price", self.args.vm_bytes)?;
        let binary = self.binary.clone();
        let market = Market {
            daemon: &binary,
            data: &data,
            accel: self.accel,
        };
        let none = market.price(0).context("a guest without a window");
        for &window in windows {
            let priced = match &none {
                Ok(none) => market.price(window).map(|price| price.cells(&none.idle())),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            match priced {
                Ok(cells) => {
                    // The one that `measure` looks for comes last.
                    for cell in cells.into_iter().rev() {
                        self.run.record(cell)?;
                    }
                }
                Err(error) => {
                    self.complete = false;
                    let id = price::id(window);
                    let mut cell = Cell::new(id, super::Stack::Dax.name(), "MiB", Better::Lower);
                    cell.group = summary::PRICE.into();
                    cell.what = "what a window costs".into();
                    cell.metric = "guest memory".into();
                    cell.error = Some(format!("{error:#}"));
                    self.run.record(cell)?;
                }
            }
        }
        Ok(())
    }

    /// Tables, or all of the study as one object.
    pub(super) fn print(self, json: bool) -> Result<()> {
        let Study {
            args, plan, run, ..
        } = self;
        if !json {
            print::print(run.cells(), &plan.lines);
            println!("results: {}", run.path().display());
            return Ok(());
        }
        drop(run);
        let studies = read(&args.out)?;
        let study = studies.into_iter().find(|study| study.header.study == NAME);
        let study = study.context("the results have gone")?;
        println!("{}", serde_json::to_string_pretty(&study)?);
        Ok(())
    }
}
