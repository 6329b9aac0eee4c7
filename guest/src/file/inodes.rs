//! Which nodes the daemon must remember for us.
//!
//! Each look-up that the daemon answers raises its count of a node, and one
//! FORGET lowers it again. Law: the FORGET of a node that was mapped is sent
//! only after its ranges are unmapped, so a node id is never used again while
//! ranges of its former owner are in the window. Nodes that are not open
//! stay, with their ranges, until there are too many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daxwindow_shared::fuse::flags::AttrFlags;
use daxwindow_shared::fuse::{Attr, EntryOut};
use parking_lot::Mutex;

use super::Shared;
use crate::error::Result;
use crate::mapper::{Core, Inode};

/// Nodes kept although they are not open, and how many go at a time.
const CLOSED_MOST: usize = 1024;
const CLOSED_BATCH: usize = 64;
/// How long attributes count as fresh, like Linux with virtiofsd.
const VALID: Duration = Duration::from_secs(1);

/// What is known of a file that is, or was, open.
pub(super) struct Node {
    pub(super) inode: Arc<Inode>,
    /// Whether its ranges may be mapped.
    pub(super) dax: bool,
    /// Nanoseconds after `epoch` until which the size counts as fresh.
    valid_until: AtomicU64,
    epoch: Instant,
    /// Held while the size is changed.
    pub(super) growing: Mutex<()>,
    /// Time of change when last heard of, until the first open for writing:
    /// with another, another file may have taken the place of this one.
    changed: Mutex<Option<(u64, u32)>>,
    written: AtomicBool,
}

impl Node {
    fn new(entry: &EntryOut, dax: bool) -> Node {
        let node = Node {
            inode: Arc::new(Inode::new(entry.nodeid)),
            dax,
            valid_until: AtomicU64::new(0),
            epoch: Instant::now(),
            growing: Mutex::new(()),
            changed: Mutex::default(),
            written: AtomicBool::new(false),
        };
        node.update(&entry.attr);
        node
    }

    pub(super) fn nodeid(&self) -> u64 {
        self.inode.nodeid()
    }

