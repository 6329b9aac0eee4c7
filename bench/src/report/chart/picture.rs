//! From a drawing to the forms it is used in.

use anyhow::{Context, Result};
use resvg::{tiny_skia, usvg};

use super::canvas::with_dashes;
use super::palette::with_patterns;

/// For a page: scales with its place, is named for those who cannot see it,
/// and takes its text's colour from the page's style.
pub(crate) fn inline(svg: &str, id: &str, name: &str) -> String {
    let attributes = format!(
        "<svg class=\"chart\" id=\"{}\" role=\"img\" aria-label=\"{}\" ",
        escape(id),
        escape(name)
    );
    with_attributes(&with_patterns(&with_dashes(svg)), &attributes)
}

/// For a file of its own: on white.
pub(crate) fn standalone(svg: &str) -> String {
    let svg = with_patterns(&with_dashes(svg));
    let ground = "<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>";
    match svg.find('>') {
        Some(end) => format!("{}{ground}{}", &svg[..=end], &svg[end + 1..]),
        None => svg,
    }
}

/// A picture of a standalone drawing, at its own size.
pub(crate) fn to_png(svg: &str) -> Result<Vec<u8>> {
    let mut options = usvg::Options {
        font_family: "DejaVu Sans".into(),
        ..usvg::Options::default()
    };
    let fonts = options.fontdb_mut();
    for font in [dejavu::sans::regular(), dejavu::sans::bold()] {
        fonts.load_font_data(font.to_vec());
    }
    fonts.set_sans_serif_family("DejaVu Sans");
    let tree = usvg::Tree::from_str(svg, &options).context("read a chart as SVG")?;
    let size = tree.size().to_int_size();
    let mut picture =
        tiny_skia::Pixmap::new(size.width(), size.height()).context("a chart has no size")?;
    picture.fill(tiny_skia::Color::WHITE);
    resvg::render(
        &tree,
        tiny_skia::Transform::default(),
        &mut picture.as_mut(),
    );
    picture.encode_png().context("write a chart as PNG")
}

/// The first tag with these attributes; its own size goes, its shape stays.
fn with_attributes(svg: &str, start: &str) -> String {
    let Some((_, after)) = svg.split_once("<svg ") else {
        return svg.to_owned();
    };
    let (tag, rest) = after.split_once('>').unwrap_or((after, ""));
    let kept: Vec<&str> = tag
        .split("\" ")
        .filter(|a| !a.starts_with("width=") && !a.starts_with("height="))
        .collect();
    format!("{start}{}>{rest}", kept.join("\" "))
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('"', "&quot;");
    text.replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWING: &str = "<svg width=\"10\" height=\"4\" viewBox=\"0 0 10 4\" \
        xmlns=\"http://www.w3.org/2000/svg\">\n<text x=\"0\" y=\"3\">w</text></svg>";

    #[test]
    fn in_a_page_it_has_a_name_and_no_size() {
        let svg = inline(DRAWING, "c1", "reads \"fast\"");
        assert!(svg.contains("id=\"c1\" role=\"img\" aria-label=\"reads &quot;fast&quot;\""));
        assert!(
            svg.contains("viewBox=\"0 0 10 4\"") && !svg.contains("width="),
            "{svg}"
        );
    }

    #[test]
    fn a_picture_has_its_size_and_is_not_blank() {
        let svg = standalone(DRAWING);
        assert!(svg.contains("#FFFFFF"));
        let png = to_png(&svg).expect("rendered");
        assert!(png.starts_with(b"\x89PNG"));
        let picture = tiny_skia::Pixmap::decode_png(&png).expect("decoded");
        assert_eq!((picture.width(), picture.height()), (10, 4));
        let dark = picture.pixels().iter().filter(|p| p.red() < 200).count();
        assert!(dark > 0 && dark < 40, "{dark}");
        assert!(to_png("<svg").is_err());
    }
}
