//! Our daemon, as cargo has built it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Stay when a client has gone. Older builds have no such flag, and do.
pub const KEEP_SERVING: &str = "--keep-serving";

/// Finds the daemon: as told, else beside this executable.
///
/// # Errors
///
/// Says how to build it when it is not there.
pub fn find(told: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = told {
        let path = path.canonicalize();
        return path.with_context(|| {
            format!(
                "find the daemon {}",
                told.unwrap_or(Path::new("")).display()
            )
        });
    }
    let own = std::env::current_exe().context("find this executable")?;
    let beside = own.with_file_name("daxwindowd");
    if beside.is_file() {
        return Ok(beside);
    }
    // Test and example binaries sit one level deeper.
    let above = own
        .parent()
        .and_then(Path::parent)
        .map(|p| p.join("daxwindowd"));
    match above.filter(|p| p.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "{} does not exist: build it (cargo build --release --workspace), or name it with --daemon",
            beside.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_says_how_to_get_it() {
        let error = find(Some(Path::new("/no/daxwindowd"))).expect_err("missing");
        assert!(format!("{error:#}").contains("/no/daxwindowd"));
    }
}
