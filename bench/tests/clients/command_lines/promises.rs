//! What a command line promises, and how a guest and the host see it kept.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use daxwindow_vm::Vm;
use rustix::fs::{XattrFlags, setxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::started::{GROUP, LIMIT, Started, most_files};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Nothing can be changed.
    ReadOnly,
    /// What the host changes is seen at once.
    CacheNever,
    /// Within a second or so.
    CacheAuto,
    /// Data is, sizes are not.
    CacheMetadata,
    /// Not at all.
    CacheAlways,
    /// A mount is another file system in the guest.
    Submounts,
    /// It is not, but there.
    NoSubmounts,
    /// The host's extended attributes are there.
    Xattrs,
    NoXattrs,
    /// A directory's default ACL counts.
    Acls,
    NoAcls,
    /// O_DIRECT is taken.
    DirectIo,
    /// The guest's owner of the directory.
    SeenAs(u32),
    /// Root of the guest is nobody special in a directory of the host's root.
    Fence,
    /// An id that no file can be given.
    Forbidden(u32),
    /// No device can be made.
    NoNodes,
    /// A mount namespace.
    OwnMounts,
    /// No namespace, but a root directory.
    Chroot,
    NoSandbox,
    /// The socket is for a group.
    Group,
    /// The limit of open files.
    Descriptors(u64),
    /// It is what the line means where the machine allows it.
    MostDescriptors,
    /// Nothing is said.
    Silent,
    /// Nothing but warnings on standard error.
    NoInfo,
    /// Details are told.
    Debug,
    /// A warning that nothing migrates.
    TellsOfMigration,
}

use Promise::*;

/// What the host shows the guest first, and then.
const FIRST: &str = "first";
const THEN: &str = "then!";
const LONGER: &str = "longer";

impl Promise {
    /// Makes what it takes, before the daemon starts.
    pub(crate) fn prepare(self, directory: &Path) {
        let path = |name: &str| directory.join(name);
        match self {
            Submounts | NoSubmounts => {
                fs::create_dir(path("sub")).expect("made");
                let flags = MountFlags::empty();
                mount("tmpfs", path("sub"), "tmpfs", flags, None).expect("mounted, as root");
                fs::write(path("sub/file"), "below\n").expect("written");
            }
            Xattrs | NoXattrs => {
                let file = path("from-host");
                setxattr(file, "user.colour", b"green", XattrFlags::CREATE).expect("has them");
            }
            Acls | NoAcls => {
                fs::create_dir(path("acl")).expect("made");
                let name = "system.posix_acl_default";
                setxattr(path("acl"), name, &default_acl(), XattrFlags::CREATE).expect("has them");
            }
            Fence => {
                fs::create_dir(path("fenced")).expect("made");
                chown(path("fenced"), Some(0), Some(0)).expect("ours");
            }
            CacheNever | CacheAuto | CacheMetadata | CacheAlways => {
                for name in ["changing", "growing"] {
                    fs::write(path(name), FIRST).expect("written");
                }
            }
            _ => {}
        }
    }

    /// Takes away what is not a file.
    pub(crate) fn clear(self, directory: &Path) {
        if matches!(self, Submounts | NoSubmounts) {
            let _ = unmount(directory.join("sub"), UnmountFlags::DETACH);
        }
    }

    /// Sees it kept while the guest has the share at `place`.
    pub(crate) fn check(self, vm: &mut Vm, started: &Started, place: &str) {
        let client = started.line.client;
        let mut guest = Guest { vm, place, client };
        let host = |name: &str| started.directory.join(name);
        match self {
            ReadOnly => {
                guest.refuses("echo x >new", "Read-only file system");
                guest.refuses("rm from-host", "Read-only file system");
            }
            CacheNever | CacheAuto | CacheMetadata | CacheAlways => {
                self.check_cache(&mut guest, &started.directory);
            }
            Submounts | NoSubmounts => {
                let devices = guest.prints("cat sub/file; stat -c %d . sub");
                let lines: Vec<&str> = devices.lines().collect();
                assert_eq!((lines.len(), lines[0]), (3, "below"), "{client}");
                assert_eq!(
                    lines[1] != lines[2],
                    self == Submounts,
                    "{client}: {devices}"
                );
            }
            Xattrs => {
                let told = guest.prints("getfattr -n user.colour from-host");
                assert!(told.contains("green"), "{client}: {told}");
            }
            NoXattrs => guest.refuses("getfattr -n user.colour from-host", "not supported"),
            Acls | NoAcls => {
                guest.prints("umask 077; echo x >acl/new");
                let mode = fs::metadata(host("acl/new")).expect("made").mode() & 0o777;
                let wanted = if self == Acls { 0o660 } else { 0o600 };
                assert_eq!(mode, wanted, "{client}: {mode:o}");
            }
            DirectIo => {
                guest.prints("dd if=/dev/zero of=direct bs=4096 count=2 oflag=direct 2>&1");
                assert_eq!(
                    fs::metadata(host("direct")).expect("made").len(),
                    8192,
                    "{client}"
                );
            }
            SeenAs(id) => {
                let owner = guest.prints("stat -c %u .");
                assert_eq!(owner.trim(), id.to_string(), "{client}");
            }
            Fence => guest.refuses("echo x >fenced/new", "Permission denied"),
            Forbidden(id) => {
                let owner = fs::metadata(host("from-host")).expect("there").uid();
                guest.refuses(&format!("chown {id} from-host"), "chown");
                let after = fs::metadata(host("from-host")).expect("there").uid();
                assert_eq!(after, owner, "{client}");
            }
            NoNodes => guest.refuses("mknod node c 1 3", "Operation not permitted"),
            OwnMounts | Chroot | NoSandbox => self.check_sandbox(started),
            Group => {
                let socket = fs::metadata(&started.socket).expect("there");
                let group = nix::unistd::Group::from_name(GROUP)
                    .expect("known")
                    .expect("there");
                assert_eq!(socket.gid(), group.gid.as_raw(), "{client}");
                assert_eq!(socket.permissions().mode() & 0o777, 0o770, "{client}");
            }
            Descriptors(_) | MostDescriptors => {
                let wanted = match self {
                    Descriptors(wanted) => wanted,
                    _ => most_files(),
                };
                let pids = started.processes();
                let limits = pids.iter().filter_map(|pid| open_files(*pid));
                let limits: Vec<u64> = limits.collect();
                assert!(limits.contains(&wanted), "{client}: {limits:?}");
            }
            Silent | NoInfo | Debug | TellsOfMigration => {}
        }
    }

