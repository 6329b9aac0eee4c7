//! Sizes and counts as they are typed and shown.

use std::fmt;
use std::ops::RangeBounds;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use daxwindow_shared::size::parse_bytes;
use daxwindow_shared::window::RANGE_BYTES;

/// Bytes, in the largest unit that they are a multiple of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        parse_bytes(text).map(Bytes)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        let fits = |(shift, _): &(u32, _)| self.0.trailing_zeros() >= *shift;
        let (shift, unit) = units.into_iter().find(fits).unwrap_or((0, ""));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// Parses a count within `range`.
pub(super) fn count(range: impl RangeBounds<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// Parses the size of a window.
pub(super) fn parse_window(text: &str) -> Result<Bytes, String> {
    let bytes = parse_bytes(text)?;
    if bytes % RANGE_BYTES != 0 {
        return Err("the window must be a multiple of 2M, the range in which guests map".into());
    }
    Ok(Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_suffixes_and_bounds() {
        for (text, bytes) in [
            ("0", 0),
            ("2M", 2 << 20),
            ("4096k", 4 << 20),
            ("3G", 3 << 30),
        ] {
            assert_eq!(parse_window(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "G", "1T", "-1", "1M", "3000000", "99999999999G", "1é"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_typed() {
        for text in ["256M", "128K", "1G", "1025M", "4097"] {
            let bytes: Bytes = text.parse().expect("a size");
            assert_eq!(bytes.to_string(), text);
        }
    }
}
