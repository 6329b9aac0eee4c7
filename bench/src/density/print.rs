//! The tables at the end.

use comfy_table::Table;

use super::ask::Line;
use super::summary::{GOALS, PRICE, SLOPES};
use crate::figures::table::{short, table};
use crate::runs::Cell;

/// Prints all that these lines have come to, and the window's price.
pub(super) fn print(cells: &[Cell], lines: &[Line]) {
    let mut groups: Vec<String> = lines.iter().map(|line| line.series.group()).collect();
    groups.dedup();
    for group in groups {
        let of_group: Vec<&Cell> = cells.iter().filter(|cell| cell.group == group).collect();
        if let Some(first) = of_group.first() {
            println!("{}\n{}", first.what, points(&of_group));
        }
    }
    let mut price: Vec<&Cell> = (cells.iter())
        .filter(|cell| cell.group.starts_with(PRICE))
        .collect();
    price.sort_by_key(|cell| &cell.group);
    if !price.is_empty() {
        println!("what a window costs\n{}", prices(&price));
    }
    let summed: Vec<&Cell> = (cells.iter())
        .filter(|cell| cell.group == SLOPES || cell.group == GOALS)
        .collect();
    println!("{}", sums(&summed));
}

fn detail(cell: &Cell, name: &str) -> String {
    let value = cell.detail.get(name);
    value.map_or("-".into(), |value| short(*value))
}

fn value(cell: &Cell) -> String {
    match (&cell.error, cell.series()) {
        (None, Some(series)) => short(series.median),
        _ => "failed".into(),
    }
}

fn points(cells: &[&Cell]) -> Table {
    let mut rows = table(&[
        "stack",
        "guests",
        "read, MiB",
        "page cache",
        "guests: RAM",
        "own",
        "page tables",
        "daemon",
        "host memory, MiB",
    ]);
    for cell in cells {
        let daemon = |name| cell.detail.get(name).copied().unwrap_or(0.0);
        rows.add_row([
            cell.stack.clone(),
            cell.detail.get("guests").map_or("-".into(), f64::to_string),
            detail(cell, "read_mib"),
            detail(cell, "page_cache_mib"),
            detail(cell, "guest_ram_mib"),
            detail(cell, "guests_own_mib"),
            detail(cell, "guests_page_tables_mib"),
            short(daemon("daemon_own_mib") + daemon("daemon_page_tables_mib")),
            value(cell),
        ]);
    }
    rows
}

fn prices(cells: &[&Cell]) -> Table {
    let mut rows = table(&[
        "window, MiB",
        "what",
        "value",
        "guest's free memory less by, MiB",
    ]);
    for cell in cells {
        rows.add_row([
            cell.detail
                .get("window_mib")
                .map_or("-".into(), f64::to_string),
            cell.what.clone(),
            format!("{} {}", value(cell), cell.unit),
            detail(cell, "less_free_mib"),
        ]);
    }
    rows
}

fn sums(cells: &[&Cell]) -> Table {
    let mut rows = table(&["figure", "stack", "value", "goal", "met"]);
    for cell in cells {
        rows.add_row([
            cell.what.clone(),
            cell.stack.clone(),
            format!("{} {}", value(cell), cell.unit),
            cell.goal.map_or("-".into(), |goal| goal.to_string()),
            match cell.met() {
                Some(true) => "yes".into(),
                Some(false) => "NO".into(),
                None => "-".into(),
            },
        ]);
    }
    rows
}
