//! What the daemon says of a real guest's share, and why.

use std::process::Command;

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions, daemon_status};
use serde_json::Value;

fn word<'v>(status: &'v Value, pointer: &str) -> &'v str {
    let found = status.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {status:#}"))
}

fn number(status: &Value, pointer: &str) -> u64 {
    let found = status.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {pointer} in {status:#}"))
}

fn able(status: &Value, name: &str) -> bool {
    let all = status.pointer("/capabilities").and_then(Value::as_array);
    let one = all.and_then(|all| all.iter().find(|one| one["name"] == name));
    let yes = one.and_then(|one| one["yes"].as_bool());
    yes.unwrap_or_else(|| panic!("no capability {name} in {status:#}"))
}

/// Linux sends by the queue that goes with the submitting processor; queue 0
/// is for FORGET.
fn each_processor_has_its_queue(vm: &mut Vm, socket: &std::path::Path) {
    const REQUESTS: u64 = 20;
    let served = || {
        let status = daemon_status(socket).expect("status");
        [1, 2].map(|queue| number(&status, &format!("/queues/by_number/{queue}/requests")))
    };
    let mut used = [0; 2];
    for mask in ["1", "2"] {
        let before = served();
        // Each a LOOKUP of a name that is not there.
        let ask = format!(
            "i=0; while [ $i -lt {REQUESTS} ]; do
                taskset {mask} ls /mnt/{mask}-$i 2>/dev/null; i=$((i + 1)); done; true"
        );
        vm.sh(&ask).and_then(|output| output.ok()).expect("asked");
        let after = served();
        let more = [0, 1].map(|queue| after[queue] - before[queue]);
        let queue = usize::from(more[1] > more[0]);
        assert!(more[queue] >= REQUESTS, "{mask}: {more:?}");
        used[queue] += 1;
    }
    assert_eq!(used, [1, 1], "a queue for each processor");
}

/// A stock QEMU can only map writable and refuses ranges past the end: a
/// read-write share gets DAX by padded files, a read-only one none. Needs root
/// on the host (FUSE passthrough). A window in one piece takes a library that
/// this QEMU has not: the third share, which wants it so or not at all, has no
/// DAX, and the first one goes without.
#[test]
fn the_status_says_which_share_has_dax_and_why_the_other_has_not() {
    let folder = tempfile::tempdir().expect("directory");
    std::fs::write(folder.path().join("file"), vec![b'x'; 3_000_000]).expect("written");
    let place = tempfile::tempdir().expect("directory");
    let sockets = ["rw", "ro", "whole"].map(|name| place.path().join(name));
    let told = |index: usize| {
        let path = sockets[index].to_string_lossy().into_owned();
        vec!["--status-socket".to_owned(), path]
    };
    let mut writable = ShareOptions::new(folder.path(), Dax::Inode);
    writable.plain_mount = true;
    writable.queues = 2;
    writable.daemon_arguments = told(0);
    let mut readonly = ShareOptions::new(folder.path(), Dax::Inode);
    readonly.tag = "readonly".into();
    readonly.mount_at = Some("/readonly".into());
    readonly.plain_mount = true;
    readonly.readonly = true;
    readonly.daemon_arguments = told(1);
    let mut whole = ShareOptions::new(folder.path(), Dax::Inode);
    whole.tag = "whole".into();
    whole.mount_at = Some("/whole".into());
    whole.plain_mount = true;
    whole.window_bytes = 2 << 30;
    whole.daemon_arguments = told(2);
    let arguments = ["--dax-mapping", "whole"].map(str::to_owned);
    whole.daemon_arguments.extend(arguments);
    let mut options = VmOptions::new(vec![writable, readonly, whole]);
    options.cpus = 2;
    let mut vm = Vm::boot(&options).expect("boots");
    let count = "for share in mnt readonly whole; do cat /$share/file | wc -c; done";
    let output = vm.sh(count).and_then(|output| output.ok()).expect("read");
    assert_eq!(output, "3000000\n".repeat(3));

    let status = daemon_status(&sockets[0]).expect("status");
    assert_eq!(word(&status, "/dax/verdict"), "some", "{status:#}");
    assert_eq!(word(&status, "/dax/reason"), "rule");
    assert_eq!(word(&status, "/session/guest_dax"), "inode");
    for (name, yes) in [
        ("past-end-of-file", false),
        ("padded", true),
        ("read-only-fd", false),
        ("map-over-map", false),
        ("partial-unmap", false),
        ("announced", true),
    ] {
        assert_eq!(able(&status, name), yes, "{name}: {status:#}");
    }
    assert_ne!(number(&status, "/window/guest_physical_base"), 0);
    assert_eq!(number(&status, "/mappings/live_ranges"), 2);
    assert_eq!(number(&status, "/mappings/setups"), 2);
    let regions = number(&status, "/front_end/memory_regions");
    assert!(regions >= 3, "guest memory and two ranges, {regions}");

    each_processor_has_its_queue(&mut vm, &sockets[0]);

    let status = daemon_status(&sockets[1]).expect("status");
    assert_eq!(word(&status, "/dax/verdict"), "off", "{status:#}");
    assert_eq!(word(&status, "/dax/reason"), "read-only-share");
    assert_eq!(number(&status, "/mappings/setups"), 0);
    assert!(number(&status, "/requests/by_opcode/Read/count") > 0);
    assert!(
        vm.daemon_log(1)
            .contains("dax: off: the share is read-only")
    );

    for index in [0, 2] {
        let status = daemon_status(&sockets[index]).expect("status");
        assert_eq!(word(&status, "/window/mapping"), "ranges", "{status:#}");
        let why = word(&status, "/window/not_whole_because");
        assert!(why.contains("libdaxwindow_preload.so is not preloaded"));
        assert_eq!(status["window"]["library"], Value::Null);
    }
    let status = daemon_status(&sockets[2]).expect("status");
    assert_eq!(word(&status, "/dax/verdict"), "off", "{status:#}");
    assert_eq!(word(&status, "/dax/reason"), "not-whole");
    assert_eq!(number(&status, "/window/offered_bytes"), 2 << 30);
    assert_eq!(number(&status, "/mappings/setups"), 0);
    let log = vm.daemon_log(2);
    let why = "dax: off: the window cannot be in one piece, as --dax-mapping whole wants it: \
               libdaxwindow_preload.so is not preloaded into the VMM";
    assert!(log.contains(why), "{log}");
    let log = vm.daemon_log(0);
    assert!(
        log.contains("a range at a time (libdaxwindow_preload"),
        "{log}"
    );

    // And for people.
    let daemon = format!("/proc/{}/exe", vm.daemon_pid(1).expect("runs"));
    let page = Command::new(daemon)
        .arg("--print-session")
        .arg(&sockets[1])
        .output();
    let page = String::from_utf8_lossy(&page.expect("starts").stdout).into_owned();
    assert!(
        page.starts_with("DAX                  OFF: the share is read-only"),
        "{page}"
    );

    // Unmounted, there is no session, and the daemon says so.
    vm.sh("umount /mnt")
        .and_then(|output| output.ok())
        .expect("unmounted");
    let status = daemon_status(&sockets[0]).expect("status");
    assert_eq!(status["session"]["live"], Value::Bool(false), "{status:#}");
    assert_eq!(number(&status, "/mappings/live_ranges"), 0);

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
}
