//! What is said at the control socket: a request is one line of JSON, its
//! descriptors come with its first byte; so is the answer, without
//! descriptors. A connection carries one of each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::name::ShareName;
use crate::dax::DaxMode;

/// Longest line either way, the line break included.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Descriptors of an `add`: the shared directory (`O_PATH`), the listening
/// socket, the directory of that socket (`O_PATH`).
pub const ADD_DESCRIPTORS: usize = 3;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Serve this share; with [`ADD_DESCRIPTORS`].
    Add(Add),
    /// Serve it no more.
    Remove {
        /// Which.
        name: ShareName,
        /// Even if a guest is connected.
        #[serde(default)]
        force: bool,
    },
    /// Which shares there are.
    List,
}

/// A share to be. What is not said is as the daemon's flags have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// Its name.
    pub name: ShareName,
    /// Path of the directory, to be shown; the descriptor counts.
    pub directory: PathBuf,
    /// Path of the socket; its last component is the file's name in the
    /// directory of the third descriptor.
    pub socket: PathBuf,
    /// The name by which the guest mounts it, at most 36 bytes.
    #[serde(default)]
    pub tag: Option<String>,
    /// Nothing may be changed through it.
    #[serde(default)]
    pub readonly: bool,
    /// Who gets DAX: `never`, `inode` or `always`.
    #[serde(default)]
    pub dax: Option<DaxMode>,
    /// Bytes of the window, a multiple of 2 MiB.
    #[serde(default)]
    pub window_bytes: Option<u64>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The shares, by name.
    Shares(Vec<Listed>),
    /// It is not, and why.
    Error(String),
}

/// One share of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// A guest is connected.
    pub in_use: bool,
    /// Where guests connect.
    pub socket: String,
    /// What is shared.
    pub directory: String,
    /// The name by which the guest mounts it.
    pub tag: String,
    /// Nothing may be changed through it.
    pub readonly: bool,
}

/// `message` as a line.
pub fn to_line(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_line_of_json_and_strange_ones_are_refused() {
        let text = r#"{"command":"remove","name":"a"}"#;
        let remove = Request::Remove {
            name: "a".parse().expect("a name"),
            force: false,
        };
        assert_eq!(serde_json::from_str::<Request>(text).ok(), Some(remove));
        let text =
            r#"{"command":"add","name":"a","directory":"/d","socket":"/a.sock","dax":"inode"}"#;
        let add: Request = serde_json::from_str(text).expect("enough");
        let line = to_line(&add).expect("a line");
        assert!(line.ends_with(b"}\n") && !line[..line.len() - 1].contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<Request>(&line).ok(), Some(add));
        for text in [
            r#"{"command":"add"}"#,
            r#"{"command":"remove","name":"../a"}"#,
            r#"{"command":"remove","name":"a","forced":true}"#,
            r#"{"command":"stop"}"#,
            r#"[]"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
