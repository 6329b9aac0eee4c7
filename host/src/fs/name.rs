//! Checked path components.

use std::ffi::CStr;

use rustix::io::Errno;

/// Longest component that a system call takes (`PATH_MAX`, without the NUL), in
/// bytes. How long a name may be on a file system, that one says: most stop at
/// 255, FUSE servers and CIFS may not.
const MAX_BYTES: usize = 4095;

/// One checked path component: not empty, at most 4095 bytes, no slash, not
/// "." or "..".
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name from the guest. Errors: `ENOENT` for an empty one,
    /// `ENAMETOOLONG`, `EINVAL` for what is not a single component.
    pub fn new(bytes: &'a CStr) -> Result<Name<'a>, Errno> {
        match bytes.to_bytes() {
            b"" => Err(Errno::NOENT),
            b"." | b".." => Err(Errno::INVAL),
            name if name.len() > MAX_BYTES => Err(Errno::NAMETOOLONG),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(Name(bytes)),
        }
    }

    /// A name that was not checked, to test what stands behind the check.
    #[cfg(test)]
    pub(super) fn unchecked(bytes: &'a CStr) -> Name<'a> {
        Name(bytes)
    }

    /// Whether this is what [`Name::new`] checks for, asked once more where
    /// the kernel is not told to stay beneath a directory.
    pub(super) fn is_component(self) -> bool {
        Name::new(self.0).is_ok()
    }

    /// The component as a C string.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::CString;

    fn check(name: &str) -> Result<(), Errno> {
        Name::new(&CString::new(name).unwrap()).map(|_| ())
    }

    #[test]
    fn only_single_components_pass() {
        for good in ["a", "...", ".a", "..a", "a b", "\u{e9}", &"x".repeat(4095)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [".", "..", "/", "a/b", "/a", "a/", "../a"] {
            assert_eq!(check(bad), Err(Errno::INVAL), "{bad}");
        }
        assert_eq!(check(""), Err(Errno::NOENT));
        assert_eq!(check(&"x".repeat(4096)), Err(Errno::NAMETOOLONG));
    }

    proptest! {
        #[test]
        fn what_passes_has_no_slash(bytes in proptest::collection::vec(1u8.., 0..5000)) {
            let name = CString::new(bytes).unwrap();
            if let Ok(name) = Name::new(&name) {
                let name = name.as_c_str().to_bytes();
                prop_assert!(!name.contains(&b'/') && !name.is_empty() && name.len() <= 4095);
                prop_assert!(name != b"." && name != b"..");
            }
        }
    }
}
