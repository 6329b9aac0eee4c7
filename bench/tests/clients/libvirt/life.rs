//! A domain's lives: libvirt starts the daemon with each of them, and expects
//! it to end with it, or to be killable by the lock on the pid file whose
//! descriptor it leaves to it.

use std::fs;

use daxwindow_vm::Inmate;

use super::domain::{Domain, SHARE};
use super::host::Host;

/// Reads, writes and changes names; then waits for the word to end.
const JOB: &str = r#"cd /mnt
mkdir work
cp from-host work/a
cmp from-host work/a && mv work/a from-guest
ln -s from-guest link
cmp link from-host && rm link && rmdir work
cd /
sync
echo "DONE"
until grep -q end /mnt/word; do
    sleep 0.2
    grep -q again /mnt/word && echo "go on" > /mnt/word && sync && reboot -f
done
"#;

/// The program for a domain that wants further flags.
const SCRIPT: &str = "/usr/bin/share-and-stay";
const TEXT: &str = r#"#!/bin/sh
echo "$*" >> /srv/started
exec /usr/bin/daxwindowd "$@" --keep-serving
"#;

/// Bytes that are no repetition of pages.
fn bytes() -> Vec<u8> {
    (0..5_000_123_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// The guest's copy is right, and there is no other trace of it.
fn check(host: &Host) {
    let copy = host.path(&format!("{SHARE}/from-guest"));
    assert!(fs::read(&copy).expect("copied") == bytes(), "other bytes");
    fs::remove_file(copy).expect("removed");
    let entries = fs::read_dir(host.path(SHARE)).expect("readable");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["from-host", "job", "word"]);
}

#[test]
fn a_domain_starts_again_after_destroy_and_after_power_off() {
    let host = Host::start();
    host.write(&format!("{SHARE}/job"), JOB);
    host.write(&format!("{SHARE}/word"), "go on");
    host.write(&format!("{SHARE}/from-host"), bytes());
    let (virsh, domain) = (host.system(), Domain::new("life", "/srv"));
    virsh.define(&domain);

    virsh.start(&domain);
    virsh.wait_for_line(&domain, "DONE", 1);
    check(&host);
    let serving = host.serving();
    let ours = |inmate: &Inmate| inmate.words[0] == "/usr/bin/daxwindowd";
    assert!(
        !serving.is_empty() && serving.iter().all(ours),
        "{serving:?}"
    );
    // What libvirt cannot do with it, and what is to be known therefore.
    let refused = virsh.ask(&["save", domain.name, "/srv/saved"]);
    let error = refused.expect_err("no migration");
    assert!(error.contains("Migration disabled"), "{error}");
    // The same daemon serves after a reset.
    virsh.ok(&["reset", domain.name]);
    virsh.wait_for_line(&domain, "DONE", 2);
    check(&host);
    assert_eq!(host.serving().first(), serving.first());
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();

    virsh.start(&domain);
    virsh.wait_for_line(&domain, "DONE", 1);
    check(&host);
    host.write(&format!("{SHARE}/word"), "once again");
    virsh.wait_for_line(&domain, "DONE", 2);
    check(&host);
    host.write(&format!("{SHARE}/word"), "the end");
    virsh.wait_until_off(&domain);
    host.wait_until_none_serves();

    // Before the guest's kernel has seen the device.
    virsh.start(&domain);
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
}

#[test]
fn a_qemu_that_fails_before_it_connects_leaves_no_daemon() {
    let host = Host::start();
    host.write_program(SCRIPT, TEXT);
    let virsh = host.system();
    let failing = || Domain::new("failing", "/srv").that_fails();
    for domain in [failing(), failing(), failing().with_binary(SCRIPT)] {
        virsh.define(&domain);
        let error = virsh.ask(&["start", domain.name]).expect_err("cannot be");
        assert!(error.contains("no-such-argument"), "{error}");
        host.wait_until_none_serves();
        virsh.ok(&["undefine", domain.name]);
    }
    // So there was one to end.
    assert!(host.read("/srv/started").contains("--fd="));

    let mended = Domain::new("failing", "/srv");
    virsh.define(&mended);
    virsh.start(&mended);
    assert!(!host.serving().is_empty());
    virsh.ok(&["destroy", mended.name]);
    host.wait_until_none_serves();
}

#[test]
fn libvirt_ends_a_daemon_that_would_stay_and_copes_with_what_is_killed() {
    let host = Host::start();
    host.write_program(SCRIPT, TEXT);
    let domain = Domain::new("staying", "/srv").with_binary(SCRIPT);
    let virsh = host.system();
    virsh.define(&domain);
    virsh.start(&domain);
    let serving = host.serving();
    let stays = |inmate: &Inmate| inmate.words.contains(&"--keep-serving".into());
    assert!(
        !serving.is_empty() && serving.iter().all(stays),
        "{serving:?}"
    );
    // Who has to end it is another process than the one that started it.
    host.restart_libvirt();
    // Answered once it has found its domain again.
    virsh.ok(&["qemu-monitor-command", domain.name, "--hmp", "info status"]);
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();

    virsh.start(&domain);
    host.kill("daxwindowd");
    host.wait_until_none_serves();
    assert_eq!(virsh.ok(&["domstate", domain.name]).trim(), "running");
    virsh.ok(&["destroy", domain.name]);
    virsh.start(&domain);
    host.kill("qemu-system-x86");
    virsh.wait_until_off(&domain);
    host.wait_until_none_serves();
    virsh.start(&domain);
    assert!(!host.serving().is_empty());
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
}
