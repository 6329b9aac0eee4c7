//! Sizes as people type them.

/// Largest size taken: no guest has more address space.
const MOST_BYTES: u64 = 1 << 46;

/// Bytes with an optional suffix K, M or G (powers of 1024; "KiB" and the
/// like are taken too), at most 64 TiB.
///
/// # Errors
///
/// What is wrong with `text`, for who typed it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        other => return Err(format!("unknown unit {other}: use K, M or G")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text} is no number, optionally followed by K, M or G"))?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes <= MOST_BYTES)
        .ok_or_else(|| format!("{text} is too large: no guest has that much address space"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("2gib"), Ok(2 << 30));
        assert_eq!(parse_bytes("3k"), Ok(3072));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("65536G"), Ok(MOST_BYTES));
        for bad in [
            "",
            "M",
            "1X",
            "-1",
            "1T",
            "65537G",
            "99999999999G",
            "é",
            "1é",
            "1 M",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
