//! A real kernel without DAX, as a process of the host's: what takes a kernel
//! and no window is tried here, where a boot takes a second or two.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, ShareOptions, Uml, VmOptions, example};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

fn share(folder: &Path, name: &str, flags: &[&str]) -> ShareOptions {
    let mut share = ShareOptions::new(folder.join(name), Dax::Never);
    std::fs::create_dir(&share.directory).expect("made");
    share.tag = name.into();
    share.mount_at = Some(format!("/{name}"));
    share.daemon_arguments = flags.iter().map(|&flag| flag.into()).collect();
    share
}

/// A guest, and the folder that its shares are in.
struct Scene<'a> {
    uml: Uml,
    folder: &'a Path,
}

impl Scene<'_> {
    /// What a script prints; it has to succeed.
    #[track_caller]
    fn run(&mut self, script: &str) -> String {
        let output = self.uml.sh(script).and_then(|output| output.ok());
        output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
    }

    fn host(&self, path: &str) -> std::path::PathBuf {
        self.folder.join(path)
    }
}

#[test]
fn a_kernel_that_is_a_process_mounts_shares_and_finds_them_like_any_other() {
    let place = tempfile::tempdir().expect("directory");
    let mut shares = vec![
        share(place.path(), "plain", &["--xattr"]),
        share(
            place.path(),
            "locks",
            &["--locks", "--cache", "always", "--writeback"],
        ),
        // With a window, which this kernel cannot have: maps are asked for
        // over a socket, and it has passed a pipe.
        share(place.path(), "fixed", &["--dax", "inode"]),
    ];
    shares[2].readonly = true;
    let letter = |at: u32| b'a' + (at.wrapping_mul(2_654_435_761) >> 24) as u8 % 26;
    let odd: Vec<u8> = (0..5_000_123).map(letter).collect();
    std::fs::write(place.path().join("fixed/odd"), &odd).expect("written");
    let mut options = VmOptions::new(shares);
    options.programs = vec![example("guest_probe").expect("built")];
    options.tools = vec!["util-linux:flock".into()];
    let uml = Uml::boot(&options).expect("boots");
    println!(
        "user-mode-linux {} took scripts after {:.1?}",
        uml.release(),
        uml.boot_time()
    );
    let mut scene = Scene {
        uml,
        folder: place.path(),
    };
    scripts_run(&mut scene);
    bytes_are_the_same_on_both_sides(&mut scene, &odd);
    names_and_open_files(&mut scene);
    mappings_are_written_back(&mut scene);
    locks_keep_others_out(&mut scene);
    let mut uml = scene.uml;
    uml.shutdown().expect("powers off");
    assert_eq!(uml.kernel_warnings(), Vec::<String>::new());
    let log = uml.daemon_log(0);
    assert!(log.contains("session ends"), "{log}");
    let log = uml.daemon_log(2);
    assert!(log.contains("dax: off"), "{log}");
    uml.sh("true").expect_err("it is off");
}

fn scripts_run(scene: &mut Scene<'_>) {
    let output = scene
        .uml
        .sh("echo out; echo wrong >&2; exit 3")
        .expect("ran");
    assert_eq!((output.stdout.as_str(), output.status), ("out\n", 3));
    assert_eq!(output.stderr, "wrong\n");
    let output = scene.run("head -c 3000000 /dev/zero | tr '\\0' '\\036'");
    assert!(output.len() == 3_000_000 && output.bytes().all(|byte| byte == 0x1e));
    let refused = scene.uml.sh("echo no >/fixed/x").expect("ran");
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
}

fn bytes_are_the_same_on_both_sides(scene: &mut Scene<'_>, odd: &[u8]) {
    let sums = scene.run(
        "cat /fixed/odd >/plain/copy; dd if=/fixed/odd of=/locks/copy bs=70001 2>/dev/null; sync
        sha256sum </fixed/odd; sha256sum </plain/copy; sha256sum </locks/copy",
    );
    let sums: Vec<&str> = sums.lines().collect();
    assert!(
        sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]),
        "{sums:?}"
    );
    for path in ["plain/copy", "locks/copy"] {
        assert!(
            std::fs::read(scene.host(path)).expect("there") == odd,
            "{path}"
        );
    }
    let read = scene.run("cat /fixed/odd");
    assert!(read.as_bytes() == odd, "{} bytes, or others", read.len());
}

