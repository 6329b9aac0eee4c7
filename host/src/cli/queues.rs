//! Flags about queues and the threads that serve them.

use super::size::count;
use crate::vhost::backend::MAX_REQUEST_QUEUES;

/// Stand-ins of one guest, if nothing else is said: as many requests as Linux
/// keeps in flight for read-ahead and write-back.
const DEFAULT_POOL: usize = 64;

/// See `--help`.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Queues and threads")]
pub struct QueueFlags {
    /// Number of request queues, each with a thread of its own
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)),
    )]
    pub num_request_queues: u32,

    /// Most threads besides those of the queues, started when requests take long
    /// and ended when they do not any more; with 0 each queue serves one
    /// request after the other
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_POOL,
        value_parser = count(..=4096),
    )]
    pub thread_pool_size: usize,
}
