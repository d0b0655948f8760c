//! Rows as a picture: what each contender took by the size of its state, both axes in powers.
//!
//! A curve is a contender's median, the thin line beside it what 99 of 100 did not exceed; a limit is
//! dashed and grey. The colours are those of Okabe and Ito, which colour-blind people can tell apart,
//! and each contender has a mark of its own besides.

use std::{
    error::Error,
    fs::Permissions,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tempfile::NamedTempFile;

use super::report::Row;

/// The whole picture, pixels.
const SIZE: (u32, u32) = (1000, 560);
/// The curves and their axes; the legend has the rest.
const CURVES_WIDTH: i32 = 720;
/// The title, and what was measured.
const HEAD_HEIGHT: i32 = 88;
/// More would not fit the width.
const LINE_CHARS_MAX: usize = 140;
const LINES_MAX: usize = 2;
/// Those that can be seen on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(86, 180, 233),
];
const GREY: RGBColor = RGBColor(110, 110, 110);
/// The marks' corners, around the point.
const MARKS: [&[(i32, i32)]; 4] = [
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -5), (5, 4), (-5, 4)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    &[(0, 5), (5, -4), (-5, -4)],
];
/// Labels nearer than this share of the axis to the one before are left out.
const LABELS_APART: f64 = 1.0 / 14.0;

/// Why there is no picture. A file that was there before is as it was.
#[derive(Debug, thiserror::Error)]
#[error("the plot {path:?}: {source}")]
pub struct PlotError {
    /// The file.
    path: PathBuf,
    /// What went wrong.
    source: io::Error,
}

/// A file that is going to be a picture. Until then nothing is seen of it.
#[derive(Debug)]
pub struct Plot {
    path: PathBuf,
    file: NamedTempFile,
}

impl Plot {
    /// Makes sure of the place, before anything is measured for it.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn begin(path: &Path) -> Result<Self, PlotError> {
        let failed = |source| PlotError { path: path.to_owned(), source };
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        // As for any new file, the umask decides who may read it.
        let file = tempfile::Builder::new()
            .prefix(".ringkeep-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Draws the rows, below a title and what was measured. The file appears whole or not at all.
    ///
    /// # Errors
    /// It could not be drawn or written.
    pub fn finish(mut self, title: &str, about: &[String], rows: &[Row]) -> Result<(), PlotError> {
        let path = self.path;
        let failed = |source| PlotError { path: path.clone(), source };
        // Drawing writes into memory; what it can fail for is no error of the system.
        let svg = svg(title, about, rows).map_err(|e| failed(io::Error::other(e.to_string())))?;
        self.file.write_all(svg.as_bytes()).map_err(failed)?;
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&path).map(drop).map_err(|e| failed(e.error))
    }
}

/// What was timed under one name, by size.
struct Curve<'a> {
    name: &'a str,
    is_limit: bool,
    colour: RGBColor,
    mark: &'static [(i32, i32)],
    /// Bytes and nanoseconds.
    medians: Vec<(f64, f64)>,
    p99s: Vec<(f64, f64)>,
}

fn curves(rows: &[Row]) -> Vec<Curve<'_>> {
    // Where nothing but limits was timed, each is a contender.
    let any = rows.iter().any(|row| !row.is_limit);
    let mut curves: Vec<Curve<'_>> = Vec::new();
    for row in rows {
        let point = |ns: u64| (row.bytes as f64, ns.max(1) as f64);
        let (median, p99) = (point(row.median_ns), point(row.p99_ns));
        match curves.iter_mut().find(|curve| curve.name == row.what) {
            Some(curve) => {
                curve.medians.push(median);
                curve.p99s.push(p99);
            }
            None => {
                let is_limit = row.is_limit && any;
                let number = curves.iter().filter(|curve| !curve.is_limit).count();
                let colour = if is_limit { GREY } else { COLOURS[number % COLOURS.len()] };
                let mark = MARKS[curves.len() % MARKS.len()];
                let (medians, p99s) = (vec![median], vec![p99]);
                curves.push(Curve { name: &row.what, is_limit, colour, mark, medians, p99s });
            }
        }
    }
    for curve in &mut curves {
        curve.medians.sort_by(|a, b| a.0.total_cmp(&b.0));
        curve.p99s.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), Box<dyn Error + 'a>>;

fn svg<'a>(title: &str, about: &[String], rows: &[Row]) -> Result<String, Box<dyn Error + 'a>> {
    let mut curves = curves(rows);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(said)?;
        root.draw_text(title, &words(20, &BLACK), (24, 16)).map_err(said)?;
        for (line, y) in wrapped(about).iter().zip((44..).step_by(18)) {
            root.draw_text(line, &words(13, &GREY), (24, y)).map_err(said)?;
        }
        let body = root.margin(HEAD_HEIGHT, 12, 12, 12);
        let (left, right) = body.split_horizontally(CURVES_WIDTH);
        draw_curves(&left, &curves)?;
        // From the top down as at the right end of the curves.
        let last = |curve: &Curve<'_>| curve.medians.last().map_or(0.0, |point| point.1);
        curves.sort_by(|a, b| last(b).total_cmp(&last(a)));
        draw_legend(&right, &curves)?;
        root.present().map_err(said)?;
    }
    Ok(text)
}

