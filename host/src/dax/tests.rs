//! The whole window against model front ends: one that thinks in bytes like
//! a plain mmap, and one that thinks in exact maps and refuses overlaps.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use daxwindow_shared::fuse::{Attr, NO_HANDLE, RemoveMappingOne, SetupMappingIn};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::front_end::Ask;
use super::*;

const RANGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// How a model front end behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// mmap(MAP_SHARED | MAP_FIXED) and munmap.
    Plain,
    /// Refuses overlaps, ranges past the end and read-only descriptors,
    /// grows empty files, unmaps exactly what was mapped.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    inode: u64,
    file_page: u64,
    writable: bool,
}

/// A front end that records what the guest would see in each page.
struct Model {
    kind: Kind,
    pages: Mutex<BTreeMap<u64, Shown>>,
    /// start -> bytes of each map, for the exact kind.
    maps: Mutex<BTreeMap<u64, u64>>,
    refuse_next: Mutex<u32>,
    messages: Mutex<u64>,
}

impl Model {
    fn new(kind: Kind) -> Arc<Model> {
        Arc::new(Model {
            kind,
            pages: Mutex::default(),
            maps: Mutex::default(),
            refuse_next: Mutex::default(),
            messages: Mutex::default(),
        })
    }

    fn refuses(&self) -> bool {
        *self.messages.lock() += 1;
        let mut left = self.refuse_next.lock();
        let refuse = *left > 0;
        *left = left.saturating_sub(1);
        refuse
    }

    fn exact_refuses(&self, range: WindowRange, fd: &OwnedFd, fd_offset: u64, w: bool) -> bool {
        let stat = rustix::fs::fstat(fd).expect("stat");
        let size = (stat.st_size as u64).next_multiple_of(PAGE);
        let overlaps = self
            .maps
            .lock()
            .iter()
            .any(|(start, len)| *start < range.end().0 && range.start().0 < start + len);
        overlaps || fd_offset + range.len() > size || !(w && is_writable(fd))
    }
}

fn is_writable(fd: &OwnedFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(fd).expect("flags");
    flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDWR
}

impl FrontEnd for Model {
    fn ask(&self, ask: &Ask<'_>) -> Result<(), FrontEndError> {
        match ask {
            Ask::Map(range, source) => {
                self.map(*range, source.fd, source.fd_offset, source.writable)
            }
            Ask::Unmap(range) => self.unmap(*range),
        }
    }
}

impl Model {
    fn map(
        &self,
        range: WindowRange,
        fd: &Arc<OwnedFd>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), FrontEndError> {
        let flags = rustix::fs::fcntl_getfl(&**fd).expect("flags");
        let unreadable = flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::WRONLY;
        let refused = self.refuses()
            || unreadable
            || (writable && !is_writable(fd))
            || (self.kind == Kind::Exact && self.exact_refuses(range, fd, fd_offset, writable));
        if refused {
            return Err(FrontEndError::Refused);
        }
        let inode = rustix::fs::fstat(&**fd).expect("stat").st_ino;
        self.maps.lock().insert(range.start().0, range.len());
        let mut pages = self.pages.lock();
        for i in 0..range.len() / PAGE {
            let shown = Shown {
                inode,
                file_page: fd_offset / PAGE + i,
                writable,
            };
            pages.insert(range.start().0 / PAGE + i, shown);
        }
        Ok(())
    }

    fn unmap(&self, range: WindowRange) -> Result<(), FrontEndError> {
        if self.refuses() {
            return Err(FrontEndError::Refused);
        }
        if self.kind == Kind::Exact {
            let mut maps = self.maps.lock();
            if maps.get(&range.start().0) != Some(&range.len()) {
                return Err(FrontEndError::Refused);
            }
            maps.remove(&range.start().0);
        }
        let (first, last) = (range.start().0 / PAGE, range.end().0 / PAGE);
        self.pages
            .lock()
            .retain(|page, _| *page < first || *page >= last);
        Ok(())
    }
}

/// Files by node id; counts how often one is opened.
struct Files {
    files: Vec<File>,
    opened: Mutex<u64>,
    refused: Mutex<Vec<u64>>,
}

