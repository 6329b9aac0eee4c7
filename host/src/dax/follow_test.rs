//! Copies that are made at the worst moments, and what is shown afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use daxwindow_shared::fuse::{NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::front_end::ShmemRequest;
use super::*;

const RANGE: u64 = 2 << 20;
const PAGE: u64 = 4096;
const NODE: u64 = 7;

/// A file that is copied again and again; each copy is one byte longer.
struct Copies {
    files: Vec<File>,
    now: AtomicU64,
    /// Changes that make no copy.
    changes: AtomicU64,
}

impl Copies {
    fn new() -> Copies {
        let file = |number| {
            let file = tempfile::tempfile().expect("temporary file");
            file.set_len(8 * RANGE + number).expect("sparse");
            file
        };
        Copies {
            files: (0..4).map(file).collect(),
            now: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }

    fn copy(&self) {
        self.now.fetch_add(1, SeqCst);
    }
}

impl MapSource for Copies {
    fn open_for_mapping(&self, _: u64, _: bool) -> Result<MapFile, Errno> {
        let now = self.now.load(SeqCst) as usize;
        let fd = self.files[now].try_clone().expect("a descriptor");
        Ok(MapFile {
            fd: Arc::new(fd.into()),
        })
    }

    fn look(&self, nodeid: u64) -> Result<Generation, Errno> {
        Ok(self.known(nodeid))
    }

    fn known(&self, nodeid: u64) -> Generation {
        assert_eq!(nodeid, NODE);
        let mut generation = Generation::FIRST;
        for _ in 0..self.now.load(SeqCst) {
            generation = generation.next();
        }
        for _ in 0..self.changes.load(SeqCst) {
            generation = generation.next_change();
        }
        generation
    }

    fn bytes(&self, _: u64) -> Result<u64, Errno> {
        Ok(8 * RANGE)
    }
}

/// A file that changes whenever somebody looks.
struct Restless(Arc<Copies>);

impl MapSource for Restless {
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno> {
        self.0.open_for_mapping(nodeid, writable)
    }

    fn look(&self, nodeid: u64) -> Result<Generation, Errno> {
        self.0.changes.fetch_add(1, SeqCst);
        self.0.look(nodeid)
    }

    fn known(&self, nodeid: u64) -> Generation {
        self.0.known(nodeid)
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        self.0.bytes(nodeid)
    }
}

type Meanwhile = Box<dyn FnOnce() -> Result<(), FrontEndError> + Send>;

/// Which copy each page of the window shows, and what happens while it is asked.
#[derive(Default)]
struct Shows {
    pages: Mutex<BTreeMap<u64, u64>>,
    maps: AtomicU64,
    /// While the map of this number is asked for.
    meanwhile: Mutex<Option<(u64, Meanwhile)>>,
}

impl FrontEnd for Shows {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        let (range, copy) = match request {
            ShmemRequest::Unmap(range) => (range, None),
            ShmemRequest::Map(range, source) => {
                let number = self.maps.fetch_add(1, SeqCst);
                let mut meanwhile = self.meanwhile.lock();
                if let Some((_, happens)) = meanwhile.take_if(|(at, _)| *at == number) {
                    happens()?;
                }
                let size = rustix::fs::fstat(&**source.fd).expect("stat").st_size as u64;
                (range, Some(size - 8 * RANGE))
            }
        };
        let mut pages = self.pages.lock();
        for page in range.start().0 / PAGE..range.end().0 / PAGE {
            match copy {
                Some(copy) => pages.insert(page, copy),
                None => pages.remove(&page),
            };
        }
        Ok(())
    }
}

struct Scene {
    dax: Dax,
    shows: Arc<Shows>,
    copies: Arc<Copies>,
}

impl Scene {
    fn new(can: Capabilities) -> Scene {
        let dax = Dax::new(DaxOptions {
            mode: DaxMode::Always,
            window_bytes: 8 * RANGE,
            ..DaxOptions::default()
        });
        let shows = Arc::new(Shows::default());
        dax.set_front_end(Some(shows.clone()));
        dax.connected.store(Some(Arc::new(Connected {
            front_end: shows.clone(),
            can,
            view: None,
        })));
        Scene {
            dax,
            shows,
            copies: Arc::new(Copies::new()),
        }
    }

    fn setup(&self, range: u64) -> Result<(), Errno> {
        self.setup_of(&*self.copies, range)
    }

    fn setup_of(&self, source: &dyn MapSource, range: u64) -> Result<(), Errno> {
        let args = SetupMappingIn {
            fh: NO_HANDLE,
            foffset: range * RANGE,
            len: RANGE,
            flags: 2,
            moffset: range * RANGE,
        };
        self.dax.setup(source, NODE, &args)
    }

    fn follow(&self) -> Result<(), Errno> {
        self.dax.follow(&*self.copies, NODE, &|| {})
    }

    fn maps(&self) -> u64 {
        self.shows.maps.load(SeqCst)
    }

    /// While the front end is asked for the map after so many from now on.
    fn at_map(
        &self,
        after: u64,
        happens: impl FnOnce() -> Result<(), FrontEndError> + Send + 'static,
    ) {
        let number = self.maps() + after;
        *self.shows.meanwhile.lock() = Some((number, Box::new(happens)));
    }

