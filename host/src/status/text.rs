//! The status document for people: one fact a line, aligned, the verdict
//! first.

use std::fmt::{self, Write};

use super::document::{Common, Latency, ShareStatus, Status};

const LABEL_WIDTH: usize = 20;

/// The document as text that ends with a line break.
pub(super) fn render(status: &Status) -> String {
    let mut page = Page(String::new());
    if let [only] = &status.shares[..] {
        share(&mut page, only);
        daemon(&mut page, status);
        details(&mut page, only);
        return page.0;
    }
    daemon(&mut page, status);
    common(&mut page, &status.common);
    for one in &status.shares {
        let _ = writeln!(page.0, "\n--- {} ---", one.share.name);
        share(&mut page, one);
        details(&mut page, one);
    }
    page.0
}

fn details(page: &mut Page, status: &ShareStatus) {
    connection(page, status);
    window(page, status);
    capabilities(page, status);
    mappings(page, status);
    requests(page, status);
    queues(page, status);
}

fn daemon(page: &mut Page, status: &Status) {
    let daemon = &status.daemon;
    page.line(
        "daemon",
        format_args!("daxwindowd {}, process {}", daemon.version, daemon.pid),
    );
    match status.shares.len() {
        1 => {}
        count => page.line(
            "shares",
            format_args!("{count}, guests connected to {}", status.common.guests),
        ),
    }
}

fn common(page: &mut Page, common: &Common) {
    page.line(
        "mapped by guests",
        format_args!(
            "{} of {} files, {} of them different",
            size(common.mapped_bytes),
            common.files,
            size(common.distinct_bytes)
        ),
    );
    page.line(
        "saved",
        format_args!(
            "{}, by {} files that more than one guest has mapped",
            size(common.saved_bytes),
            common.shared_files
        ),
    );
    for (guests, bytes) in &common.bytes_by_guests {
        page.line(&format!("  by {guests} guests"), size(*bytes));
    }
    for file in &common.top_files {
        page.line(
            "  file",
            format_args!(
                "inode {} of device {}: {} guests, {} mapped, {} of them different",
                file.inode,
                file.device,
                file.guests,
                size(file.mapped_bytes),
                size(file.distinct_bytes)
            ),
        );
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, label: &str, value: impl fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{label:<LABEL_WIDTH$} {value}");
    }
}

fn share(page: &mut Page, status: &ShareStatus) {
    let (dax, share) = (&status.dax, &status.share);
    let verdict = match dax.verdict.as_str() {
        "on" => "ON",
        "some" => "ON for some files",
        "off" => "OFF",
        _ => "not known yet",
    };
    page.line("DAX", format_args!("{verdict}: {}", dax.why));
    let access = match share.readonly {
        true => "read-only",
        false => "read-write",
    };
    page.line(
        "share",
        format_args!("{:?} as {:?}, {access}", share.directory, share.tag),
    );
}

fn connection(page: &mut Page, status: &ShareStatus) {
    let front_end = &status.front_end;
    let channel = match front_end.has_channel {
        true => "with a channel for maps",
        false => "without a channel for maps",
    };
    match front_end.connected_seconds {
        Some(seconds) => page.line(
            "front end",
            format_args!("connected for {}, {channel}", duration(seconds)),
        ),
        None => page.line("front end", "not connected"),
    }
    if front_end.connected {
        let regions = front_end.memory_regions;
        page.line("memory slots", format_args!("{regions} in use"));
    }
    let session = &status.session;
    match session.live_seconds {
        Some(seconds) => page.line(
            "session",
            format_args!(
                "live for {}, {} inodes known, {} handles open",
                duration(seconds),
                session.inodes,
                session.handles
            ),
        ),
        None => page.line("session", "none: no guest has the share mounted"),
    }
    let costs = &session.inode_costs;
    page.line(
        "inodes",
        format_args!(
            "{} of memory, {} descriptors held and {} kept for a while; by handle on {} of {} mounts",
            size(costs.heap_bytes),
            costs.held_descriptors,
            costs.cached_descriptors,
            costs.mounts_by_handle,
            costs.mounts
        ),
    );
    let wish = match session.guest_dax.as_deref() {
        Some("always") => "dax=always: every regular file, whatever the daemon's rule",
        Some("inode") => "by inode: the files that the daemon flags",
        Some(_) => "without DAX: mounted with dax=never, or the guest sees no window",
        None => return,
    };
    page.line("the guest mounted", wish);
}

