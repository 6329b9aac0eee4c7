//! Fills the status document. Locks are taken one at a time and briefly; a
//! document is a snapshot of each of its parts, not of all at once.

use std::collections::BTreeMap;
use std::time::Instant;

use daxwindow_shared::latency::Summary;

use super::common;
use super::document::{
    self, Capability, Daemon, FrontEnd, InodeCosts, Latency, Library, Mappings, Opcode, Queue,
    Queues, Requests, SCHEMA, Session, ShareStatus, Status, Verdict, Window,
};
use crate::dax::library::Way;
use crate::dax::{Capabilities, Dax, DaxStats, DaxVerdict, MapError};
use crate::fs::InodeUsage;
use crate::fuse::{DaxWish, Server};
use crate::listen::main_pid;
use crate::metrics::counters::OpReport;
use crate::metrics::queues::QueueReport;
use crate::shares::{About, Share, Shares};

/// How things are now.
pub(super) fn status(shares: &Shares) -> Status {
    let shares = shares.list();
    Status {
        schema: SCHEMA,
        daemon: Daemon {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: main_pid(),
        },
        common: common::common(&shares),
        shares: shares.iter().map(|share| of_share(share)).collect(),
    }
}

fn of_share(share: &Share) -> ShareStatus {
    let server = &**share.server();
    let dax = server.dax();
    ShareStatus {
        share: about(share.about()),
        dax: verdict(&dax.verdict()),
        front_end: front_end(server),
        session: session(server),
        window: window(dax),
        capabilities: dax.capabilities().as_ref().map(capabilities),
        mappings: mappings(&dax.stats()),
        requests: requests(server),
        queues: queues(server),
    }
}

fn about(about: &About) -> document::Share {
    document::Share {
        name: about.name.to_string(),
        tag: about.tag.clone(),
        directory: about.directory.to_string_lossy().into_owned(),
        socket: about.socket.to_string_lossy().into_owned(),
        readonly: about.readonly,
    }
}

fn verdict(verdict: &DaxVerdict) -> Verdict {
    Verdict {
        verdict: verdict.name().into(),
        reason: verdict.reason().into(),
        why: verdict.to_string(),
    }
}

fn seconds_since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64()
}

fn front_end(server: &Server) -> FrontEnd {
    let since = server.client();
    FrontEnd {
        connected: since.is_some(),
        connected_seconds: since.map(seconds_since),
        has_channel: server.dax().has_front_end(),
        memory_regions: since.map_or(0, |_| server.dax().memory_regions() as u64),
    }
}

fn session(server: &Server) -> Session {
    let began = server.session();
    let wish = |wish| match wish {
        DaxWish::Nothing => "none",
        DaxWish::ByInode => "inode",
        DaxWish::EveryFile => "always",
    };
    Session {
        live: began.is_some(),
        live_seconds: began.map(|began| seconds_since(began.at)),
        guest_dax: began.map(|began| wish(began.wish).into()),
        inodes: server.fs().live_inodes() as u64,
        inode_costs: inode_costs(&server.fs().usage()),
        handles: server.fs().live_handles() as u64,
    }
}

fn inode_costs(usage: &InodeUsage) -> InodeCosts {
    InodeCosts {
        heap_bytes: usage.heap_bytes as u64,
        held_descriptors: usage.held_descriptors as u64,
        cached_descriptors: usage.cached_descriptors as u64,
        mounts: usage.mounts as u64,
        mounts_by_handle: usage.mounts_by_handle as u64,
    }
}

fn window(dax: &Dax) -> Window {
    let way = dax.way();
    Window {
        asked_bytes: dax.asked_bytes(),
        offered_bytes: dax.window_bytes(),
        less_because: dax.less_because(),
        guest_physical_base: dax.capabilities().and_then(|can| can.window_base),
        mapping: way.name().to_owned(),
        not_whole_because: match way {
            Way::Whole => None,
            Way::Ranges(why) => Some(why.to_string()),
        },
        library: dax.library_notes().map(|notes| Library {
            mended_pages: notes.mended_pages,
            regrown_pages: notes.regrown_pages,
            refused_devices: notes.refused_devices,
        }),
    }
}

