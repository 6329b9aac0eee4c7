//! How many mappings the kernel lets a process have.

use std::fs::File;
use std::io::{self, Read};
#[cfg(test)]
use std::ops::Range;

/// `vm.max_map_count` where it cannot be read.
const DEFAULT_MOST: usize = 65_530;
/// `mremap` refuses to move a mapping when fewer than this are left.
const MOVE_SPARE: usize = 5;

/// The most mappings a process may have.
pub(crate) fn most() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let number = text.ok().and_then(|text| text.trim().parse().ok());
    number.unwrap_or(DEFAULT_MOST)
}

/// Whether this process has so many that none is moved any more. Passes over
/// all of them.
pub(crate) fn are_exhausted() -> bool {
    count().is_ok_and(|count| count.saturating_add(MOVE_SPARE) >= most())
}

/// Lines of `/proc/self/maps`, read without memory from the heap, for which
/// there may be no mapping left.
fn count() -> io::Result<usize> {
    let mut maps = File::open("/proc/self/maps")?;
    let (mut lines, mut part) = (0, [0; 4096]);
    loop {
        match maps.read(&mut part)? {
            0 => return Ok(lines),
            len => lines += part[..len].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

/// Whether every byte of `range` is mapped.
#[cfg(test)]
pub(crate) fn cover(range: Range<usize>) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let number = |text| usize::from_str_radix(text, 16).expect("an address");
    let mut reached = range.start;
    for line in maps.lines() {
        let (span, _) = line.split_once(' ').expect("a range");
        let (start, end) = span.split_once('-').expect("a range");
        if number(start) <= reached && number(end) > reached {
            reached = number(end);
        }
    }
    reached >= range.end
}