    #[track_caller]
    fn assert_shows(&self, copy: u64, pages: usize) {
        let shown = self.shows.pages.lock();
        assert_eq!(shown.len(), pages);
        assert!(shown.values().all(|shown| *shown == copy), "{shown:?}");
    }
}

const PAGES: usize = (RANGE / PAGE) as usize;

#[test]
fn every_piece_is_replaced_exactly_once() {
    let scene = Scene::new(Capabilities::PLAIN_MMAP);
    for range in [0, 2, 3] {
        scene.setup(range).expect("mapped");
    }
    // A hole in the second, which must stay one.
    let hole = RemoveMappingOne {
        moffset: 2 * RANGE + PAGE,
        len: 2 * PAGE,
    };
    scene.dax.remove(&[hole]).expect("removed");
    scene.assert_shows(0, 3 * PAGES - 2);
    let before = scene.maps();
    scene.copies.copy();
    scene.follow().expect("mapped again");
    scene.assert_shows(1, 3 * PAGES - 2);
    assert_eq!(scene.maps() - before, 4, "one for each extent");
    scene.follow().expect("nothing to do");
    assert_eq!(scene.maps() - before, 4);
    assert_eq!(scene.dax.stats().renewals, 4);
    assert_eq!(scene.dax.stats().live_ranges, 4);
}

#[test]
fn a_copy_that_is_made_while_its_file_is_mapped_is_shown_when_the_request_is_answered() {
    let scene = Scene::new(Capabilities::PLAIN_MMAP);
    scene.setup(0).expect("mapped");
    let copies = scene.copies.clone();
    scene.at_map(0, move || {
        copies.copy();
        Ok(())
    });
    scene.setup(1).expect("mapped");
    scene.assert_shows(1, 2 * PAGES);
}

#[test]
fn a_copy_that_is_made_while_another_is_mapped_is_shown_in_the_end() {
    for after in 0..3 {
        let scene = Scene::new(Capabilities::PLAIN_MMAP);
        for range in 0..3 {
            scene.setup(range).expect("mapped");
        }
        scene.copies.copy();
        let copies = scene.copies.clone();
        scene.at_map(after, move || {
            copies.copy();
            Ok(())
        });
        scene.follow().expect("mapped again");
        scene.assert_shows(2, 3 * PAGES);
    }
}

#[test]
fn a_file_that_changes_all_the_time_holds_nobody_up() {
    let scene = Scene::new(Capabilities::PLAIN_MMAP);
    let restless = Restless(scene.copies.clone());
    scene.setup_of(&restless, 0).expect("mapped");
    scene.setup_of(&restless, 1).expect("mapped");
    scene.dax.follow(&restless, NODE, &|| {}).expect("followed");
    scene.assert_shows(0, 2 * PAGES);
    // A copy is shown all the same.
    scene.copies.copy();
    scene.dax.follow(&restless, NODE, &|| {}).expect("followed");
    scene.assert_shows(1, 2 * PAGES);
}

#[test]
fn what_the_front_end_does_not_do_is_an_error_until_it_is_done() {
    use FrontEndError::{Cancelled, Gone, Refused};
    for why in [Refused, Cancelled, Gone] {
        let scene = Scene::new(Capabilities::PLAIN_MMAP);
        for range in 0..3 {
            scene.setup(range).expect("mapped");
        }
        scene.copies.copy();
        scene.at_map(1, move || Err(why));
        assert_eq!(scene.follow(), Err(Errno::IO), "{why}");
        assert_eq!(scene.dax.stats().live_ranges, 3, "{why}");
        scene.at_map(0, move || Err(why));
        assert_eq!(scene.setup(0), Err(Errno::IO), "{why}");
        scene.follow().expect("mapped again");
        scene.assert_shows(1, 3 * PAGES);
    }
}

#[test]
fn a_session_that_ends_meanwhile_fails_the_request_and_maps_no_more() {
    let scene = Scene::new(Capabilities::PLAIN_MMAP);
    for range in 0..3 {
        scene.setup(range).expect("mapped");
    }
    scene.copies.copy();
    let before = scene.maps();
    std::thread::scope(|scope| {
        let (begins, begun) = std::sync::mpsc::channel();
        let (goes_on, go_on) = std::sync::mpsc::channel();
        scene.at_map(0, move || {
            begins.send(()).expect("somebody waits");
            go_on.recv().expect("told to go on");
            Err(FrontEndError::Cancelled)
        });
        let follower = scope.spawn(|| scene.follow());
        begun.recv().expect("asked");
        // It waits for what is under way.
        let end = scope.spawn(|| scene.dax.reset());
        goes_on.send(()).expect("somebody waits");
        assert_eq!(follower.join().expect("no panic"), Err(Errno::IO));
        end.join().expect("no panic");
    });
    assert_eq!(scene.maps() - before, 1);
    scene.assert_shows(0, 0);
    assert_eq!(scene.dax.stats().live_ranges, 0);
    scene.follow().expect("nothing is mapped");
}

#[test]
fn a_front_end_that_cannot_replace_is_not_asked_to() {
    let exact = Capabilities {
        replace: false,
        partial_unmap: false,
        readonly_fd: false,
        ..Capabilities::PLAIN_MMAP
    };
    let scene = Scene::new(exact);
    scene.setup(0).expect("mapped");
    let before = scene.maps();
    scene.copies.copy();
    scene.follow().expect("as it is");
    assert_eq!(scene.maps(), before);
    scene.assert_shows(0, PAGES);
}