fn draw_curves<'a>(area: &Area<'_>, curves: &[Curve<'_>]) -> Drawn<'a> {
    let points = || curves.iter().flat_map(|curve| curve.medians.iter().chain(&curve.p99s));
    let (x_first, x_last) = range(points().map(|point| point.0));
    let (y_first, y_last) = range(points().map(|point| point.1));
    let sizes = points().map(|point| point.0).collect();
    let x_axis = (x_first..x_last).log_scale().with_key_points(apart(sizes, x_last / x_first));
    let (labelled, between) = decades(y_first, y_last);
    let y_axis = (y_first..y_last).log_scale().with_key_points(labelled).with_light_points(between);
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(x_axis, y_axis)
        .map_err(said)?;
    chart
        .configure_mesh()
        .x_desc("state")
        .y_desc("time")
        .x_label_formatter(&|bytes| bytes_text(*bytes))
        .y_label_formatter(&|ns| time_text(*ns))
        .label_style(words(13, &BLACK))
        .axis_style(GREY)
        .bold_line_style(BLACK.mix(0.14))
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(said)?;
    for curve in curves {
        let (medians, p99s) = (curve.medians.iter().copied(), curve.p99s.iter().copied());
        let thin = curve.colour.mix(0.45).stroke_width(1);
        chart.draw_series(LineSeries::new(p99s, thin)).map_err(said)?;
        let thick = curve.colour.stroke_width(2);
        if curve.is_limit {
            let dashes = DashedLineSeries::new(curve.medians.iter().copied(), 7, 5, thick);
            chart.draw_series(dashes).map_err(said)?;
        } else {
            chart.draw_series(LineSeries::new(medians.clone(), thick)).map_err(said)?;
        }
        let mark = |at| EmptyElement::at(at) + Polygon::new(curve.mark, curve.colour.filled());
        chart.draw_series(medians.map(mark)).map_err(said)?;
    }
    Ok(())
}

fn draw_legend<'a>(area: &Area<'_>, curves: &[Curve<'_>]) -> Drawn<'a> {
    let word = |colour| words(13, colour).pos(Pos::new(HPos::Left, VPos::Center));
    let mut y = 24;
    for curve in curves {
        let style = curve.colour.stroke_width(2);
        let pieces: &[(i32, i32)] =
            if curve.is_limit { &[(8, 15), (20, 27), (32, 36)] } else { &[(8, 36)] };
        for &(from, to) in pieces {
            area.draw(&PathElement::new([(from, y), (to, y)], style)).map_err(said)?;
        }
        let corners: Vec<_> = curve.mark.iter().map(|(dx, dy)| (22 + dx, y + dy)).collect();
        area.draw(&Polygon::new(corners, curve.colour.filled())).map_err(said)?;
        area.draw_text(curve.name, &word(&BLACK), (44, y)).map_err(said)?;
        y += 24;
    }
    area.draw_text("thick: median", &word(&GREY), (8, y + 12)).map_err(said)?;
    let thin = "thin: 99 of 100 took at most this";
    area.draw_text(thin, &word(&GREY), (8, y + 32)).map_err(said)?;
    if curves.iter().any(|curve| curve.is_limit) {
        let dashed = "dashed: what the machine can do";
        area.draw_text(dashed, &word(&GREY), (8, y + 52)).map_err(said)?;
    }
    Ok(())
}

/// Errors of drawing borrow the picture; what they say does not.
fn said<'a>(error: impl Error) -> Box<dyn Error + 'a> {
    error.to_string().into()
}

fn words<'a>(size: i32, colour: &'a RGBColor) -> TextStyle<'a> {
    ("sans-serif", size).into_font().color(colour)
}

/// As few lines as have room for these, one after the other; what would be too much is left out.
fn wrapped(all: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in all {
        let len = |text: &str| text.chars().count();
        match lines.last_mut() {
            Some(line) if len(line) + 2 + len(part) <= LINE_CHARS_MAX => {
                line.push_str("; ");
                line.push_str(part);
            }
            _ => lines.push(part.chars().take(LINE_CHARS_MAX).collect()),
        }
    }
    lines.truncate(LINES_MAX);
    lines
}

/// All values, and a little room on both sides; one value has more.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let first = values.clone().fold(f64::MAX, f64::min).min(1e18);
    let last = values.fold(first, f64::max);
    let room = if last > first { (last / first).powf(0.04).max(1.1) } else { 4.0 };
    (first / room, last * room)
}

/// Those of the values that labels have room for, on an axis whose end is so many times its begin.
fn apart(mut values: Vec<f64>, axis: f64) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    let step = axis.powf(LABELS_APART);
    let mut kept: Vec<f64> = Vec::new();
    for value in values {
        if kept.last().is_none_or(|last| value / last >= step) {
            kept.push(value);
        }
    }
    kept
}

