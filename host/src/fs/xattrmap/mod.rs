//! Names of extended attributes on their way between guest and host.
//!
//! | file | owns |
//! | --- | --- |
//! | `rule` | one rule, and what it does to a name |
//! | `parse` | the text of `--xattrmap`, and what is wrong with it |
//! | this file | the rules together; which names pass the border |
//!
//! The syntax is virtiofsd's, see docs/xattrmap.md. Laws: the first rule that
//! matches decides; some rule matches every name, which is made sure before
//! the daemon starts; a name that the guest may not see does not come up in a
//! list either.

mod parse;
mod rule;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use rustix::io::Errno;

pub use parse::{XattrMapError, XattrMapErrorKind};
use rule::{ALL, Kind, Rule};

/// Where a POSIX ACL and a directory's default ACL are.
const ACL_NAMES: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];
/// Where file capabilities are.
const CAPABILITY: &CStr = c"security.capability";

/// The rules of `--xattrmap`, `map` written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrMap {
    rules: Vec<Rule>,
}

/// What becomes of a name that the guest uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped<'n> {
    /// The host knows it by this name.
    Name(Cow<'n, CStr>),
    /// `bad`: the guest may not use it.
    Denied,
    /// `unsupported`: there is no such thing.
    Unsupported,
}

impl XattrMap {
    /// The host's name for one that the guest uses.
    pub fn to_host<'n>(&self, name: &'n CStr) -> Mapped<'n> {
        let bytes = name.to_bytes();
        let Some(rule) = self.rules.iter().find(|rule| rule.matches_guest(bytes)) else {
            // Cannot be: the last rules match everything.
            return Mapped::Denied;
        };
        match rule.kind {
            Kind::Ok => Mapped::Name(Cow::Borrowed(name)),
            Kind::Bad => Mapped::Denied,
            Kind::Unsupported => Mapped::Unsupported,
            Kind::Prefix => match rule.prepended(name) {
                Some(name) => Mapped::Name(Cow::Owned(name)),
                None => Mapped::Denied,
            },
        }
    }

    /// The guest's name for one that the host lists; none if it is hidden.
    pub fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let rule = self.rules.iter().find(|rule| rule.matches_host(name))?;
        match rule.kind {
            Kind::Ok => Some(name),
            Kind::Bad | Kind::Unsupported => None,
            // What is nothing but the prefix has no name in the guest.
            Kind::Prefix => rule.stripped(name).filter(|rest| !rest.is_empty()),
        }
    }

    /// Whether POSIX ACLs get to the host and back under their own names,
    /// without which the host neither keeps modes and ACLs in step nor hands
    /// default ACLs down.
    pub fn passes_acls(&self) -> bool {
        ACL_NAMES.iter().all(|name| {
            self.to_host(name) == Mapped::Name(Cow::Borrowed(name))
                && self.to_guest(name.to_bytes()) == Some(name.to_bytes())
        })
    }

    /// Whether every name of either side meets a rule.
    fn is_complete(&self) -> bool {
        let catches_all = |scope| {
            let mut rules = self.rules.iter();
            rules.any(|rule| rule.catches_all(scope))
        };
        ALL.iter().all(|scope| catches_all(*scope))
    }
}

/// What the guest is about to do with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Change,
}

/// Which names pass between guest and host, and as what.
#[derive(Clone, Debug, Default)]
pub(super) struct XattrNames {
    map: Option<XattrMap>,
    /// Where the guest's file capabilities are on the host, if not where the
    /// host's kernel looks for them.
    capability: Option<CString>,
}

impl XattrNames {
    pub(super) fn new(map: Option<XattrMap>) -> XattrNames {
        let mapped = map.as_ref().map(|map| map.to_host(CAPABILITY));
        let capability = match mapped {
            Some(Mapped::Name(name)) if *name != *CAPABILITY => Some(name.into_owned()),
            _ => None,
        };
        XattrNames { map, capability }
    }

    /// The host's name. ACLs that do not hold in the guest are not shown to
    /// it: `ENOTSUP`. What a rule calls bad is `EPERM` when changed; read, it
    /// is not there (`ENODATA`), since a Linux guest that is denied
    /// `security.capability` runs no program.
    pub(super) fn to_host<'n>(
        &self,
        name: &'n CStr,
        access: Access,
        acls: bool,
    ) -> Result<Cow<'n, CStr>, Errno> {
        if name.is_empty() {
            // As the host's kernel has it, which is not to see a bare prefix.
            return Err(Errno::RANGE);
        }
        if !acls && ACL_NAMES.contains(&name) {
            return Err(Errno::NOTSUP);
        }
        let Some(map) = &self.map else {
            return Ok(Cow::Borrowed(name));
        };
        match (map.to_host(name), access) {
            (Mapped::Name(name), _) => Ok(name),
            (Mapped::Denied, Access::Change) => Err(Errno::PERM),
            (Mapped::Denied, Access::Read) => Err(Errno::NODATA),
            (Mapped::Unsupported, _) => Err(Errno::NOTSUP),
        }
    }

    /// A list as the guest may see it: names with a NUL after each.
    pub(super) fn list_to_guest(&self, list: &[u8], acls: bool) -> Vec<u8> {
        let mut seen = Vec::with_capacity(list.len());
        for name in list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let name = match &self.map {
                Some(map) => map.to_guest(name),
                None => Some(name),
            };
            let hidden = |name: &[u8]| !acls && ACL_NAMES.iter().any(|acl| acl.to_bytes() == name);
            if let Some(name) = name.filter(|name| !hidden(name)) {
                seen.extend_from_slice(name);
                seen.push(0);
            }
        }
        seen
    }

    /// What has to go when a file is changed, because the host's kernel takes
    /// away only what is called `security.capability`.
    pub(super) fn mapped_capability(&self) -> Option<&CStr> {
        self.capability.as_deref()
    }
}
