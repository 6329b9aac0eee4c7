//! Which file range is where in the window: plain bookkeeping, no I/O.
//!
//! Laws: pieces never overlap; every piece is one map as the front end knows
//! it (or, with a byte-granular front end, part of one); an inode's files
//! stay open no longer than it has pieces, and no more than so many in all;
//! they are closed by the caller: that may take as long as their file system
//! likes, and is not for a lock.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::window::WindowRange;

/// One mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the window.
    pub range: WindowRange,
    /// Which inode.
    pub nodeid: u64,
    /// Start in the file, bytes.
    pub file_offset: u64,
    /// Stores are allowed.
    pub writable: bool,
    /// False when the front end gave no answer: it may or may not be mapped.
    pub certain: bool,
}

impl Piece {
    /// Whether `range` of the window shows `file_offset` of `nodeid` already.
    pub fn shows(&self, range: &WindowRange, nodeid: u64, file_offset: u64) -> bool {
        let within = range.start().0.wrapping_sub(self.range.start().0);
        self.certain
            && self.range.contains(range)
            && self.nodeid == nodeid
            && self.file_offset.checked_add(within) == Some(file_offset)
    }

    /// The part of the piece in `range`, which lies inside it.
    fn part(&self, range: WindowRange) -> Piece {
        let skipped = range.start().0.saturating_sub(self.range.start().0);
        Piece {
            range,
            file_offset: self.file_offset.saturating_add(skipped),
            ..*self
        }
    }
}

/// Files of one mapped inode, kept open while it has pieces.
#[derive(Debug, Default)]
struct InodeUse {
    pieces: usize,
    read_only: Option<Arc<OwnedFd>>,
    read_write: Option<Arc<OwnedFd>>,
    /// Size of the file when it was mapped last.
    bytes: Option<u64>,
}

impl InodeUse {
    fn files(self) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.read_only.into_iter().chain(self.read_write)
    }
}

/// All live pieces of one guest.
#[derive(Debug)]
pub struct Ledger {
    pieces: BTreeMap<u64, Piece>,
    inodes: HashMap<u64, InodeUse>,
    bytes: u64,
    /// Files that are not needed any more.
    unused: Vec<Arc<OwnedFd>>,
    /// Files that are kept open, and how many may be.
    files: usize,
    max_files: usize,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::new(usize::MAX)
    }
}

impl Ledger {
    /// Nothing is mapped. Of the files that will be, at most `max_files` are
    /// kept open; others are opened again for each map.
    pub fn new(max_files: usize) -> Ledger {
        Ledger {
            pieces: BTreeMap::new(),
            inodes: HashMap::new(),
            bytes: 0,
            unused: Vec::new(),
            files: 0,
            max_files,
        }
    }

    /// Files kept open.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of live pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of inodes with pieces.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Pieces of one inode.
    pub fn pieces_of(&self, nodeid: u64) -> usize {
        self.inodes.get(&nodeid).map_or(0, |inode| inode.pieces)
    }

