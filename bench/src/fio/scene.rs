//! The guests that run, and one pass of a load in one of them.
//!
//! Law: what a pass is told to find (a guest without the file, a host with or
//! without it) is made so and looked at before fio starts.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use daxwindow_vm::{Kit, Vm, daemon_status};
use serde_json::Value;

use super::output::Outcome;
use super::plan::{FileKind, Load, Pass};
use super::proof::{Facts, Window};
use super::stacks::{Setup, Stack, guest, guests, prepare};
use super::tree::{Tree, bytes_with, cool, warm};
use crate::host_memory::bytes_read_by;

const LIMIT: Duration = Duration::from_secs(300);
/// How often a guest is told to drop its caches before it is not cold.
const DROPS: usize = 5;

/// Guests, files, and what they were made from.
pub(super) struct Scene {
    kit: Kit,
    setup: Setup,
    guests: Vec<Guest>,
    tree: Tree,
    /// Patterns that were written so far.
    patterns: u32,
}

struct Guest {
    stacks: Vec<Stack>,
    /// None when it broke: it is booted again.
    vm: Option<Vm>,
}

/// One pass that was measured and proved.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub outcome: Outcome,
    pub facts: Facts,
}

/// What is counted on the host.
struct Counted {
    served_bytes: u64,
    window: Option<Value>,
}

impl Scene {
    /// Boots all guests, side by side.
    pub(super) fn new(kit: Kit, setup: Setup, stacks: &[Stack], tree: Tree) -> Result<Scene> {
        let mut guests: Vec<Guest> = guests(stacks)
            .into_iter()
            .map(|stacks| Guest { stacks, vm: None })
            .collect();
        let (kit_of_all, setup_of_all, tree_of_all) = (&kit, &setup, &tree);
        std::thread::scope(|scope| {
            let boots: Vec<_> = guests
                .iter_mut()
                .map(|guest| scope.spawn(|| guest.boot(kit_of_all, setup_of_all, tree_of_all)))
                .collect();
            let ended = boots.into_iter().map(|boot| match boot.join() {
                Ok(done) => done,
                Err(_) => bail!("booting a guest panicked"),
            });
            ended.collect::<Result<Vec<()>>>()
        })?;
        Ok(Scene {
            kit,
            setup,
            guests,
            tree,
            patterns: 0,
        })
    }

    /// Powers all guests off; what their kernels complained of.
    pub(super) fn end(mut self) -> Result<Vec<String>> {
        let mut complaints = Vec::new();
        for vm in self.guests.iter_mut().filter_map(|guest| guest.vm.as_mut()) {
            vm.shutdown()?;
            complaints.extend(vm.kernel_warnings());
        }
        Ok(complaints)
    }

    /// Files that this load reads or writes, on the host.
    fn files(&self, load: &Load, stack: Stack) -> Result<Vec<PathBuf>> {
        if load.job.uses_file {
            return Ok(vec![self.tree.file(load.job.file, stack)]);
        }
        let own = self.tree.shared().join(stack.word());
        let entries = std::fs::read_dir(&own).with_context(|| format!("read {}", own.display()))?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths
            .filter(|p| p.as_ref().map_or(true, |p| p.is_file()))
            .collect()
    }

    /// One pass.
    pub(super) fn pass(&mut self, stack: Stack, load: &Load, pass: Pass) -> Result<Sample> {
        self.patterns += 1;
        let pattern = format!("{:08x}", self.patterns);
        let place = Place::new(&self.tree, load, stack, pass, &pattern);
        if pass != Pass::Second {
            if !load.job.uses_file {
                self.run(stack, &place.lay_out())?;
            }
            self.drop_caches(stack)?;
            if pass == Pass::HostCold {
                self.unmap_all()?;
            }
            for file in self.files(load, stack)? {
                match pass {
                    Pass::HostCold => cool(&file)?,
                    _ => warm(&file)?,
                }
            }
        }
        let before = self.count(stack)?;
        let text = self.run(stack, &place.script())?;
        let after = self.count(stack)?;
        let (growth, json) = text.split_once('\n').context("the guest said nothing")?;
        let growth: i64 = growth.trim().parse().context("growth of the page cache")?;
        let outcome = Outcome::parse(json)?;
        let found_bytes = match load.job.has_pattern && load.job.uses_file {
            true => {
                let mut ascii = [0; 8];
                ascii.copy_from_slice(pattern.as_bytes());
                let file = self.tree.file(load.job.file, stack);
                Some(bytes_with(&file, u64::from_be_bytes(ascii))?)
            }
            false => None,
        };
        let facts = Facts {
            read_bytes: outcome.read_bytes,
            write_bytes: outcome.write_bytes,
            times: u64::from(place.times),
            window: before.window(&after)?,
            served_bytes: after.served_bytes.saturating_sub(before.served_bytes),
            cached_bytes: growth * 1024,
            found_bytes,
            fits: load.job.file != FileKind::Large,
            direct: load.job.direct,
            overwrites: load.job.uses_file,
        };
        facts.check(stack, pass)?;
        Ok(Sample { outcome, facts })
    }

