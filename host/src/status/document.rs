//! The status document: one JSON object, schema version [`SCHEMA`].
//!
//! Fields may be added within a version; a field that goes or changes its
//! meaning makes a new one. Times are in microseconds where the name ends in
//! `_us` and in seconds where it ends in `_seconds`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the document.
///
/// Version 2 has a list of shares where version 1 had the parts of one.
pub const SCHEMA: u32 = 2;

/// How things are with one daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The process.
    pub daemon: Daemon,
    /// What guests map in common.
    pub common: Common,
    /// What it shares, by name.
    pub shares: Vec<ShareStatus>,
}

/// How things are with one share and its guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// What is shared.
    pub share: Share,
    /// Whether the share has DAX.
    pub dax: Verdict,
    /// Who has connected.
    pub front_end: FrontEnd,
    /// The guest behind it.
    pub session: Session,
    /// The window.
    pub window: Window,
    /// What the front end was found to do; `null` until a session has begun
    /// with a front end that passed the trial.
    pub capabilities: Option<Vec<Capability>>,
    /// What is mapped, and what was.
    pub mappings: Mappings,
    /// What was asked, by kind of request.
    pub requests: Requests,
    /// Where it came from, and what was done about slow requests.
    pub queues: Queues,
}

/// What the guests of all shares have mapped, byte by byte of the host's
/// files. A file is the same for all that reach it by whatever share; a range
/// counts as far as its file reaches now, in whole pages; a byte that one
/// guest has mapped twice counts once for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// Shares with a client connected.
    pub guests: u64,
    /// Files that are mapped by any.
    pub files: u64,
    /// Of these, files of which some byte is mapped by more than one guest.
    pub shared_files: u64,
    /// Sum over the guests of the bytes that each has mapped, as far as each
    /// file reached when the guest mapped a range of it last.
    pub mapped_bytes: u64,
    /// Bytes that at least one guest has mapped.
    pub distinct_bytes: u64,
    /// `mapped_bytes - distinct_bytes`: what the guests would need more if
    /// each had a copy of its own.
    pub saved_bytes: u64,
    /// A number of guests, and the bytes that exactly so many have mapped.
    pub bytes_by_guests: Vec<(u64, u64)>,
    /// The files that save most, at most [`TOP_FILES`].
    pub top_files: Vec<CommonFile>,
}

/// Longest list of files.
pub const TOP_FILES: usize = 20;

/// A file that guests have mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonFile {
    /// Device of the host, `major:minor`.
    pub device: String,
    /// Inode number there.
    pub inode: u64,
    /// Guests that have some of it mapped.
    pub guests: u64,
    /// As for all files.
    pub mapped_bytes: u64,
    /// As for all files.
    pub distinct_bytes: u64,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Id, on the host, of the process that was started and takes signals.
    pub pid: u32,
}

/// What is shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its name in this daemon: that of the socket, or what it was added as.
    pub name: String,
    /// The name that guests mount.
    pub tag: String,
    /// The directory, as it was given.
    pub directory: String,
    /// The socket at which its guest connects, as it was given.
    pub socket: String,
    /// Nothing may be changed through it.
    pub readonly: bool,
}

/// Whether the share has DAX, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `on` for every regular file, `some` files, `off`, or `unknown` while
    /// no guest has mounted.
    pub verdict: String,
    /// The cause in one word: `every-file`; `rule`, `whole-pages`; `mode`,
    /// `no-window`, `no-channel`, `no-region`, `trial`, `read-only-share`,
    /// `past-end-of-file`, `channel-lost`; `no-session`.
    pub reason: String,
    /// The cause in words.
    pub why: String,
}

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontEnd {
    /// A client is connected.
    pub connected: bool,
    /// For how long.
    pub connected_seconds: Option<f64>,
    /// It opened a channel for maps.
    pub has_channel: bool,
    /// Regions of its memory table, the window's among them if it announces
    /// them. Each takes one of its memory slots.
    pub memory_regions: u64,
}

/// The guest's session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The guest has mounted.
    pub live: bool,
    /// For how long.
    pub live_seconds: Option<f64>,
    /// How, as far as its INIT tells: `always`, `inode`, or `none` for
    /// without DAX.
    pub guest_dax: Option<String>,
    /// Inodes that it knows.
    pub inodes: u64,
    /// What they cost.
    pub inode_costs: InodeCosts,
    /// Files and directories that it has open.
    pub handles: u64,
}

