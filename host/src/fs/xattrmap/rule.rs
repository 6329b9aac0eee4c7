//! One rule: to which names it applies, and what it makes of them.

use std::ffi::{CStr, CString};

/// Which side's names a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Names that the guest uses, and its "client" calls.
    Client,
    /// Names that the host lists.
    Server,
}

/// Both sides.
pub(super) const ALL: [Scope; 2] = [Scope::Client, Scope::Server];

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Prepends to the guest's names, strips from the host's.
    Prefix,
    /// Lets a name through.
    Ok,
    /// Denies and hides it.
    Bad,
    /// Denies it as something unknown, and hides it.
    Unsupported,
}

/// `:kind:scope:key:prepend:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) kind: Kind,
    pub(super) client: bool,
    pub(super) server: bool,
    /// How a guest's name starts for the rule to match it.
    pub(super) key: CString,
    /// How a host's name starts for the rule to match it.
    pub(super) prepend: CString,
}

impl Rule {
    /// A rule for both sides.
    pub(super) fn both(kind: Kind, key: CString, prepend: CString) -> Rule {
        Rule {
            kind,
            client: true,
            server: true,
            key,
            prepend,
        }
    }

    pub(super) fn matches_guest(&self, name: &[u8]) -> bool {
        self.client && name.starts_with(self.key.as_bytes())
    }

    pub(super) fn matches_host(&self, name: &[u8]) -> bool {
        self.server && name.starts_with(self.prepend.as_bytes())
    }

    /// Whether no name of that side gets past it.
    pub(super) fn catches_all(&self, scope: Scope) -> bool {
        match scope {
            Scope::Client => self.matches_guest(b""),
            Scope::Server => self.matches_host(b""),
        }
    }

    pub(super) fn prepended(&self, name: &CStr) -> Option<CString> {
        let bytes = [self.prepend.as_bytes(), name.to_bytes()].concat();
        // Neither part has a NUL.
        CString::new(bytes).ok()
    }

    pub(super) fn stripped<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        name.strip_prefix(self.prepend.as_bytes())
    }
}
