//! A root directory of layers, in namespaces of its own: for programs that
//! want a whole system around them, such as a manager of virtual machines.
//!
//! Law: its processes, mounts and all that was written in it are gone with the
//! value, or with this program. It has no network but a loopback device that
//! is down, and no init system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::agent::Output;
use super::guard::Guard;
use super::process::Process;
use crate::cleanup::Scratch;
use crate::processes::family;

const STARTS_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(5);
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const READY: &str = "the container is ready";

/// The first process. It becomes the root by pivot_root(2), since in a chroot
/// no program could make user namespaces. `/srv` and `/run` are file systems
/// with file handles, which an overlay is not.
const INIT: &str = r#"set -e
place=$1 lower=$2
mount -t tmpfs -o mode=755 above "$place"
mkdir "$place/upper" "$place/work" "$place/root"
root=$place/root
mount -t overlay -o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" root "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for name in null zero full random urandom tty fuse; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/old"
mount -t devpts -o newinstance,ptmxmode=666 pts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
for name in srv run; do mount -t tmpfs -o mode=755 $name "$root/$name"; done
mkdir "$root/run/lock"
cd "$root"
pivot_root . dev/old
cd /
umount -l /dev/old
rmdir /dev/old
echo the container is ready
while :; do sleep 1 & wait; done
"#;

/// A root directory with processes of its own.
pub struct Container {
    // Dropped in this order: the guard must not see an end that is meant.
    guard: Option<Guard>,
    outer: Process,
    init: i32,
    _place: Scratch,
}

/// A process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inmate {
    /// Its id in the container.
    pub pid: i32,
    /// What it is called.
    pub name: String,
    /// The words of its command line.
    pub words: Vec<String>,
}

impl Container {
    /// Starts one over these root directories, the uppermost first, which stay
    /// as they are.
    ///
    /// # Errors
    ///
    /// Without root, or when the kernel has no overlay.
    pub fn start(layers: &[PathBuf]) -> Result<Container> {
        let place = Scratch::for_sockets()?;
        let names = layers.iter().map(|layer| layer.to_str());
        let names: Option<Vec<&str>> = names
            .map(|name| name.filter(|name| !name.contains([':', ',', '\\'])))
            .collect();
        let lower = names.context("a layer's path has a character that mount does not take")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--ipc", "--uts", "--net"]);
        command.args(["--propagation", "private", "--fork", "--kill-child"]);
        let mounted = place.path().join("mounted");
        fs::create_dir(&mounted).with_context(|| format!("make {}", mounted.display()))?;
        command.args(["sh", "-c", INIT, "init"]).arg(mounted);
        command.arg(lower.join(":")).stdin(Stdio::null());
        let log = place.path().join("log");
        let mut outer = Process::start("container", &mut command, &log)?;
        let guard = Guard::over(&[outer.pid()])?;
        let deadline = Instant::now() + STARTS_WITHIN;
        while !outer.said().contains(READY) {
            if outer.ended().is_some() || Instant::now() > deadline {
                bail!("no container starts: {}", outer.report());
            }
            std::thread::sleep(STEP);
        }
        let init = family(outer.pid()).get(1).copied();
        Ok(Container {
            guard: Some(guard),
            init: init.context("the container has no first process")?,
            outer,
            _place: place,
        })
    }

    /// Its root directory, seen from outside.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// Where a path in it is from outside. No link in it may be absolute.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root().join(inside.trim_start_matches('/'))
    }

    /// Copies a file of the host to a path in it, with its mode.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written.
    pub fn copy(&self, from: &Path, inside: &str) -> Result<()> {
        let to = self.path(inside);
        let what = || format!("copy {} to {}", from.display(), to.display());
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(what)?;
        }
        fs::copy(from, &to).with_context(what).map(drop)
    }

    /// A command in it, by root, with an environment that says nothing of this
    /// machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--ipc", "--uts", "--net"]);
        command.args(["--root", "--wd", "--"]).args(words);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
        command.env("HOME", "/root").stdin(Stdio::null());
        command
    }

    /// Runs such a command to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started; its status is no error.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let output = self.command(words).output();
        let output = output.with_context(|| format!("run {}", words.join(" ")))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output {
            stdout: said(&output.stdout),
            stderr: said(&output.stderr),
            status: output.status.code().unwrap_or(-1),
        })
    }

    /// All processes in it but the first and those that keep it going, also
    /// those in namespaces below its own.
    pub fn processes(&self) -> Vec<Inmate> {
        let entries = fs::read_dir(self.path("proc"));
        let entries = entries.into_iter().flatten().filter_map(Result::ok);
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let inmates = pids.filter_map(|pid| self.inmate(pid));
        inmates.filter(|inmate| inmate.name != "sleep").collect()
    }

    /// None for the first process and for those that have ended.
    fn inmate(&self, pid: i32) -> Option<Inmate> {
        let file = |name: &str| fs::read(self.path(&format!("proc/{pid}/{name}"))).ok();
        let name = String::from_utf8_lossy(&file("comm")?).trim().to_owned();
        let line = file("cmdline").filter(|line| pid != 1 && !line.is_empty())?;
        let words = line.split(|byte| *byte == 0);
        let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
        let mut words: Vec<String> = words.collect();
        words.pop();
        Some(Inmate { pid, name, words })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.guard.take());
        // The first process dies with it, and all others with that.
        self.outer.kill();
        let deadline = Instant::now() + ENDS_WITHIN;
        while fs::read_link(self.root()).is_ok() && Instant::now() < deadline {
            std::thread::sleep(STEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root that borrows this machine's programs.
    fn host() -> Container {
        Container::start(&[PathBuf::from("/")]).expect("starts, which needs root")
    }

    #[test]
    fn nothing_of_it_is_left_and_nothing_of_the_layers_changed() {
        let name = format!("/var/daxwindow-container-{}", std::process::id());
        let container = host();
        let root = container.root();
        let script =
            format!("echo x > {name}; cat {name}; setsid tail -f /dev/null >/dev/null 2>&1 &");
        let output = container.run(&["sh", "-c", &script]).expect("runs");
        assert_eq!((output.status, output.stdout.as_str()), (0, "x\n"));
        assert!(container.path(&name).is_file() && !Path::new(&name).exists());
        // It is a shell first.
        let deadline = Instant::now() + STARTS_WITHIN;
        let words = || container.processes().pop().map(|inmate| inmate.words);
        let wanted = Some(["tail", "-f", "/dev/null"].map(str::to_owned).to_vec());
        while words() != wanted {
            assert!(Instant::now() < deadline, "{:?}", container.processes());
            std::thread::sleep(STEP);
        }
        assert_eq!(container.processes().len(), 1);
        drop(container);
        assert!(fs::read_link(root).is_err(), "its first process lives");
    }

    #[test]
    fn a_layer_that_is_not_there_is_an_error_that_says_so() {
        let error = Container::start(&["/no/such/layer".into()]).err();
        let text = error.expect("nothing to mount").to_string();
        assert!(text.contains("mount"), "{text}");
    }
}
