//! What may follow the arguments of requests that create: a security context
//! (SECURITY_CTX) and a supplementary group (CREATE_SUPP_GROUP).
//!
//! The header counts the extensions in units of 8 bytes. Linux before 6.3
//! counts none and lets the security context follow the last name: there
//! whatever is left is taken for extensions.
//!
//! Law: every length is checked against what was sent; an extension that was
//! not agreed, comes twice, or is of an unknown kind makes the request invalid.
//! Where none was agreed, the header's count is padding, which may hold anything.

use std::ffi::CStr;

use daxwindow_shared::fuse::{EXT_GROUPS, ExtHeader, MAX_NR_SECCTX, Secctx, SuppGroups};
use rustix::io::Errno;

use crate::fs::{Creator, Label, Name};

use super::request::{Body, caller};
use super::{Call, Server};

/// Longest value of an extended attribute, which a label becomes.
const MAX_LABEL_BYTES: usize = 64 << 10;
/// Most groups that are looked at; Linux sends one.
const MAX_GROUPS: u32 = 32;

/// Which extensions the session has agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) label: bool,
    pub(super) group: bool,
}

/// The extensions of one request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extensions<'b> {
    /// Outer: whether there was that extension. A guest without a security
    /// module sends one that is empty.
    label: Option<Option<Label<'b>>>,
    groups: Option<Vec<u32>>,
}

impl Server {
    /// Takes the last name of a request that creates, and who creates.
    pub(super) fn last_name<'b>(
        &self,
        call: &mut Call<'b, '_, '_>,
    ) -> Result<(Name<'b>, Creator<'b>), Errno> {
        let name = call.body.name()?;
        Ok((name, self.creator(call)?))
    }

    /// Who creates, once all arguments are taken.
    pub(super) fn creator<'b>(&self, call: &mut Call<'b, '_, '_>) -> Result<Creator<'b>, Errno> {
        let mut extensions = call.extensions;
        if extensions.rest().is_empty() {
            extensions = call.body;
        } else {
            call.body.end()?;
        }
        let found = parse(extensions, self.session.extensions())?;
        Ok(Creator {
            caller: caller(&call.header),
            groups: found.groups.unwrap_or_default(),
            label: found.label.flatten(),
        })
    }
}

