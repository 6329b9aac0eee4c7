//! Owners on their way between guest and host.
//!
//! | file | owns |
//! | --- | --- |
//! | `rule` | the text of `--translate-uid` and `--translate-gid` |
//! | this file | the rules together, and ids through them |
//!
//! The syntax is virtiofsd's. Laws: each direction has rules of its own, whose
//! source ranges do not overlap; an id that no rule is about is the same on
//! both sides; no rule leads to `u32::MAX`, which is nobody's id.

mod rule;

#[cfg(test)]
mod tests;

use daxwindow_shared::fuse::Attr;
use rustix::io::Errno;

pub use rule::{IdRule, IdRuleError};

use super::Caller;

/// Kinds of ids of which the daemon's user namespace has one: all that a guest
/// creates belongs to it, whoever creates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoleIds {
    /// There is one user.
    pub uid: bool,
    /// There is one group.
    pub gid: bool,
}

/// A range of ids and what they become on the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    /// Past the last.
    end: u32,
    becomes: Becomes,
    /// Where it comes from, for messages.
    rule: IdRule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// As many, from this one on.
    From(u32),
    /// All this one.
    One(u32),
    /// `EPERM`.
    Forbidden,
}

/// Spans of one direction, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Direction(Vec<Span>);

/// What one kind of ids, users or groups, becomes in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    to_host: Direction,
    to_guest: Direction,
}

/// Why rules cannot stand together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// What would become of an id twice in the same direction?
    #[error("{later} is about {direction} ids that {earlier} is about already")]
    Overlap {
        /// The first of the two that was given.
        earlier: IdRule,
        /// The other.
        later: IdRule,
        /// "guest" or "host".
        direction: &'static str,
    },
}

impl IdMap {
    /// The rules together, in any order.
    ///
    /// # Errors
    ///
    /// [`IdMapError::Overlap`].
    pub fn new(rules: &[IdRule]) -> Result<IdMap, IdMapError> {
        let mut map = IdMap::default();
        for rule in rules {
            let (guest, host) = rule.spans();
            if let Some(span) = guest {
                map.to_host.add(span, "guest")?;
            }
            if let Some(span) = host {
                map.to_guest.add(span, "host")?;
            }
        }
        Ok(map)
    }

    /// The host's id for one of the guest's; `EPERM` if it is forbidden.
    pub(super) fn to_host(&self, id: u32) -> Result<u32, Errno> {
        self.to_host.of(id)
    }

    /// The guest's id for one of the host's.
    pub(super) fn to_guest(&self, id: u32) -> u32 {
        // Nothing is forbidden in this direction.
        self.to_guest.of(id).unwrap_or(id)
    }
}

impl Direction {
    fn add(&mut self, span: Span, direction: &'static str) -> Result<(), IdMapError> {
        if span.first == span.end {
            return Ok(());
        }
        let at = self.0.partition_point(|other| other.end <= span.first);
        if let Some(other) = self.0.get(at).filter(|other| other.first < span.end) {
            return Err(IdMapError::Overlap {
                earlier: other.rule,
                later: span.rule,
                direction,
            });
        }
        self.0.insert(at, span);
        Ok(())
    }

    fn of(&self, id: u32) -> Result<u32, Errno> {
        let at = self.0.partition_point(|span| span.end <= id);
        let Some(span) = self.0.get(at).filter(|span| span.first <= id) else {
            return Ok(id);
        };
        match span.becomes {
            // Within u32: made sure of when the rule was read.
            Becomes::From(base) => Ok(base.saturating_add(id - span.first)),
            Becomes::One(one) => Ok(one),
            Becomes::Forbidden => Err(Errno::PERM),
        }
    }
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// `--translate-uid`.
    pub uid: IdMap,
    /// `--translate-gid`.
    pub gid: IdMap,
    /// Where nobody else can own anything.
    pub sole: SoleIds,
}

impl Ids {
    /// Whether all ids are the same on both sides.
    pub fn is_identity(&self) -> bool {
        self.uid == IdMap::default() && self.gid == IdMap::default()
    }

    /// Who the caller is on the host. `EPERM` if that is forbidden; the id
    /// that is nobody's stays it.
    pub(super) fn on_host(&self, caller: Caller) -> Result<Caller, Errno> {
        let (uid, gid) = (self.uid.to_host(caller.uid)?, self.gid.to_host(caller.gid)?);
        let is_one = |id: u32| id != u32::MAX;
        Ok(Caller {
            uid: match self.sole.uid && is_one(uid) {
                true => rustix::process::geteuid().as_raw(),
                false => uid,
            },
            gid: match self.sole.gid && is_one(gid) {
                true => rustix::process::getegid().as_raw(),
                false => gid,
            },
            ..caller
        })
    }

    /// Whether a rule makes somebody else of the caller.
    pub(super) fn translates(&self, caller: Caller) -> bool {
        self.uid.to_host(caller.uid) != Ok(caller.uid)
            || self.gid.to_host(caller.gid) != Ok(caller.gid)
    }

    /// Attributes with the owner that the guest sees.
    pub(super) fn in_guest(&self, attr: Attr) -> Attr {
        Attr {
            uid: self.uid.to_guest(attr.uid),
            gid: self.gid.to_guest(attr.gid),
            ..attr
        }
    }
}
