//! `--print-session`: asks a daemon at its status socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{SCHEMA, Status};
use super::text;

/// How long a daemon may be silent. Other askers are served before us.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest document that is taken.
const MAX_BYTES: u64 = 256 << 20;

/// Why nothing is printed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers there.
    #[error("--print-session {path:?}: cannot {action}: {cause}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// It is no status document.
    #[error("--print-session {path:?}: what answers there sends no status document: {cause}")]
    NoDocument {
        /// The socket.
        path: PathBuf,
        /// What the parser says.
        cause: serde_json::Error,
    },
    /// A daemon of another generation.
    #[error(
        "--print-session {path:?}: the document is of version {version}, and only {SCHEMA} is \
         known here; --json prints it as it is"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
}

/// Asks at `path` and prints the answer: for people, or as it came.
///
/// # Errors
///
/// [`AskError`].
pub fn print_session(path: &Path, json: bool) -> Result<(), AskError> {
    let document = ask(path)?;
    let out = match json {
        true => document,
        false => text::render(&parse(path, &document)?),
    };
    let printed = io::stdout().lock().write_all(out.as_bytes());
    printed.map_err(|cause| failed(path, "print", cause))
}

fn failed(path: &Path, action: &'static str, cause: io::Error) -> AskError {
    AskError::Io {
        path: path.to_owned(),
        action,
        cause,
    }
}

fn ask(path: &Path) -> Result<String, AskError> {
    let socket = UnixStream::connect(path).map_err(|e| failed(path, "connect", e))?;
    let timed = socket.set_read_timeout(Some(SILENCE));
    timed.map_err(|e| failed(path, "set a time-out", e))?;
    let mut document = String::new();
    let read = socket.take(MAX_BYTES).read_to_string(&mut document);
    read.map_err(|e| failed(path, "read the document", e))?;
    Ok(document)
}

fn parse(path: &Path, document: &str) -> Result<Status, AskError> {
    let path = path.to_owned();
    let bad = |cause| AskError::NoDocument {
        path: path.clone(),
        cause,
    };
    let value: serde_json::Value = serde_json::from_str(document).map_err(bad)?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(version) if version != u64::from(SCHEMA) => Err(AskError::Version { path, version }),
        _ => serde_json::from_value(value).map_err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_apart() {
        let path = Path::new("/s");
        let error = parse(path, "{\"schema\": 99}").expect_err("another version");
        assert!(error.to_string().contains("99"), "{error}");
        for text in ["", "hello", "{}", "{\"schema\": 2}"] {
            let error = parse(path, text).expect_err("no document");
            assert!(matches!(error, AskError::NoDocument { .. }), "{error}");
        }
    }
}
