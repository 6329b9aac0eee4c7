//! System calls: what is not on a list ends the process, or what `--seccomp`
//! says instead.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// What happens to a call that is not on the list (`--seccomp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Seccomp {
    /// Make the system call anyway.
    None,
    /// End the daemon.
    #[default]
    Kill,
    /// Make the system call, and have the kernel log it (audit or dmesg).
    Log,
    /// Do not make the system call, and send SIGSYS to the daemon.
    Trap,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A rule is no good, or the kernel takes none.
    #[error("{0}")]
    Filter(#[from] seccompiler::Error),
    /// As above, on the way there.
    #[error("{0}")]
    Backend(#[from] seccompiler::BackendError),
}

/// A list of calls that may be made.
#[derive(Default)]
pub(super) struct Allowed {
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    refused: Vec<i64>,
}

impl Allowed {
    /// These, with whatever arguments.
    pub(super) fn calls(mut self, calls: &[i64]) -> Allowed {
        for call in calls {
            self.calls.insert(*call, Vec::new());
        }
        self
    }

    /// This one fails with `ENOSYS`, and that is all.
    pub(super) fn refused(mut self, call: i64) -> Allowed {
        self.refused.push(call);
        self
    }

    /// This one where argument `index` is one of `values`, of which 32 bits
    /// count.
    pub(super) fn where_is(self, call: i64, index: u8, values: &[u32]) -> Allowed {
        values.iter().fold(self, |allowed, value| {
            let length = SeccompCmpArgLen::Dword;
            allowed.when(call, index, length, SeccompCmpOp::Eq, u64::from(*value))
        })
    }

    /// This one where of the bits `mask` of argument `index` exactly `bits`
    /// are set.
    pub(super) fn where_bits(self, call: i64, index: u8, mask: u64, bits: u64) -> Allowed {
        let equal = SeccompCmpOp::MaskedEq(mask);
        self.when(call, index, SeccompCmpArgLen::Qword, equal, bits)
    }

    fn when(
        mut self,
        call: i64,
        index: u8,
        length: SeccompCmpArgLen,
        op: SeccompCmpOp,
        value: u64,
    ) -> Allowed {
        let condition = SeccompCondition::new(index, length, op, value);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
        // Only an index above 5 is refused, and then the call is.
        if let Ok(rule) = rule {
            self.calls.entry(call).or_default().push(rule);
        }
        self
    }

    /// From here on, on all threads, nothing else may be called.
    pub(super) fn enforce(self, otherwise: Seccomp) -> Result<(), SeccompError> {
        let action = match otherwise {
            Seccomp::None => return Ok(()),
            Seccomp::Kill => SeccompAction::KillProcess,
            Seccomp::Log => SeccompAction::Log,
            Seccomp::Trap => SeccompAction::Trap,
        };
        // Its arguments are in memory, where no filter can look: the C library
        // goes on with clone, which has them in registers.
        let allowed = self.refused(libc::SYS_clone3);
        let refused = allowed.refused.clone();
        apply(
            refused.iter().map(|call| (*call, Vec::new())).collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?;
        // The filter above has decided about those.
        let rules = allowed.calls(&refused).calls;
        apply(rules, action, SeccompAction::Allow)
    }
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matches: SeccompAction,
) -> Result<(), SeccompError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram = SeccompFilter::new(rules, mismatch, matches, arch)?.try_into()?;
    // Sets no_new_privs as well.
    Ok(apply_filter_all_threads(&program)?)
}
