//! A real Linux guest on a stock QEMU, booted once. Needs Linux on x86-64, apt
//! with a Debian mirror for the first run, and the daemon built in the same
//! profile; no root and no KVM.

use std::time::Duration;

use daxwindow_bench::vm::{Dax, ShareOptions, Vm, VmOptions};

#[test]
fn a_guest_runs_scripts_and_powers_off() {
    let share = tempfile::tempdir().expect("directory");
    let text = "from the host\n";
    std::fs::write(share.path().join("file"), text).expect("written");
    let mut second = ShareOptions::new(share.path(), Dax::Never);
    second.tag = "second".into();
    second.mount_at = Some("/second".into());
    second.readonly = true;
    let first = ShareOptions::new(share.path(), Dax::Inode);
    let mut vm = Vm::boot(&VmOptions::new(vec![first, second])).expect("boots");

    let output = vm.sh("cat /mnt/file; echo wrong >&2; exit 3").expect("ran");
    assert_eq!((output.stdout.as_str(), output.status), (text, 3));
    assert_eq!(output.stderr, "wrong\n");
    let output = vm.sh("echo guest > /mnt/new && cat /second/new; echo no > /second/x");
    let output = output.expect("ran");
    assert_eq!(output.stdout, "guest\n");
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
    assert_eq!(
        std::fs::read_to_string(share.path().join("new")).expect("there"),
        "guest\n"
    );

    let bytes = "head -c 3000000 /dev/zero | tr '\\0' '\\036'";
    let output = vm.sh(bytes).and_then(|output| output.ok()).expect("ran");
    assert_eq!(output.len(), 3_000_000);
    assert!(output.bytes().all(|byte| byte == 0x1e));

    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    let late = vm
        .sh_within("true", Duration::from_secs(1))
        .expect_err("is off");
    assert!(late.to_string().contains("no more scripts"), "{late:#}");
}
