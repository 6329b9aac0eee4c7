//! What guests map in common: how many have which bytes of which file, and
//! what that saves.
//!
//! Nothing is counted while guests map; who asks pays, by going through the
//! ledgers. Each is locked for as long as its list takes to copy. No file
//! system is asked, which might not answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::{Common, CommonFile, TOP_FILES};
use crate::fs::HostInode;
use crate::fuse::Server;

use crate::shares::Share;

/// A range of a file: first byte, and the one behind the last.
type Range = (u64, u64);

/// Which file it is. One that its guest has forgotten while it is mapped is
/// nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Host(HostInode),
    Forgotten { guest: usize, nodeid: u64 },
}

/// Ranges that one guest has mapped, in no order.
type Mapped = BTreeMap<Which, Vec<Range>>;

/// How things are now.
pub(super) fn common(shares: &[Arc<Share>]) -> Common {
    let guests: Vec<Mapped> = shares
        .iter()
        .enumerate()
        .map(|(guest, share)| mapped(guest, share.server()))
        .collect();
    let mut common = sum_up(&guests);
    common.guests = shares
        .iter()
        .filter(|share| share.server().client().is_some())
        .count() as u64;
    common
}

/// What one guest has mapped, as far as the files reach.
fn mapped(guest: usize, server: &Server) -> Mapped {
    let mut all = Mapped::new();
    for (nodeid, ranges) in server.dax().mapped_ranges() {
        let host = server.fs().host_inode(nodeid);
        let which = host.map_or(Which::Forgotten { guest, nodeid }, Which::Host);
        let ranges = ranges.into_iter().filter(|(from, to)| from < to);
        all.entry(which).or_default().extend(ranges);
    }
    all
}

fn sum_up(guests: &[Mapped]) -> Common {
    let mut common = Common::default();
    let mut by_guests = BTreeMap::<u64, u64>::new();
    let mut files = BTreeMap::<Which, Vec<Vec<Range>>>::new();
    for (which, ranges) in guests.iter().flatten() {
        let ranges = merged(ranges.clone());
        if !ranges.is_empty() {
            files.entry(*which).or_default().push(ranges);
        }
    }
    for (which, per_guest) in &files {
        let depths = depths(per_guest);
        let file = CommonFile {
            device: which.device(),
            inode: which.number(),
            guests: per_guest.len() as u64,
            mapped_bytes: depths.iter().map(|(depth, bytes)| depth * bytes).sum(),
            distinct_bytes: depths.values().sum(),
        };
        common.files += 1;
        common.shared_files += u64::from(depths.keys().any(|depth| *depth > 1));
        common.mapped_bytes += file.mapped_bytes;
        common.distinct_bytes += file.distinct_bytes;
        for (depth, bytes) in depths {
            *by_guests.entry(depth).or_default() += bytes;
        }
        common.top_files.push(file);
    }
    common.saved_bytes = common.mapped_bytes - common.distinct_bytes;
    common.bytes_by_guests = by_guests.into_iter().collect();
    let saved = |file: &CommonFile| file.mapped_bytes - file.distinct_bytes;
    let files = &mut common.top_files;
    files.retain(|file| saved(file) > 0);
    files.sort_by_key(|file| std::cmp::Reverse(saved(file)));
    files.truncate(TOP_FILES);
    common
}

impl Which {
    fn device(&self) -> String {
        match self {
            Which::Host(HostInode {
                device: (major, minor),
                ..
            }) => format!("{major}:{minor}"),
            Which::Forgotten { .. } => "unknown".to_owned(),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Which::Host(inode) => inode.number,
            Which::Forgotten { nodeid, .. } => *nodeid,
        }
    }
}

/// The same bytes in ranges that neither touch nor overlap.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match out.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

/// Bytes by how many of these lists contain them; none of a list's ranges
/// overlap.
fn depths(lists: &[Vec<Range>]) -> BTreeMap<u64, u64> {
    let mut edges: Vec<(u64, bool)> = lists
        .iter()
        .flatten()
        .flat_map(|(from, to)| [(*from, true), (*to, false)])
        .collect();
    edges.sort_unstable();
    let mut bytes = BTreeMap::new();
    let (mut depth, mut at) = (0u64, 0u64);
    for (edge, begins) in edges {
        if depth > 0 && edge > at {
            *bytes.entry(depth).or_default() += edge - at;
        }
        at = edge;
        // Ends sort before beginnings, and no list ends what it has not begun.
        depth = match begins {
            true => depth + 1,
            false => depth.saturating_sub(1),
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(number: u64) -> Which {
        Which::Host(HostInode {
            device: (8, 1),
            number,
        })
    }

    #[test]
    fn what_three_guests_have_in_common_is_told_byte_by_byte() {
        // Three guests, each with half of a file, overlapping.
        let guests = [
            Mapped::from([(host(7), vec![(0, 50), (40, 60)])]),
            Mapped::from([(host(7), vec![(30, 90)]), (host(8), vec![(0, 5)])]),
            Mapped::from([
                (host(7), vec![(50, 100)]),
                (
                    Which::Forgotten {
                        guest: 2,
                        nodeid: 7,
                    },
                    vec![(0, 10)],
                ),
            ]),
        ];
        let common = sum_up(&guests);
        assert_eq!((common.files, common.shared_files), (3, 1));
        assert_eq!(common.mapped_bytes, 60 + 60 + 5 + 50 + 10);
        assert_eq!(common.distinct_bytes, 100 + 5 + 10);
        assert_eq!(common.saved_bytes, 70);
        // 0..30 and 90..100 one; 30..50 and 60..90 two; 50..60 three.
        assert_eq!(
            common.bytes_by_guests,
            [(1, 30 + 10 + 5 + 10), (2, 20 + 30), (3, 10)]
        );
        let file = CommonFile {
            device: "8:1".into(),
            inode: 7,
            guests: 3,
            mapped_bytes: 170,
            distinct_bytes: 100,
        };
        assert_eq!(common.top_files, [file]);
    }

    #[test]
    fn nothing_mapped_is_nothing_saved() {
        assert_eq!(sum_up(&[]), Common::default());
        assert_eq!(
            sum_up(&[Mapped::from([(host(1), vec![])])]),
            Common::default()
        );
    }

    proptest! {
        #[test]
        fn depths_count_each_byte(
            lists in proptest::collection::vec(
                proptest::collection::vec((0u64..40, 1u64..20), 0..6), 0..5,
            )
        ) {
            let lists: Vec<Vec<Range>> = lists
                .into_iter()
                .map(|list| merged(list.into_iter().map(|(at, len)| (at, at + len)).collect()))
                .collect();
            let mut counted = BTreeMap::<u64, u64>::new();
            for byte in 0..64 {
                let inside = |list: &&Vec<Range>| list.iter().any(|r| (r.0..r.1).contains(&byte));
                let depth = lists.iter().filter(inside).count() as u64;
                if depth > 0 {
                    *counted.entry(depth).or_default() += 1;
                }
            }
            prop_assert_eq!(depths(&lists), counted);
        }
    }
}
