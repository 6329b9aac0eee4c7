//! The report in a real browser: Chromium of Debian's packages, which the kit
//! fetches, without a screen and without a network.
//!
//! The results are made up (`tests/data/report`): every kind of chart, a
//! failed cell, figures that are met and missed.

use std::path::{Path, PathBuf};
use std::process::Command;

use daxwindow_vm::Kit;
use daxwindow_vm::browser::Browser;
use serde_json::Value;

const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/report")
}

/// Runs `report`; returns what it said.
fn report(arguments: &[&Path]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daxwindow-bench"));
    let output = command
        .arg("report")
        .args(arguments)
        .output()
        .expect("starts");
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

fn drawn(out: &Path, more: &[&Path]) -> PathBuf {
    let from = data();
    let mut arguments = vec![Path::new("--from"), &from, Path::new("--out"), out];
    arguments.extend(more);
    let (good, said) = report(&arguments);
    assert!(good, "{said}");
    out.join("report.html")
}

fn browser() -> Browser {
    let kit = Kit::open(false).expect("a kit");
    Browser::find(&kit).expect("a browser")
}

fn window(size: (u32, u32)) -> String {
    format!("--window-size={},{}", size.0, size.1)
}

/// What the browser says of a page: its own surroundings (no bus, no graphics
/// card) are not the page's fault.
fn complaints(stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr).into_owned();
    let about_page = |line: &&str| line.contains("CONSOLE") || line.contains("net_error");
    text.lines().filter(about_page).map(str::to_owned).collect()
}

/// The page with a script in it that measures it: what the browser then shows
/// of the document holds the numbers. The page's own policy allows no script.
fn measured(browser: &Browser, page: &Path, size: (u32, u32)) -> Value {
    const PROBE: &str = r"
        const root = document.documentElement;
        const seen = (e) => { const b = e.getBoundingClientRect(); return [b.width, b.height, b.left, b.right]; };
        const found = {
            inner: window.innerWidth,
            scroll: root.scrollWidth,
            charts: [...document.querySelectorAll('svg.chart')].map((e) => [e.id, ...seen(e)]),
            texts: [...document.querySelectorAll('svg.chart text')].filter((e) => e.getBBox().x < -1 ||
                e.getBBox().x + e.getBBox().width > e.ownerSVGElement.viewBox.baseVal.width + 2)
                .map((e) => e.ownerSVGElement.id + ': ' + e.textContent.trim()),
            loaded: performance.getEntriesByType('resource').length,
        };
        root.setAttribute('data-found', JSON.stringify(found));";
    let text = std::fs::read_to_string(page).expect("the page");
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    assert!(text.contains(policy), "the page has a policy");
    let text = text.replace(policy, &format!("{policy}; script-src 'unsafe-inline'"));
    // Folded parts have a size too.
    let text = text.replace("<details>", "<details open>");
    let probe = page.with_file_name("probe.html");
    let text = text.replace("</body>", &format!("<script>{PROBE}</script></body>"));
    std::fs::write(&probe, text).expect("written");
    let output = browser
        .open(&probe, &[window(size), "--dump-dom".into()])
        .expect("opened");
    assert_eq!(complaints(&output.stderr), Vec::<String>::new());
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = dom.split_once("data-found=\"").expect("the probe ran");
    let (json, _) = rest.split_once('"').expect("an attribute");
    serde_json::from_str(&json.replace("&quot;", "\"").replace("&amp;", "&")).expect("JSON")
}

/// The names of the charts' files.
fn chart_files(out: &Path, extension: &str) -> Vec<String> {
    let entries = std::fs::read_dir(out.join("charts")).expect("charts");
    let paths = entries.map(|e| e.expect("an entry").path());
    let stem = |p: PathBuf| {
        p.file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    };
    let of = paths.filter(|p| p.extension().is_some_and(|e| e == extension));
    let mut names: Vec<String> = of.map(stem).collect();
    names.sort();
    names
}

#[test]
fn the_page_is_whole_on_a_desktop_and_on_a_phone() {
    let out = tempfile::tempdir().expect("directory");
    let page = drawn(out.path(), &[]);
    let browser = browser();
    let files = chart_files(out.path(), "svg");
    assert_eq!(files, chart_files(out.path(), "png"));
    for size in [DESKTOP, PHONE] {
        let found = measured(&browser, &page, size);
        assert_eq!(found["inner"], size.0, "{found}");
        assert_eq!(found["scroll"], size.0, "no scrolling sideways: {found}");
        assert_eq!(found["loaded"], 0, "nothing is loaded: {found}");
        assert_eq!(
            found["texts"],
            serde_json::json!([]),
            "text out of its chart"
        );
        let charts = found["charts"].as_array().expect("charts");
        let mut ids: Vec<&str> = charts.iter().filter_map(|c| c[0].as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, files, "every chart, once");
        for chart in charts {
            let side = |n: usize| chart[n].as_f64().expect("a length");
            assert!(side(1) > 250.0 && side(2) > 80.0, "{chart}");
            assert!(side(3) >= 0.0 && side(4) <= f64::from(size.0), "{chart}");
        }
    }
    for kind in [
        "throughput",
        "latency",
        "host-memory",
        "rate",
        "median-time",
        "mappings",
    ] {
        assert!(files.iter().any(|f| f.contains(kind)), "{kind}: {files:?}");
    }
}

