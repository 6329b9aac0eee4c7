//! What the points amount to: what each further guest adds, and the goals.

use super::ask::Line as Asked;
use super::pattern::Pattern;
use super::point::{AREAS, Kind, MEMMAP, PAGE_TABLES, Series, mib};
use super::regression::Line;
use super::stage::Stack;
use crate::figures::Goal;
use crate::runs::{Better, Cell};

/// Group of the slopes.
pub(super) const SLOPES: &str = "density-slopes";
/// Group of the figures with goals.
pub(super) const GOALS: &str = "density-goals";
/// How the groups of the window's price begin.
pub(super) const PRICE: &str = "window-price";
/// Guests of the goal for one host's memory.
const GOAL_GUESTS: f64 = 16.0;

/// Slopes and goals of these lines, as far as their points are there.
pub(super) fn summary(cells: &[Cell], lines: &[Asked]) -> Vec<Cell> {
    let mut all: Vec<Cell> = lines.iter().filter_map(|line| slope(cells, line)).collect();
    let ratios: Vec<Cell> = lines.iter().filter_map(|line| ratio(&all, line)).collect();
    all.extend(lines.iter().filter_map(|line| host_memory(cells, line)));
    all.extend(ratios);
    let with_window = |line| ratio_with_window(cells, &all, line);
    let priced: Vec<Cell> = lines.iter().filter_map(with_window).collect();
    all.extend(priced);
    all.extend(lines.iter().flat_map(|line| library_price(cells, line)));
    all
}

/// How many cells that will be when all points are there.
pub(super) fn count(lines: &[Asked]) -> usize {
    let pretend = |line: &Asked| {
        let cell = |count: &usize| {
            let mut cell = line.series.cell(*count);
            cell.values = vec![*count as f64];
            let names = match line.series.kind {
                Kind::Userspace => vec![PAGE_TABLES, AREAS],
                Kind::Vms | Kind::Overlays => vec![MEMMAP],
            };
            cell.detail
                .extend(names.into_iter().map(|name| (name.to_owned(), 1.0)));
            cell
        };
        line.counts.iter().map(cell).collect::<Vec<_>>()
    };
    let cells: Vec<Cell> = lines.iter().flat_map(pretend).collect();
    summary(&cells, lines).len()
}

/// The points of a line that were measured.
fn points<'a>(cells: &'a [Cell], line: &Asked) -> Vec<&'a Cell> {
    let of = |count: &usize| {
        let id = line.series.id(*count);
        let mut cells = cells.iter();
        cells.find(|c| c.id == id && c.stack == line.series.stack.name() && c.error.is_none())
    };
    line.counts.iter().filter_map(of).collect()
}

fn slope_id(series: &Series) -> String {
    format!("{}/{}/slope", series.kind.name(), series.pattern.name())
}

fn through(points: &[&Cell], of: impl Fn(&Cell) -> Option<f64>) -> Option<Line> {
    let pair = |cell: &&Cell| Some((*cell.detail.get("guests")?, of(cell)?));
    let pairs: Option<Vec<_>> = points.iter().map(pair).collect();
    Line::through(&pairs?)
}

/// What each further guest adds.
fn slope(cells: &[Cell], line: &Asked) -> Option<Cell> {
    let points = points(cells, line);
    let all = through(&points, |cell| cell.values.first().copied())?;
    let part = |name: &'static str| through(&points, move |cell| cell.detail.get(name).copied());
    let mut cell = Cell::new(
        slope_id(&line.series),
        line.series.stack.name(),
        "MiB/guest",
        Better::Lower,
    );
    cell.group = SLOPES.into();
    cell.what = format!(
        "host memory that each further guest adds, {}, {}",
        line.series.kind.name(),
        line.series.pattern.name()
    );
    cell.metric = "host memory".into();
    cell.values = vec![all.slope];
    cell.proof = points.last()?.proof.clone();
    cell.detail.insert("intercept_mib".into(), all.intercept);
    cell.detail.insert("off_by_mib".into(), all.off_by);
    cell.detail.insert("points".into(), points.len() as f64);
    for name in [
        "page_cache_mib",
        "guest_ram_mib",
        "guests_own_mib",
        "guests_page_tables_mib",
        "daemon_own_mib",
        "daemon_page_tables_mib",
        "read_mib",
    ] {
        if let Some(part) = part(name) {
            cell.detail.insert(format!("{name}_per_guest"), part.slope);
        }
    }
    Some(cell)
}

