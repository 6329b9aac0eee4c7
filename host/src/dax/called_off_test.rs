//! The window where waits for the front end are called off.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::front_end::ShmemRequest;
use super::*;

const RANGE: u64 = 2 << 20;
/// Index into `MapError::REASONS`.
const FRONT_END: usize = 9;

type Meanwhile = Box<dyn Fn() + Send>;

/// Answers at once, unless the wait for it is called off.
#[derive(Default)]
struct Late {
    asked: AtomicUsize,
    /// So many are answered; the wait for the next is called off, once this has
    /// happened.
    next: Mutex<Option<(usize, Meanwhile)>>,
    /// Nothing may be asked.
    refuse_waits: Mutex<bool>,
}

impl FrontEnd for Late {
    fn request(&self, _: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        if *self.refuse_waits.lock() {
            return Err(FrontEndError::Cancelled);
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let next = self.next.lock().take();
        match next {
            Some((0, meanwhile)) => {
                meanwhile();
                Err(FrontEndError::Cancelled)
            }
            Some((left, meanwhile)) => {
                *self.next.lock() = Some((left - 1, meanwhile));
                Ok(())
            }
            None => Ok(()),
        }
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
}

impl Scene {
    fn new() -> Scene {
        Scene::with(Capabilities::PLAIN_MMAP)
    }

    fn with(can: Capabilities) -> Scene {
        let dax = Arc::new(Dax::new(DaxOptions {
            mode: DaxMode::Always,
            window_bytes: 8 * RANGE,
            ..DaxOptions::default()
        }));
        let late = Arc::new(Late::default());
        dax.set_front_end(Some(late.clone()));
        dax.connected.store(Some(Arc::new(Connected {
            front_end: late.clone(),
            can,
            view: None,
        })));
        let file = tempfile::tempfile().expect("temporary file");
        Scene {
            dax,
            late,
            file: OneFile(Arc::new(file.into())),
        }
    }

    fn call_off_next(&self) {
        self.call_off(0, || {});
    }

    fn call_off(&self, answered: usize, meanwhile: impl Fn() + Send + 'static) {
        *self.late.next.lock() = Some((answered, Box::new(meanwhile)));
    }

    fn setup(&self, range: u64) -> Result<(), Errno> {
        self.setup_many(range, 1)
    }

    fn setup_many(&self, range: u64, count: u64) -> Result<(), Errno> {
        let args = SetupMappingIn {
            fh: NO_HANDLE,
            foffset: range * RANGE,
            len: count * RANGE,
            flags: 3,
            moffset: range * RANGE,
        };
        self.dax.setup(&self.file, 2, &args)
    }

    fn remove(&self, ranges: &[u64]) -> Result<(), Errno> {
        let one = |range: &u64| RemoveMappingOne {
            moffset: range * RANGE,
            len: RANGE,
        };
        let ranges: Vec<_> = ranges.iter().map(one).collect();
        self.dax.remove(&ranges)
    }

    fn asked(&self) -> usize {
        self.late.asked.load(Ordering::Relaxed)
    }

    fn live(&self) -> u64 {
        self.dax.stats().live_ranges
    }

    fn is_nothing_reserved(&self) -> bool {
        self.dax.state.lock().busy.is_empty()
    }
}

#[test]
fn a_map_without_an_answer_is_entered_as_unconfirmed_and_frees_its_range() {
    let scene = Scene::new();
    assert_eq!(scene.setup(0), Ok(()));
    scene.call_off_next();
    assert_eq!(scene.setup(1), Err(Errno::IO));
    assert!(scene.is_nothing_reserved());
    let stats = scene.dax.stats();
    assert_eq!((stats.setups, stats.live_ranges), (1, 2));
    assert_eq!(stats.refusals[FRONT_END], 1);
    // What may be there is not taken for mapped.
    assert_eq!(scene.asked(), 2);
    assert_eq!(scene.setup(1), Ok(()));
    assert_eq!(scene.asked(), 3);
    assert_eq!(scene.setup(1), Ok(()));
    assert_eq!(scene.asked(), 3, "now it is");
}

#[test]
fn what_an_earlier_session_waited_for_is_not_entered() {
    let scene = Scene::new();
    let dax = scene.dax.clone();
    scene.call_off(0, move || dax.set_front_end(None));
    assert_eq!(scene.setup(0), Err(Errno::IO));
    let stats = scene.dax.stats();
    assert_eq!((stats.live_ranges, stats.live_inodes), (0, 0));
    assert!(scene.is_nothing_reserved());
}

#[test]
fn a_batch_goes_on_and_what_was_not_answered_is_in_doubt() {
    let scene = Scene::new();
    for range in [0, 2, 4] {
        assert_eq!(scene.setup(range), Ok(()));
    }
    assert_eq!(scene.remove(&[4]), Ok(()));
    scene.call_off_next();
    assert_eq!(scene.remove(&[0, 2]), Err(Errno::IO));
    assert_eq!(scene.asked(), 6, "the second was tried");
    let stats = scene.dax.stats();
    assert_eq!((stats.live_ranges, stats.removals), (1, 2));
    assert_eq!(stats.failed_removals, 1);
    // The first can still be removed.
    assert_eq!(scene.remove(&[0, 2]), Ok(()));
    assert_eq!(scene.live(), 0);
}

/// Whatever the VMM has answered in the end: what is in doubt is asked for once
/// more, and is right afterwards.
#[test]
fn what_is_in_doubt_is_asked_for_once_more() {
    let scene = Scene::new();
    scene.call_off_next();
    assert_eq!(scene.setup(0), Err(Errno::IO));
    assert_eq!(scene.setup(0), Ok(()));
    assert_eq!((scene.asked(), scene.live()), (2, 1));
    scene.call_off_next();
    assert_eq!(scene.remove(&[0]), Err(Errno::IO));
    assert_eq!(scene.setup(0), Ok(()));
    assert_eq!(scene.asked(), 4, "it may have been unmapped");
    scene.call_off_next();
    assert_eq!(scene.remove(&[0]), Err(Errno::IO));
    assert_eq!(scene.remove(&[0]), Ok(()));
    assert_eq!((scene.asked(), scene.live()), (6, 0));
}

/// What a VMM does after the wait for it was called off is undone when the next
/// session begins, though its queues stop just then.
#[test]
fn what_cannot_be_unmapped_while_a_queue_stops_is_unmapped_afterwards() {
    let scene = Scene::new();
    assert_eq!(scene.setup(0), Ok(()));
    *scene.late.refuse_waits.lock() = true;
    scene.dax.reset();
    assert_eq!(scene.live(), 1, "it may be mapped still");
    *scene.late.refuse_waits.lock() = false;
    let asked = scene.asked();
    scene.dax.reset();
    assert_eq!(scene.live(), 0);
    assert_eq!(scene.asked() - asked, 1);
}

/// Half a range would show its reader a hole.
#[test]
fn a_request_of_several_pieces_is_undone_when_its_wait_is_called_off() {
    let scene = Scene::with(Capabilities {
        partial_unmap: false,
        ..Capabilities::PLAIN_MMAP
    });
    scene.call_off(1, || {});
    assert_eq!(scene.setup_many(0, 2), Err(Errno::IO));
    assert!(scene.is_nothing_reserved());
    assert_eq!(scene.asked(), 3, "the first was unmapped");
    assert_eq!(scene.live(), 1, "the second may be mapped");
    assert_eq!(scene.setup_many(0, 2), Ok(()));
    assert_eq!((scene.asked(), scene.live()), (6, 2));
}
