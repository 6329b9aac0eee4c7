//! The status and control sockets, while a lower file system does not answer.

use daxwindow_shared::window::{FileOffset, WindowOffset};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use daxwindow_host::status::document::Status;

use crate::common::{DAEMON, Daemon, PATIENCE, RANGE, attach, eventually, in_memory, walk};
use crate::lower::{LEN, Lower, OPENED};

#[test]
fn the_status_is_told_whether_or_not_lower_file_systems_answer() {
    let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
    std::fs::create_dir(share.path().join("below")).expect("a mount point");
    let status = place.path().join("status");
    let flags = [
        "--dax",
        "always",
        "--dax-window",
        "64M",
        "--status-socket",
        status.to_str().expect("UTF-8"),
    ];
    let lower = Lower::mount(&share.path().join("below"));
    let mut daemon = Daemon::start(share.path(), &flags);
    let session = attach(&daemon);
    let name = format!("below/{}", OPENED[0]);
    let node = walk(&session, &name).expect("there").nodeid;
    let mapped = session.setup_mapping(node, FileOffset(0), WindowOffset(0), RANGE, true);
    mapped.expect("mapped");
    lower.stall();
    let mut socket = UnixStream::connect(&status).expect("listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("a document");
    let told: Status = serde_json::from_str(&text).expect("a document");
    assert_eq!(told.common.mapped_bytes, LEN);
    assert_eq!(lower.held(), 0, "it was not asked");
    session.abandon();
    assert!(daemon.terminate().success());
}

#[test]
fn a_directory_that_does_not_answer_keeps_no_other_from_being_shared() {
    let (share, place) = (in_memory(), tempfile::tempdir().expect("a directory"));
    std::fs::create_dir(share.path().join("below")).expect("a mount point");
    let lower = Lower::mount(&share.path().join("below"));
    let ctl = |words: &[&str]| -> Child {
        let mut command = Command::new(DAEMON);
        command.arg("ctl").arg("--socket-dir").arg(place.path());
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.spawn().expect("starts")
    };
    let path = place.path().to_str().expect("UTF-8");
    let daemon = Daemon::start(share.path(), &["--socket-dir", path]);
    let directory = |name: &str| share.path().join(name).to_str().expect("UTF-8").to_owned();
    lower.stall_root();
    let mut slow = ctl(&["add", "--name", "slow", "--shared-dir", &directory("below")]);
    eventually("the daemon looks at it", || lower.held() > 0);
    let mut other = ctl(&["add", "--name", "other", "--shared-dir", &directory("")]);
    let mut ended = None;
    eventually("the other is shared", || {
        ended = other.try_wait().expect("a child");
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()));
    lower.release();
    assert!(slow.wait().expect("a child").success());
    drop(daemon);
}
