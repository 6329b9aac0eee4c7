//! The scripts that busybox runs in the guest: init, and the loop that takes
//! commands from the host.

use std::path::Path;

use super::options::ShareOptions;

/// Names of the ports between host and guest, in QEMU and in the guest.
pub(crate) const PORTS: [&str; 3] = ["daxwindow.control", "daxwindow.out", "daxwindow.err"];
/// The port of an interactive shell.
pub(crate) const SHELL_CONSOLE: &str = "/dev/hvc0";

/// What the guest does once its shares are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Takes commands from the host, one after the other.
    Agent,
    /// Gives a shell to whoever sits at the other end of the console.
    Shell { rows: u16, columns: u16 },
}

const PROLOGUE: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/root TERM=${TERM:-linux}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
ln -s /proc/self/fd /dev/fd
"#;

/// An initramfs has no place for what programs leave there.
const OWN_TMP: &str = "mount -t tmpfs tmp /tmp\n";

/// Both ends of a port are there before it is read: writing waits for the
/// host, reading does not.
const PORTS_OPENED: &str = r#"for port in /sys/class/virtio-ports/*; do
    ln -s "/dev/${port##*/}" "/run/$(cat "$port/name")"
done
exec 3<>/run/daxwindow.control 4>/run/daxwindow.out 5>/run/daxwindow.err
"#;

/// The first word to the host.
const FIRST_WORD: &str = r#"if [ -n "$failed" ]; then
    echo "FAILED $failed" >&3
else
    echo "READY $(uname -r)" >&3
fi
"#;

const AGENT: &str = r#"while read -r verb token bytes <&3; do
    [ "$verb" = RUN ] || break
    dd of=/run/script iflag=fullblock bs="$bytes" count=1 <&3 2>/dev/null
    sh /run/script </dev/null >&4 2>&5 3<&- 4>&- 5>&-
    status=$?
    printf '\036%s %d\n' "$token" "$status" >&4
    printf '\036%s %d\n' "$token" "$status" >&5
done
"#;

/// Where a kernel that is a process of the host's has a folder of the host.
pub(crate) const HOST_FOLDER: &str = "/run/host";

/// What such a kernel has in place of ports: a serial line for orders, and
/// files of the host for scripts and what they write.
const SERIAL_LINE: &str = "stty -F /dev/ttyS0 raw -echo\nexec 3<>/dev/ttyS0\n";

const SERIAL_AGENT: &str = r#"cd /
while read -r verb number <&3; do
    [ "$verb" = RUN ] || break
    sh "/run/host/script$number" </dev/null >"/run/host/out$number" 2>"/run/host/err$number" 3<&-
    echo "DONE $number $?" >&3
done
"#;

/// That the kernel has mounted the devices already is no mishap.
const ROOT_PROLOGUE: &str = r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export TERM=${TERM:-linux}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
"#;

/// A shell with job control on the terminal that is the console; its size
/// and kind came with the kernel's command line.
const CONSOLE_SHELL: &str = r#"read -r name < /etc/hostname && echo "$name" > /proc/sys/kernel/hostname
terminal=/dev/$(sed 's/.* //' /sys/class/tty/console/active)
[ -n "$LINES$COLUMNS" ] && stty rows "$LINES" cols "$COLUMNS" < "$terminal"
unset LINES COLUMNS
cd /root
setsid -c -w bash -l < "$terminal" > "$terminal" 2>&1
"#;

/// The system call by perl where no init system brings a command: with
/// sysrq the shell would go on after the window is gone. The root is not made
/// read-only first, because that drops every inode that is not in use, and
/// nothing waits to be written: it is in the host's page cache.
const ROOT_EPILOGUE: &str = r#"sync
poweroff -f 2>/dev/null
perl -e 'syscall(169, 0xfee1dead, 0x28121969, 0x4321fedc)'
echo o > /proc/sysrq-trigger
sleep 60
"#;

const EPILOGUE: &str = "cd /\nsync\numount -a -r -t virtiofs 2>/dev/null\npoweroff -f\n";

/// The init script of a guest with these shares.
pub(crate) fn init(shares: &[ShareOptions], then: &Then) -> String {
    let mut script = PROLOGUE.to_owned();
    script.push_str(OWN_TMP);
    script.push_str(&mounts(shares));
    match then {
        Then::Agent => script.push_str(&agent()),
        Then::Shell { rows, columns } => script.push_str(&shell(*rows, *columns)),
    }
    script.push_str(EPILOGUE);
    script
}

/// The init script of a guest whose root file system is a share: these others
/// are mounted, then it takes commands.
pub(crate) fn root_init(others: &[ShareOptions]) -> String {
    let places = others.iter().filter_map(|share| share.mount_at.as_ref());
    let unmounts: String = places
        .map(|place| format!("umount {}\n", quote(place)))
        .collect();
    [
        ROOT_PROLOGUE,
        &mounts(others),
        &agent(),
        "cd /\n",
        &unmounts,
        ROOT_EPILOGUE,
    ]
    .concat()
}