/// The host's memory against what it may be, where each guest reads
/// everything through the window.
fn host_memory(cells: &[Cell], line: &Asked) -> Option<Cell> {
    let series = &line.series;
    let wanted = (Kind::Userspace, Pattern::Everything, Stack::Dax);
    if (series.kind, series.pattern, series.stack) != wanted {
        return None;
    }
    let guests = |cell: &Cell| cell.detail.get("guests").copied().unwrap_or(0.0);
    let points = points(cells, line);
    let point = points.iter().rfind(|cell| guests(cell) <= GOAL_GUESTS)?;
    let (count, total) = (guests(point), point.values.first()?);
    let bound = 1.02 * mib(line.bytes) + 4.0 * count;
    let mut cell = goal(
        format!("{}/host-memory", series.id(count as usize)),
        Some(Goal::AtMost(1.0)),
        point,
    );
    cell.what = format!(
        "host memory of {count} guests that read the same {:.0} MiB / (1.02 of that and 4 MiB a guest)",
        mib(line.bytes)
    );
    cell.values = vec![total / bound];
    cell.detail.insert("host_memory_mib".into(), *total);
    cell.detail.insert("bound_mib".into(), bound);
    cell.detail.insert("guests".into(), count);
    Some(cell)
}

/// What a further virtual machine adds with the window, against without.
fn ratio(slopes: &[Cell], line: &Asked) -> Option<Cell> {
    let series = &line.series;
    if series.stack != Stack::Dax {
        return None;
    }
    let id = slope_id(series);
    let of = |stack: Stack| {
        slopes
            .iter()
            .find(|c| c.id == id && c.stack == stack.name())
    };
    let (with, without) = (of(Stack::Dax)?, of(Stack::Plain)?);
    let (added, copied) = (with.values.first()?, without.values.first()?);
    if *copied <= 0.0 {
        return None;
    }
    let bound = match (series.kind, series.pattern) {
        (Kind::Vms, Pattern::Everything) => Some(Goal::AtMost(0.006)),
        // An overlay costs a daemon of its own besides.
        (Kind::Overlays, Pattern::Everything) => Some(Goal::AtMost(0.05)),
        _ => None,
    };
    let mut cell = goal(format!("{id}/ratio"), bound, with);
    cell.what = format!(
        "host memory that a further guest adds, DAX / without, {}, {}",
        series.kind.name(),
        series.pattern.name()
    );
    cell.values = vec![added / copied];
    cell.detail.insert("dax_mib_per_guest".into(), *added);
    cell.detail.insert("without_mib_per_guest".into(), *copied);
    Some(cell)
}

/// The same with what the guest's kernel takes for the window itself.
fn ratio_with_window(cells: &[Cell], summed: &[Cell], line: &Asked) -> Option<Cell> {
    let id = format!("{}/ratio", slope_id(&line.series));
    let of_line = line.series.stack == Stack::Dax;
    let ratio = summed.iter().find(|cell| of_line && cell.id == id)?;
    let structures = *points(cells, line).last()?.detail.get(MEMMAP)?;
    let (added, copied) = (
        ratio.detail.get("dax_mib_per_guest")?,
        ratio.detail.get("without_mib_per_guest")?,
    );
    let mut cell = ratio.clone();
    cell.id.push_str("-with-window");
    cell.what
        .push_str(", the window's page structures included");
    cell.group = SLOPES.into();
    cell.goal = None;
    cell.values = vec![(added + structures) / copied];
    cell.detail.insert(MEMMAP.into(), structures);
    Some(cell)
}

/// What the guest library pays for what it has mapped.
fn library_price(cells: &[Cell], line: &Asked) -> Vec<Cell> {
    let series = &line.series;
    if (series.kind, series.pattern) != (Kind::Userspace, Pattern::Everything) {
        return Vec::new();
    }
    let Some(point) = points(cells, line)
        .pop()
        .filter(|_| series.stack == Stack::Dax)
    else {
        return Vec::new();
    };
    let price = |name: &str, what: &str, metric: &str, unit: &str, part: &str| {
        let id = format!("price/guest-library/{name}");
        let mut cell = Cell::new(id, series.stack.name(), unit, Better::Lower);
        cell.group = format!("{PRICE}-{name}");
        cell.what = what.into();
        cell.metric = metric.into();
        cell.values = vec![*point.detail.get(part)?];
        cell.proof = point.proof.clone();
        Some(cell)
    };
    let page_tables = price(
        "page-tables",
        "page tables of a userspace guest for each GiB that it has read",
        "page tables",
        "MiB/GiB",
        PAGE_TABLES,
    );
    let areas = price(
        "areas",
        "areas of address space of a userspace guest that has read all",
        "areas",
        "areas",
        AREAS,
    );
    page_tables.into_iter().chain(areas).collect()
}