/// What is labelled, and what has a line only: powers of ten and their multiples. On a short axis
/// the 2 and 5 of each power are labelled, too.
fn decades(first: f64, last: f64) -> (Vec<f64>, Vec<f64>) {
    let powers = (first.log10().floor() as i32)..=(last.log10().ceil() as i32);
    let multiples = |digits: &'static [u8]| {
        let all = powers.clone().flat_map(move |power| {
            digits.iter().map(move |digit| f64::from(*digit) * 10f64.powi(power))
        });
        all.filter(|value| (first..=last).contains(value)).collect()
    };
    let is_long = last / first > 1e3;
    let labelled = multiples(if is_long { &[1] } else { &[1, 2, 5] });
    (labelled, multiples(&[1, 2, 3, 4, 5, 6, 7, 8, 9]))
}

/// As in `4 KiB`, rounded to what fits a label.
fn bytes_text(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB"])
}

/// As in `10 µs`.
fn time_text(ns: f64) -> String {
    scaled(ns, 1000.0, &["ns", "µs", "ms", "s"])
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    // A little more, so that a power of ten is not taken for slightly less.
    let power = ((value * 1.000_001).log(step).floor() as usize).min(units.len() - 1);
    let value = (value / step.powi(power as i32) * 100.0).round() / 100.0;
    format!("{value} {}", units[power])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::turns::Times;

    fn row(what: &str, bytes: u64, micros: u64) -> Row {
        Row::new(what, bytes, bytes, &Times::of([Duration::from_micros(micros)]))
    }

    #[test]
    fn labels_have_a_unit_that_suits_them() {
        let bytes = [8.0, 64.0, 4096.0, 1536.0, 1048576.0, 17179869184.0].map(bytes_text);
        assert_eq!(bytes, ["8 B", "64 B", "4 KiB", "1.5 KiB", "1 MiB", "16 GiB"]);
        let times = [100.0, 1e3, 2e4, 999_999.999_9, 1e6, 5e8, 1e9, 6e10].map(time_text);
        assert_eq!(times, ["100 ns", "1 µs", "20 µs", "1 ms", "1 ms", "500 ms", "1 s", "60 s"]);
    }

    #[test]
    fn labels_keep_apart_and_lie_on_the_axis() {
        assert_eq!(apart(vec![8.0, 8.0, 9.0, 4096.0, 64.0], 1e4), [8.0, 64.0, 4096.0]);
        let (labelled, between) = decades(900.0, 2.5e6);
        assert_eq!(labelled, [1e3, 1e4, 1e5, 1e6]);
        assert!(between.iter().all(|line| (900.0..=2.5e6).contains(line)) && between.len() > 20);
        assert_eq!(decades(9e3, 6e4).0, [1e4, 2e4, 5e4]);
    }

    #[test]
    fn a_picture_names_every_curve_and_marks_each_of_its_sizes() {
        let rows = [
            row("commit <fast>", 8, 10),
            row("limit", 8, 7).as_limit(),
            row("commit <fast>", 4096, 20),
            row("limit", 4096, 9).as_limit(),
        ];
        let svg = svg("A title", &["about it".to_owned()], &rows).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for word in ["A title", "about it", "commit &lt;fast&gt;", "limit", "8 B", "4 KiB", "10 µs"]
        {
            assert!(svg.contains(&format!("\n{word}\n")), "{word} in {svg}");
        }
        let marks = svg.matches("<polygon").count();
        assert_eq!(marks, rows.len() + 2, "one a row, and one a name in the legend");
    }

    #[test]
    fn what_was_measured_stays_inside_the_picture() {
        let parts = ["a".repeat(100), "b".repeat(30), "c".repeat(30), "d".repeat(500)];
        let lines = wrapped(&parts);
        assert_eq!(lines[0], format!("{}; {}", parts[0], parts[1]));
        assert_eq!((lines.len(), lines[1].as_str()), (2, parts[2].as_str()));
        assert_eq!(wrapped(&parts[3..])[0].len(), LINE_CHARS_MAX);
    }

    #[test]
    fn one_size_is_enough_for_a_picture() {
        assert!(svg("t", &[], &[row("alone", 1, 5)]).unwrap().contains("alone"));
    }

    #[test]
    fn the_file_appears_when_it_is_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("out.svg");
        drop(Plot::begin(&path).unwrap());
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "nothing is left behind");
        let plot = Plot::begin(&path).unwrap();
        assert!(!path.exists());
        plot.finish("t", &[], &[row("alone", 1, 5)]).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("<svg"));
        let error = Plot::begin(&tmp.path().join("no/out.svg")).unwrap_err().to_string();
        assert!(error.contains("no/out.svg"), "{error}");
        assert!(Plot::begin(tmp.path()).is_err(), "a directory is not replaced");
    }
}
