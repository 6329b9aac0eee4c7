//! How a stack looks: the same in every chart of a study.
//!
//! Law: no two stacks differ by colour alone. The colours are those of Okabe
//! and Ito, which people with any usual kind of colour vision tell apart; a
//! bar has a pattern besides, a line a marker and a dash.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use plotters::style::RGBColor;

use super::canvas::{Area, At, dot, filled, line, outlined, polygon};

const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const VERMILLION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);
const YELLOW: RGBColor = RGBColor(0xf0, 0xe4, 0x42);
const GREY: RGBColor = RGBColor(0x8a, 0x8a, 0x8a);
const WHITE: RGBColor = RGBColor(0xff, 0xff, 0xff);
const DARK: RGBColor = RGBColor(0x33, 0x33, 0x33);

/// Shapes of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Marker {
    Circle,
    Square,
    Up,
    Diamond,
    Cross,
    Down,
    Ring,
    Plus,
}

/// What a bar is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pattern {
    Plain,
    Rising,
    Falling,
    Upright,
    Crossed,
    Level,
    Wide,
    Dense,
}

/// How one stack looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Look {
    pub color: RGBColor,
    pub marker: Marker,
    pub pattern: Pattern,
    pub dash: i32,
}

const fn look(color: RGBColor, marker: Marker, pattern: Pattern, dash: i32) -> Look {
    Look {
        color,
        marker,
        pattern,
        dash,
    }
}

/// In order of preference for a stack that no rule knows.
const LOOKS: [Look; 8] = [
    look(BLUE, Marker::Circle, Pattern::Plain, 0),
    look(ORANGE, Marker::Square, Pattern::Rising, 16),
    look(GREEN, Marker::Up, Pattern::Upright, 8),
    look(VERMILLION, Marker::Diamond, Pattern::Falling, 20),
    look(SKY, Marker::Ring, Pattern::Level, 0),
    look(PURPLE, Marker::Cross, Pattern::Crossed, 10),
    look(GREY, Marker::Down, Pattern::Wide, 6),
    look(YELLOW, Marker::Plus, Pattern::Dense, 12),
];

/// Words in a stack's name, and which look goes with them if it is free.
const RULES: [(&[&str], usize); 11] = [
    (&["daxwindow", "always"], 0),
    (&["daxwindow", "inode"], 4),
    (&["daxwindow", "never"], 2),
    (&["daxwindow", "without"], 2),
    (&["virtiofsd", "auto"], 1),
    (&["virtiofsd", "always"], 3),
    (&["9p"], 5),
    (&["blk"], 6),
    (&["alioth"], 7),
    (&["daxwindow"], 0),
    (&["virtiofsd"], 1),
];

/// Looks by stack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Palette {
    looks: BTreeMap<String, Look>,
    /// In the order that charts show them.
    order: Vec<String>,
}

impl Palette {
    /// Gives each stack its look.
    pub(crate) fn of<'a>(stacks: impl Iterator<Item = &'a str>) -> Palette {
        let mut order: Vec<String> = Vec::new();
        for stack in stacks {
            if !order.iter().any(|s| s == stack) {
                order.push(stack.to_owned());
            }
        }
        // Ours first, else as measured.
        order.sort_by_key(|stack| !stack.starts_with("daxwindow"));
        let mut taken = BTreeSet::new();
        let mut looks = BTreeMap::new();
        for stack in &order {
            let matches = |words: &[&str]| words.iter().all(|w| stack.contains(w));
            let mut rules = RULES.iter().filter(|(words, _)| matches(words));
            if let Some(&(_, index)) = rules.find(|(_, index)| !taken.contains(index)) {
                taken.insert(index);
                looks.insert(stack.clone(), LOOKS[index]);
            }
        }
        for (number, stack) in order.iter().enumerate() {
            if looks.contains_key(stack) {
                continue;
            }
            let free = (0..LOOKS.len()).find(|i| !taken.contains(i));
            // More stacks than looks: another marker and pattern at least.
            let index = free.unwrap_or(number % LOOKS.len());
            let other = LOOKS[(index + 3 * usize::from(free.is_none())) % LOOKS.len()];
            taken.insert(index);
            let color = LOOKS[index].color;
            looks.insert(stack.clone(), Look { color, ..other });
        }
        Palette { looks, order }
    }

    pub(super) fn look(&self, stack: &str) -> Look {
        self.looks.get(stack).copied().unwrap_or(LOOKS[0])
    }

    /// Where a stack comes among others.
    pub(crate) fn rank(&self, stack: &str) -> usize {
        let place = self.order.iter().position(|s| s == stack);
        place.unwrap_or(usize::MAX)
    }
}

