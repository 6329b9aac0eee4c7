//! What a daemon says of itself at its `--status-socket`.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// The status document of the daemon that listens at `path`.
///
/// # Errors
///
/// When none listens, or what answers sends no JSON.
pub fn daemon_status(path: &Path) -> Result<Value> {
    let what = || format!("ask the daemon at {}", path.display());
    let socket = UnixStream::connect(path).with_context(what)?;
    socket.set_read_timeout(Some(LIMIT)).with_context(what)?;
    let mut text = String::new();
    (&socket).read_to_string(&mut text).with_context(what)?;
    serde_json::from_str(&text).with_context(what)
}