fn parse(mut body: Body<'_>, agreed: Agreed) -> Result<Extensions<'_>, Errno> {
    let mut found = Extensions::default();
    while !body.rest().is_empty() {
        let start = body;
        let header: ExtHeader = body.args()?;
        let bytes = (header.size as usize)
            .checked_sub(size_of::<ExtHeader>())
            .ok_or(Errno::INVAL)?;
        let extension = body.split(bytes)?;
        match header.typ {
            EXT_GROUPS if agreed.group && found.groups.is_none() => {
                found.groups = Some(groups(extension)?);
            }
            count if count <= MAX_NR_SECCTX && agreed.label && found.label.is_none() => {
                found.label = Some(label(extension, count)?);
            }
            _ => return Err(Errno::INVAL),
        }
        // Each begins at a multiple of 8 bytes; the last may end anywhere.
        let padding = header.size.next_multiple_of(8) - header.size;
        body.split((padding as usize).min(body.rest().len()))?;
        debug_assert!(body.rest().len() < start.rest().len());
    }
    Ok(found)
}

/// The security context of a file that is created. Linux sends one at most.
fn label(mut body: Body<'_>, count: u32) -> Result<Option<Label<'_>>, Errno> {
    match count {
        0 => return Ok(None),
        1 => {}
        _ => return Err(Errno::INVAL),
    }
    let header: Secctx = body.args()?;
    let size = header.size as usize;
    if size > MAX_LABEL_BYTES {
        return Err(Errno::TOOBIG);
    }
    let name: &CStr = body.string()?;
    let value = body.split(size)?.rest();
    if name.is_empty() || value.is_empty() {
        return Err(Errno::INVAL);
    }
    Ok(Some(Label { name, value }))
}

fn groups(mut body: Body<'_>) -> Result<Vec<u32>, Errno> {
    let header: SuppGroups = body.args()?;
    if header.nr_groups > MAX_GROUPS {
        return Err(Errno::INVAL);
    }
    (0..header.nr_groups).map(|_| body.args()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    const BOTH: Agreed = Agreed {
        label: true,
        group: true,
    };

    fn extension(typ: u32, size: Option<u32>, content: &[u8]) -> Vec<u8> {
        let whole = (size_of::<ExtHeader>() + content.len()) as u32;
        let size = size.unwrap_or(whole);
        let mut bytes = [ExtHeader { size, typ }.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn secctx(size: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
        let header = Secctx { size, padding: 0 };
        let mut bytes = [header.as_bytes(), name, value].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn supp_groups(count: u32, ids: &[u32]) -> Vec<u8> {
        [&count.to_ne_bytes(), ids.as_bytes()].concat()
    }

    fn parsed(bytes: &[u8], agreed: Agreed) -> Result<Extensions<'_>, Errno> {
        parse(Body::new(bytes), agreed)
    }

    #[test]
    fn a_label_and_a_group_are_found_in_any_order() {
        let label = extension(1, None, &secctx(9, b"security.selinux\0", b"unlabeled"));
        let group = extension(EXT_GROUPS, None, &supp_groups(1, &[27]));
        for bytes in [[&*label, &*group].concat(), [&*group, &*label].concat()] {
            let found = parsed(&bytes, BOTH).expect("good");
            let expected = Label {
                name: c"security.selinux",
                value: b"unlabeled",
            };
            assert_eq!(found.label, Some(Some(expected)));
            assert_eq!(found.groups.as_deref(), Some(&[27][..]));
        }
        assert_eq!(parsed(&[], BOTH), Ok(Extensions::default()));
        let empty = extension(0, None, &[]);
        assert_eq!(parsed(&empty, BOTH).expect("good").label, Some(None));
    }

    #[test]
    fn what_was_not_agreed_comes_twice_or_is_unknown_is_refused() {
        let label = extension(0, None, &[]);
        let group = extension(EXT_GROUPS, None, &supp_groups(1, &[27]));
        let neither = Agreed::default();
        for (bytes, agreed) in [
            (label.clone(), neither),
            (group.clone(), neither),
            (label.repeat(2), BOTH),
            (group.repeat(2), BOTH),
            (extension(33, None, &[0; 8]), BOTH),
            (extension(u32::MAX, None, &[0; 8]), BOTH),
        ] {
            assert_eq!(parsed(&bytes, agreed), Err(Errno::INVAL), "{bytes:?}");
        }
    }

    #[test]
    fn lengths_and_counts_that_lie_are_refused() {
        let good = secctx(4, b"security.a\0", b"abcd");
        for (what, bytes, errno) in [
            ("no size", extension(1, Some(0), &good), Errno::INVAL),
            (
                "less than a header",
                extension(1, Some(7), &good),
                Errno::INVAL,
            ),
            (
                "more than was sent",
                extension(1, Some(4096), &good),
                Errno::INVAL,
            ),
            (
                "all there is",
                extension(1, Some(u32::MAX), &good),
                Errno::INVAL,
            ),
            (
                "two contexts",
                extension(2, None, &good.repeat(2)),
                Errno::INVAL,
            ),
            (
                "a value longer than the extension",
                extension(1, None, &secctx(400, b"security.a\0", b"abcd")),
                Errno::INVAL,
            ),
            (
                "a value longer than any",
                extension(1, None, &secctx(u32::MAX, b"security.a\0", b"abcd")),
                Errno::TOOBIG,
            ),
            (
                "a name without end",
                extension(
                    1,
                    None,
                    &[&[4, 0, 0, 0, 0, 0, 0, 0][..], &[b'x'; 16]].concat(),
                ),
                Errno::INVAL,
            ),
            (
                "no name",
                extension(1, None, &secctx(4, b"\0", b"abcd")),
                Errno::INVAL,
            ),
            (
                "no value",
                extension(1, None, &secctx(0, b"security.a\0", b"")),
                Errno::INVAL,
            ),
            (
                "more groups than were sent",
                extension(EXT_GROUPS, None, &supp_groups(3, &[1, 2])),
                Errno::INVAL,
            ),
            (
                "more groups than anybody has",
                extension(EXT_GROUPS, None, &supp_groups(u32::MAX, &[1])),
                Errno::INVAL,
            ),
            ("half a header", vec![16, 0, 0, 0], Errno::INVAL),
        ] {
            assert_eq!(parsed(&bytes, BOTH), Err(errno), "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(
            bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(16), Just(32), any::<u8>()], 0..80)
        ) {
            if let Ok(found) = parsed(&bytes, BOTH) {
                let label = found.label.flatten().map_or(0, |label| label.value.len());
                prop_assert!(label <= bytes.len());
                prop_assert!(found.groups.map_or(0, |ids| ids.len() * 4) <= bytes.len());
            }
        }
    }
}