/// A point in a stack's shape.
pub(super) fn marker(area: &Area<'_>, at: At, look: Look, radius: i32) -> Result<()> {
    let (x, y) = at;
    let r = radius;
    let color = look.color;
    match look.marker {
        Marker::Circle => dot(area, at, r, color),
        Marker::Ring => {
            dot(area, at, r, color)?;
            dot(area, at, r / 2, WHITE)
        }
        Marker::Square => filled(area, [(x - r, y - r), (x + r, y + r)], color),
        Marker::Up => polygon(area, &[(x - r, y + r), (x + r, y + r), (x, y - r)], color),
        Marker::Down => polygon(area, &[(x - r, y - r), (x + r, y - r), (x, y + r)], color),
        Marker::Diamond => {
            let r = r + 2;
            polygon(
                area,
                &[(x - r, y), (x, y + r), (x + r, y), (x, y - r)],
                color,
            )
        }
        Marker::Cross => {
            line(area, &[(x - r, y - r), (x + r, y + r)], color, 5)?;
            line(area, &[(x - r, y + r), (x + r, y - r)], color, 5)
        }
        Marker::Plus => {
            line(area, &[(x - r, y), (x + r, y)], DARK, 8)?;
            line(area, &[(x, y - r), (x, y + r)], DARK, 8)?;
            line(area, &[(x - r, y), (x + r, y)], color, 5)?;
            line(area, &[(x, y - r), (x, y + r)], color, 5)
        }
    }
}

/// A bar in a stack's colour and pattern.
pub(super) fn bar(area: &Area<'_>, corners: [At; 2], look: Look) -> Result<()> {
    let [(left, _), (right, _)] = corners;
    if right <= left {
        return Ok(());
    }
    filled(area, corners, look.color)?;
    if look.pattern != Pattern::Plain {
        filled(area, corners, stand_in(look.pattern))?;
    }
    outlined(area, corners, darker(look.color))
}

/// The drawing library has no patterns: a colour that is used for nothing
/// else stands for each, until the picture is whole.
fn stand_in(pattern: Pattern) -> RGBColor {
    RGBColor(0x01, 0x02, pattern as u8)
}

/// Turns the colours that stand for patterns into patterns.
pub(super) fn with_patterns(svg: &str) -> String {
    const STROKE: &str = "stroke='#fff' stroke-opacity='.6'";
    let mut out = svg.to_owned();
    let mut definitions = String::new();
    for (pattern, path, turn) in [
        (Pattern::Rising, "M0 0V16", 45),
        (Pattern::Falling, "M0 0V16", -45),
        (Pattern::Upright, "M4 0V16", 0),
        (Pattern::Crossed, "M0 0V16M0 8H16", 45),
        (Pattern::Level, "M0 4H16", 0),
        (Pattern::Wide, "M0 0V16", 20),
        (Pattern::Dense, "M0 0V16M8 0V16", 45),
    ] {
        let RGBColor(r, g, b) = stand_in(pattern);
        let color = format!("fill=\"#{r:02X}{g:02X}{b:02X}\"");
        if !out.contains(&color) {
            continue;
        }
        let name = format!("{pattern:?}").to_lowercase();
        out = out.replace(&color, &format!("fill=\"url(#{name})\""));
        definitions += &format!(
            "<pattern id='{name}' width='16' height='16' patternUnits='userSpaceOnUse' \
             patternTransform='rotate({turn})'><path d='{path}' {STROKE} stroke-width='4'/></pattern>"
        );
    }
    match out.find('>') {
        Some(end) if !definitions.is_empty() => {
            out.insert_str(end + 1, &format!("<defs>{definitions}</defs>"));
            out
        }
        _ => out,
    }
}

fn darker(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let mix = |c: u8| (u16::from(c) * 7 / 10) as u8;
    RGBColor(mix(r), mix(g), mix(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const STACKS: [&str; 8] = [
        "virtiofsd cache=auto",
        "daxwindow dax=always",
        "daxwindow dax=inode",
        "daxwindow dax=never",
        "virtiofsd cache=always",
        "9p",
        "virtio-blk",
        "alioth",
    ];

    #[test]
    fn eight_stacks_differ_by_colour_marker_and_pattern() {
        let palette = Palette::of(STACKS.iter().copied());
        let looks = STACKS.map(|s| palette.look(s));
        let colors: HashSet<_> = looks
            .iter()
            .map(|l| (l.color.0, l.color.1, l.color.2))
            .collect();
        let markers: HashSet<_> = looks.iter().map(|l| l.marker).collect();
        let patterns: HashSet<_> = looks.iter().map(|l| l.pattern).collect();
        assert_eq!([colors.len(), markers.len(), patterns.len()], [8; 3]);
        assert_eq!(palette.look("daxwindow dax=always").color, BLUE);
        assert!(palette.rank("daxwindow dax=never") < palette.rank("virtiofsd cache=auto"));
    }

    #[test]
    fn patterns_take_the_place_of_the_colours_that_stand_for_them() {
        let svg = "<svg a=\"1\">\n<rect fill=\"#010201\"/><rect fill=\"#0072B2\"/></svg>";
        let made = with_patterns(svg);
        assert!(
            made.starts_with("<svg a=\"1\"><defs><pattern id='rising'"),
            "{made}"
        );
        assert!(made.contains("fill=\"url(#rising)\"") && made.contains("#0072B2"));
        assert_eq!(with_patterns("<svg></svg>"), "<svg></svg>");
    }

    #[test]
    fn more_stacks_than_looks_still_differ() {
        let names: Vec<String> = (0..12).map(|n| format!("stack {n}")).collect();
        let palette = Palette::of(names.iter().map(String::as_str));
        let of = |l: Look| (l.color.0, l.color.1, l.color.2, l.marker);
        let all: HashSet<_> = names.iter().map(|n| of(palette.look(n))).collect();
        assert_eq!(all.len(), names.len());
    }
}
