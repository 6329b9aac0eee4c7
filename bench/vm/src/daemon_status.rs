//! What a daemon says of itself at its `--status-socket`.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// What the status document says of the first share of the daemon that listens
/// at `path`.
///
/// # Errors
///
/// When none listens, or what answers sends no JSON, or it has no shares.
pub fn daemon_status(path: &Path) -> Result<Value> {
    let share = whole_status(path)?
        .pointer_mut("/shares/0")
        .map(Value::take);
    share.with_context(|| format!("the daemon at {} has no shares", path.display()))
}

/// The whole document.
///
/// # Errors
///
/// When none listens, or what answers sends no JSON.
pub fn whole_status(path: &Path) -> Result<Value> {
    let what = || format!("ask the daemon at {}", path.display());
    let socket = UnixStream::connect(path).with_context(what)?;
    socket.set_read_timeout(Some(LIMIT)).with_context(what)?;
    let mut text = String::new();
    (&socket).read_to_string(&mut text).with_context(what)?;
    serde_json::from_str(&text).with_context(what)
}
