//! What a share may be called.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name: with directory and ending it has to fit a socket's address.
const MAX_BYTES: usize = 64;
/// Ending of sockets in a directory of sockets.
const ENDING: &str = ".sock";
/// The socket of this name takes orders.
const CONTROL: &str = "control";

/// A name that is a plain file name, too: letters, digits, `-`, `_`, `.`, not
/// beginning with a point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareName(String);

/// Why a text is no name of a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or too long.
    #[error("a name has 1 to {MAX_BYTES} bytes, not {0}")]
    Length(usize),
    /// A character that could mean something else.
    #[error("a name has letters, digits, '-', '_' and '.', and does not begin with '.': {0:?}")]
    Character(String),
    /// The control socket's.
    #[error("{CONTROL:?} is the name of the control socket")]
    Control,
}

impl ShareName {
    /// The name of a share that listens at `path`, as far as it makes one.
    pub fn of_socket(path: &Path) -> Option<ShareName> {
        let file = path.file_name()?.to_str()?;
        file.strip_suffix(ENDING).unwrap_or(file).parse().ok()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of its socket in a directory of sockets.
    pub fn socket_file(&self) -> String {
        format!("{}{ENDING}", self.0)
    }
}

/// Name of the socket in a directory of sockets that takes orders.
pub fn control_file() -> String {
    format!("{CONTROL}{ENDING}")
}

impl FromStr for ShareName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ShareName, NameError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match text {
            CONTROL => Err(NameError::Control),
            _ if text.is_empty() || text.len() > MAX_BYTES => Err(NameError::Length(text.len())),
            _ if text.starts_with('.') || !text.chars().all(good) => {
                Err(NameError::Character(text.to_owned()))
            }
            _ => Ok(ShareName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ShareName {
    type Error = NameError;

    fn try_from(text: String) -> Result<ShareName, NameError> {
        text.parse()
    }
}

impl From<ShareName> for String {
    fn from(name: ShareName) -> String {
        name.0
    }
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_file_name_and_no_other() {
        for good in ["a", "vm-17", "a.b_c", &"x".repeat(64)] {
            let name: ShareName = good.parse().expect(good);
            assert_eq!(name.socket_file(), format!("{good}.sock"));
            let json = serde_json::to_string(&name).expect("text");
            assert_eq!(serde_json::from_str::<ShareName>(&json).ok(), Some(name));
        }
        let long = "x".repeat(65);
        for bad in [
            "", ".", "..", ".a", "a/b", "a b", "a\n", "é", "control", &long,
        ] {
            assert!(bad.parse::<ShareName>().is_err(), "{bad:?}");
            let json = serde_json::to_string(bad).expect("text");
            assert!(serde_json::from_str::<ShareName>(&json).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_socket_gives_its_share_a_name() {
        let of = |path: &str| ShareName::of_socket(Path::new(path)).map(String::from);
        assert_eq!(of("/run/fs.sock").as_deref(), Some("fs"));
        assert_eq!(of("/run/s").as_deref(), Some("s"));
        assert_eq!(of("/run/a b"), None);
        assert_eq!(of("/"), None);
    }
}
