//! Creating as the caller.
//!
//! What a guest's user creates must be that user's on the host, and count
//! against that user's quota. So, when the daemon is root, the thread takes
//! the caller's effective uid and gid for the one system call that creates.
//!
//! Permission is the guest kernel's business (`default_permissions`), and it
//! knows more than a uid: supplementary groups, capabilities in the guest. A
//! creation it allowed must not fail here, so `CAP_DAC_OVERRIDE` stays
//! effective; so does `CAP_FSETID`, since the guest has already taken the
//! setgid bit from those who may not set it, and `CAP_MKNOD`. All others are
//! off, `CAP_SYS_RESOURCE` among them, which would lift quotas.
//!
//! Of a caller whom a rule makes somebody else on the host the guest's kernel
//! knows nothing: there the host decides, and `CAP_DAC_OVERRIDE` goes as well.
//!
//! If the thread cannot be switched back, the request fails, and the thread
//! creates nothing more until a later attempt to switch back succeeds. It can
//! do less than before in the meantime, never more.

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use tracing::error;

use super::Caller;

/// What stays effective while something is created for a caller.
const CREATE: CapabilitySet = CapabilitySet::FSETID.union(CapabilitySet::MKNOD);

/// Who has decided whether the caller may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// The guest's kernel.
    OfGuest,
    /// Nobody yet: the host does, by what the caller is there.
    OfCaller,
}

impl Permission {
    fn powers(self) -> CapabilitySet {
        match self {
            Permission::OfGuest => CREATE.union(CapabilitySet::DAC_OVERRIDE),
            Permission::OfCaller => CREATE,
        }
    }
}

thread_local! {
    /// What this thread failed to get back.
    static STUCK: Cell<Option<Home>> = const { Cell::new(None) };
}

/// What a thread has when it is itself.
#[derive(Clone, Copy, Debug)]
struct Home {
    uid: Uid,
    gid: Gid,
    /// Set when the switch goes through another uid, which drops them.
    caps: Option<CapabilitySets>,
    /// Set when the supplementary groups are the caller's.
    grouped: bool,
}

/// The supplementary groups of this process, which never change.
fn own_groups() -> Result<&'static [Gid], Errno> {
    static GROUPS: OnceLock<Vec<Gid>> = OnceLock::new();
    if let Some(groups) = GROUPS.get() {
        return Ok(groups);
    }
    let groups = rustix::process::getgroups()?;
    Ok(GROUPS.get_or_init(|| groups))
}

/// A thread that is somebody else; itself again on drop.
struct Away {
    home: Option<Home>,
}

/// Runs `create` as the caller, with the powers creation needs.
///
/// `group` is one that the caller is in besides its own. The powers make up
/// for it on file systems of this host, but not on servers of others, which
/// look at ids alone.
pub(super) fn creating<T>(
    caller: Caller,
    group: Option<Gid>,
    permission: Permission,
    create: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    switched(caller, group, permission.powers(), create)
}

/// Runs `open` as the caller with no powers at all, for what the guest has
/// not checked. Root remains root.
pub(super) fn unprivileged<T>(
    caller: Caller,
    open: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    switched(caller, None, CapabilitySet::empty(), open)
}

/// `EPERM` for an id that the daemon's user namespace does not have, which the
/// kernel calls invalid.
pub(super) fn unknown_id(errno: Errno) -> Errno {
    match errno {
        Errno::INVAL => Errno::PERM,
        errno => errno,
    }
}

fn switched<T>(
    caller: Caller,
    group: Option<Gid>,
    powers: CapabilitySet,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    unstick()?;
    let away = Away::leave(caller, group, powers)?;
    let done = work();
    away.come_home()?;
    done
}

/// Finishes a return that failed earlier on this thread.
fn unstick() -> Result<(), Errno> {
    let Some(home) = STUCK.get() else {
        return Ok(());
    };
    home.restore()?;
    STUCK.set(None);
    Ok(())
}

