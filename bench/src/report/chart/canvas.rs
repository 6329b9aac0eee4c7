//! What charts are drawn with: a surface of fixed width, text that can be
//! measured, and shapes.
//!
//! A chart is drawn at twice the size that a page shows it at, since the
//! surface has whole pixels only. Text is what its reader has for a
//! sans-serif font; it is measured with the widest of the usual ones.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of every chart; a page shows it at half of that.
pub(super) const WIDTH: i32 = 920;
/// Sizes of text.
pub(super) const BODY: i32 = 24;
pub(super) const SMALL: i32 = 21;
pub(super) const TITLE: i32 = 29;

/// Text and axes. A page in the dark changes exactly these three.
pub(crate) const INK: RGBColor = RGBColor(0x1b, 0x1f, 0x24);
/// What is less important.
pub(crate) const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6a);
/// Lines behind the data.
pub(crate) const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);

/// Width of curves, and what a dashed one's begins with.
const CURVE: u32 = 4;
const DASHED: u32 = 4000;

const FAMILY: &str = "sans-serif";
/// The library gives a font's height for its size.
const HEIGHT_OVER_SIZE: f64 = 1.24;

/// A surface.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A place on the surface.
pub(super) type At = (i32, i32);

/// Draws on a surface of this height.
pub(super) fn draw(height: i32, paint: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    fonts()?;
    let mut svg = String::new();
    let size = (WIDTH as u32, height.max(1) as u32);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    paint(&area)?;
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

fn fonts() -> Result<()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let good = REGISTERED.get_or_init(|| {
        let regular = register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular());
        let bold = register_font(FAMILY, FontStyle::Bold, dejavu::sans::bold());
        regular.and(bold).is_ok()
    });
    match good {
        true => Ok(()),
        false => Err(anyhow!("the built-in font cannot be read")),
    }
}

/// The library's errors borrow what they are about.
pub(super) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw a chart: {error}")
}

/// How text looks, and which of its points is where it is put.
#[derive(Clone, Copy)]
pub(super) struct Font {
    pub size: i32,
    pub bold: bool,
    pub color: RGBColor,
    pub across: HPos,
    pub down: VPos,
}

impl Font {
    /// Left-aligned, centred in height.
    pub(super) const fn new(size: i32, color: RGBColor) -> Font {
        Font {
            size,
            bold: false,
            color,
            across: HPos::Left,
            down: VPos::Center,
        }
    }

    pub(super) const fn bold(self) -> Font {
        Font { bold: true, ..self }
    }

    pub(super) const fn right(self) -> Font {
        Font {
            across: HPos::Right,
            ..self
        }
    }

    pub(super) const fn middle(self) -> Font {
        Font {
            across: HPos::Center,
            ..self
        }
    }

    fn description(&self) -> FontDesc<'static> {
        let style = match self.bold {
            true => FontStyle::Bold,
            false => FontStyle::Normal,
        };
        let size = f64::from(self.size) * HEIGHT_OVER_SIZE;
        FontDesc::new(FontFamily::Name(FAMILY), size, style)
    }

    /// How wide text is.
    pub(super) fn width(&self, text: &str) -> i32 {
        let guess = text.chars().count() as i32 * self.size * 6 / 10;
        let measured = fonts()
            .ok()
            .and_then(|()| self.description().box_size(text).ok());
        measured.map_or(guess, |(width, _)| width as i32)
    }

    /// Text in lines of at most this width, broken between words; what is
    /// more than `lines` is cut with an ellipsis.
    pub(super) fn wrap(&self, text: &str, width: i32, lines: usize) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match out.last_mut() {
                Some(line) if self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => out.push(word.to_owned()),
            }
        }
        let cut = out.len() > lines;
        out.truncate(lines);
        for (number, line) in out.iter_mut().enumerate() {
            let last = cut && number + 1 == lines;
            *line = self.fit(&format!("{line}{}", if last { " …" } else { "" }), width);
        }
        out
    }

    /// Text cut to this width.
    pub(super) fn fit(&self, text: &str, width: i32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut kept: Vec<char> = text.trim_end_matches('…').trim_end().chars().collect();
        while !kept.is_empty() {
            kept.pop();
            let shorter: String = kept.iter().collect::<String>().trim_end().to_owned() + "…";
            if self.width(&shorter) <= width {
                return shorter;
            }
        }
        String::new()
    }
}

pub(super) fn text(area: &Area<'_>, font: Font, at: At, text: &str) -> Result<()> {
    let style = TextStyle::from(font.description())
        .color(&font.color)
        .pos(Pos::new(font.across, font.down));
    let element = Text::new(text.to_owned(), at, style);
    area.draw(&element).map_err(failed)
}