/// What the inodes that a guest knows cost the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeCosts {
    /// Heap memory, in bytes.
    pub heap_bytes: u64,
    /// Descriptors held: an inode each that is not known by handle, or has
    /// lost its last name.
    pub held_descriptors: u64,
    /// Descriptors kept open because they were used not long ago.
    pub cached_descriptors: u64,
    /// Mounts that inodes are on.
    pub mounts: u64,
    /// Those of them where inodes are known by handle.
    pub mounts_by_handle: u64,
}

/// The window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// What the operator asked for.
    pub asked_bytes: u64,
    /// What the front end is offered.
    pub offered_bytes: u64,
    /// Why that is less.
    pub less_because: Option<String>,
    /// Where the guest sees it, if that was learned.
    pub guest_physical_base: Option<u64>,
    /// How it is mapped: `whole`, in one piece, or `ranges`, each by the VMM.
    #[serde(default)]
    pub mapping: String,
    /// Why it is not in one piece, if it is not.
    #[serde(default)]
    pub not_whole_because: Option<String>,
    /// What the library in the VMM tells, if it is there.
    #[serde(default)]
    pub library: Option<Library>,
}

/// What the library that is preloaded into the VMM has met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Pages behind the end of a file that a processor of the guest met, and
    /// that showed zeros from then on.
    pub mended_pages: u64,
    /// Of these, pages that show the file again because it has grown.
    pub regrown_pages: u64,
    /// How often the VMM was refused a device, because it would look into guest
    /// memory while files are mapped and see zeros. QEMU tries a device several
    /// times.
    pub refused_devices: u64,
}

/// One thing that the front end can do or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Which.
    pub name: String,
    /// It can.
    pub yes: bool,
    /// What follows from that.
    pub consequence: String,
}

/// What is mapped, and what was since the daemon started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mappings {
    /// Ranges mapped now.
    pub live_ranges: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Files that they are of.
    pub live_inodes: u64,
    /// Ranges set up.
    pub setups: u64,
    /// Of those, ranges that were mapped already.
    pub hits: u64,
    /// Ranges made writable.
    pub upgrades: u64,
    /// Ranges mapped over others.
    pub replacements: u64,
    /// Ranges mapped again because the file behind them became another: it was
    /// copied up on overlayfs. An older daemon does not say.
    #[serde(default)]
    pub renewals: u64,
    /// Ranges removed by the guest.
    pub removals: u64,
    /// Removals of what was not mapped.
    pub removals_of_nothing: u64,
    /// Unmaps that the front end refused or did not answer.
    pub failed_removals: u64,
    /// Setups refused, by reason; only reasons that occurred.
    pub refusals: BTreeMap<String, u64>,
    /// Time that setups took, those that succeeded.
    pub setup: Latency,
    /// Time that removals took, a request each.
    pub removal: Latency,
}

/// How long something took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How often.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Upper end of each bucket that is not empty, and how often; two
    /// documents' difference is what happened between them.
    pub buckets_us: Vec<(f64, u64)>,
}

/// What was asked since the daemon started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Chains refused before a request could be read from them.
    pub malformed: u64,
    /// Requests without room for a reply.
    pub unanswerable: u64,
    /// By opcode; `unknown` for all that this daemon does not know.
    pub by_opcode: BTreeMap<String, Opcode>,
}

/// One kind of request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opcode {
    /// How many.
    pub count: u64,
    /// Of these, answered with an error; a name not found is one.
    pub errors: u64,
    /// Mean time from descriptor to reply.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// The queues, since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queues {
    /// By number; the first is for FORGET, the others for requests. Empty
    /// until a client has connected.
    pub by_number: Vec<Queue>,
    /// Threads that were stuck in the kernel when their client had gone.
    pub threads_given_up: u64,
    /// Requests under way now; zero without `--max-in-flight`.
    #[serde(default)]
    pub in_flight: u64,
    /// Requests refused with `EBUSY`: `--max-in-flight` were under way.
    #[serde(default)]
    pub refused_in_flight: u64,
    /// Requests refused with `ENOLCK`: `--max-lock-waits` waited for locks, or too
    /// many for one queue.
    #[serde(default)]
    pub refused_waits: u64,
}

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// Requests taken from it.
    pub requests: u64,
    /// Of these, by a thread of another queue: processors are few.
    pub served_beside: u64,
    /// Of these, known to take long: others went on meanwhile.
    pub gave_way: u64,
    /// Of these, found to take long, after a millisecond or so.
    pub found_stuck: u64,
    /// Of both, under way now.
    pub under_way: u64,
    /// The longest of those that took long and are done.
    pub longest_us: f64,
    /// Threads started beside the first.
    pub stand_ins_started: u64,
    /// How often one more would have been needed (`--thread-pool-size`).
    pub short_of_threads: u64,
}