fn names_and_open_files(scene: &mut Scene<'_>) {
    let told = scene.run(
        "cd /plain; mkdir -p a/b; echo one >a/b/file; ln a/b/file link; ln -s a/b soft
        exec 6<link; rm link; mv a/b/file c; echo two >a/b/file; cat <&6; cat c soft/file
        stat -c %h c; mkfifo pipe; mknod null c 1 3; stat -c %F pipe null; ls",
    );
    let names = "fifo\ncharacter special file\na\nc\ncopy\nnull\npipe\nsoft\n";
    assert_eq!(told, format!("one\none\ntwo\n1\n{names}"));
    let refused = scene
        .uml
        .sh("rmdir /plain/a; mv /plain/a /plain/a/b")
        .expect("ran");
    assert!(
        refused.status != 0 && refused.stderr.contains("not empty"),
        "{refused:?}"
    );
}

fn mappings_are_written_back(scene: &mut Scene<'_>) {
    std::fs::write(scene.host("plain/map"), vec![b'.'; 9000]).expect("written");
    scene.run("guest_probe store /plain/map 4090 'across pages'; sync /plain/map");
    let bytes = std::fs::read(scene.host("plain/map")).expect("read");
    assert_eq!(&bytes[4089..4103], b".across pages.");
    assert_eq!(scene.run("guest_probe load /plain/map 4090 6"), "across");
}

fn locks_keep_others_out(scene: &mut Scene<'_>) {
    let told = scene.run(
        "cd /locks; touch lock; exec 6<lock 7<lock
        flock -n 6 && echo held; flock -n 7 || echo taken
        (flock 7; echo waited) & flock -u 6; wait; flock -n 6 || echo released late",
    );
    assert_eq!(told, "held\ntaken\nwaited\nreleased late\n");
}

/// A mount on the host, unmounted on drop.
struct Below(PathBuf);

impl Below {
    fn tmpfs(at: PathBuf, text: &str) -> Below {
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).expect("mounted");
        std::fs::write(at.join("f"), text).expect("written");
        Below(at)
    }

    /// As `umount` does, without `--lazy`, as soon as that works.
    fn unmount_soon(&self) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while let Err(error) = unmount(&self.0, UnmountFlags::empty()) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_kernel_that_is_a_process_goes_on_when_the_host_unmounts_what_it_has_seen() {
    let place = tempfile::tempdir().expect("directory");
    let shares = vec![share(place.path(), "plain", &[])];
    let root = place.path().join("plain");
    // So that the daemon sees what is mounted there later.
    mount_bind(&root, &root).expect("mounted");
    let _root = Below(root.clone());
    mount_change(&root, MountPropagationFlags::SHARED).expect("shared");
    let at = root.join("sub");
    std::fs::create_dir(&at).expect("a directory");
    let below = Below::tmpfs(at.clone(), "one");
    let uml = Uml::boot(&VmOptions::new(shares)).expect("boots");
    let mut scene = Scene {
        uml,
        folder: place.path(),
    };
    let seen = scene.run("ls -lR /plain >/dev/null; cat /plain/sub/f; grep -c /plain /proc/mounts");
    assert_eq!(seen, "one2\n", "a mount point in the guest too");

    below.unmount_soon();
    std::fs::write(at.join("under"), "under").expect("written");
    assert_eq!(scene.run("sleep 2; ls /plain/sub"), "under\n");
    let again = Below::tmpfs(at, "two");
    assert_eq!(scene.run("sleep 2; cat /plain/sub/f"), "two");
    // What a program has open stays.
    let kept = scene.run("exec 5</plain/sub/f; sleep 10; cat <&5; exec 5<&-; cat /plain/sub/f");
    assert_eq!(kept, "twotwo");
    again.unmount_soon();
    let under = scene.run("sleep 2; cat /plain/sub/under; stat -c %n /plain/sub");
    assert_eq!(under, "under/plain/sub\n");
    scene.uml.shutdown().expect("powers off");
    assert_eq!(scene.uml.kernel_warnings(), Vec::<String>::new());
}

/// Processes whose parent is `pid`.
fn children(pid: i32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).expect("it runs");
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_kernel_that_is_a_process_is_gone_with_all_of_its_own() {
    let place = tempfile::tempdir().expect("directory");
    let options = VmOptions::new(vec![share(place.path(), "plain", &[])]);
    let mut uml = Uml::boot(&options).expect("boots");
    let late = uml.sh_within("sleep 1000", Duration::from_millis(200));
    let late = late.expect_err("no end").to_string();
    assert!(late.contains("time is up"), "{late}");
    let mut pids = children(uml.pid());
    assert!(
        !pids.is_empty(),
        "the guest's programs are processes as well"
    );
    pids.push(uml.pid().to_string());
    drop(uml);
    let deadline = Instant::now() + Duration::from_secs(300);
    // One that was killed may wait for its new parent a moment.
    let ended = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    };
    while !pids.iter().all(ended) {
        assert!(Instant::now() < deadline, "{pids:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