    /// The kernel passes over what was used since it last looked, so it is told
    /// more than once; an inode that it keeps has its mappings still.
    fn drop_caches(&mut self, stack: Stack) -> Result<()> {
        let script = "cd /; sync; for i in 1 2; do echo 3 >/proc/sys/vm/drop_caches; done";
        for _ in 0..DROPS {
            self.run(stack, script)?;
            let now = self.count(stack)?;
            let live = now.window(&now)?.map_or(0, |window| window.live_after);
            if live == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The host keeps the pages of a file that any guest has mapped.
    fn unmap_all(&mut self) -> Result<()> {
        let stacks = self.guests.iter().flat_map(|guest| &guest.stacks);
        let mapping: Vec<_> = stacks.copied().filter(|s| s.has_window()).collect();
        mapping
            .into_iter()
            .try_for_each(|stack| self.drop_caches(stack))
    }

    fn guest(&mut self, stack: Stack) -> Result<&mut Guest> {
        let mut guests = self.guests.iter_mut();
        let guest = guests.find(|guest| guest.stacks.contains(&stack));
        guest.with_context(|| format!("no guest has {}", stack.name()))
    }

    /// Runs a script; a guest that does not end it is booted again before the
    /// next one.
    fn run(&mut self, stack: Stack, script: &str) -> Result<String> {
        let guest = self.guest(stack)?;
        if guest.vm.is_none() {
            let index = self.guests.iter().position(|g| g.stacks.contains(&stack));
            let guest = index.and_then(|index| self.guests.get_mut(index));
            guest
                .context("no guest")?
                .boot(&self.kit, &self.setup, &self.tree)?;
        }
        let guest = self.guest(stack)?;
        let vm = guest.vm.as_mut().context("the guest is not booted")?;
        match vm.sh_within(script, LIMIT) {
            Ok(output) => output.ok(),
            Err(error) => {
                guest.vm = None;
                Err(error)
            }
        }
    }

    fn count(&mut self, stack: Stack) -> Result<Counted> {
        let status = self.tree.status(stack);
        let guest = self.guest(stack)?;
        let vm = guest.vm.as_ref().context("the guest is not booted")?;
        let with_daemon = |s: &&Stack| !matches!(s, Stack::NineP | Stack::Blk);
        let mut daemons = guest.stacks.iter().filter(with_daemon);
        let pid = match daemons.position(|s| *s == stack) {
            Some(share) => vm.daemon_pid(share).context("the daemon is gone")?,
            None => vm.qemu_pid(),
        };
        Ok(Counted {
            served_bytes: bytes_read_by(pid)?,
            window: match stack.is_daxwindow() {
                true => Some(daemon_status(&status)?),
                false => None,
            },
        })
    }
}

impl Guest {
    fn boot(&mut self, kit: &Kit, setup: &Setup, tree: &Tree) -> Result<()> {
        self.vm = None;
        let names: Vec<_> = self.stacks.iter().map(|stack| stack.name()).collect();
        let what = || format!("the guest with {}", names.join(", "));
        let options = guest(kit, &self.stacks, tree, setup)?;
        let mut vm = Vm::boot(&options).with_context(what)?;
        vm.sh(&prepare(&self.stacks))?.ok().with_context(what)?;
        self.vm = Some(vm);
        Ok(())
    }
}

impl Counted {
    /// What the daemon did between two looks.
    fn window(&self, after: &Counted) -> Result<Option<Window>> {
        let (Some(before), Some(after)) = (&self.window, &after.window) else {
            return Ok(None);
        };
        let number = |document: &Value, key: &str| {
            let found = document.pointer(key).and_then(Value::as_u64);
            found.with_context(|| format!("the status document has no {key}"))
        };
        let grown = |key: &str| -> Result<u64> {
            Ok(number(after, key)?.saturating_sub(number(before, key)?))
        };
        let setup_us = |document: &Value| {
            let of = |key: &str| document.pointer(key).and_then(Value::as_f64).unwrap_or(0.0);
            of("/mappings/setup/count") * of("/mappings/setup/mean_us")
        };
        // Kinds of requests that never came are not named.
        let requests = |kind: &str| {
            let key = format!("/requests/by_opcode/{kind}/count");
            let of = |document: &Value| document.pointer(&key).and_then(Value::as_u64);
            of(after).unwrap_or(0) - of(before).unwrap_or(0)
        };
        Ok(Some(Window {
            live_before: number(before, "/mappings/live_ranges")?,
            live_after: number(after, "/mappings/live_ranges")?,
            setups: grown("/mappings/setups")?,
            fuse_reads: requests("Read"),
            fuse_writes: requests("Write"),
            setup_us: (setup_us(after) - setup_us(before)).max(0.0) as u64,
        }))
    }
}

/// A job file with all its variables.
struct Place {
    job: String,
    directory: String,
    variables: Vec<(&'static str, String)>,
    /// How often a byte of the file is read or written at most.
    times: u32,
}

/// Ends a job file in a script.
const END: &str = "END_OF_JOB_FILE";

impl Place {
    fn new(tree: &Tree, load: &Load, stack: Stack, pass: Pass, pattern: &str) -> Place {
        let bytes = tree.bytes(load.job.file);
        let part = bytes / u64::from(load.job.parts(load.jobs));
        let some = bytes / 4 / u64::from(load.jobs);
        // Several times is for what is over in a moment.
        let loops = match pass {
            Pass::Second if stack.keeps() => load.loops,
            Pass::Second | Pass::First | Pass::HostCold => 1,
        };
        // fio rounds nothing: parts are whole blocks of the largest size.
        let whole = |bytes: u64| (bytes >> 20).max(1) << 20;
        Place {
            job: load.job.text.clone(),
            directory: match stack {
                Stack::Blk => "/".into(),
                _ => format!("{}/{}", stack.mount(), stack.word()),
            },
            variables: vec![
                ("FILE", Tree::in_guest(load.job.file, stack)),
                ("PART", whole(part).to_string()),
                ("SOME", whole(some).to_string()),
                ("BLOCK", load.block.clone()),
                ("JOBS", load.jobs.to_string()),
                ("LOOPS", loops.to_string()),
                ("PATTERN", format!("'\"{pattern}\"'")),
            ],
            times: match load.job.text.contains("${LOOPS}") {
                true => loops * load.jobs / load.job.parts(load.jobs),
                false => load.jobs / load.job.parts(load.jobs),
            },
        }
    }

    /// A start of fio; a job file that lays out its files does so in the
    /// stack's directory.
    fn fio(&self, arguments: &str) -> String {
        let job = self.job.trim_end();
        let directory = &self.directory;
        let mut script = format!("cd {directory}\ncat >/run/job.fio <<'{END}'\n{job}\n{END}\n");
        for (name, value) in &self.variables {
            script.push_str(&format!("export {name}={value}\n"));
        }
        script.push_str(&format!(
            "fio --eta=never --invalidate=0 {arguments} /run/job.fio >/run/said 2>&1 || \
             {{ status=$?; cat /run/said; exit $status; }}\n"
        ));
        script
    }

    fn lay_out(&self) -> String {
        self.fio("--create_only=1")
    }

    /// Prints by how many kilobytes the page cache grew, and fio's JSON.
    fn script(&self) -> String {
        let cached = "awk '/^(Cached|Buffers):/ {c += $2} /^Shmem:/ {s = $2} END {print c - s}' /proc/meminfo";
        format!(
            "rm -f /run/json\nbefore=$({cached})\n{}after=$({cached})\n\
             echo $((after - before))\ncat /run/json\n",
            self.fio("--output-format=json+ --output=/run/json")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fio::jobs::shipped;
    use serde_json::json;

    #[test]
    fn what_a_daemon_did_is_the_difference_of_two_documents() {
        let document = |live: u64, setups: u64, reads: Value| Counted {
            served_bytes: 0,
            window: Some(json!({
                "mappings": {
                    "live_ranges": live, "setups": setups,
                    "setup": {"count": setups, "mean_us": 50.0},
                },
                "requests": {"by_opcode": {"Read": {"count": reads}}},
            })),
        };
        let before = document(3, 10, Value::Null);
        let window = before.window(&document(5, 14, json!(7))).expect("numbers");
        let wanted = Window {
            live_before: 3,
            live_after: 5,
            setups: 4,
            fuse_reads: 7,
            fuse_writes: 0,
            setup_us: 200,
        };
        assert_eq!(window, Some(wanted));
        let nothing = Counted {
            served_bytes: 0,
            window: Some(json!({})),
        };
        assert!(nothing.window(&before).is_err());
    }

    #[test]
    fn scripts_of_all_loads_are_well_formed() {
        let parent = tempfile::tempdir().expect("directory");
        let stacks = [Stack::DaxAlways, Stack::Blk];
        let tree = Tree::make(parent.path(), &stacks, &[], 64 << 20, 1 << 30).expect("made");
        for job in shipped().expect("all") {
            for load in job.loads(false) {
                let place = Place::new(&tree, &load, Stack::DaxAlways, Pass::Second, "0000002a");
                for script in [place.script(), place.lay_out()] {
                    let mut check = std::process::Command::new("sh");
                    let status = check.args(["-n", "-c", &script]).status().expect("sh");
                    assert!(status.success(), "{script}");
                    assert!(script.contains("export PATTERN='\"0000002a\"'"), "{script}");
                }
                let part: u64 = place.variables[1].1.parse().expect("bytes");
                assert!(part > 0 && part.is_multiple_of(1 << 20));
                let (parts, bytes) = (job.parts(load.jobs), tree.bytes(job.file));
                assert!(part * u64::from(parts) <= bytes);
                // Who all have the whole file read each byte once each.
                assert_eq!(place.times % (load.jobs / parts), 0, "{}", load.name());
            }
        }
    }
}
