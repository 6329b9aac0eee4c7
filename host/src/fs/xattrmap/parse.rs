//! The text of `--xattrmap` becomes rules.
//!
//! A rule begins with its separator, the first character after white space,
//! and has it after each field as well. Field by field:
//!
//! - `:prefix|ok|bad|unsupported:client|server|all:KEY:PREPEND:`
//! - `:map:KEY:PREPEND:`, at most once and last

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use super::XattrMap;
use super::rule::{Kind, Rule};

/// Why a text is no set of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrMapError {
    /// Which rule, counted from 1; none if it is not about a single one.
    pub rule: Option<usize>,
    /// What is wrong with it.
    pub kind: XattrMapErrorKind,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrMapErrorKind {
    /// Nothing but white space.
    #[error("there is no rule")]
    NoRules,
    /// The text ends within a rule.
    #[error(
        "it ends before its {field} does; every field has the separator {separator:?} after it"
    )]
    Incomplete {
        /// What should have come.
        field: &'static str,
        /// The rule's separator.
        separator: char,
    },
    /// Not a type.
    #[error("type {0:?} is none of prefix, ok, bad, unsupported and map")]
    Type(String),
    /// Not a scope.
    #[error("scope {0:?} is none of client, server and all")]
    Scope(String),
    /// Names end at a NUL byte.
    #[error("there is a NUL byte in {0:?}")]
    Nul(String),
    /// `map` covers every name, so nothing can come after it.
    #[error("a map rule must be the last one, and there can be only one")]
    MapNotLast,
    /// Some names would meet no rule.
    #[error(
        "some names match no rule; end with one that matches all, like :ok:all::: or :bad:all:::"
    )]
    Unterminated,
}

impl fmt::Display for XattrMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = self.rule {
            write!(f, "rule {rule}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for XattrMapError {}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> Result<XattrMap, XattrMapError> {
        let mut rest = text.trim_ascii();
        let mut rules = Vec::new();
        let mut count = 0;
        while let Some(separator) = rest.chars().next() {
            count += 1;
            let at = |kind| XattrMapError {
                rule: Some(count),
                kind,
            };
            let mut fields = Fields::after(rest, separator);
            let is_map = fields.rule(&mut rules).map_err(at)?;
            rest = fields.rest.trim_ascii_start();
            if is_map && !rest.is_empty() {
                return Err(at(XattrMapErrorKind::MapNotLast));
            }
        }
        let whole = |kind| XattrMapError { rule: None, kind };
        if rules.is_empty() {
            return Err(whole(XattrMapErrorKind::NoRules));
        }
        let map = XattrMap { rules };
        if !map.is_complete() {
            return Err(whole(XattrMapErrorKind::Unterminated));
        }
        Ok(map)
    }
}

/// The fields of one rule, from front to back.
struct Fields<'t> {
    rest: &'t str,
    separator: char,
}

impl<'t> Fields<'t> {
    fn after(text: &'t str, separator: char) -> Fields<'t> {
        let rest = text.strip_prefix(separator).unwrap_or(text);
        Fields { rest, separator }
    }

    fn next(&mut self, field: &'static str) -> Result<&'t str, XattrMapErrorKind> {
        let separator = self.separator;
        let (next, rest) = self
            .rest
            .split_once(separator)
            .ok_or(XattrMapErrorKind::Incomplete { field, separator })?;
        self.rest = rest;
        Ok(next)
    }

    fn name(&mut self, field: &'static str) -> Result<CString, XattrMapErrorKind> {
        let name = self.next(field)?;
        CString::new(name).map_err(|_| XattrMapErrorKind::Nul(name.to_owned()))
    }

    /// Adds what the rule comes to; answers whether it is a `map`.
    fn rule(&mut self, rules: &mut Vec<Rule>) -> Result<bool, XattrMapErrorKind> {
        let kind = match self.next("type")? {
            "prefix" => Kind::Prefix,
            "ok" => Kind::Ok,
            "bad" => Kind::Bad,
            "unsupported" => Kind::Unsupported,
            "map" => {
                let (key, prepend) = (self.name("key")?, self.name("prepend")?);
                rules.extend(written_out(key, prepend));
                return Ok(true);
            }
            other => return Err(XattrMapErrorKind::Type(other.to_owned())),
        };
        let (client, server) = match self.next("scope")? {
            "client" => (true, false),
            "server" => (false, true),
            "all" => (true, true),
            other => return Err(XattrMapErrorKind::Scope(other.to_owned())),
        };
        rules.push(Rule {
            kind,
            client,
            server,
            key: self.name("key")?,
            prepend: self.name("prepend")?,
        });
        Ok(false)
    }
}

/// What `:map:key:prepend:` stands for.
fn written_out(key: CString, prepend: CString) -> Vec<Rule> {
    let rest = |kind| Rule::both(kind, CString::default(), CString::default());
    let mapped = Rule::both(Kind::Prefix, key.clone(), prepend.clone());
    if key.is_empty() {
        // Everything of the guest's is mapped; the host keeps its own.
        return vec![mapped, rest(Kind::Bad)];
    }
    // Neither side may reach what is mapped by the other's name for it.
    let direct = Rule::both(Kind::Bad, prepend, key);
    vec![mapped, direct, rest(Kind::Ok)]
}