/// The init script of a kernel that is a process of the host's: it has modules
/// to load before the shares can be mounted, and sees `folder` of the host.
pub(crate) fn uml_init(shares: &[ShareOptions], modules: &[&str], folder: &Path) -> String {
    let mut script = [PROLOGUE, OWN_TMP].concat();
    for module in modules {
        script.push_str(&format!("insmod /{}\n", module_path(module)));
    }
    script.push_str(&mounts(shares));
    let folder = quote(&folder.display().to_string());
    script.push_str(&format!(
        "mkdir {HOST_FOLDER}\nmount -t hostfs -o {folder} none {HOST_FOLDER} || \
         failed=\"$failed no folder of the host\"\n"
    ));
    [&script, SERIAL_LINE, FIRST_WORD, SERIAL_AGENT, EPILOGUE].concat()
}

/// Where such a kernel's module is in the initramfs.
pub(crate) fn module_path(name: &str) -> String {
    format!("lib/modules/{name}.ko")
}

fn agent() -> String {
    [PORTS_OPENED, FIRST_WORD, AGENT].concat()
}

/// The script of a root directory for somebody at the console.
pub(crate) fn console_init() -> String {
    [ROOT_PROLOGUE, CONSOLE_SHELL, ROOT_EPILOGUE].concat()
}

fn mounts(shares: &[ShareOptions]) -> String {
    let mut script = "failed=\n".to_owned();
    for share in shares {
        if let Some(place) = &share.mount_at {
            script.push_str(&mount(share, place));
        }
    }
    script
}

fn mount(share: &ShareOptions, place: &str) -> String {
    let options = share.mount_options();
    let options = match options.is_empty() {
        true => String::new(),
        false => format!("-o {} ", quote(&options.join(","))),
    };
    let (tag, place) = (quote(&share.tag), quote(place));
    format!(
        "mkdir -p {place}\n\
         said=$(mount -t virtiofs {options}{tag} {place} 2>&1) || failed=\"$failed $said\"\n"
    )
}

fn shell(rows: u16, columns: u16) -> String {
    format!(
        "[ -n \"$failed\" ] && echo \"$failed\" >{SHELL_CONSOLE}\n\
         stty rows {rows} cols {columns} <{SHELL_CONSOLE}\n\
         cd /mnt && setsid -c sh -l <{SHELL_CONSOLE} >{SHELL_CONSOLE} 2>&1\n"
    )
}

/// A word as the shell takes it, whatever is in it.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A command given as words.
pub fn command(words: &[String], place: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("cd {} && exec {}\n", quote(place), words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::options::Dax;
    use super::*;
    use std::process::Command;

    #[test]
    fn words_survive_a_shell() {
        for word in [
            "plain",
            "",
            "two words",
            "it's",
            "$HOME `x` \"q\" \\",
            "é\n*",
        ] {
            let script = format!("printf %s {}", quote(word));
            let output = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn scripts_are_well_formed() {
        let mut second = ShareOptions::new("/d", Dax::Never);
        second.mount_at = Some("/mnt/second one".into());
        let shares = [ShareOptions::new("/d", Dax::Always), second];
        let thens = [
            Then::Agent,
            Then::Shell {
                rows: 24,
                columns: 80,
            },
        ];
        for then in thens {
            let script = init(&shares, &then);
            let mut check = Command::new("sh");
            let status = check.args(["-n", "-c", &script]).status().expect("sh");
            assert!(status.success(), "{script}");
            assert!(script.contains("mount -t virtiofs -o dax=always daxwindow /mnt"));
            assert!(script.contains("'/mnt/second one'"));
            assert!(script.ends_with("poweroff -f\n"));
        }
    }

    #[test]
    fn scripts_of_a_root_are_well_formed_and_end_the_guest() {
        let mut second = ShareOptions::new("/d", Dax::Never);
        second.mount_at = Some("/second".into());
        for script in [root_init(&[second]), console_init()] {
            let mut check = Command::new("sh");
            let status = check.args(["-n", "-c", &script]).status().expect("sh");
            assert!(status.success(), "{script}");
            assert!(script.starts_with("#!/bin/sh\n") && script.contains("perl -e 'syscall(169"));
            assert!(!script.contains(" /tmp"), "its own is kept");
        }
        assert!(root_init(&[]).contains("READY") && !root_init(&[]).contains("umount"));
    }

    #[test]
    fn the_script_of_a_kernel_that_is_a_process_loads_modules_first() {
        let share = ShareOptions::new("/d", Dax::Never);
        let script = uml_init(&[share], &["fuse", "virtiofs"], Path::new("/tmp/a b"));
        let mut check = Command::new("sh");
        let status = check.args(["-n", "-c", &script]).status().expect("sh");
        assert!(status.success(), "{script}");
        let at = |text: &str| {
            script
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {script}"))
        };
        assert!(at("modules/fuse.ko") < at("modules/virtiofs.ko"));
        assert!(at("modules/virtiofs.ko") < at("mount -t virtiofs"));
        assert!(at("mount -t hostfs -o '/tmp/a b' none") < at("READY"));
    }

    #[test]
    fn a_share_may_be_left_unmounted_or_mounted_plainly() {
        let mut share = ShareOptions::new("/d", Dax::Inode);
        share.plain_mount = true;
        assert!(init(&[share.clone()], &Then::Agent).contains("mount -t virtiofs daxwindow /mnt"));
        share.mount_at = None;
        assert!(!init(&[share], &Then::Agent).contains("-t virtiofs daxwindow"));
    }

    #[test]
    fn a_command_runs_where_the_share_is() {
        let words = ["sha256sum".to_owned(), "a file".to_owned()];
        assert_eq!(
            command(&words, "/mnt"),
            "cd /mnt && exec sha256sum 'a file'\n"
        );
    }
}
