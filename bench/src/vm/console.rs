//! The kernel's console, and what in it must not be there.

use std::path::{Path, PathBuf};

/// Words by which the kernel says that something is wrong with itself.
const COMPLAINTS: [&str; 10] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "detected stall",
    "Call Trace:",
];

/// A file that QEMU writes the console to.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    path: PathBuf,
}

impl Console {
    pub(crate) fn new(path: &Path) -> Console {
        let path = path.to_path_buf();
        Console { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All of it so far, without carriage returns.
    pub(crate) fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last lines, ready for an error message.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(15));
        let last: String = last.map(|line| format!("\n    {line}")).collect();
        match last.is_empty() {
            true => "the console is empty".into(),
            false => format!("the console ends with:{last}"),
        }
    }
}

/// The lines in which the kernel complains about itself.
pub(crate) fn complaints(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_and_ordinary_lines_are_not() {
        let text = "[ 1.0] Linux version 7.3.4\n\
                    [ 2.0] WARNING: fs/dax.c:452 at dax_disassociate_entry+0x1/0x2\n\
                    [ 2.1] BUG: unable to handle page fault\n[ 2.2] Oops: 0002 [#1]\n\
                    [ 3.0] virtiofs virtio0: Cache len: 0x20000000 @ 0xe0000000\n\
                    [ 3.1] task:dd blocked for more than 120 seconds.\n";
        let found = complaints(text);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(complaints("debug: warnings are off\n").is_empty());
    }

    #[test]
    fn a_missing_console_is_empty() {
        let console = Console::new(Path::new("/no/such/console"));
        assert_eq!(console.text(), "");
        assert!(console.tail().contains("empty"));
    }
}
