//! Why a channel ended, and why a file is not mapped.

use std::io;

use rustix::io::Errno;

use crate::framing::MAX_BODY;

/// Why the channel of a back end was given up. It is closed then; what was
/// mapped stays mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The back end announced a message that is longer than any, so that its
    /// end cannot be waited for.
    #[error("a message of {bytes} bytes; at most {MAX_BODY} are read")]
    TooLong {
        /// Its length, as announced.
        bytes: u32,
    },
    /// The back end closed the channel before its last message was whole.
    #[error("the channel was closed within a message")]
    Incomplete,
    /// Another mapping may have a part of the window; see
    /// [`Window::is_lost`](crate::Window::is_lost).
    #[error("the window has lost address space to another mapping")]
    WindowLost,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ChannelError {
    /// Whether the back end went away, rather than broke the protocol.
    pub(crate) fn is_hang_up(&self) -> bool {
        let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        match self {
            ChannelError::Incomplete => true,
            ChannelError::Io(error) => gone.contains(&error.kind()),
            _ => false,
        }
    }
}

impl From<ChannelError> for io::Error {
    fn from(error: ChannelError) -> io::Error {
        match error {
            ChannelError::Io(error) => error,
            ChannelError::TooLong { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            ChannelError::Incomplete => io::Error::new(io::ErrorKind::UnexpectedEof, error),
            ChannelError::WindowLost => io::Error::other(error),
        }
    }
}

/// Why a descriptor is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A device, a directory, a pipe, a socket.
    #[error("not a regular file")]
    NotRegular,
    /// A file of huge pages, of which more is mapped than was asked for.
    #[error("a file of huge pages")]
    HugePages,
    /// The kernel does not say what it is.
    #[error("the file's type is unknown: {0}")]
    Unknown(Errno),
}

impl FileError {
    /// The errno that a back end is answered with.
    pub fn errno(self) -> Errno {
        match self {
            FileError::NotRegular | FileError::HugePages => Errno::ACCESS,
            FileError::Unknown(errno) => errno,
        }
    }
}

impl From<FileError> for Errno {
    fn from(error: FileError) -> Errno {
        error.errno()
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> io::Error {
        error.errno().into()
    }
}