    /// Takes the size from fresh attributes.
    pub(super) fn update(&self, attr: &Attr) {
        self.inode.set_size(attr.size);
        self.valid_until
            .store(self.now() + VALID.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether these attributes may be those of another file than the last.
    fn may_be_replaced(&self, attr: &Attr) -> bool {
        let now = (attr.ctime, attr.ctimensec);
        let before = self.changed.lock().replace(now);
        before.is_some_and(|before| before != now) && !self.written.load(Ordering::Relaxed)
    }

    /// A write of our own reached to `end`.
    pub(super) fn grew_to(&self, end: u64) {
        self.inode.raise_size(end);
    }

    /// Has the next reader ask for the size again.
    pub(super) fn mark_stale(&self) {
        self.valid_until.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.now() < self.valid_until.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        // Lasts for five centuries.
        self.epoch.elapsed().as_nanos() as u64
    }
}

struct Entry {
    node: Arc<Node>,
    lookups: u64,
    opens: u64,
    /// Which closing this is, to find it in the queue.
    closing: u64,
    /// A name was removed since it was last opened: not kept once closed.
    unlinked: bool,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    /// Closed nodes, oldest first; some items are out of date.
    closed: VecDeque<(u64, u64)>,
    closed_count: usize,
    closings: u64,
}

/// All nodes that are open or kept.
#[derive(Default)]
pub(crate) struct Inodes {
    table: Mutex<Table>,
}

/// A node that is open; closed on drop.
pub(super) struct OpenNode {
    pub(super) shared: Arc<Shared>,
    pub(super) node: Arc<Node>,
}

impl OpenNode {
    /// Takes over the look-up that `entry` is the answer of.
    pub(super) fn adopt(shared: &Arc<Shared>, entry: &EntryOut) -> OpenNode {
        let regular = entry.attr.mode & libc::S_IFMT == libc::S_IFREG;
        let marked = entry.attr.flags & AttrFlags::DAX.bits() != 0;
        let wanted = marked || !shared.session.inode_dax();
        let dax = regular && wanted && shared.mapper.is_some();
        let node = shared.inodes.open(entry, dax);
        shared.remap_if_replaced(&node, &entry.attr);
        OpenNode {
            shared: Arc::clone(shared),
            node,
        }
    }
}

impl Drop for OpenNode {
    fn drop(&mut self) {
        let gone = self.shared.inodes.close(&self.node);
        self.shared.forget(gone);
    }
}

impl Inodes {
    fn open(&self, entry: &EntryOut, dax: bool) -> Arc<Node> {
        let mut table = self.table.lock();
        if let Some(known) = table.entries.get_mut(&entry.nodeid) {
            known.lookups += 1;
            known.opens += 1;
            known.unlinked = false;
            known.node.update(&entry.attr);
            let node = Arc::clone(&known.node);
            if known.opens == 1 {
                table.closed_count -= 1;
            }
            return node;
        }
        let node = Arc::new(Node::new(entry, dax));
        let new = Entry {
            node: Arc::clone(&node),
            lookups: 1,
            opens: 1,
            closing: 0,
            unlinked: false,
        };
        table.entries.insert(entry.nodeid, new);
        node
    }

    /// Closes once; returns what is to be forgotten now.
    fn close(&self, node: &Node) -> Vec<(Arc<Node>, u64)> {
        let mut table = self.table.lock();
        table.closings += 1;
        let closing = table.closings;
        let Some(entry) = table.entries.get_mut(&node.nodeid()) else {
            return Vec::new();
        };
        entry.opens -= 1;
        if entry.opens > 0 {
            return Vec::new();
        }
        entry.closing = closing;
        let unlinked = entry.unlinked;
        table.closed_count += 1;
        if unlinked || node.inode.live() == 0 {
            return table.take(node.nodeid()).into_iter().collect();
        }
        table.closed.push_back((node.nodeid(), closing));
        table.shrink()
    }

    /// A name of the node was removed: takes it if it is not open; otherwise
    /// its close will.
    fn take_unlinked(&self, nodeid: u64) -> Option<(Arc<Node>, u64)> {
        let mut table = self.table.lock();
        let entry = table.entries.get_mut(&nodeid)?;
        entry.unlinked = true;
        match entry.opens {
            0 => table.take(nodeid),
            _ => None,
        }
    }
}

impl Table {
    /// Removes a closed node.
    fn take(&mut self, nodeid: u64) -> Option<(Arc<Node>, u64)> {
        let entry = self.entries.remove(&nodeid)?;
        self.closed_count -= 1;
        Some((entry.node, entry.lookups))
    }

    /// Removes the oldest closed nodes, if there are too many.
    fn shrink(&mut self) -> Vec<(Arc<Node>, u64)> {
        let mut gone = Vec::new();
        let most = match self.closed_count > CLOSED_MOST {
            true => CLOSED_BATCH,
            false => 0,
        };
        while gone.len() < most || self.closed.len() > 2 * CLOSED_MOST {
            let Some((nodeid, closing)) = self.closed.pop_front() else {
                break;
            };
            let current = self
                .entries
                .get(&nodeid)
                .is_some_and(|e| e.opens == 0 && e.closing == closing);
            if current {
                gone.extend(self.take(nodeid));
            }
        }
        gone
    }
}

impl Shared {
    /// Unmaps nodes and has the daemon forget them.
    fn forget(&self, gone: Vec<(Arc<Node>, u64)>) {
        if gone.is_empty() {
            return;
        }
        let inodes: Vec<_> = gone.iter().map(|(n, _)| Arc::clone(&n.inode)).collect();
        let core = self.mapper.as_ref().map(|mapper| mapper.core());
        if let Err(e) = core.map_or(Ok(()), |core: &Arc<Core>| core.evict(&inodes)) {
            // The daemon remembers them until the session ends.
            tracing::warn!("{} nodes are not forgotten: {e}", gone.len());
            return;
        }
        for (node, lookups) in gone {
            self.session.forget(node.nodeid(), lookups);
        }
    }

    /// A name of this node is gone: it is kept only as long as it is open, for its mappings would keep its data on the host's disk.
    pub(super) fn forget_unlinked(&self, nodeid: u64) {
        self.forget(self.inodes.take_unlinked(nodeid).into_iter().collect());
    }

    /// Asks for the attributes of a node.
    pub(super) fn refresh(&self, node: &Node, fh: Option<u64>) -> Result<Attr> {
        let attr = self.session.getattr(node.nodeid(), fh)?;
        node.update(&attr);
        self.remap_if_replaced(node, &attr);
        Ok(attr)
    }

    /// The node was opened for writing. The window shows the file that is
    /// written to, if that is another; this has views show it, too.
    pub(super) fn note_writer(&self, node: &Node) {
        if !node.written.swap(true, Ordering::Relaxed) {
            self.remap(node);
        }
    }

    /// Does the same if the attributes say that it may have become another.
    fn remap_if_replaced(&self, node: &Node, attr: &Attr) {
        if node.may_be_replaced(attr) {
            self.remap(node);
        }
    }

    fn remap(&self, node: &Node) {
        if let Some(mapper) = &self.mapper {
            mapper.core().show_again(&node.inode);
        }
    }
}
