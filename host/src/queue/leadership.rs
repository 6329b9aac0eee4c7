//! Who serves a queue just now: at most one thread, the *leader*.
//!
//! One word. It is even while nobody leads and odd while somebody does, and it
//! only grows: by one when a thread takes or gives up the lead, by two with
//! each request of the leader's. So a value seen twice means that the same
//! request is still under way; and who acts on a value seen (the leader on its
//! own, the detector on the leader's) fails if the other was first.
//!
//! Laws: of two threads that would change the same value one succeeds; a
//! leader that was deposed learns of it at its next step and takes nothing
//! more; no value comes twice.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The lead of one queue. On a cache line of its own: the leader writes it
/// with each request.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Leadership(AtomicU64);

/// What the leader holds: the value that the word has if it still leads.
#[derive(Debug)]
pub(super) struct Term(u64);

/// What somebody else saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observed(u64);

impl Observed {
    /// Somebody is leading.
    pub(super) fn is_led(self) -> bool {
        self.0 % 2 == 1
    }
}

impl Leadership {
    /// Takes the lead if nobody has it.
    pub(super) fn take(&self) -> Option<Term> {
        let now = self.look();
        if now.is_led() {
            return None;
        }
        self.change(now.0, now.0 + 1).then_some(Term(now.0 + 1))
    }

    /// The leader's request is done and it would go on. Nothing if it was
    /// deposed meanwhile.
    pub(super) fn step(&self, term: Term) -> Option<Term> {
        self.change(term.0, term.0 + 2).then_some(Term(term.0 + 2))
    }

    /// The leader leads no more. False if it was deposed before.
    pub(super) fn resign(&self, term: Term) -> bool {
        self.change(term.0, term.0 + 1)
    }

    /// What the word says.
    pub(crate) fn look(&self) -> Observed {
        Observed(self.0.load(SeqCst))
    }

    /// Takes the lead from the leader if it is still at what was seen.
    pub(crate) fn depose(&self, seen: Observed) -> bool {
        seen.is_led() && self.change(seen.0, seen.0 + 1)
    }

    /// SeqCst pairs with the detector, which sleeps unless it sees the change
    /// (see `Watch`).
    fn change(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering::Relaxed;

    /// What each of a few threads holds, against a word that anybody may
    /// change at any time.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Take(usize),
        Step(usize),
        Resign(usize),
        Look,
        Depose,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0usize..3).prop_map(Act::Take),
            (0usize..3).prop_map(Act::Step),
            (0usize..3).prop_map(Act::Resign),
            Just(Act::Look),
            Just(Act::Depose),
        ];
        proptest::collection::vec(act, 0..60)
    }

    proptest! {
        /// The model: the name of the leader, and whether it has stepped
        /// since it was looked at.
        #[test]
        fn there_is_one_leader_and_only_an_idle_look_deposes(acts in acts()) {
            let lead = Leadership::default();
            let mut terms: [Option<Term>; 3] = Default::default();
            let mut leader: Option<usize> = None;
            let mut seen: Option<Observed> = None;
            let mut fresh = false;
            for act in acts {
                match act {
                    Act::Take(who) if terms[who].is_none() => {
                        terms[who] = lead.take();
                        prop_assert_eq!(terms[who].is_some(), leader.is_none());
                        if leader.is_none() {
                            leader = Some(who);
                            fresh = false;
                        }
                    }
                    Act::Step(who) => if let Some(term) = terms[who].take() {
                        terms[who] = lead.step(term);
                        prop_assert_eq!(terms[who].is_some(), leader == Some(who));
                        if leader == Some(who) {
                            fresh = false;
                        }
                    },
                    Act::Resign(who) => if let Some(term) = terms[who].take() {
                        prop_assert_eq!(lead.resign(term), leader == Some(who));
                        if leader == Some(who) {
                            leader = None;
                            fresh = false;
                        }
                    },
                    Act::Look => {
                        seen = Some(lead.look());
                        fresh = true;
                        prop_assert_eq!(lead.look().is_led(), leader.is_some());
                    }
                    Act::Depose => if let Some(seen) = seen.take() {
                        let expected = fresh && leader.is_some();
                        prop_assert_eq!(lead.depose(seen), expected);
                        if expected {
                            leader = None;
                        }
                    },
                    Act::Take(_) => {}
                }
            }
        }
    }

    #[test]
    fn every_change_counts_once() {
        let lead = Leadership::default();
        let [takes, steps, resigns, deposes] = [const { AtomicU64::new(0) }; 4];
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..5000 {
                        if round % 5 == 0 {
                            let deposed = lead.depose(lead.look());
                            deposes.fetch_add(u64::from(deposed), Relaxed);
                        }
                        let Some(term) = lead.take() else { continue };
                        takes.fetch_add(1, Relaxed);
                        let Some(term) = lead.step(term) else {
                            continue;
                        };
                        steps.fetch_add(1, Relaxed);
                        resigns.fetch_add(u64::from(lead.resign(term)), Relaxed);
                    }
                });
            }
        });
        let [takes, steps, resigns, deposes] =
            [takes, steps, resigns, deposes].map(|count| count.load(Relaxed));
        assert!(takes > 0 && steps > 0);
        assert_eq!(lead.look(), Observed(takes + 2 * steps + resigns + deposes));
        assert_eq!(takes, resigns + deposes, "each lead ended in one way");
    }
}