/// A ratio, with its goal if it has one.
fn goal(id: String, goal: Option<Goal>, from: &Cell) -> Cell {
    let mut cell = Cell::new(id, Stack::Dax.name(), "ratio", Better::Lower);
    cell.group = if goal.is_some() { GOALS } else { SLOPES }.into();
    cell.metric = "ratio".into();
    cell.goal = goal;
    cell.proof = from.proof.clone();
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, stack: Stack, counts: &[usize]) -> Asked {
        Asked {
            series: Series {
                kind,
                pattern: Pattern::Everything,
                stack,
            },
            counts: counts.to_vec(),
            of: 16,
            bytes: 1 << 30,
        }
    }

    fn cells(line: &Asked, first: f64, each: f64) -> Vec<Cell> {
        let cell = |count: &usize| {
            let mut cell = line.series.cell(*count);
            cell.values = vec![first + each * *count as f64];
            match line.series.kind {
                Kind::Userspace => cell.detail.insert(PAGE_TABLES.into(), 2.0),
                Kind::Vms | Kind::Overlays => cell.detail.insert(MEMMAP.into(), 8.0),
            };
            cell.detail.insert(AREAS.into(), 700.0);
            cell
        };
        line.counts.iter().map(cell).collect()
    }

    fn value(cells: &[Cell], id: &str) -> f64 {
        let found = cells.iter().find(|cell| cell.id == id);
        found.unwrap_or_else(|| panic!("{id} in {cells:?}")).values[0]
    }

    #[test]
    fn the_goals_follow_from_the_points() {
        let userspace = line(Kind::Userspace, Stack::Dax, &[1, 8, 16, 64]);
        let with = line(Kind::Vms, Stack::Dax, &[1, 2, 3]);
        let without = line(Kind::Vms, Stack::Plain, &[1, 2, 3]);
        let measured = [
            cells(&userspace, 1024.0, 3.0),
            cells(&with, 256.0, 1.0),
            cells(&without, 256.0, 250.0),
        ]
        .concat();
        let overlaid = [(Stack::Dax, 6.0), (Stack::Plain, 256.0)].map(|(stack, each)| {
            let line = line(Kind::Overlays, stack, &[1, 2]);
            let cells = cells(&line, 256.0, each);
            (line, cells)
        });
        let measured = overlaid
            .iter()
            .fold(measured, |all, (_, cells)| [all, cells.clone()].concat());
        let lines = [userspace, with, without];
        let lines = lines.into_iter().chain(overlaid.map(|(line, _)| line));
        let lines: Vec<Asked> = lines.collect();
        let found = summary(&measured, &lines);
        assert_eq!(count(&lines), found.len());
        assert!((value(&found, "userspace/everything/slope") - 3.0).abs() < 1e-9);
        assert!((value(&found, "vm/everything/slope/ratio") - 0.004).abs() < 1e-9);
        assert!((value(&found, "vm/everything/slope/ratio-with-window") - 0.036).abs() < 1e-9);
        assert!((value(&found, "overlay/everything/slope/ratio") - 6.0 / 256.0).abs() < 1e-9);
        assert_eq!(value(&found, "price/guest-library/page-tables"), 2.0);
        assert_eq!(value(&found, "price/guest-library/areas"), 700.0);
        // 16 guests, not 64.
        let bound = 1.02 * 1024.0 + 64.0;
        let ratio = value(&found, "userspace/everything/16/host-memory");
        assert!((ratio - (1024.0 + 48.0) / bound).abs() < 1e-9);
        let goals = found.iter().filter(|cell| cell.group == GOALS);
        assert!(goals.clone().all(|cell| cell.met() == Some(true)));
        assert_eq!(goals.count(), 3);
    }

    #[test]
    fn a_line_with_a_failed_point_has_no_slope_from_it() {
        let asked = line(Kind::Vms, Stack::Dax, &[1, 2]);
        let mut measured = cells(&asked, 0.0, 1.0);
        measured[1].values.clear();
        measured[1].error = Some("the guest hung".into());
        assert_eq!(summary(&measured, &[asked]), []);
    }
}
