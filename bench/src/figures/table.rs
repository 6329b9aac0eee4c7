//! Tables and numbers for people.

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::{AT_BEST, Figure, WITH_QUEUE};

/// A table with these headings; every column after the first is right-aligned.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(headings);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// All figures, one a row.
pub(crate) fn figures(figures: &[Figure]) -> Table {
    let mut headings = vec![
        "figure", "value", "against", "ratio", "spread", "goal", "met",
    ];
    // Each where some figure has it.
    let mut bounds = vec![(AT_BEST, "at best"), (WITH_QUEUE, "with our queue")];
    bounds.retain(|(name, _)| figures.iter().any(|f| f.detail.contains_key(*name)));
    headings.splice(4..4, bounds.iter().map(|(_, heading)| *heading));
    let mut out = table(&headings);
    for figure in figures {
        let number =
            |n: Option<f64>| n.map_or("-".into(), |n| format!("{} {}", short(n), figure.unit));
        let value = match &figure.error {
            Some(_) => "failed".into(),
            None => number(figure.value),
        };
        let mut row = vec![
            Cell::new(&figure.what),
            Cell::new(value),
            Cell::new(number(figure.base)),
            Cell::new(figure.ratio.map_or("-".into(), |r| format!("{r:.3}"))),
            Cell::new(
                figure
                    .spread
                    .map_or("-".into(), |s| format!("{:.0} %", s * 100.0)),
            ),
            Cell::new(figure.goal.map_or("-".into(), |g| g.to_string())),
            Cell::new(match figure.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            }),
        ];
        let bounds = bounds.iter().map(|(name, _)| {
            let ratio = figure.detail.get(*name);
            Cell::new(ratio.map_or("-".into(), |r| format!("{r:.3}")))
        });
        row.splice(4..4, bounds);
        out.add_row(row);
    }
    out
}

/// Three significant digits, no exponent.
pub(crate) fn short(n: f64) -> String {
    match n.abs() {
        a if a >= 100.0 => format!("{n:.0}"),
        a if a >= 10.0 => format!("{n:.1}"),
        a if a >= 1.0 => format!("{n:.2}"),
        _ => format!("{n:.3}"),
    }
}

/// Bytes with a binary unit.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{} {}", short(value), UNITS[unit]),
    }
}

/// A growth with its sign.
pub(crate) fn bytes_added(before: u64, after: u64) -> String {
    match after.checked_sub(before) {
        Some(grown) => format!("+{}", bytes(grown)),
        None => format!("-{}", bytes(before - after)),
    }
}

/// Nanoseconds in microseconds.
pub(crate) fn micros(ns: u64) -> String {
    format!("{} us", short(ns as f64 / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Goal;

    #[test]
    fn numbers_read_well() {
        assert_eq!(short(1234.5), "1234");
        assert_eq!(short(0.9512), "0.951");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 20), "3.00 MiB");
        assert_eq!(bytes_added(5, 2), "-3 B");
        assert_eq!(bytes_added(0, 1024), "+1.00 KiB");
        assert_eq!(micros(8_700), "8.70 us");
    }

    #[test]
    fn a_failed_figure_shows_no_number() {
        let goal = Some(Goal::AtLeast(1.0));
        let text = figures(&[Figure::failed("a", "copy", "GB/s", goal, "no")]).to_string();
        assert!(text.contains("failed") && !text.contains("GB/s"), "{text}");
    }
}
