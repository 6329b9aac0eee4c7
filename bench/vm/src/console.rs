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

/// Lines of an error message: of the console's end, and from where the kernel
/// first complains.
const TAIL: usize = 15;
const FIRST_COMPLAINT: usize = 8;

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

    /// The last lines, and the first complaint, ready for an error message.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let shown = |lines: &[&str]| -> String {
            let lines = lines.iter().map(|line| format!("\n    {line}"));
            lines.collect()
        };
        let (before, last) = lines.split_at(lines.len().saturating_sub(TAIL));
        if last.is_empty() {
            return "the console is empty".into();
        }
        let mut said = format!("the console ends with:{}", shown(last));
        // What a kernel dies of is said first, and pages of registers follow.
        let first = before.iter().position(|line| complains(line));
        if let Some(from) = first {
            let to = before.len().min(from + FIRST_COMPLAINT);
            said.push_str("\n  and before that, where the kernel first complains:");
            said.push_str(&shown(&before[from..to]));
        }
        said
    }
}

/// The lines in which the kernel complains about itself.
pub(crate) fn complaints(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| complains(line))
        .map(str::to_owned)
        .collect()
}

fn complains(line: &str) -> bool {
    COMPLAINTS.iter().any(|word| line.contains(word))
}

/// Whether the kernel died of its own breakpoint. While it patches an
/// instruction that another processor may be in, its first byte is one; QEMU's
/// emulator, with a thread for each processor, can run it when it is gone.
pub(crate) fn stale_code(text: &str) -> bool {
    text.lines().any(|line| line.contains("Oops: int3:"))
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
    fn only_a_stray_breakpoint_is_stale_code() {
        assert!(stale_code("[ 1.5] Oops: int3: 0000 [#1] SMP NOPTI\n"));
        assert!(!stale_code("[ 2.2] Oops: 0002 [#1]\n[ 2.3] int3\n"));
    }

    #[test]
    fn a_missing_console_is_empty() {
        let console = Console::new(Path::new("/no/such/console"));
        assert_eq!(console.text(), "");
        assert!(console.tail().contains("empty"));
    }

    #[test]
    fn what_a_kernel_died_of_is_told_though_it_is_far_from_the_end() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let registers = "[ 1.6] RAX: 0 RBX: 0\n".repeat(40);
        let text = format!("[ 1.5] Oops: int3: 0000 [#1]\n{registers}[ 1.7] the end\n");
        std::fs::write(file.path(), text).expect("written");
        let said = Console::new(file.path()).tail();
        assert!(
            said.contains("int3: 0000") && said.contains("the end"),
            "{said}"
        );
        assert!(said.lines().count() < 30, "{said}");
    }
}
