//! One measurement of one operation on one daemon.
//!
//! Law: nothing counts without proof that the daemon did the work: bytes that
//! were read must have passed through its system calls, what was written must
//! be in the file on the host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daxwindow_guest::Error;
use daxwindow_guest::session::Session;
use daxwindow_shared::fuse::ROOT_ID;
use daxwindow_shared::latency::Latency;
use daxwindow_vm::processes::cpu_time;

use super::contender::{Dialect, Running};
use super::dax;
use super::driver::{Actor, Driven, drive};
use super::operations::{Operation, Stage};
use super::share::Files;
use super::usage::bytes_read;

/// An operation with so many of it in flight on so many request queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub operation: Operation,
    pub depth: usize,
    pub queues: usize,
}

impl Load {
    /// Stable identifier.
    pub(super) fn name(&self) -> String {
        let (depth, queues) = (self.depth, self.queues);
        format!("{}_d{depth}_q{queues}", self.operation.name())
    }
}

/// What one measurement gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Units of work a second.
    pub rate: f64,
    /// Of whole operations, microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Processor time of the daemon for one unit, microseconds.
    pub cpu_us: f64,
    /// Time of the front end that it did not wait in, for one unit,
    /// microseconds.
    pub front_end_us: f64,
    /// Processor time of the bare system calls for one unit, measured in the
    /// same repetition, microseconds; of ours only.
    pub calls_us: Option<f64>,
    /// All operations; empty where the sample was read back.
    pub latency: Latency,
}

/// What was done, and the daemon's processor time for it.
pub(super) struct Measured {
    pub driven: Driven,
    pub cpu: Duration,
}

/// How long to measure what has no end of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub warm_up: Duration,
    pub measure: Duration,
}

/// Measures once. `seed` is different for each measurement.
pub(super) fn measure(
    running: &mut Running,
    files: &Files,
    load: Load,
    times: Times,
    seed: u64,
) -> Result<Sample> {
    let measured = match load.operation.needs_window() {
        true => dax::measure(running, files, load.operation, times, seed),
        false => once(running, files, load, times, seed),
    };
    let measured =
        measured.with_context(|| format!("{}{}", load.name(), running.daemon.last_words()))?;
    Ok(sample(measured))
}

fn once(
    running: &mut Running,
    files: &Files,
    load: Load,
    times: Times,
    seed: u64,
) -> Result<Measured> {
    let operation = load.operation;
    files.restore()?;
    if operation.needs_fresh_session() {
        forget_everything(running)?;
    }
    let session = running.session()?;
    let queues = load.queues.min(running.queues);
    let mut pipeline = session.pipeline(queues, load.depth, operation.buffer_bytes())?;
    let stage = Stage {
        session,
        files,
        seed,
    };
    let mut actors = operation.actors(&stage, &mut pipeline)?;
    let at_least = (!operation.is_one_pass()).then_some(times.measure);
    if at_least.is_some() {
        drive(&mut pipeline, &mut actors, Some(times.warm_up))?;
    }
    let pid = running.daemon.pid();
    let (read_before, cpu_before) = (bytes_read(pid)?, cpu_time(pid)?);
    let driven = drive(&mut pipeline, &mut actors, at_least)?;
    let cpu = cpu_time(pid)?.saturating_sub(cpu_before);
    let read = bytes_read(pid)?.saturating_sub(read_before);
    prove(&driven, operation, read, &actors)?;
    Ok(Measured { driven, cpu })
}

/// Begins a new session, so that the daemon knows no node but the root.
fn forget_everything(running: &mut Running) -> Result<()> {
    let known = running.session()?.lookup(ROOT_ID, b"flat");
    let known = known.context("look flat up")?;
    match running.dialect {
        // It has no DESTROY, and makes a new device for each connection.
        Dialect::Alioth => running.reconnect()?,
        Dialect::Daxwindowd | Dialect::Virtiofsd => begin_anew(running.session()?)?,
    }
    let still = running.session()?.getattr(known.nodeid, None);
    ensure!(still.is_err(), "the daemon knows nodes of an ended session");
    Ok(())
}

fn begin_anew(session: &Session) -> Result<()> {
    // virtiofsd gives DESTROY back without an answer, so the proof is that an
    // old node is gone.
    if let Err(error) = session.destroy()
        && !matches!(error, Error::Protocol { .. })
    {
        return Err(error).context("end the session");
    }
    session.reinit().context("begin a session")?;
    ensure!(session.window().is_none(), "there is a window");
    Ok(())
}

fn prove(
    driven: &Driven,
    operation: Operation,
    read: u64,
    actors: &[Box<dyn Actor>],
) -> Result<()> {
    let wanted = driven.units * operation.bytes_read();
    ensure!(
        read >= wanted,
        "the daemon read {read} bytes where {wanted} were asked for: DAX is in use"
    );
    actors.iter().try_for_each(|actor| actor.check())
}

fn sample(Measured { driven, cpu }: Measured) -> Sample {
    let units = driven.units as f64;
    let latency = driven.latency.summary();
    Sample {
        rate: units / driven.elapsed.as_secs_f64(),
        p50_us: latency.p50_ns as f64 / 1e3,
        p99_us: latency.p99_ns as f64 / 1e3,
        cpu_us: cpu.as_secs_f64() * 1e6 / units,
        front_end_us: driven.front_end.as_secs_f64() * 1e6 / units,
        calls_us: None,
        latency: driven.latency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_per_unit() {
        let mut latency = Latency::new();
        (0..100).for_each(|_| latency.record(Duration::from_micros(20)));
        let driven = Driven {
            units: 1000,
            elapsed: Duration::from_millis(10),
            latency,
            front_end: Duration::from_millis(1),
        };
        let read = Operation::Read(4096);
        assert!(prove(&driven, read, 4096 * 1000, &[]).is_ok());
        let error = prove(&driven, read, 4096 * 999, &[]).expect_err("one is missing");
        assert!(error.to_string().contains("DAX"), "{error}");
        let cpu = Duration::from_millis(4);
        let sample = sample(Measured { driven, cpu });
        assert!((sample.rate - 100_000.0).abs() < 1.0);
        assert!((sample.cpu_us - 4.0).abs() < 1e-9);
        assert!((sample.front_end_us - 1.0).abs() < 1e-9);
        assert!((sample.p50_us - 20.0).abs() < 0.1);
        assert_eq!(sample.latency.count(), 100);
    }
}