impl Files {
    fn new(count: usize, bytes: u64) -> Files {
        let files = (0..count)
            .map(|_| {
                let file = tempfile::tempfile().expect("temporary file");
                file.set_len(bytes).expect("sparse");
                file
            })
            .collect();
        Files {
            files,
            opened: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    fn inode(&self, nodeid: u64) -> u64 {
        rustix::fs::fstat(&self.files[nodeid as usize])
            .expect("stat")
            .st_ino
    }
}

impl MapSource for Files {
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno> {
        use std::os::fd::AsRawFd;
        let file = self.files.get(nodeid as usize).ok_or(Errno::BADF)?;
        *self.opened.lock() += 1;
        let access = if writable {
            rustix::fs::OFlags::RDWR
        } else {
            rustix::fs::OFlags::RDONLY
        };
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let fd = rustix::fs::open(path, access, rustix::fs::Mode::empty())?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn refused(&self, nodeid: u64) {
        self.refused.lock().push(nodeid);
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        let file = self.files.get(nodeid as usize).ok_or(Errno::BADF)?;
        Ok(rustix::fs::fstat(file)?.st_size as u64)
    }
}

fn dax(kind: Kind, ranges: u64, options: DaxOptions) -> (Dax, Arc<Model>) {
    let dax = Dax::new(DaxOptions {
        mode: DaxMode::Always,
        window_bytes: ranges * RANGE,
        ..options
    });
    let model = Model::new(kind);
    dax.announce_window();
    dax.set_front_end(Some(model.clone()));
    assert!(dax.init().inode_dax);
    assert!(
        model.pages.lock().is_empty(),
        "the trial leaves nothing mapped"
    );
    (dax, model)
}

fn setup_in(file_range: u64, window_range: u64, write: bool) -> SetupMappingIn {
    SetupMappingIn {
        fh: NO_HANDLE,
        foffset: file_range * RANGE,
        len: RANGE,
        flags: if write { 3 } else { 2 },
        moffset: window_range * RANGE,
    }
}

fn remove_one(offset: u64, len: u64) -> [RemoveMappingOne; 1] {
    [RemoveMappingOne {
        moffset: offset,
        len,
    }]
}

#[test]
fn the_trial_tells_the_kinds_apart() {
    let (plain, _) = dax(Kind::Plain, 4, DaxOptions::default());
    let can = plain.capabilities().expect("usable");
    assert!(can.past_eof && can.readonly_fd && can.replace && can.partial_unmap);
    assert!(can.is_byte_granular() && !can.needs_fence());
    let (exact, _) = dax(Kind::Exact, 4, DaxOptions::default());
    let can = exact.capabilities().expect("usable");
    assert!(!can.past_eof && !can.readonly_fd && !can.replace && !can.partial_unmap);
    assert!(!can.is_byte_granular() && can.needs_fence());
}

#[test]
fn a_front_end_without_real_answers_gets_no_dax() {
    struct Yes;
    impl FrontEnd for Yes {
        fn ask(&self, _: &Ask<'_>) -> Result<(), FrontEndError> {
            Ok(())
        }
    }
    let dax = Dax::new(DaxOptions {
        window_bytes: RANGE,
        ..Default::default()
    });
    dax.announce_window();
    dax.set_front_end(Some(Arc::new(Yes)));
    assert_eq!(dax.init(), DaxOffer::default());
    let files = Files::new(1, RANGE);
    assert_eq!(
        dax.setup(&files, 0, &setup_in(0, 0, false)),
        Err(Errno::OPNOTSUPP)
    );
}

#[test]
fn the_same_range_again_costs_no_message_and_an_upgrade_one() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    rustix::fs::fchmod(&files.files[0], rustix::fs::Mode::from_raw_mode(0o755)).expect("chmod");
    let before = *model.messages.lock();
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("mapped");
    assert!(
        !model.pages.lock()[&512].writable,
        "executables are mapped as asked"
    );
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("mapped already");
    assert_eq!(*model.messages.lock() - before, 1);
    dax.setup(&files, 0, &setup_in(0, 1, true))
        .expect("upgraded");
    assert!(model.pages.lock()[&512].writable);
    dax.setup(&files, 0, &setup_in(0, 1, false))
        .expect("never downgraded");
    assert!(model.pages.lock()[&512].writable);
    assert_eq!(*model.messages.lock() - before, 2);
    assert_eq!(dax.stats().upgrades, 1);
}

#[test]
fn a_refused_upgrade_leaves_the_old_mapping() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    rustix::fs::fchmod(&files.files[0], rustix::fs::Mode::from_raw_mode(0o755)).expect("chmod");
    dax.setup(&files, 0, &setup_in(3, 0, false))
        .expect("mapped");
    let shown = model.pages.lock().clone();
    *model.refuse_next.lock() = 1;
    assert_eq!(dax.setup(&files, 0, &setup_in(3, 0, true)), Err(Errno::IO));
    assert_eq!(*model.pages.lock(), shown);
    assert_eq!(dax.stats().live_bytes, RANGE);
}

#[test]
fn bad_requests_are_refused_before_the_front_end_hears_of_them() {
    let (dax, model) = dax(Kind::Plain, 2, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    let before = *model.messages.lock();
    let good = setup_in(0, 0, false);
    let bad = [
        SetupMappingIn { len: 0, ..good },
        SetupMappingIn {
            len: u64::MAX,
            ..good
        },
        SetupMappingIn {
            len: 3 * RANGE,
            ..good
        },
        SetupMappingIn {
            moffset: 2 * RANGE,
            ..good
        },
        SetupMappingIn { moffset: 5, ..good },
        SetupMappingIn {
            moffset: u64::MAX - 4095,
            ..good
        },
        SetupMappingIn { foffset: 1, ..good },
        SetupMappingIn {
            foffset: u64::MAX - 4095,
            ..good
        },
        SetupMappingIn {
            foffset: i64::MAX as u64 - 4095,
            ..good
        },
        SetupMappingIn { flags: 8, ..good },
    ];
    for args in bad {
        assert_eq!(dax.setup(&files, 0, &args), Err(Errno::INVAL), "{args:?}");
    }
    assert_eq!(dax.setup(&files, 9, &good), Err(Errno::BADF));
    assert_eq!(dax.remove(&remove_one(1, RANGE)), Err(Errno::INVAL));
    assert_eq!(dax.remove(&remove_one(0, 3 * RANGE)), Err(Errno::INVAL));
    assert_eq!(
        dax.remove(&remove_one(RANGE, RANGE)),
        Ok(()),
        "nothing there is no harm"
    );
    assert_eq!(*model.messages.lock(), before);
    let stats = dax.stats();
    assert_eq!((stats.live_ranges, stats.removals_of_nothing), (0, 1));
    assert_eq!(stats.refusals.iter().sum::<u64>(), 11);
}

#[test]
fn reset_and_a_fresh_init_leave_nothing() {
    for kind in [Kind::Plain, Kind::Exact] {
        let (dax, model) = dax(
            kind,
            8,
            DaxOptions {
                readonly: false,
                ..Default::default()
            },
        );
        let files = Files::new(2, 8 * RANGE);
        for i in 0..8 {
            dax.setup(&files, i % 2, &setup_in(i, i, true))
                .expect("mapped");
        }
        dax.reset();
        assert!(model.pages.lock().is_empty());
        assert_eq!(dax.stats().live_ranges, 0);
        assert_eq!(
            dax.setup(&files, 0, &setup_in(0, 0, true)),
            Err(Errno::OPNOTSUPP)
        );
        assert!(dax.init().inode_dax);
    }
}

#[test]
fn a_batch_of_neighbours_costs_one_message() {
    let (dax, model) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    for i in 0..8 {
        dax.setup(&files, 0, &setup_in(i, i, true)).expect("mapped");
    }
    let before = *model.messages.lock();
    let batch: Vec<_> = [3, 1, 2, 6]
        .iter()
        .map(|i| remove_one(i * RANGE, RANGE)[0])
        .collect();
    dax.remove(&batch).expect("removed");
    assert_eq!(*model.messages.lock() - before, 2);
    assert_eq!(dax.stats().live_ranges, 4);
    assert_eq!(entered(&dax, &files), *model.pages.lock());
}

#[test]
fn files_of_mapped_inodes_are_opened_once() {
    let (dax, _) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(1, 8 * RANGE);
    for i in 0..8 {
        dax.setup(&files, 0, &setup_in(i, i, true)).expect("mapped");
    }
    assert_eq!(*files.opened.lock(), 1);
    dax.remove(&remove_one(0, 8 * RANGE)).expect("all at once");
    dax.setup(&files, 0, &setup_in(0, 0, true)).expect("mapped");
    assert_eq!(*files.opened.lock(), 2);
}

#[test]
fn a_read_only_share_is_never_mapped_writable() {
    let options = DaxOptions {
        readonly: true,
        ..Default::default()
    };
    let (dax, model) = dax(Kind::Plain, 2, options);
    let files = Files::new(1, 2 * RANGE);
    dax.setup(&files, 0, &setup_in(0, 0, false))
        .expect("mapped");
    assert!(model.pages.lock().values().all(|shown| !shown.writable));
}

#[test]
fn past_the_end_only_what_cannot_hurt_is_mapped() {
    // Without padding, on an exact front end and a writable share, the file
    // may grow, so there is no DAX.
    let options = DaxOptions {
        padding: crate::dax::Padding::Off,
        ..Default::default()
    };
    let (dax, model) = dax(Kind::Exact, 2, options);
    let files = Files::new(1, RANGE);
    assert_eq!(dax.setup(&files, 0, &setup_in(0, 0, true)), Err(Errno::IO));
    let attr = Attr {
        mode: 0o100_644,
        size: RANGE,
        ..Default::default()
    };
    assert!(!dax.decide(&Candidate {
        attr: &attr,
        name: OsStr::new("file"),
        path: &|| None,
        mappable: &|_| Ok(()),
        has_hole: &|| false,
    }));
    assert_eq!(dax.stats().files_with_dax, 0);
    assert_eq!(dax.stats().files_without_dax.iter().sum::<u64>(), 1);
    assert!(model.pages.lock().is_empty());
}

#[test]
fn a_front_end_that_refuses_past_the_end_is_given_padded_files() {
    let (dax, model) = dax(Kind::Exact, 2, DaxOptions::default());
    assert!(dax.capabilities().expect("usable").padded);
    let files = Files::new(3, 5);
    rustix::fs::ftruncate(&files.files[1], 4096).expect("a page");
    // Who asks for an empty file has not heard that it was cut, and touching
    // what is not there would end his VMM.
    rustix::fs::ftruncate(&files.files[2], 0).expect("empty");
    let empty = dax.setup(&files, 2, &setup_in(0, 0, false));
    assert_eq!(empty, Err(Errno::IO));
    for nodeid in 0..2 {
        dax.setup(&files, nodeid, &setup_in(0, nodeid, false))
            .expect("mapped whole");
        dax.setup(&files, nodeid, &setup_in(0, nodeid, true))
            .expect("writable already");
    }
    assert_eq!(model.pages.lock().len(), 1024);
    let size = |i: usize| files.files[i].metadata().expect("stat").len();
    assert_eq!(
        (size(0), size(1), size(2)),
        (5, 4096, 0),
        "no file has grown"
    );
    assert_eq!(*files.opened.lock(), 2);
    dax.remove(&remove_one(0, 2 * RANGE)).expect("both");
    assert!(model.pages.lock().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Setup {
        nodeid: u64,
        file: u64,
        window: u64,
        ranges: u64,
        write: bool,
    },
    Remove {
        window: u64,
        ranges: u64,
    },
    RemovePages {
        page: u64,
        pages: u64,
    },
    /// The host truncates or grows a file.
    Resize {
        nodeid: u64,
        bytes: u64,
    },
    Refuse(u32),
    Reset,
}

const WINDOW_RANGES: u64 = 4;

fn step() -> impl Strategy<Value = Step> {
    let ranges =
        || (0..WINDOW_RANGES).prop_flat_map(|window| (Just(window), 1..=WINDOW_RANGES - window));
    let pages =
        (0..WINDOW_RANGES * 512).prop_flat_map(|page| (Just(page), 1..=WINDOW_RANGES * 512 - page));
    prop_oneof![
        8 => (0u64..3, 0u64..6, ranges(), any::<bool>()).prop_map(
            |(nodeid, file, (window, ranges), write)| Step::Setup {
                nodeid, file, window, ranges, write
            }
        ),
        4 => ranges().prop_map(|(window, ranges)| Step::Remove { window, ranges }),
        2 => pages.prop_map(|(page, pages)| Step::RemovePages { page, pages }),
        2 => (0u64..3, 0..=16 * RANGE).prop_map(|(nodeid, bytes)| Step::Resize { nodeid, bytes }),
        1 => (1u32..3).prop_map(Step::Refuse),
        1 => Just(Step::Reset),
    ]
}

/// What the ledger says each page shows.
fn entered(dax: &Dax, files: &Files) -> BTreeMap<u64, Shown> {
    let mut pages = BTreeMap::new();
    for piece in dax.state.lock().ledger.pieces() {
        for i in 0..piece.range.len() / PAGE {
            let shown = Shown {
                inode: files.inode(piece.nodeid),
                file_page: piece.file_offset / PAGE + i,
                writable: piece.writable,
            };
            pages.insert(piece.range.start().0 / PAGE + i, shown);
        }
    }
    pages
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After every step the ledger and the front end agree page by page, a
    /// granted range shows its file, and a removed one shows nothing.
    #[test]
    fn ledger_and_front_end_agree(
        steps in proptest::collection::vec(step(), 1..40),
        exact: bool,
    ) {
        let kind = if exact { Kind::Exact } else { Kind::Plain };
        let (dax, model) = dax(kind, WINDOW_RANGES, DaxOptions::default());
        // The exact kind refuses past the end; let the policy pass so that
        // the ledger itself is tried.
        if exact {
            let connected = dax.usable().expect("connected");
            let can = Capabilities { past_eof: true, ..connected.can };
            let front_end = connected.front_end.clone();
            dax.connected.store(Some(Arc::new(Connected { front_end, can, view: None })));
        }
        let files = Files::new(3, 16 * RANGE);
        let mut sizes = [16 * RANGE; 3];
        for step in steps {
            match step {
                Step::Setup { nodeid, file, window, ranges, write } => {
                    let args = SetupMappingIn { len: ranges * RANGE, ..setup_in(file, window, write) };
                    if dax.setup(&files, nodeid, &args).is_ok() {
                        let pages = model.pages.lock();
                        for i in 0..ranges * 512 {
                            let shown = pages.get(&(window * 512 + i)).copied();
                            let shown = shown.expect("granted and live");
                            prop_assert_eq!(shown.inode, files.inode(nodeid));
                            prop_assert_eq!(shown.file_page, file * 512 + i);
                            prop_assert!(shown.writable || !write);
                        }
                    }
                }
                Step::Remove { window, ranges } => {
                    if dax.remove(&remove_one(window * RANGE, ranges * RANGE)).is_ok() {
                        let pages = model.pages.lock();
                        let gone = window * 512..(window + ranges) * 512;
                        prop_assert!(pages.keys().all(|page| !gone.contains(page)));
                    }
                }
                Step::RemovePages { page, pages } => {
                    let done = dax.remove(&remove_one(page * PAGE, pages * PAGE));
                    prop_assert!(exact || *model.refuse_next.lock() > 0 || done.is_ok()
                        || done == Err(Errno::IO));
                }
                Step::Resize { nodeid, bytes } => {
                    files.files[nodeid as usize].set_len(bytes).expect("resized");
                    sizes[nodeid as usize] = bytes;
                }
                Step::Refuse(times) => *model.refuse_next.lock() = times,
                Step::Reset => {
                    *model.refuse_next.lock() = 0;
                    let kept = dax.usable();
                    dax.reset();
                    prop_assert!(model.pages.lock().is_empty());
                    dax.connected.store(kept);
                }
            }
            prop_assert_eq!(&entered(&dax, &files), &*model.pages.lock());
            for (file, size) in files.files.iter().zip(sizes) {
                prop_assert_eq!(file.metadata().expect("stat").len(), size, "a map resized it");
            }
        }
    }
}

#[test]
fn requests_on_many_ranges_run_side_by_side() {
    let (dax, model) = dax(Kind::Plain, 8, DaxOptions::default());
    let files = Files::new(2, 64 * RANGE);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (dax, files) = (&dax, &files);
            scope.spawn(move || {
                for round in 0..200u64 {
                    let window = (thread * 7 + round) % 8;
                    let args = setup_in((round * 5) % 64, window, round % 3 == 0);
                    dax.setup(files, thread % 2, &args).expect("mapped");
                    if round % 2 == 0 {
                        dax.remove(&remove_one(window * RANGE, RANGE))
                            .expect("removed");
                    }
                }
            });
        }
    });
    assert_eq!(entered(&dax, &files), *model.pages.lock());
    assert!(dax.stats().setups >= 800);
}

