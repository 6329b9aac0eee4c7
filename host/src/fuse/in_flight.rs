//! How many requests of one guest may be under way at a time, those that wait
//! for a lock included (`--max-in-flight`).
//!
//! Law: what gives something back is never refused, or a guest over its budget
//! could not get below it.

use std::sync::Arc;

use daxwindow_shared::fuse::Opcode;
use rustix::io::Errno;

use crate::budget::{Budget, Unit as BudgetUnit};

/// What a guest over its budget is told. Not `EAGAIN`, after which Linux asks
/// again for ever where it sets a mapping up.
const OVER_BUDGET: Errno = Errno::BUSY;

/// The budget, if there is one.
#[derive(Debug)]
pub(super) struct InFlight(Option<Arc<Budget>>);

/// A request that is let in, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    _unit: Option<BudgetUnit>,
}

impl InFlight {
    pub(super) fn new(most: Option<usize>) -> InFlight {
        InFlight(most.map(Budget::new))
    }

    /// Lets a request in, or answers with which error it is refused.
    pub(super) fn admit(&self, opcode: Option<Opcode>) -> Result<Admitted, Errno> {
        let Some(budget) = &self.0 else {
            return Ok(Admitted::default());
        };
        match budget.take_one() {
            Some(unit) => Ok(Admitted { _unit: Some(unit) }),
            None if opcode.is_some_and(gives_back) => Ok(Admitted::default()),
            None => Err(OVER_BUDGET),
        }
    }

    /// Under way now; zero where nobody counts.
    pub(super) fn now(&self) -> usize {
        self.0.as_ref().map_or(0, |budget| budget.used())
    }
}

/// Whether a request ends what another began.
fn gives_back(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Init
            | Opcode::Destroy
            | Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Flush
            | Opcode::Release
            | Opcode::Releasedir
            | Opcode::Removemapping
            | Opcode::Interrupt
            // Which may be an unlock, and never waits.
            | Opcode::Setlk
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_budget_only_what_gives_back_is_let_in() {
        let in_flight = InFlight::new(Some(2));
        let admit = |opcode| in_flight.admit(Some(opcode));
        let two = [Opcode::Read, Opcode::Setlkw].map(admit);
        assert_eq!(in_flight.now(), 2);
        for opcode in Opcode::ALL {
            let admitted = admit(*opcode);
            assert_eq!(admitted.is_ok(), gives_back(*opcode), "{opcode:?}");
            assert!(admitted.err().is_none_or(|errno| errno == OVER_BUDGET));
        }
        assert!(in_flight.admit(None).is_err());
        drop(two);
        assert_eq!(in_flight.now(), 0);
        assert!(admit(Opcode::Read).is_ok());
    }

    #[test]
    fn without_a_budget_nothing_is_refused() {
        let in_flight = InFlight::new(None);
        let many: Vec<_> = (0..1000).map(|_| in_flight.admit(None)).collect();
        assert!(many.iter().all(Result::is_ok));
    }
}