    /// Data by one file and sizes by another, and by the shell itself: Linux
    /// forgets a file's time of access when it is read, so that a stat of it
    /// asks for all of its attributes, and drops its pages when they are new.
    fn check_cache(self, guest: &mut Guest<'_>, directory: &Path) {
        let look = "read -r data <changing; echo $data; stat -c %s growing";
        let client = guest.client;
        let sight = |data: &str, size: &str| format!("{data}\n{}\n", size.len());
        assert_eq!(guest.prints(look), sight(FIRST, FIRST), "{client}");
        for (name, text) in [("changing", THEN), ("growing", LONGER)] {
            fs::write(directory.join(name), text).expect("written");
        }
        let wanted = match self {
            CacheAlways => sight(FIRST, FIRST),
            CacheMetadata => sight(THEN, FIRST),
            _ => sight(THEN, LONGER),
        };
        let deadline = Instant::now() + LIMIT;
        let mut seen = guest.prints(look);
        while self == CacheAuto && seen != wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            seen = guest.prints(look);
        }
        assert_eq!(seen, wanted, "{client}");
    }

    /// Whoever makes padded files of root's shares has mounts of its own in
    /// any sandbox.
    fn check_sandbox(self, started: &Started) {
        let link = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
        let own = link(std::process::id(), "ns/mnt");
        let pids = started.processes();
        let moved = pids.iter().any(|pid| link(*pid, "ns/mnt") != own);
        let here = pids.iter().filter(|pid| link(**pid, "ns/mnt") == own);
        let mut roots = here.filter_map(|pid| link(*pid, "root"));
        let kept = match self {
            OwnMounts => moved && roots.all(|root| root == Path::new("/")),
            Chroot => roots.any(|root| root == started.directory),
            _ => !moved && roots.all(|root| root == Path::new("/")),
        };
        assert!(kept, "{}: {self:?}", started.line.client);
    }

    /// What it has said until its end.
    pub(crate) fn check_log(self, client: &str, log: &str) {
        match self {
            Silent => assert_eq!(log, "", "{client}"),
            NoInfo => assert!(!log.contains("INFO"), "{client}: {log}"),
            Debug => assert!(log.contains("DEBUG"), "{client}: {log}"),
            TellsOfMigration => {
                let lines = log.lines().filter(|line| line.contains("migrat"));
                assert_eq!(lines.count(), 1, "{client}: {log}");
            }
            _ => {}
        }
    }
}

/// The guest, in one of its shares.
struct Guest<'a> {
    vm: &'a mut Vm,
    place: &'a str,
    client: &'static str,
}

impl Guest<'_> {
    /// What a script prints, which has to succeed.
    fn prints(&mut self, script: &str) -> String {
        let output = self.vm.sh(&format!("cd {} || exit\n{script}", self.place));
        let output = output.and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{}: {script}: {error:#}", self.client))
    }

    /// A script that has to fail with these words.
    fn refuses(&mut self, script: &str, words: &str) {
        let output = self.vm.sh(&format!("cd {} || exit\n{script}", self.place));
        let output = output.expect("ran");
        let refused = output.status != 0 && output.stderr.contains(words);
        assert!(refused, "{}: {script}: {output:?}", self.client);
    }
}

/// The soft limit of a process.
fn open_files(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Owner and group may everything, others nothing.
fn default_acl() -> Vec<u8> {
    let entry = |tag: u16, rights: u16| {
        let mut entry = [tag.to_le_bytes(), rights.to_le_bytes()].concat();
        entry.extend(u32::MAX.to_le_bytes());
        entry
    };
    [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 7),
        entry(4, 7),
        entry(0x20, 0),
    ]
    .concat()
}