#[test]
fn maps_of_a_front_end_that_thinks_in_bytes_are_counted() {
    let (dax, model) = dax(
        Kind::Plain,
        2,
        DaxOptions {
            max_pieces: 3,
            ..DaxOptions::default()
        },
    );
    let files = Files::new(5, RANGE);
    let page = |page: u64| SetupMappingIn {
        len: PAGE,
        moffset: page * PAGE,
        ..setup_in(0, 0, true)
    };
    for file in 0..3 {
        dax.setup(&files, file, &page(2 * file)).expect("mapped");
    }
    let before = *model.messages.lock();
    assert_eq!(dax.setup(&files, 3, &page(6)), Err(Errno::IO));
    assert_eq!(*model.messages.lock(), before, "it was not asked");
    // What takes the place of another is one as well.
    dax.setup(&files, 3, &page(4)).expect("mapped over it");
    dax.remove(&remove_one(0, PAGE)).expect("removed");
    // A hole in a map makes two of it.
    let whole = SetupMappingIn {
        moffset: RANGE,
        ..setup_in(0, 1, true)
    };
    dax.setup(&files, 4, &whole).expect("mapped");
    let hole = remove_one(RANGE + PAGE, PAGE);
    assert_eq!(dax.remove(&hole), Err(Errno::IO));
    assert_eq!(dax.stats().live_ranges, 3);
    dax.remove(&remove_one(4 * PAGE, PAGE)).expect("removed");
    dax.remove(&hole).expect("removed");
    assert_eq!(dax.stats().live_ranges, 3);
}

