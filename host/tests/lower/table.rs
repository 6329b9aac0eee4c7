//! The table of docs/lower-file-systems.md.

use std::path::Path;

use rustix::io::Errno;

use crate::common::{Daemon, guest};
use crate::features::{FEATURES, Tried};
use crate::places::{Place, btrfs, erofs, ext4, fuse, overlayfs, tmpfs, xfs};

type Make = fn() -> Place;

const WRITE: &str = "DAXWINDOW_WRITE_DOCS";
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/lower-file-systems.md");
const BEGIN: &str = "<!-- the table begins -->\n";
const END: &str = "<!-- the table ends -->\n";
const FLAGS: [&str; 6] = [
    "--dax",
    "always",
    "--dax-window",
    "32M",
    "--xattr",
    "--locks",
];

fn name(errno: Errno) -> String {
    let known = [
        (Errno::ROFS, "EROFS"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::INVAL, "EINVAL"),
        (Errno::PERM, "EPERM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::NODATA, "not told"),
        (Errno::IO, "EIO"),
        (Errno::XDEV, "EXDEV"),
        (Errno::NOENT, "ENOENT"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::NOTTY, "ENOTTY"),
    ];
    let found = known.iter().find(|(known, _)| *known == errno);
    found.map_or_else(|| format!("{errno:?}"), |(_, name)| (*name).to_owned())
}

fn column(place: &Place) -> Vec<String> {
    let daemon = Daemon::start(place.path(), &FLAGS);
    let guest = guest(&daemon);
    let tried = Tried {
        guest: &guest,
        at: place.path(),
    };
    let outcomes = FEATURES.iter().map(|(what, attempt)| {
        println!("  {what}");
        match attempt(&tried) {
            Ok(()) => "yes".to_owned(),
            Err(errno) => name(errno),
        }
    });
    outcomes.collect()
}

#[test]
fn the_table_of_lower_file_systems_is_what_is_found() {
    let kinds: [(&str, Make); 7] = [
        ("ext4", || ext4("rw")),
        ("xfs", xfs),
        ("btrfs", btrfs),
        ("tmpfs", tmpfs),
        ("overlayfs", overlayfs),
        ("erofs", erofs),
        ("FUSE (bindfs)", fuse),
    ];
    let mut columns = Vec::new();
    for (kind, make) in kinds {
        println!("{kind}");
        columns.push(column(&make()));
    }
    let mut table = String::from("|");
    for kind in kinds.map(|(kind, _)| kind) {
        table.push_str(&format!(" | {kind}"));
    }
    table.push_str(" |\n");
    table.push_str(&"| --- ".repeat(kinds.len() + 1));
    table.push_str("|\n");
    for (row, (what, _)) in FEATURES.iter().enumerate() {
        let cells: Vec<&str> = columns.iter().map(|column| column[row].as_str()).collect();
        table.push_str(&format!("| {what} | {} |\n", cells.join(" | ")));
    }
    let text = std::fs::read_to_string(DOCUMENT).expect("the document");
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (is, after) = rest.split_once(END)?;
        Some((before, is, after))
    });
    let (before, is, after) = parts.expect("a place for the table");
    if std::env::var_os(WRITE).is_some() {
        let text = [before, BEGIN, &table, END, after].concat();
        std::fs::write(Path::new(DOCUMENT), text).expect("written");
    } else {
        assert_eq!(
            is, table,
            "{DOCUMENT}: run with {WRITE}=1 and look at what changed"
        );
    }
}