fn capabilities(can: &Capabilities) -> Vec<Capability> {
    // Name, answer, what follows from yes, what follows from no.
    let table = [
        (
            "past-end-of-file",
            can.past_eof,
            "files of any size are mapped as they are",
            "files are padded, or only whole pages are mapped",
        ),
        (
            "padded",
            can.padded,
            "files of any size are mapped through a view that makes them look long",
            match can.past_eof {
                true => "not tried, since files need no padding",
                false => "files that may grow get no DAX",
            },
        ),
        (
            "read-only-fd",
            can.readonly_fd,
            "read-only stays read-only, and the host may run what the guest maps",
            "all is mapped writable: no DAX on a read-only share, and what is mapped cannot be \
             executed on the host",
        ),
        (
            "map-over-map",
            can.replace,
            "a range changes hands or becomes writable in one step",
            "a range is unmapped before it is mapped anew, and writable from the start",
        ),
        (
            "partial-unmap",
            can.partial_unmap,
            "any part of a mapping can go, neighbours go in one message",
            "each mapping goes as it came, a message each",
        ),
        (
            "announced",
            can.announced,
            "a mapping counts as live when it is announced; buffers in the window resolve; \
             each takes a memory slot",
            match can.needs_fence() {
                true => "a mapping counts as live when a further request was answered",
                false => "a mapping counts as live when it is acknowledged",
            },
        ),
        (
            "emulated",
            can.emulated,
            "the guest's processors are an emulator's: code stays out of the window",
            "the guest's processors are KVM's, or it is not known whose",
        ),
    ];
    table
        .map(|(name, yes, then, otherwise)| Capability {
            name: name.into(),
            yes,
            consequence: if yes { then } else { otherwise }.into(),
        })
        .into()
}

fn mappings(stats: &DaxStats) -> Mappings {
    let refusals = MapError::REASONS.iter().zip(stats.refusals);
    Mappings {
        live_ranges: stats.live_ranges,
        live_bytes: stats.live_bytes,
        live_inodes: stats.live_inodes,
        setups: stats.setups,
        hits: stats.setup_hits,
        upgrades: stats.upgrades,
        replacements: stats.replacements,
        renewals: stats.renewals,
        removals: stats.removals,
        removals_of_nothing: stats.removals_of_nothing,
        failed_removals: stats.failed_removals,
        refusals: refusals
            .filter(|&(_, count)| count > 0)
            .map(|(&reason, count)| (reason.to_owned(), count))
            .collect(),
        setup: latency(&stats.setup_latency, &stats.setup_buckets),
        removal: latency(&stats.removal_latency, &stats.removal_buckets),
    }
}

fn latency(summary: &Summary, buckets: &[(u64, u64)]) -> Latency {
    Latency {
        count: summary.count,
        mean_us: summary.mean_ns / 1e3,
        p50_us: us(summary.p50_ns),
        p99_us: us(summary.p99_ns),
        p999_us: us(summary.p999_ns),
        max_us: us(summary.max_ns),
        buckets_us: buckets.iter().map(|&(end, n)| (us(end), n)).collect(),
    }
}

fn requests(server: &Server) -> Requests {
    let report = server.counters().report();
    let name = |op: &OpReport| match op.opcode {
        Some(opcode) => format!("{opcode:?}"),
        None => "unknown".into(),
    };
    let by_opcode: BTreeMap<_, _> = report
        .ops
        .iter()
        .map(|op| {
            let numbers = Opcode {
                count: op.count,
                errors: op.errors,
                mean_us: us(op.mean_ns),
                p50_us: us(op.p50_ns),
                p99_us: us(op.p99_ns),
            };
            (name(op), numbers)
        })
        .collect();
    Requests {
        malformed: report.malformed,
        unanswerable: report.unanswerable,
        by_opcode,
    }
}

fn queues(server: &Server) -> Queues {
    let report = server.queues().report();
    let queue = |queue: &QueueReport| Queue {
        requests: queue.requests,
        served_beside: queue.served_beside,
        gave_way: queue.gave_way,
        found_stuck: queue.stuck,
        under_way: queue.away,
        longest_us: us(queue.longest_ns),
        stand_ins_started: queue.stand_ins,
        short_of_threads: queue.short_of_threads,
    };
    Queues {
        by_number: report.queues.iter().map(queue).collect(),
        threads_given_up: report.given_up,
        in_flight: server.in_flight() as u64,
        refused_in_flight: report.refused_in_flight,
        refused_waits: report.refused_waits,
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}