#[test]
fn files_over_the_budget_are_opened_for_each_map() {
    let (dax, _model) = dax(
        Kind::Plain,
        8,
        DaxOptions {
            max_files: 1,
            ..DaxOptions::default()
        },
    );
    let files = Files::new(2, 8 * RANGE);
    // The first opens each file read-only to look at its mode, and then for good.
    for (file, opened) in [(0, 2), (0, 2), (1, 4), (1, 6), (0, 6)] {
        let at = dax.stats().live_ranges;
        dax.setup(&files, file, &setup_in(at, at, false))
            .expect("mapped");
        assert_eq!(*files.opened.lock(), opened);
    }
}

/// A file that the front end refuses is told of, unless something of it is
/// mapped: then it is not for the file's sake.
#[test]
fn a_refused_file_is_told_of() {
    let (dax, model) = dax(Kind::Plain, 4, DaxOptions::default());
    let files = Files::new(2, 8 * RANGE);
    dax.setup(&files, 0, &setup_in(0, 0, true)).expect("mapped");
    for file in [0, 1] {
        *model.refuse_next.lock() = 1;
        assert_eq!(
            dax.setup(&files, file, &setup_in(1, 1, true)),
            Err(Errno::IO)
        );
    }
    assert_eq!(*files.refused.lock(), [1]);
}
