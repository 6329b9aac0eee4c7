//! The virtio-fs device: identity, configuration space and queue order
//! (virtio 1.3, section 5.11).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian::U32};

/// Virtio device id of a file system device.
pub const DEVICE_ID: u32 = 26;
/// Shared memory id of the DAX window (`VIRTIO_FS_SHMCAP_ID_CACHE`).
pub const SHMCAP_ID_CACHE: u8 = 0;
/// Index of the high priority queue, which carries FORGET.
pub const HIPRIO_QUEUE: usize = 0;
/// Index of the first request queue.
pub const FIRST_REQUEST_QUEUE: usize = 1;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 36;

/// Configuration space, as far as a device without `F_NOTIFICATION` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Name of the share, UTF-8, padded with NUL; may fill the field.
    pub tag: [u8; TAG_BYTES],
    /// Number of request queues, the hiprio queue not counted.
    pub num_request_queues: U32,
}
const _: () = assert!(size_of::<Config>() == 40);

/// Why a tag cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// A guest refuses a device without a tag.
    #[error("the tag is empty")]
    Empty,
    /// The field has 36 bytes.
    #[error("the tag is {0} bytes long, but at most 36 fit")]
    TooLong(usize),
    /// A guest refuses a newline; NUL would end the tag.
    #[error("the tag holds a control character")]
    Control,
}

impl Config {
    /// Checks `tag` by the rules of the specification and of the Linux guest.
    pub fn new(tag: &str, num_request_queues: u32) -> Result<Self, TagError> {
        if tag.is_empty() {
            return Err(TagError::Empty);
        }
        if tag.len() > TAG_BYTES {
            return Err(TagError::TooLong(tag.len()));
        }
        if tag.chars().any(char::is_control) {
            return Err(TagError::Control);
        }
        let mut config = Config::without_tag(num_request_queues);
        config.tag[..tag.len()].copy_from_slice(tag.as_bytes());
        Ok(config)
    }

    /// Of a device whose tag the VMM knows.
    pub fn without_tag(num_request_queues: u32) -> Self {
        Config {
            tag: [0; TAG_BYTES],
            num_request_queues: U32::new(num_request_queues),
        }
    }

    /// The tag without its padding, or `None` if there is none or it is not
    /// UTF-8.
    pub fn tag(&self) -> Option<&str> {
        let end = self.tag.iter().position(|&b| b == 0).unwrap_or(TAG_BYTES);
        let tag = std::str::from_utf8(&self.tag[..end]).ok();
        tag.filter(|tag| !tag.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_checked() {
        assert_eq!(Config::new("", 1), Err(TagError::Empty));
        assert_eq!(Config::new("a\nb", 1), Err(TagError::Control));
        assert_eq!(Config::new(&"x".repeat(37), 1), Err(TagError::TooLong(37)));
        let full = "y".repeat(36);
        let config = Config::new(&full, 3).expect("36 bytes fit");
        assert_eq!(config.tag(), Some(full.as_str()));
        assert_eq!(&config.as_bytes()[36..], [3, 0, 0, 0]);
        assert_eq!(Config::without_tag(3).tag(), None);
    }
}
