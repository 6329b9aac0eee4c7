//! How many descriptors the process may have (`--rlimit-nofile`).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Taken unless told otherwise, if the host gives as many.
const DEFAULT_NOFILE: u64 = 1_000_000;
/// Most that the kernel gives one process.
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// Why the limit is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("--rlimit-nofile {asked}: {cause} (the hard limit is {hard}, and {NR_OPEN} {most})")]
pub struct NofileError {
    asked: u64,
    hard: String,
    most: u64,
    cause: std::io::Error,
}

/// Sets how many descriptors the process may have open, and answers how many
/// those are. `asked` 0 leaves the limit; none takes 1,000,000, or as many as
/// the process may have.
///
/// # Errors
///
/// When the number asked for is more than the host gives.
pub fn set_nofile(asked: Option<u64>) -> Result<u64, NofileError> {
    let now = getrlimit(Resource::Nofile);
    let soft = now.current.unwrap_or(u64::MAX);
    let most = std::fs::read_to_string(NR_OPEN).ok();
    let most = most.and_then(|text| text.trim().parse().ok());
    let most: u64 = most.unwrap_or(u64::MAX);
    match asked {
        Some(0) => Ok(soft),
        None if soft >= DEFAULT_NOFILE => Ok(soft),
        None => {
            let hard = now.maximum.unwrap_or(u64::MAX);
            let wanted = DEFAULT_NOFILE.min(most);
            let got = set(wanted).map(|()| wanted);
            let or_hard = got.or_else(|_| set(hard).map(|()| hard));
            Ok(or_hard.unwrap_or(soft))
        }
        Some(asked) => set(asked).map(|()| asked).map_err(|cause| NofileError {
            asked,
            hard: now.maximum.map_or("none".into(), |hard| hard.to_string()),
            most,
            cause,
        }),
    }
}

fn set(limit: u64) -> std::io::Result<()> {
    let limit = Some(limit);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?;
    Ok(())
}
