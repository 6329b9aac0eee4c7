//! The command lines by which others start virtiofsd, as they are, one share
//! each of one guest: QEMU's own virtio-fs device, which most of them use,
//! tells the guest the tag that these lines do not.

mod promises;
mod started;
mod table;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use daxwindow_vm::{Dax, DeviceChoice, ShareOptions, Vm, VmOptions, daemon_program};

use promises::Promise;
use started::Started;
use table::LINES;

/// Where everybody may read it.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("virtiofsd");
    fs::copy(
        daemon_program().expect("built in the same profile"),
        &program,
    )
    .expect("copied");
    program
}

fn share(index: usize, started: &Started) -> ShareOptions {
    let mut share = ShareOptions::new(&started.directory, Dax::Never);
    share.tag = format!("tag{index}");
    share.mount_at = Some(place(index));
    share.plain_mount = true;
    share.device = DeviceChoice::Fs;
    share.socket = Some(started.socket.clone());
    share
}

fn place(index: usize) -> String {
    format!("/s{index}")
}

/// Both ends see what the other writes, by its owner.
fn reads_and_writes(vm: &mut Vm, started: &Started, place: &str) {
    let client = started.line.client;
    let mut script = format!("cat {place}/from-host; echo");
    let readonly = started.line.promises.contains(&Promise::ReadOnly);
    if !readonly {
        script.push_str(&format!(
            "\ncd {place} && mkdir made && cp from-host made/a && mv made/a made/b &&
             echo more >>made/b && cat made/b && sync"
        ));
    }
    let output = vm.sh(&script).and_then(|output| output.ok());
    let output = output.unwrap_or_else(|error| panic!("{client}: {error:#}"));
    if readonly {
        assert_eq!(output, format!("{client}\n"));
        return;
    }
    let copy = format!("{client}more\n");
    assert_eq!(output, format!("{client}\n{copy}"));
    for name in ["made", "made/b"] {
        let made = fs::metadata(started.directory.join(name)).expect("made");
        let owners = (made.uid(), made.gid());
        assert_eq!(owners, (started.line.owner, started.line.owner), "{client}");
    }
    let bytes = fs::read(started.directory.join("made/b")).expect("readable");
    assert_eq!(String::from_utf8_lossy(&bytes), copy, "{client}");
}

#[test]
fn every_clients_command_line_starts_a_share_that_keeps_its_promises_and_ends_with_its_guest() {
    let folder = tempfile::tempdir().expect("directory");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("ours");
    let program = program(folder.path());
    let mut daemons = Vec::new();
    for (index, line) in LINES.iter().enumerate() {
        let own = folder.path().join(index.to_string());
        daemons.push(Started::by(line, &program, &own));
    }
    let shares = daemons.iter().enumerate();
    let options = VmOptions::new(
        shares
            .map(|(index, started)| share(index, started))
            .collect(),
    );
    let mut vm = Vm::boot(&options).expect("boots");
    for (index, started) in daemons.iter().enumerate() {
        reads_and_writes(&mut vm, started, &place(index));
        for promise in started.line.promises {
            promise.check(&mut vm, started, &place(index));
        }
    }
    vm.shutdown().expect("powers off");
    for started in &mut daemons {
        let client = started.line.client;
        let status = started.end();
        let log = started.said();
        assert_eq!(status.code(), Some(0), "{client}: {log}");
        if started.made_its_socket() {
            let left = [
                started.socket.clone(),
                started.socket.with_extension("sock.pid"),
            ];
            assert!(!left.iter().any(|path| path.exists()), "{client}: {log}");
        }
        for promise in started.line.promises {
            promise.check_log(client, &log);
        }
    }
}