    /// All pieces, by window offset.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.values()
    }

    /// The pieces that share a byte with `range`, by window offset.
    pub fn overlapping(&self, range: &WindowRange) -> Vec<Piece> {
        let (start, end) = (range.start().0, range.end().0);
        let before = self
            .pieces
            .range(..start)
            .next_back()
            .map(|(_, piece)| piece);
        let within = self.pieces.range(start..end).map(|(_, piece)| piece);
        before
            .into_iter()
            .chain(within)
            .filter(|piece| piece.range.overlaps(range))
            .copied()
            .collect()
    }

    /// Adds a piece, cutting away whatever it covers.
    pub fn insert(&mut self, piece: Piece) {
        self.carve(&piece.range);
        self.add(piece);
    }

    /// Notes that what is in `range` may or may not be mapped.
    pub fn doubt(&mut self, range: &WindowRange) {
        for piece in self.overlapping(range) {
            self.set_certain(&piece, false);
        }
    }

    /// Notes that what is as `piece`, whether certain or not, is mapped.
    pub fn confirm(&mut self, piece: &Piece) {
        let as_is = |old: &Piece| {
            Piece {
                certain: piece.certain,
                ..*old
            } == *piece
        };
        if self.pieces.get(&piece.range.start().0).is_some_and(as_is) {
            self.set_certain(piece, true);
        }
    }

    fn set_certain(&mut self, piece: &Piece, certain: bool) {
        if let Some(piece) = self.pieces.get_mut(&piece.range.start().0) {
            piece.certain = certain;
        }
    }

    /// Removes the pieces inside `range` that may or may not be mapped.
    pub fn drop_doubtful(&mut self, range: &WindowRange) {
        for piece in self.overlapping(range) {
            if !piece.certain && range.contains(&piece.range) {
                self.carve(&piece.range);
            }
        }
    }

    /// Removes `range`; pieces that reach beyond it are cut.
    pub fn carve(&mut self, range: &WindowRange) {
        for old in self.overlapping(range) {
            self.pieces.remove(&old.range.start().0);
            let (left, right) = old.range.around(range);
            // The remainders first, so that the inode's files stay open.
            for part in [left, right].into_iter().flatten() {
                self.add(old.part(part));
            }
            self.forget(&old);
        }
    }

    /// Removes everything and returns it.
    pub fn take(&mut self) -> Vec<Piece> {
        for inode in std::mem::take(&mut self.inodes).into_values() {
            self.unused.extend(inode.files());
        }
        self.bytes = 0;
        self.files = 0;
        std::mem::take(&mut self.pieces).into_values().collect()
    }

    /// A file of the inode that is open already: read-write for `writable`,
    /// read-only otherwise.
    pub fn file(&self, nodeid: u64, writable: bool) -> Option<Arc<OwnedFd>> {
        let inode = self.inodes.get(&nodeid)?;
        if writable {
            inode.read_write.clone()
        } else {
            inode.read_only.clone()
        }
    }

    /// Keeps `fd` for the inode's next map, if the inode has pieces and there
    /// is room.
    pub fn keep_file(&mut self, nodeid: u64, writable: bool, fd: Arc<OwnedFd>) {
        let Some(inode) = self.inodes.get_mut(&nodeid) else {
            self.unused.push(fd);
            return;
        };
        let slot = if writable {
            &mut inode.read_write
        } else {
            &mut inode.read_only
        };
        if slot.is_none() {
            if self.files >= self.max_files {
                self.unused.push(fd);
                return;
            }
            self.files += 1;
        }
        self.unused.extend(slot.replace(fd));
    }

    /// Notes the size of the inode's file, if the inode has pieces.
    pub fn note_bytes(&mut self, nodeid: u64, bytes: u64) {
        if let Some(inode) = self.inodes.get_mut(&nodeid) {
            inode.bytes = Some(bytes);
        }
    }

    /// Size of the inode's file when it was mapped last, if that was noted.
    pub fn bytes_of(&self, nodeid: u64) -> Option<u64> {
        self.inodes.get(&nodeid)?.bytes
    }

    /// Hands over the files that are not needed any more, to be closed.
    pub fn unused(&mut self) -> Vec<Arc<OwnedFd>> {
        std::mem::take(&mut self.unused)
    }

    fn add(&mut self, piece: Piece) {
        self.bytes = self.bytes.saturating_add(piece.range.len());
        self.inodes.entry(piece.nodeid).or_default().pieces += 1;
        self.pieces.insert(piece.range.start().0, piece);
    }

    fn forget(&mut self, piece: &Piece) {
        self.bytes = self.bytes.saturating_sub(piece.range.len());
        if let Some(inode) = self.inodes.get_mut(&piece.nodeid) {
            inode.pieces = inode.pieces.saturating_sub(1);
            if inode.pieces == 0 {
                let inode = self.inodes.remove(&piece.nodeid);
                let files = inode.into_iter().flat_map(InodeUse::files);
                let before = self.unused.len();
                self.unused.extend(files);
                let closed = self.unused.len() - before;
                self.files = self.files.saturating_sub(closed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 24;

    fn range(page: u64, pages: u64) -> WindowRange {
        WindowRange::new(page * PAGE, pages * PAGE, PAGES * PAGE, PAGE).expect("inside")
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert {
            page: u64,
            pages: u64,
            nodeid: u64,
            file_page: u64,
            writable: bool,
        },
        Carve {
            page: u64,
            pages: u64,
        },
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = (0..PAGES).prop_flat_map(|page| (Just(page), 1..=PAGES - page));
        prop_oneof![
            6 => (place.clone(), 1u64..4, 0u64..100, any::<bool>()).prop_map(
                |((page, pages), nodeid, file_page, writable)| Step::Insert {
                    page, pages, nodeid, file_page, writable
                }
            ),
            3 => place.prop_map(|(page, pages)| Step::Carve { page, pages }),
            1 => Just(Step::Take),
        ]
    }

    /// What each page of the window shows.
    type Model = [Option<(u64, u64, bool)>; PAGES as usize];

    fn pages_of(ledger: &Ledger) -> Model {
        let mut pages = Model::default();
        for piece in ledger.pieces() {
            for i in 0..piece.range.len() / PAGE {
                let slot = &mut pages[(piece.range.start().0 / PAGE + i) as usize];
                assert!(slot.is_none(), "pieces overlap");
                *slot = Some((piece.nodeid, piece.file_offset / PAGE + i, piece.writable));
            }
        }
        pages
    }

    proptest! {
        #[test]
        fn the_ledger_is_a_map_from_pages(steps in proptest::collection::vec(step(), 1..60)) {
            let mut ledger = Ledger::default();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Insert { page, pages, nodeid, file_page, writable } => {
                        ledger.insert(Piece {
                            range: range(page, pages),
                            nodeid,
                            file_offset: file_page * PAGE,
                            writable,
                            certain: true,
                        });
                        for i in 0..pages {
                            model[(page + i) as usize] = Some((nodeid, file_page + i, writable));
                        }
                    }
                    Step::Carve { page, pages } => {
                        ledger.carve(&range(page, pages));
                        model[page as usize..(page + pages) as usize].fill(None);
                    }
                    Step::Take => {
                        ledger.take();
                        model = Model::default();
                    }
                }
                prop_assert_eq!(pages_of(&ledger), model);
                let mapped = model.iter().flatten().count() as u64;
                prop_assert_eq!(ledger.bytes(), mapped * PAGE);
                for nodeid in 1..4 {
                    let pieces = ledger.pieces().filter(|p| p.nodeid == nodeid).count();
                    prop_assert_eq!(ledger.pieces_of(nodeid), pieces);
                }
            }
        }
    }

    fn piece(page: u64, pages: u64, nodeid: u64) -> Piece {
        Piece {
            range: range(page, pages),
            nodeid,
            file_offset: page * PAGE,
            writable: true,
            certain: true,
        }
    }

    #[test]
    fn no_more_files_are_kept_open_than_may_be() {
        let open = || {
            Arc::new(OwnedFd::from(
                std::fs::File::open("/dev/null").expect("null"),
            ))
        };
        let mut ledger = Ledger::new(3);
        for nodeid in 0..5 {
            ledger.insert(piece(nodeid, 1, nodeid));
            ledger.keep_file(nodeid, true, open());
        }
        ledger.keep_file(0, true, open());
        ledger.keep_file(0, false, open());
        let kept = |ledger: &Ledger| (0..5).filter(|n| ledger.file(*n, true).is_some()).count();
        assert_eq!((kept(&ledger), ledger.files()), (3, 3));
        // One that goes makes room for another.
        ledger.carve(&range(1, 1));
        ledger.keep_file(4, true, open());
        assert!(ledger.file(4, true).is_some() && ledger.file(3, true).is_none());
        assert_eq!((kept(&ledger), ledger.files()), (3, 3));
        ledger.take();
        assert_eq!(ledger.files(), 0);
    }

    #[test]
    fn what_is_in_doubt_is_not_shown_until_it_is_confirmed() {
        let mut ledger = Ledger::default();
        let (first, second) = (piece(0, 2, 1), piece(4, 2, 2));
        ledger.insert(first);
        ledger.insert(second);
        ledger.doubt(&range(1, 1));
        let shows = |ledger: &Ledger, piece: &Piece| {
            let there = ledger.overlapping(&piece.range);
            there
                .iter()
                .any(|one| one.shows(&piece.range, piece.nodeid, piece.file_offset))
        };
        assert!(!shows(&ledger, &first) && shows(&ledger, &second));
        // Another file in its place is not what was asked about.
        ledger.confirm(&Piece { nodeid: 3, ..first });
        assert!(!shows(&ledger, &first));
        ledger.confirm(&first);
        assert!(shows(&ledger, &first));
        ledger.doubt(&first.range);
        ledger.drop_doubtful(&range(0, PAGES));
        assert_eq!((ledger.len(), ledger.pieces_of(2)), (1, 1));
    }

    #[test]
    fn files_stay_open_as_long_as_there_are_pieces() {
        let mut ledger = Ledger::default();
        let fd: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").expect("null").into());
        ledger.keep_file(7, false, fd.clone());
        assert!(
            ledger.file(7, false).is_none(),
            "nothing mapped, nothing kept"
        );
        let piece = Piece {
            range: range(0, 4),
            nodeid: 7,
            file_offset: 0,
            writable: false,
            certain: true,
        };
        ledger.insert(piece);
        ledger.keep_file(7, false, fd.clone());
        ledger.carve(&range(1, 1));
        assert_eq!((ledger.pieces_of(7), ledger.len()), (2, 2));
        assert!(ledger.file(7, false).is_some());
        assert!(ledger.file(7, true).is_none());
        ledger.carve(&range(0, 4));
        drop(ledger.unused());
        assert_eq!(Arc::strong_count(&fd), 1);
        assert!(ledger.is_empty());
    }
}
