//! systemd-vmspawn, which boots a directory and binds others into the guest;
//! each is a share.

use super::unstable::{DAEMON, Machine};

/// The directory that is booted, and one that is bound.
const SETUP: &str = r#"
mkdir -p /run/systemd /run/user /srv/guest/bin /srv/guest/sbin /srv/bound
cd /srv/guest
mkdir proc dev etc run bound
cp /usr/bin/busybox bin
cat >sbin/init <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
mount -t virtiofs mnt0 /bound
{
    grep -c virtiofs /proc/mounts
    cat /question
    cp /question /bound/copy && cat /bound/copy
    getfattr -n user.colour /question
    mknod /node c 1 3
} >/answer 2>&1
sync
echo >/done
until [ -e /go ]; do sleep 0.1; done
poweroff -f
END
chmod +x sbin/init
echo ID=guest >etc/os-release
echo 'what is up?' >question
"#;

/// Without a service manager it is told not to ask one for a unit, but wants
/// to know in which it is; and of no firmware, processor or TPM that is missing.
const COMMAND: &str = r#"
echo '0::/user.slice/user-0.slice/user@0.service/app.slice/vmspawn.service' >/run/cgroup
mount --bind /run/cgroup /proc/$$/cgroup
export XDG_RUNTIME_DIR=/run/user
exec systemd-vmspawn --user --register=no --keep-unit --directory=/srv/guest \
    --bind=/srv/bound --linux=/boot/vmlinuz --firmware=none --kvm=no --vsock=no --tpm=no \
    --ram=256M --notify-ready=no --pass-ssh-key=no --console=native --quiet
"#;

#[test]
fn systemd_vmspawn_boots_a_directory_and_leaves_no_daemon() {
    let mut machine = Machine::start(SETUP);
    let version = machine.run("systemd-vmspawn --version");
    eprintln!("{}", version.lines().next().unwrap_or_default());
    let question = machine.path("/srv/guest/question");
    rustix::fs::setxattr(
        question,
        "user.colour",
        b"green",
        rustix::fs::XattrFlags::CREATE,
    )
    .expect("tmpfs has them");
    machine.begin(COMMAND);
    machine.wait_for_file("/srv/guest/done");
    let lines = machine.command_lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let middle = "--no-announce-submounts --log-level=error --modcaps=-mknod";
    // It maps the ids of the directory that is booted.
    let ids = " --translate-uid map:0:0:65536 --translate-gid map:0:0:65536";
    for (line, (directory, ids)) in lines.iter().zip([("/srv/bound", ""), ("/srv/guest", ids)]) {
        let start = format!("{DAEMON} --shared-dir {directory} --xattr --fd ");
        let rest = format!(" {middle}{ids}");
        assert!(line.starts_with(&start) && line.ends_with(&rest), "{line}");
    }
    let answer = machine.read("/srv/guest/answer");
    let wanted = "2\nwhat is up?\nwhat is up?\n# file: /question\nuser.colour=\"green\"\n\n\
                  mknod: /node: Operation not permitted\n";
    assert_eq!(answer, wanted, "{}", machine.said());
    assert_eq!(machine.read("/srv/bound/copy"), "what is up?\n");
    assert!(!machine.path("/srv/guest/node").exists());
    std::fs::write(machine.path("/srv/guest/go"), "").expect("written");
    let status = machine.end();
    assert!(status.success(), "{status}: {}", machine.said());
    machine.wait_until_none_serves();
}