/// Not blank: no colour has nearly all of the picture, and there are many.
fn looks_like_something(png: &Path, size: (u32, u32)) {
    let bytes = std::fs::read(png).expect("a picture");
    let picture = resvg::tiny_skia::Pixmap::decode_png(&bytes).expect("a PNG");
    assert_eq!((picture.width(), picture.height()), size);
    let mut colors = std::collections::HashMap::new();
    for p in picture.pixels() {
        *colors
            .entry((p.red(), p.green(), p.blue()))
            .or_insert(0usize) += 1;
    }
    let most = colors.values().max().copied().unwrap_or(0);
    let whole = (size.0 * size.1) as usize;
    assert!(colors.len() > 100, "{} colours", colors.len());
    assert!(most < whole * 97 / 100, "{most} of {whole} are alike");
}

#[test]
fn it_is_seen_on_screens_and_on_paper() {
    let out = tempfile::tempdir().expect("directory");
    let page = drawn(out.path(), &[]);
    let browser = browser();
    for (name, size, dark) in [
        ("desktop.png", DESKTOP, false),
        ("phone.png", PHONE, false),
        ("dark.png", PHONE, true),
    ] {
        let picture = out.path().join(name);
        let mut arguments = vec![window(size), format!("--screenshot={}", picture.display())];
        if dark {
            arguments.push("--blink-settings=preferredColorScheme=0".into());
        }
        let output = browser.open(&page, &arguments).expect("opened");
        assert_eq!(complaints(&output.stderr), Vec::<String>::new(), "{name}");
        looks_like_something(&picture, size);
    }
    let light = std::fs::read(out.path().join("phone.png")).expect("there");
    let dark = std::fs::read(out.path().join("dark.png")).expect("there");
    assert_ne!(light, dark, "the dark one has other colours");

    let paper = out.path().join("report.pdf");
    let arguments = [
        format!("--print-to-pdf={}", paper.display()),
        "--no-pdf-header-footer".into(),
    ];
    browser.open(&page, &arguments).expect("printed");
    let bytes = std::fs::read(&paper).expect("a PDF");
    assert!(
        bytes.starts_with(b"%PDF") && bytes.len() > 20_000,
        "{} bytes",
        bytes.len()
    );
    let text = String::from_utf8_lossy(&bytes);
    let pages = text.matches("/Type /Page\n").count() + text.matches("/Type /Page/").count();
    assert!((2..40).contains(&pages), "{pages} pages");
}

/// Needs nothing but itself, and says what failed and how to repeat it.
#[test]
fn the_page_and_its_files_say_everything() {
    let out = tempfile::tempdir().expect("directory");
    let page = std::fs::read_to_string(drawn(out.path(), &[])).expect("the page");
    for loads in ["src=", "url(http", "@import", "<script", "<link", "<iframe"] {
        assert!(!page.contains(loads), "{loads}");
    }
    for words in [
        "figures with a goal reach it",
        "✓ met",
        "✗ missed",
        "tcg: emulated",
        "the guest did not end fio within 120 s",
        "git checkout 0123456789ab",
        "target/release/daxwindow-bench fio --quick",
        "virtiofsd 1.14.0",
        "at least 2.5",
    ] {
        assert!(page.contains(words), "{words}");
    }
    let json = std::fs::read(out.path().join("report.json")).expect("JSON");
    let json: Value = serde_json::from_slice(&json).expect("parses");
    let studies = json["studies"].as_array().expect("studies");
    let cells = studies
        .iter()
        .filter_map(|s| s["cells"].as_array())
        .map(Vec::len);
    let cells: usize = cells.sum();
    let table = std::fs::read(out.path().join("cells.csv")).expect("CSV");
    let mut table = csv::Reader::from_reader(&table[..]);
    assert_eq!(table.records().filter(Result::is_ok).count(), cells);
    let header = table.headers().expect("a header").clone();
    assert!(header.iter().any(|h| h == "median") && header.iter().any(|h| h == "error"));
}

#[test]
fn a_baseline_shows_what_changed() {
    let before = tempfile::tempdir().expect("directory");
    drawn(before.path(), &[]);
    let path = before.path().join("report.json");
    // One figure was twice as good once.
    let text = std::fs::read_to_string(&path).expect("JSON");
    let mut json: Value = serde_json::from_str(&text).expect("parses");
    let cell = json["studies"].as_array_mut().expect("studies").iter_mut();
    let mut cells = cell.flat_map(|s| s["cells"].as_array_mut().expect("cells"));
    let cell = cells
        .find(|c| c["id"] == "seq-read-psync/1m/j1/first" && c["stack"] == "9p")
        .expect("a cell");
    for value in cell["values"].as_array_mut().expect("values") {
        *value = (value.as_f64().expect("a number") * 2.0).into();
    }
    std::fs::write(&path, json.to_string()).expect("written");
    let out = tempfile::tempdir().expect("directory");
    let page = drawn(out.path(), &[Path::new("--baseline"), &path]);
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(
        page.contains("<b>1 are worse</b>, <b>0 are better</b>"),
        "counted"
    );
    assert!(page.contains("▼ worse") && !page.contains("▲ better"));

    let (good, said) = report(&[Path::new("--from"), out.path()]);
    assert!(!good && said.contains("no results in"), "{said}");
}