pub(super) fn line(area: &Area<'_>, points: &[At], color: RGBColor, width: u32) -> Result<()> {
    // One of no length is an error to those who draw it.
    if points.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    let element = PathElement::new(points.to_vec(), color.stroke_width(width));
    area.draw(&element).map_err(failed)
}

pub(super) fn filled(area: &Area<'_>, corners: [At; 2], color: RGBColor) -> Result<()> {
    let element = Rectangle::new(corners, color.filled());
    area.draw(&element).map_err(failed)
}

pub(super) fn outlined(area: &Area<'_>, corners: [At; 2], color: RGBColor) -> Result<()> {
    let element = Rectangle::new(corners, color.stroke_width(2));
    area.draw(&element).map_err(failed)
}

pub(super) fn polygon(area: &Area<'_>, points: &[At], color: RGBColor) -> Result<()> {
    let element = Polygon::new(points.to_vec(), color.filled());
    area.draw(&element).map_err(failed)
}

pub(super) fn dot(area: &Area<'_>, at: At, radius: i32, color: RGBColor) -> Result<()> {
    let element = Circle::new(at, radius, color.filled());
    area.draw(&element).map_err(failed)
}

/// A line with gaps: `dash` pixels drawn, as many left out; 0 for none.
///
/// The drawing library cuts dashes into lines of their own, a hundred for a
/// curve: a width that no line has stands for each, until the picture is
/// whole.
pub(super) fn dashed(area: &Area<'_>, points: &[At], color: RGBColor, dash: i32) -> Result<()> {
    match dash {
        0 => line(area, points, color, CURVE),
        dash => line(area, points, color, DASHED + dash.unsigned_abs()),
    }
}

/// Turns the widths that stand for dashes into dashes.
pub(super) fn with_dashes(svg: &str) -> String {
    let mut out = svg.to_owned();
    for dash in 1..100 {
        let stand_in = format!("stroke-width=\"{}\"", DASHED + dash);
        if out.contains(&stand_in) {
            let real = format!("stroke-width=\"{CURVE}\" stroke-dasharray=\"{dash}\"");
            out = out.replace(&stand_in, &real);
        }
    }
    out
}

/// A title and what it is measured in; returns how far down they reach.
pub(super) fn title(area: &Area<'_>, title: &[String], under: &[String]) -> Result<i32> {
    let mut y = TITLE / 2 + 6;
    for words in title {
        text(area, Font::new(TITLE, INK).bold(), (0, y), words)?;
        y += TITLE + 8;
    }
    y -= 4;
    for words in under {
        text(area, Font::new(SMALL, MUTED), (0, y), words)?;
        y += SMALL + 8;
    }
    Ok(y)
}

/// The lines of a title of this text, and of what goes under it.
pub(super) fn title_lines(title: &str, under: &str) -> (Vec<String>, Vec<String>) {
    let bold = Font::new(TITLE, INK).bold();
    (
        bold.wrap(title, WIDTH, 3),
        Font::new(SMALL, MUTED).wrap(under, WIDTH, 2),
    )
}

/// How high a title is.
pub(super) fn title_height(lines: &(Vec<String>, Vec<String>)) -> i32 {
    let (title, under) = (lines.0.len() as i32, lines.1.len() as i32);
    title * (TITLE + 8) + under * (SMALL + 8) + TITLE / 2 + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_measured_broken_and_cut() {
        let font = Font::new(BODY, INK);
        assert!(font.width("wide words") > font.width("words"));
        assert!(font.bold().width("words") > font.width("words"));
        let words = "sequential read of a whole file by psync";
        let lines = font.wrap(words, 200, 9);
        assert!(lines.len() > 1 && lines.iter().all(|l| font.width(l) <= 200));
        assert_eq!(lines.join(" "), words);
        let cut = font.wrap(words, 200, 1);
        assert!(cut.len() == 1 && cut[0].ends_with('…'), "{cut:?}");
        assert!(font.width(&font.fit(&"long".repeat(90), 100)) <= 100);
        assert_eq!(font.fit("short", 900), "short");
    }

    #[test]
    fn a_dashed_line_is_one_line() {
        let points = [(0, 0), (90, 9)];
        let svg = draw(50, |area| {
            dashed(area, &points, INK, 12)?;
            dashed(area, &points, INK, 0)
        });
        let svg = with_dashes(&svg.expect("drawn"));
        assert_eq!(svg.matches("stroke-width=\"4\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("stroke-dasharray=\"12\"").count(), 1, "{svg}");
    }

    #[test]
    fn what_is_drawn_is_in_the_picture() {
        let svg = draw(50, |area| text(area, Font::new(BODY, INK), (1, 2), "a < b"));
        let svg = svg.expect("drawn");
        assert!(
            svg.contains("a &lt; b") && svg.contains("viewBox=\"0 0 920 50\""),
            "{svg}"
        );
        assert!(svg.to_lowercase().contains("#1b1f24"), "{svg}");
    }
}
