//! The window where a request's own thread is stuck behind the front end and
//! somebody else ends the request.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::front_end::{Answered, Ask, Late as LateAnswer};
use super::pending::Pending;
use super::*;

const RANGE: u64 = 2 << 20;
/// Index into `MapError::REASONS`.
const FRONT_END: usize = 9;

type Meanwhile = Box<dyn Fn(&Dax) + Send>;

/// Answers at once, or only after the request has been abandoned.
#[derive(Default)]
struct Late {
    asked: AtomicUsize,
    /// Why the next is abandoned, what happens before that, and after.
    next: Mutex<Option<(FrontEndError, Meanwhile, Meanwhile)>>,
    /// What it answers afterwards.
    answers: Mutex<Option<Result<(), FrontEndError>>>,
    refuse_waits: Mutex<bool>,
    dax: OnceLock<Arc<Dax>>,
}

impl FrontEnd for Late {
    fn ask(&self, _: &Ask<'_>) -> Result<(), FrontEndError> {
        if *self.refuse_waits.lock() {
            return Err(FrontEndError::Cancelled);
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn ask_here(&self, ask: &Ask<'_>, pending: Pending, late: LateAnswer<'_>) -> Option<Answered> {
        let answer = self.ask(ask);
        let Some((why, before, after)) = self.next.lock().take() else {
            return Some((pending, answer));
        };
        let dax = self.dax.get().expect("set").clone();
        let abandon = move || {
            before(&dax);
            pending.abandon(why);
            after(&dax);
        };
        std::thread::spawn(abandon).join().expect("no panic");
        if let Some(answer) = self.answers.lock().take() {
            late(answer);
        }
        None
    }
}

struct Tells(Arc<Dax>, Sender<Errno>);

impl Deputy for Tells {
    fn dax(&self) -> &Dax {
        &self.0
    }

    fn fail(self: Box<Self>, errno: Errno) {
        self.1.send(errno).expect("somebody listens");
    }
}

struct OneFile(Arc<OwnedFd>);

impl MapSource for OneFile {
    fn open_for_mapping(&self, _: u64, _: bool) -> Result<MapFile, Errno> {
        Ok(MapFile { fd: self.0.clone() })
    }

    fn bytes(&self, _: u64) -> Result<u64, Errno> {
        Ok(1 << 30)
    }
}

struct Scene {
    dax: Arc<Dax>,
    late: Arc<Late>,
    file: OneFile,
    told: (Sender<Errno>, Receiver<Errno>),
}

impl Scene {
    fn new() -> Scene {
        let dax = Arc::new(Dax::new(DaxOptions {
            mode: DaxMode::Always,
            window_bytes: 8 * RANGE,
            ..DaxOptions::default()
        }));
        let late = Arc::new(Late::default());
        assert!(late.dax.set(dax.clone()).is_ok());
        dax.set_front_end(Some(late.clone()));
        dax.connected.store(Some(Arc::new(Connected {
            front_end: late.clone(),
            can: Capabilities::PLAIN_MMAP,
            view: None,
        })));
        let file = tempfile::tempfile().expect("temporary file");
        Scene {
            dax,
            late,
            file: OneFile(Arc::new(file.into())),
            told: mpsc::channel(),
        }
    }

    fn lose_next(&self, why: FrontEndError, before: Meanwhile, after: Meanwhile) {
        *self.late.next.lock() = Some((why, before, after));
    }

    fn deputy(&self) -> Option<Box<dyn Deputy>> {
        Some(Box::new(Tells(self.dax.clone(), self.told.0.clone())))
    }

    /// Whether the request was left to its thread, and how it ended there.
    fn setup(&self, range: u64) -> (bool, Result<(), Errno>) {
        let args = SetupMappingIn {
            fh: NO_HANDLE,
            foffset: range * RANGE,
            len: RANGE,
            flags: 3,
            moffset: range * RANGE,
        };
        let mut deputy = self.deputy();
        let result = self.dax.setup_or_leave(&self.file, 2, &args, &mut deputy);
        (deputy.is_some(), result)
    }

    fn remove(&self, ranges: &[u64]) -> (bool, Result<(), Errno>) {
        let one = |range: &u64| RemoveMappingOne {
            moffset: range * RANGE,
            len: RANGE,
        };
        let ranges: Vec<_> = ranges.iter().map(one).collect();
        let mut deputy = self.deputy();
        let result = self.dax.remove_or_leave(&ranges, &mut deputy);
        (deputy.is_some(), result)
    }

    fn told(&self) -> Vec<Errno> {
        self.told.1.try_iter().collect()
    }

    fn asked(&self) -> usize {
        self.late.asked.load(Ordering::Relaxed)
    }
}

fn nothing() -> Meanwhile {
    Box::new(|_| {})
}

#[test]
fn a_map_without_an_answer_is_entered_as_uncertain_and_frees_its_range() {
    let scene = Scene::new();
    assert_eq!(scene.setup(0), (true, Ok(())));
    // Somebody else has the range before the stuck thread is back.
    let taken = |dax: &Dax| {
        let range = dax.range(RANGE, RANGE).expect("inside");
        std::mem::forget(dax.reserve(range));
    };
    scene.lose_next(FrontEndError::Cancelled, nothing(), Box::new(taken));
    assert!(!scene.setup(1).0, "it is not its business any more");
    assert_eq!(scene.told(), [Errno::IO]);
    let busy: Vec<_> = scene.dax.state.lock().busy.drain(..).collect();
    assert_eq!(busy.len(), 1, "the other still has it");
    let stats = scene.dax.stats();
    assert_eq!((stats.setups, stats.live_ranges), (1, 2));
    assert_eq!(stats.refusals[FRONT_END], 1);
    // What may be there is not taken for mapped.
    assert_eq!(scene.asked(), 2);
    assert_eq!(scene.setup(1), (true, Ok(())));
    assert_eq!(scene.asked(), 3);
    assert_eq!(scene.setup(1), (true, Ok(())));
    assert_eq!(scene.asked(), 3, "now it is");
    assert!(scene.told().is_empty());
}

#[test]
fn what_an_earlier_session_waited_for_is_not_entered() {
    let scene = Scene::new();
    let ends = |dax: &Dax| dax.set_front_end(None);
    scene.lose_next(FrontEndError::Cancelled, Box::new(ends), nothing());
    assert!(!scene.setup(0).0);
    assert_eq!(scene.told(), [Errno::IO]);
    let stats = scene.dax.stats();
    assert_eq!((stats.live_ranges, stats.live_inodes), (0, 0));
    assert!(scene.dax.state.lock().busy.is_empty());
}

#[test]
fn a_batch_ends_where_its_thread_is_lost() {
    let scene = Scene::new();
    for range in [0, 2, 4] {
        assert_eq!(scene.setup(range), (true, Ok(())));
    }
    assert_eq!(scene.remove(&[4]), (true, Ok(())));
    scene.lose_next(FrontEndError::Cancelled, nothing(), nothing());
    assert!(!scene.remove(&[0, 2]).0);
    assert_eq!(scene.told(), [Errno::IO]);
    assert_eq!(scene.asked(), 5, "the second was not tried");
    let stats = scene.dax.stats();
    assert_eq!((stats.live_ranges, stats.removals), (2, 1));
    assert_eq!(stats.failed_removals, 1);
    // Both can still be removed.
    assert_eq!(scene.remove(&[0, 2]), (true, Ok(())));
    assert_eq!(scene.dax.stats().live_ranges, 0);
}

/// A wait that was called off while the VMM did not answer leaves its range in
/// doubt, and the answer tells what became of it when it comes.
#[test]
fn a_late_answer_is_taken_for_what_it_is() {
    let lose_next = |scene: &Scene, answer| {
        scene.lose_next(FrontEndError::Cancelled, nothing(), nothing());
        *scene.late.answers.lock() = Some(answer);
    };
    let scene = Scene::new();
    lose_next(&scene, Ok(()));
    assert!(!scene.setup(0).0, "called off");
    assert_eq!(scene.told(), [Errno::IO]);
    // It has been mapped: what asks for it once more asks no VMM.
    assert_eq!(scene.setup(0), (true, Ok(())));
    assert_eq!((scene.asked(), scene.dax.stats().live_ranges), (1, 1));
    // A removal that was refused, and one that was not.
    lose_next(&scene, Err(FrontEndError::Refused));
    assert!(!scene.remove(&[0]).0);
    assert_eq!(scene.setup(0), (true, Ok(())));
    assert_eq!(scene.asked(), 3, "what is in doubt is mapped once more");
    lose_next(&scene, Ok(()));
    assert!(!scene.remove(&[0]).0);
    assert_eq!(scene.dax.stats().live_ranges, 0);
    // A map that was refused may have left what was there before.
    lose_next(&scene, Err(FrontEndError::Refused));
    assert!(!scene.setup(1).0);
    assert_eq!(scene.dax.stats().live_ranges, 1);
    assert_eq!(scene.setup(1), (true, Ok(())));
    assert_eq!(scene.asked(), 6);
}

/// What a VMM does after the wait for it was called off is undone when the next
/// session begins, though its queues stop just then.
#[test]
fn what_cannot_be_unmapped_while_a_queue_stops_is_unmapped_afterwards() {
    let scene = Scene::new();
    assert_eq!(scene.setup(0), (true, Ok(())));
    *scene.late.refuse_waits.lock() = true;
    scene.dax.reset();
    assert_eq!(scene.dax.stats().live_ranges, 1, "it may be mapped still");
    *scene.late.refuse_waits.lock() = false;
    let asked = scene.asked();
    scene.dax.reset();
    assert_eq!(scene.dax.stats().live_ranges, 0);
    assert_eq!(scene.asked() - asked, 1);
}

/// Who has mapped half of what was asked for has to come back and unmap it.
#[test]
fn a_request_of_several_pieces_is_not_left() {
    let scene = Scene::new();
    scene.dax.connected.store(Some(Arc::new(Connected {
        front_end: scene.late.clone(),
        can: Capabilities {
            partial_unmap: false,
            ..Capabilities::PLAIN_MMAP
        },
        view: None,
    })));
    scene.lose_next(FrontEndError::Cancelled, nothing(), nothing());
    let args = SetupMappingIn {
        fh: NO_HANDLE,
        foffset: 0,
        len: 2 * RANGE,
        flags: 2,
        moffset: 0,
    };
    let mut deputy = scene.deputy();
    let result = scene.dax.setup_or_leave(&scene.file, 2, &args, &mut deputy);
    assert_eq!((result, deputy.is_some()), (Ok(()), true));
    assert!(
        scene.late.next.lock().is_some(),
        "nothing was left to others"
    );
    assert_eq!(scene.asked(), 2);
    assert_eq!(scene.dax.stats().live_ranges, 2);
}
