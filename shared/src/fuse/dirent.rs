//! Directory entries: a writer that fills a bounded buffer, and a reader that
//! trusts nothing in it.

use zerocopy::{FromBytes, IntoBytes};

use super::{Dirent, DirentPlus, EntryOut};

/// Rounds up to the 8-byte alignment of directory entries.
pub const fn align8(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

/// Appends one READDIR entry to `buf` if all of it fits below `limit` bytes.
/// Returns whether it did.
pub fn push_dirent(buf: &mut Vec<u8>, limit: usize, head: Dirent, name: &[u8]) -> bool {
    push(buf, limit, None, head, name)
}

/// Appends one READDIRPLUS entry, under the same rule.
pub fn push_direntplus(
    buf: &mut Vec<u8>,
    limit: usize,
    entry: EntryOut,
    head: Dirent,
    name: &[u8],
) -> bool {
    push(buf, limit, Some(entry), head, name)
}

fn push(
    buf: &mut Vec<u8>,
    limit: usize,
    entry: Option<EntryOut>,
    mut head: Dirent,
    name: &[u8],
) -> bool {
    let fixed = size_of::<Dirent>() + entry.map_or(0, |_| size_of::<EntryOut>());
    let end = buf.len() + align8(fixed + name.len());
    if end > limit {
        return false;
    }
    head.namelen = name.len() as u32;
    if let Some(entry) = entry {
        buf.extend_from_slice(entry.as_bytes());
    }
    buf.extend_from_slice(head.as_bytes());
    buf.extend_from_slice(name);
    buf.resize(end, 0);
    true
}

/// One entry as read from a reply.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The fixed part.
    pub head: Dirent,
    /// The looked-up inode, in a READDIRPLUS reply.
    pub entry: Option<EntryOut>,
    /// The name, without padding.
    pub name: &'a [u8],
}

/// Iterates over the entries of a READDIR (`plus` false) or READDIRPLUS
/// reply. Stops at the first entry that does not fit in `buf`.
pub fn entries(buf: &[u8], plus: bool) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = buf;
    std::iter::from_fn(move || {
        let (entry, head, after) = if plus {
            let (fixed, after) = DirentPlus::read_from_prefix(rest).ok()?;
            (Some(fixed.entry_out), fixed.dirent, after)
        } else {
            let (head, after) = Dirent::read_from_prefix(rest).ok()?;
            (None, head, after)
        };
        let name = after.get(..head.namelen as usize)?;
        let fixed = rest.len() - after.len();
        rest = rest.get(align8(fixed + name.len())..).unwrap_or_default();
        Some(Entry { head, entry, name })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_pushed_is_read_back(
            names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..40), 0..30),
            plus: bool,
            limit in 0usize..3000,
        ) {
            let mut buf = Vec::new();
            let mut fitted = Vec::new();
            for (i, name) in names.iter().enumerate() {
                let head = Dirent { ino: i as u64, off: i as u64 + 1, ..Default::default() };
                let ok = if plus {
                    push_direntplus(&mut buf, limit, EntryOut::default(), head, name)
                } else {
                    push_dirent(&mut buf, limit, head, name)
                };
                if !ok { break; }
                fitted.push(name.clone());
            }
            prop_assert!(buf.len() <= limit);
            let read: Vec<_> = entries(&buf, plus).map(|e| e.name.to_vec()).collect();
            prop_assert_eq!(read, fitted);
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), plus: bool,
        ) {
            let total: usize = entries(&bytes, plus).map(|e| e.name.len()).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