fn window(page: &mut Page, status: &ShareStatus) {
    let window = &status.window;
    let mut value = size(window.offered_bytes);
    if window.offered_bytes != window.asked_bytes {
        let _ = write!(value, ", where {} were asked for", size(window.asked_bytes));
    }
    if let Some(why) = &window.less_because {
        let _ = write!(value, ": {why}");
    }
    if let Some(base) = window.guest_physical_base {
        let _ = write!(value, ", at {base:#x} of the guest");
    }
    page.line("window", value);
    let mapped = match &window.not_whole_because {
        None => "in one piece".to_owned(),
        Some(why) => format!("a range at a time: {why}"),
    };
    page.line("mapped", mapped);
    if let Some(library) = &window.library {
        page.line(
            "preloaded library",
            format_args!(
                "{} pages behind the end of a file show zeros or did, {} of them show it again; \
                 {} times a device was refused",
                library.mended_pages, library.regrown_pages, library.refused_devices
            ),
        );
    }
}

fn capabilities(page: &mut Page, status: &ShareStatus) {
    let Some(capabilities) = &status.capabilities else {
        return;
    };
    page.0.push_str("\nthe front end, as it was found\n");
    for one in capabilities {
        let answer = if one.yes { "yes" } else { "no " };
        let label = format!("  {}", one.name.replace('-', " "));
        page.line(&label, format_args!("{answer} {}", one.consequence));
    }
}

fn mappings(page: &mut Page, status: &ShareStatus) {
    let m = &status.mappings;
    page.0.push_str("\nmappings\n");
    page.line(
        "  live",
        format_args!(
            "{} ranges, {}, of {} files",
            m.live_ranges,
            size(m.live_bytes),
            m.live_inodes
        ),
    );
    page.line(
        "  set up",
        format_args!(
            "{}, {} of them there already, {} upgrades, {} replacements, {} renewals",
            m.setups, m.hits, m.upgrades, m.replacements, m.renewals
        ),
    );
    page.line(
        "  removed",
        format_args!(
            "{}, {} that were not there, {} failed",
            m.removals, m.removals_of_nothing, m.failed_removals
        ),
    );
    let refusals: Vec<String> = m.refusals.iter().map(|(r, n)| format!("{n} {r}")).collect();
    page.line(
        "  refused",
        match refusals.is_empty() {
            true => "none".to_owned(),
            false => refusals.join(", "),
        },
    );
    page.line("  time of a setup", latency(&m.setup));
    page.line("  of a removal", latency(&m.removal));
}

fn requests(page: &mut Page, status: &ShareStatus) {
    let requests = &status.requests;
    page.0
        .push_str("\nrequests            count      errors     p50 us     p99 us\n");
    for (name, op) in &requests.by_opcode {
        let _ = writeln!(
            page.0,
            "  {name:<15} {:>8} {:>10} {:>10.1} {:>10.1}",
            op.count, op.errors, op.p50_us, op.p99_us
        );
    }
    if requests.malformed > 0 || requests.unanswerable > 0 {
        let (malformed, unanswerable) = (requests.malformed, requests.unanswerable);
        let _ = writeln!(
            page.0,
            "  {malformed} malformed, {unanswerable} without room for a reply"
        );
    }
}

fn queues(page: &mut Page, status: &ShareStatus) {
    page.0
        .push_str("\nqueues           requests  took long   under way    longest ms   stand-ins\n");
    for (index, queue) in status.queues.by_number.iter().enumerate() {
        let _ = writeln!(
            page.0,
            "  {index:<15} {:>8} {:>10} {:>11} {:>13.1} {:>11}",
            queue.requests,
            queue.gave_way + queue.found_stuck,
            queue.under_way,
            queue.longest_us / 1e3,
            queue.stand_ins_started,
        );
    }
    if status.queues.threads_given_up > 0 {
        let given_up = status.queues.threads_given_up;
        let _ = writeln!(
            page.0,
            "  {given_up} threads stuck when their guest had gone"
        );
    }
    let (requests, waits) = (status.queues.refused_in_flight, status.queues.refused_waits);
    if requests > 0 || waits > 0 {
        let _ = writeln!(
            page.0,
            "  over budget: {requests} requests under way (--max-in-flight), {waits} waits for \
             locks (--max-lock-waits)"
        );
    }
}

fn latency(latency: &Latency) -> String {
    match latency.count {
        0 => "none yet".into(),
        _ => format!(
            "p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us",
            latency.p50_us, latency.p99_us, latency.p999_us
        ),
    }
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = |&(_, shift): &(&str, u32)| bytes >= 1 << shift && bytes.trailing_zeros() >= shift;
    match units.into_iter().find(fits) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_exact_and_short() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1000, "1000 bytes"),
            (2 << 20, "2 MiB"),
            (1 << 30, "1 GiB"),
            (896 << 20, "896 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(duration(2.34), "2.3 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(7322.0), "2 h 2 min");
    }
}
