//! The status socket, while a lower file system tells nothing about a file that
//! a guest has mapped.

use std::io::Read;
use std::os::unix::net::UnixStream;

use daxwindow_host::observe::document::Status;

use crate::common::{Daemon, PATIENCE, RANGE, attach, in_memory, walk};
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
    let mapped = session.setup_mapping(node, 0, 0, RANGE, true);
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
