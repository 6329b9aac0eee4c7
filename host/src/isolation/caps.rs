//! Capabilities: which the serving process keeps, and how the others go.

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};

/// What serving needs when the daemon is root.
///
/// | capability | for |
/// | --- | --- |
/// | `CHOWN` | SETATTR that gives a file to somebody |
/// | `DAC_OVERRIDE` | what the guest's kernel has allowed is done, whoever the file belongs to |
/// | `FOWNER` | mode, times and attributes of files of others |
/// | `FSETID` | set-id bits that the guest's kernel has left in place stay |
/// | `SETUID`, `SETGID` | creating as the caller |
/// | `MKNOD` | device nodes, which are never opened |
/// | `SETFCAP` | `security.capability`, as package managers write it |
const SERVING: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
];

/// Changes to what is kept, as `--modcaps` has them: `+sys_admin:-chown`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModCaps {
    add: CapsHashSet,
    drop: CapsHashSet,
}

/// Why a text is no list of changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModCapsError {
    /// No sign.
    #[error("{0:?}: expected + or - and a capability, as in +sys_admin:-chown")]
    Sign(String),
    /// No such capability.
    #[error("{0:?} is not a capability")]
    Name(String),
}

impl FromStr for ModCaps {
    type Err = ModCapsError;

    fn from_str(text: &str) -> Result<ModCaps, ModCapsError> {
        let mut changes = ModCaps::default();
        for change in text.split(':') {
            let sign = || ModCapsError::Sign(change.to_owned());
            let (add, name) = match change.split_at_checked(1).ok_or_else(sign)? {
                ("+", name) => (true, name),
                ("-", name) => (false, name),
                _ => return Err(sign()),
            };
            let known = Capability::from_str(&caps::to_canonical(name));
            let known = known.map_err(|_| ModCapsError::Name(name.to_owned()))?;
            // The last one counts.
            let (to, from) = match add {
                true => (&mut changes.add, &mut changes.drop),
                false => (&mut changes.drop, &mut changes.add),
            };
            to.insert(known);
            from.remove(&known);
        }
        Ok(changes)
    }
}

impl ModCaps {
    /// Whether it takes this one away.
    pub fn drops(&self, capability: Capability) -> bool {
        self.drop.contains(&capability)
    }

    /// Those of `capabilities` that it adds.
    pub(super) fn adds(&self, capabilities: &CapsHashSet) -> CapsHashSet {
        self.add.intersection(capabilities).copied().collect()
    }

    /// What serving keeps.
    pub(super) fn keeps(&self, file_handles: bool) -> CapsHashSet {
        let mut keep: CapsHashSet = SERVING.into_iter().collect();
        if file_handles {
            keep.insert(Capability::CAP_DAC_READ_SEARCH);
        }
        keep.extend(&self.add);
        keep.retain(|capability| !self.drops(*capability));
        keep
    }
}

/// Capabilities of this process that came with the file of its program: they
/// are everybody's who may execute it, and say nothing about who called. Only
/// a caller who has a capability can make it inheritable.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn of_the_file() -> Result<CapsHashSet, caps::errors::CapsError> {
    if rustix::process::getuid().is_root() {
        return Ok(CapsHashSet::new());
    }
    let inherited = caps::read(None, CapSet::Inheritable)?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    Ok(permitted.difference(&inherited).copied().collect())
}

/// Whether this thread may use a capability now.
pub(super) fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Whether this process may mount, which padded files take.
pub fn may_mount() -> bool {
    has(Capability::CAP_SYS_ADMIN)
}

/// Gives up all but `keep`, for good: permitted, effective, inheritable,
/// ambient, and in the bounding set where that is allowed. Answers what is
/// left.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn keep_only(keep: &CapsHashSet) -> Result<CapsHashSet, caps::errors::CapsError> {
    let have = caps::read(None, CapSet::Permitted)?;
    let left: CapsHashSet = have.intersection(keep).copied().collect();
    // Without it the bounding set stays, and is of no use to anybody: nothing
    // is executed any more.
    if has(Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported() {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_a_list_of_signs_and_names() {
        let changes: ModCaps = "+sys_admin:-chown:-CAP_MKNOD:+mknod".parse().expect("good");
        let keep = changes.keeps(false);
        assert!(keep.contains(&Capability::CAP_SYS_ADMIN));
        assert!(!keep.contains(&Capability::CAP_CHOWN));
        assert!(keep.contains(&Capability::CAP_MKNOD), "the last one counts");
        assert!(!keep.contains(&Capability::CAP_DAC_READ_SEARCH));
        assert!(ModCaps::default().keeps(true).len() == SERVING.len() + 1);
    }

    #[test]
    fn what_is_no_list_of_changes_is_refused() {
        for text in ["", "chown", "+chown:", "*chown", "é"] {
            let error = text.parse::<ModCaps>().expect_err(text);
            assert!(matches!(error, ModCapsError::Sign(_)), "{text}: {error}");
        }
        for text in ["+", "-everything", "+chown,fowner"] {
            let error = text.parse::<ModCaps>().expect_err(text);
            assert!(matches!(error, ModCapsError::Name(_)), "{text}: {error}");
        }
    }
}
