//! virtme-ng, which boots a kernel on the whole file system of its machine,
//! run by a user without privileges.

use super::unstable::{DAEMON, Machine};

/// A user; what tells virtme-ng the version of the kernel; and what its guest
/// ends by.
const SETUP: &str = r#"
echo 'somebody:x:1000:1000::/srv/somebody:/bin/sh' >>/etc/passwd
echo 'somebody:x:1000:' >>/etc/group
ln -s busybox /usr/bin/strings
ln -s ../bin/busybox /usr/sbin/poweroff
mkdir -m 700 /srv/somebody
echo 'what is up?' >/srv/somebody/question
chown -R 1000:1000 /srv/somebody
chmod 1777 /tmp
"#;

const COMMAND: &str = r#"
cd /srv/somebody
export HOME=/srv/somebody
exec setpriv --reuid=1000 --regid=1000 --clear-groups sh -c \
    'exec vng --disable-kvm --cpus 1 --memory 512M --rw --run /boot/vmlinuz \
         -- sh /srv/somebody/job >said 2>&1'
"#;

/// What the guest does.
const JOB: &str = r#"
cd /srv/somebody
{
    grep -c ' / virtiofs rw' /proc/mounts
    cat question
    echo x >/etc/not-mine
} >answer 2>&1
echo >done
until [ -e go ]; do sleep 0.1; done
"#;

#[test]
fn virtme_ng_boots_its_machines_files_and_leaves_no_daemon() {
    let mut machine = Machine::start(SETUP);
    eprintln!("{}", machine.run("vng --version").trim());
    let home = machine.path("/srv/somebody");
    std::fs::write(home.join("job"), JOB).expect("written");
    machine.begin(COMMAND);
    machine.wait_for_file("/srv/somebody/done");
    let lines = machine.command_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let start = format!("{DAEMON} --syslog --no-announce-submounts --socket-path /tmp/virtme");
    let rest = "--shared-dir / --sandbox none -o cache=auto";
    assert!(
        lines[0].starts_with(&start) && lines[0].ends_with(rest),
        "{lines:?}"
    );
    let answer = machine.read("/srv/somebody/answer");
    assert!(answer.starts_with("1\nwhat is up?\n"), "{answer}");
    assert!(answer.contains("Permission denied"), "{answer}");
    assert!(!machine.path("/etc/not-mine").exists());
    std::fs::write(home.join("go"), "").expect("written");
    // Of the job's status it hears nothing, since its guest has no udev.
    let status = machine.end();
    let said = machine.read("/srv/somebody/said");
    assert!(status.code().is_some(), "{status}: {said}");
    assert!(
        !said.contains("daxwindowd") && !said.contains("virtiofsd"),
        "{said}"
    );
    machine.wait_until_none_serves();
    let left = machine.run("ls /tmp");
    assert!(!left.contains("virtme"), "{left}");
}