impl Away {
    fn leave(caller: Caller, group: Option<Gid>, powers: CapabilitySet) -> Result<Away, Errno> {
        if caller.uid == u32::MAX || caller.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() {
            // Not root: everything is created as who we are.
            return Ok(Away { home: None });
        }
        let (to_uid, to_gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
        if (to_uid, to_gid) == (uid, gid) {
            return Ok(Away { home: None });
        }
        let caps = (to_uid != uid).then(|| capabilities(None)).transpose()?;
        // Asked for before anything is changed.
        let group = group.map(|group| own_groups().map(|_| group)).transpose()?;
        // From here on a failure half-way is undone by the drop.
        let away = Away {
            home: Some(Home {
                uid,
                gid,
                caps,
                grouped: group.is_some(),
            }),
        };
        if let Some(group) = group {
            set_thread_groups(&[group])?;
        }
        set_thread_res_gid(None, to_gid, None).map_err(unknown_id)?;
        if let Some(caps) = caps {
            set_thread_res_uid(None, to_uid, None).map_err(unknown_id)?;
            set_capabilities(
                None,
                CapabilitySets {
                    effective: caps.permitted & powers,
                    ..caps
                },
            )?;
        }
        Ok(away)
    }

    fn come_home(mut self) -> Result<(), Errno> {
        self.return_home()
    }

    fn return_home(&mut self) -> Result<(), Errno> {
        let Some(home) = self.home.take() else {
            return Ok(());
        };
        home.restore().map_err(|cause| {
            STUCK.set(Some(home));
            error!(
                %cause,
                uid = home.uid.as_raw(),
                gid = home.gid.as_raw(),
                "a thread could not return from its caller's ids; it creates nothing until it can"
            );
            Errno::IO
        })
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // Reported by `return_home`; nothing is left to do after a panic.
        let _ = self.return_home();
    }
}

impl Home {
    /// Goes back; harmless when (partly) there.
    fn restore(&self) -> Result<(), Errno> {
        if let Some(caps) = self.caps {
            // The way from another uid to root makes all permitted
            // capabilities effective; the last call takes back the excess.
            set_thread_res_uid(None, self.uid, None)?;
            if caps.effective != caps.permitted {
                set_capabilities(None, caps)?;
            }
        }
        set_thread_res_gid(None, self.gid, None)?;
        if self.grouped {
            set_thread_groups(own_groups()?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Permission::{OfCaller, OfGuest};
    use super::*;

    const SOMEBODY: Caller = Caller {
        uid: 1000,
        gid: 1001,
        pid: 1,
    };

    type Who = (u32, u32, CapabilitySet, CapabilitySet);

    fn who() -> Who {
        let caps = capabilities(None).unwrap();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        (uid, gid, caps.effective, caps.permitted)
    }

    /// What a thread should be while it acts for somebody: only root changes.
    fn expected(caller: Caller, powers: CapabilitySet) -> Who {
        let (uid, gid, effective, permitted) = who();
        match (uid, caller.uid) {
            (0, 0) => (0, caller.gid, effective, permitted),
            (0, _) => (caller.uid, caller.gid, permitted & powers, permitted),
            _ => (uid, gid, effective, permitted),
        }
    }

    #[test]
    fn a_thread_is_the_caller_and_then_itself() {
        let before = who();
        let there = creating(SOMEBODY, None, OfGuest, || Ok(who())).unwrap();
        assert_eq!(there, expected(SOMEBODY, OfGuest.powers()));
        assert_eq!(who(), before);

        let there = unprivileged(SOMEBODY, || Ok(who())).unwrap();
        assert_eq!(there, expected(SOMEBODY, CapabilitySet::empty()));
        assert_eq!(who(), before);

        let there = creating(SOMEBODY, None, OfCaller, || Ok(who())).unwrap();
        assert_eq!(there, expected(SOMEBODY, CREATE), "the host decides");
        assert!(!there.2.contains(CapabilitySet::DAC_OVERRIDE) || there.0 != SOMEBODY.uid);
    }

    #[test]
    fn root_with_another_group_keeps_its_powers() {
        let before = who();
        let caller = Caller {
            uid: 0,
            gid: 7,
            pid: 1,
        };
        let there = creating(caller, None, OfGuest, || Ok(who())).unwrap();
        assert_eq!(there, expected(caller, OfGuest.powers()));
        assert_eq!(who(), before);
    }

    #[test]
    fn a_group_of_the_callers_takes_the_place_of_the_daemons() {
        if !geteuid().is_root() {
            let mut ran = false;
            let group = Some(Gid::from_raw(27));
            let run = || {
                ran = true;
                Ok(())
            };
            creating(SOMEBODY, group, OfGuest, run).unwrap();
            assert!(ran, "as who we are");
            return;
        }
        let groups = || rustix::process::getgroups().unwrap();
        let (before, who_before) = (groups(), who());
        let group = Gid::from_raw(27);
        let there = creating(SOMEBODY, Some(group), OfGuest, || Ok(groups())).unwrap();
        assert_eq!(there, [group]);
        assert_eq!((groups(), who()), (before, who_before));
    }

    #[test]
    fn an_error_or_a_panic_inside_leaves_the_thread_itself() {
        let before = who();
        let failed: Result<(), _> = creating(SOMEBODY, None, OfGuest, || Err(Errno::NOSPC));
        assert_eq!(failed, Err(Errno::NOSPC));
        assert_eq!(who(), before);
        let panicked = std::panic::catch_unwind(|| {
            creating(SOMEBODY, None, OfGuest, || -> Result<(), Errno> {
                panic!("on purpose")
            })
        });
        assert!(panicked.is_err());
        assert_eq!(who(), before);
    }

    #[test]
    fn the_id_that_means_nobody_is_refused() {
        for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
            let caller = Caller { uid, gid, pid: 1 };
            assert_eq!(
                creating(caller, None, OfGuest, || Ok(())),
                Err(Errno::INVAL)
            );
        }
    }

    #[test]
    fn a_stuck_thread_creates_nothing_until_it_is_back() {
        // In a thread of its own, which may give up its way back to root.
        let checks = || {
            let caps = Some(capabilities(None).unwrap());
            if geteuid().is_root() {
                let other = Uid::from_raw(1000);
                set_thread_res_uid(other, other, other).unwrap();
            }
            let (uid, gid) = (Uid::ROOT, getegid());
            let mut away = Away {
                home: Some(Home {
                    uid,
                    gid,
                    caps,
                    grouped: false,
                }),
            };
            assert_eq!(away.return_home(), Err(Errno::IO));
            let mut ran = false;
            let refused = creating(SOMEBODY, None, OfGuest, || {
                ran = true;
                Ok(())
            });
            assert_eq!(refused, Err(Errno::PERM));
            assert!(!ran);

            // Once the way is free the thread goes on.
            let uid = geteuid();
            STUCK.set(Some(Home {
                uid,
                gid,
                caps: None,
                grouped: false,
            }));
            assert_eq!(creating(SOMEBODY, None, OfGuest, || Ok(())), Ok(()));
            assert!(STUCK.get().is_none());
        };
        std::thread::spawn(checks).join().unwrap();
    }
}
