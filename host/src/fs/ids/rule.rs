//! One rule: `TYPE:FROM:TO:COUNT`, or `forbid-guest:FROM:COUNT`.
//!
//! The separator is the first character that can be no part of a type, and
//! the same throughout.

use std::fmt;
use std::str::FromStr;

use super::{Becomes, Span};

/// A rule as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRule {
    kind: Kind,
    /// First id of the range it is about: the guest's but with `host` and
    /// `squash-host`.
    from: u32,
    /// First id, or only one, of the other side; 0 with `forbid-guest`.
    to: u32,
    count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Guest,
    Host,
    SquashGuest,
    SquashHost,
    ForbidGuest,
    Map,
}

/// Names of the kinds.
const KINDS: [(&str, Kind); 6] = [
    ("guest", Kind::Guest),
    ("host", Kind::Host),
    ("squash-guest", Kind::SquashGuest),
    ("squash-host", Kind::SquashHost),
    ("forbid-guest", Kind::ForbidGuest),
    ("map", Kind::Map),
];

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdRuleError {
    /// Not a type.
    #[error("type {0:?} is none of guest, host, squash-guest, squash-host, forbid-guest and map")]
    Type(String),
    /// Too many or too few numbers.
    #[error("{kind} takes {want} numbers ({form}), not {got}")]
    Count {
        /// Its type.
        kind: &'static str,
        /// How many it takes.
        want: usize,
        /// What they are.
        form: &'static str,
        /// How many there are.
        got: usize,
    },
    /// No 32-bit number.
    #[error("{0:?} is no number from 0 to 4294967295")]
    Number(String),
    /// The id past the largest that exists.
    #[error("the range {first} and {count} on goes past 4294967294, the largest id")]
    TooLarge {
        /// Its first id.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl FromStr for IdRule {
    type Err = IdRuleError;

    fn from_str(text: &str) -> Result<IdRule, IdRuleError> {
        let of_type = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let end = text.find(|c| !of_type(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let lower = name.to_lowercase();
        let known = KINDS.iter().find(|(name, _)| *name == lower);
        let (name, kind) = *known.ok_or_else(|| IdRuleError::Type(name.to_owned()))?;
        let numbers = numbers(rest)?;
        let got = numbers.len();
        let count_error = |want, form| IdRuleError::Count {
            kind: name,
            want,
            form,
            got,
        };
        let (from, to, count) = match (kind, &numbers[..]) {
            (Kind::ForbidGuest, &[from, count]) => (from, 0, count),
            (Kind::ForbidGuest, _) => return Err(count_error(2, "first id, count")),
            (_, &[from, to, count]) => (from, to, count),
            _ => return Err(count_error(3, "first id, first id it becomes, count")),
        };
        check_range(from, count)?;
        match kind {
            Kind::Guest | Kind::Host | Kind::Map => check_range(to, count)?,
            Kind::SquashGuest | Kind::SquashHost => check_range(to, 1)?,
            Kind::ForbidGuest => {}
        }
        Ok(IdRule {
            kind,
            from,
            to,
            count,
        })
    }
}

/// The numbers after the type, each with a separator before it.
fn numbers(rest: &str) -> Result<Vec<u32>, IdRuleError> {
    let mut chars = rest.chars();
    let Some(separator) = chars.next() else {
        return Ok(Vec::new());
    };
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| IdRuleError::Number(text.to_owned()))
    };
    chars.as_str().split(separator).map(parse).collect()
}

/// `u32::MAX` itself is nobody's id, and so in no range.
fn check_range(first: u32, count: u32) -> Result<(), IdRuleError> {
    match first.checked_add(count) {
        Some(_) => Ok(()),
        None => Err(IdRuleError::TooLarge { first, count }),
    }
}

impl IdRule {
    /// What it does to the guest's ids, and what to the host's.
    pub(super) fn spans(&self) -> (Option<Span>, Option<Span>) {
        let (from, to) = (self.from, self.to);
        let guest = match self.kind {
            Kind::Guest | Kind::Map => Some(self.span(from, Becomes::From(to))),
            Kind::SquashGuest => Some(self.span(from, Becomes::One(to))),
            Kind::ForbidGuest => Some(self.span(from, Becomes::Forbidden)),
            Kind::Host | Kind::SquashHost => None,
        };
        let host = match self.kind {
            Kind::Host => Some(self.span(from, Becomes::From(to))),
            Kind::SquashHost => Some(self.span(from, Becomes::One(to))),
            Kind::Map => Some(self.span(to, Becomes::From(from))),
            Kind::Guest | Kind::SquashGuest | Kind::ForbidGuest => None,
        };
        (guest, host)
    }

    fn span(&self, first: u32, becomes: Becomes) -> Span {
        Span {
            first,
            // Checked when the rule was read.
            end: first.saturating_add(self.count),
            becomes,
            rule: *self,
        }
    }
}

impl fmt::Display for IdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        let name = name.map_or("", |(name, _)| name);
        match self.kind {
            Kind::ForbidGuest => write!(f, "{name}:{}:{}", self.from, self.count),
            _ => write!(f, "{name}:{}:{}:{}", self.from, self.to, self.count),
        }
    }
}
