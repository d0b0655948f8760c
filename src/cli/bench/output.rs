//! Rows as they come, for people; all at once as JSON; and as a picture.

use std::fmt::Write as _;

use indicatif::ProgressBar;
use serde::Serialize;

use super::super::{
    args::{JsonFlag, PlotFlag},
    exit::{self, Exit, Failure, Outcome},
    print_json,
    values::Size,
};
use crate::bench::{
    files::Place,
    plot::{Plot, PlotError},
    redis::About,
    report::Row,
};

/// Numbers of a row are so wide, unless they need more.
const TIME_WIDTH: usize = 7;

/// How a table looks.
pub(super) struct Table {
    pub(super) title: &'static str,
    /// As wide as the longest name.
    pub(super) names: usize,
    /// What stands above the ratio to the limit.
    pub(super) ratio: &'static str,
    /// The columns behind it.
    pub(super) besides: Vec<Besides>,
}

impl Table {
    /// One that ends with the ratio to the limit, and has room for these names.
    pub(super) fn new<'a>(title: &'static str, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().map(|name| name.chars().count()).max().unwrap_or(0);
        Self { title, names, ratio: "of limit", besides: Vec::new() }
    }

    fn head(&self) -> String {
        let (names, time) = (self.names, TIME_WIDTH);
        let mut text = format!("{:>10} {:<names$} {:>7}", "#bytes", "times in usec", "#iter");
        for column in ["t_min", "t_max", "t_typ", "t_avg", "t_stdev", "99%", "99.9%"] {
            let _ = write!(text, " {column:>time$}");
        }
        let _ = write!(text, " {:>7} {:>8}", "MB/s", self.ratio);
        for besides in &self.besides {
            let _ = write!(text, " {:>8}", besides.head());
        }
        text.push('\n');
        text
    }

    fn line(&self, row: &Row) -> String {
        let (names, time) = (self.names, TIME_WIDTH);
        let mut text = format!("{:>10} {:<names$} {:>7}", row.bytes, row.what, row.iterations);
        let (min, max) = (row.min_ns as f64, row.max_ns as f64);
        let (typical, p99, p999) = (row.median_ns as f64, row.p99_ns as f64, row.p999_ns as f64);
        for ns in [min, max, typical, row.mean_ns, row.stdev_ns, p99, p999] {
            let _ = write!(text, " {:>time$}", usec(ns));
        }
        // Where nothing is moved there is no rate.
        let rate = match row.changed_bytes {
            0 => String::new(),
            _ => digits(row.bytes_per_second / 1e6),
        };
        let ratio = |of: Option<f64>| of.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        let _ = write!(text, " {rate:>7} {:>8}", ratio(row.of_limit));
        for besides in &self.besides {
            let _ = write!(text, " {:>8}", besides.of(row));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

/// A column behind the ratio to the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Besides {
    /// The ratio to a round trip between two threads only.
    Bare,
    /// The share of a commit of the whole state.
    Whole,
    /// The ratio to ringkeep.
    Ringkeep,
}

impl Besides {
    fn head(self) -> &'static str {
        match self {
            Self::Bare => "of bare",
            Self::Whole => "of whole",
            Self::Ringkeep => "of ours",
        }
    }

    fn of(self, row: &Row) -> String {
        let (value, unit) = match self {
            Self::Bare => (row.of_bare, "x"),
            Self::Whole => (row.of_whole.map(|share| share * 100.0), "%"),
            Self::Ringkeep => (row.of_ringkeep, "x"),
        };
        value.map_or_else(String::new, |value| format!("{value:.2}{unit}"))
    }
}

fn usec(ns: f64) -> String {
    digits(ns / 1e3)
}

/// As many as a column has room for.
fn digits(number: f64) -> String {
    match number {
        ..1e3 => format!("{number:.2}"),
        ..1e5 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) ring: Option<Where>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<Beside>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<FailureOf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) elsewhere: Option<Elsewhere>,
    /// Why nothing is said of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) no_limit: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) skipped: Vec<Skipped>,
    pub(super) rows: Vec<Row>,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Where {
    /// The servers were started for this.
    pub(super) started: bool,
    pub(super) node: String,
    pub(super) transport: String,
    pub(super) members: usize,
    pub(super) hugepages: bool,
}

/// What ringkeep is compared with.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    /// Where files are replaced.
    pub(super) files: Vec<Place>,
    pub(super) redis: Option<About>,
}

/// What fails, and what notices it.
#[derive(Debug, Serialize)]
pub(super) struct FailureOf {
    /// The signal that the server gets.
    pub(super) signal: &'static str,
    /// The profile of `--detection`.
    pub(super) detection: String,
    /// The silence after which a neighbour is suspected: the limit of detection.
    pub(super) silence_ns: u64,
    pub(super) checkpoints: u32,
}

/// Who has a state, and who gets it on another node.
#[derive(Debug, Serialize)]
pub(super) struct Elsewhere {
    /// The node of its owner, which lives.
    pub(super) owner: String,
    /// Reads a copy from there.
    pub(super) reader: String,
    /// Take it over, each from the one before.
    pub(super) takers: Vec<String>,
}

/// A size that was not measured.
#[derive(Debug, Serialize)]
pub(super) struct Skipped {
    pub(super) bytes: u64,
    /// Bytes of memory that it takes, about.
    pub(super) needs_bytes: u64,
    /// Bytes that there are.
    pub(super) free_bytes: u64,
}

impl Report {
    /// What was measured, one line each.
    fn lines(&self) -> Vec<String> {
        let ring = self.ring.as_ref().map(|at| {
            let whose = if at.started { "started for this" } else { "running" };
            let pages = if at.hugepages { "huge pages" } else { "ordinary pages" };
            let Where { node, members, transport, .. } = at;
            format!("{members} servers, {whose}; at {node}, {transport}, {pages}")
        });
        let beside = self.beside.iter().flat_map(|beside| {
            let files = beside.files.iter().map(|Place { dir, file_system }| {
                format!("files in {}, {file_system}", dir.display())
            });
            files.chain(beside.redis.iter().flat_map(redis_lines))
        });
        let failure = self.failure.as_ref().map(|of| {
            let FailureOf { signal, detection, silence_ns, checkpoints } = of;
            let ms = silence_ns / 1_000_000;
            let many = if *checkpoints == 1 { "" } else { "s" };
            format!(
                "{signal}; {checkpoints} checkpoint{many}; --detection {detection}: suspected after {ms} \
                 ms of silence"
            )
        });
        let elsewhere = self.elsewhere.iter().flat_map(elsewhere_lines);
        let no_limit = self.no_limit.iter().map(|why| format!("no limit: {why}"));
        ring.into_iter().chain(beside).chain(failure).chain(elsewhere).chain(no_limit).collect()
    }
}

fn elsewhere_lines(elsewhere: &Elsewhere) -> [String; 2] {
    let Elsewhere { owner, reader, takers } = elsewhere;
    let takers = takers.join(", ");
    [
        format!(
            "read from another node: {reader} gets a copy out of {owner}, where the owner lives"
        ),
        format!(
            "taken over: by {takers} in turns, each out of the one before, where the owner lives"
        ),
    ]
}

fn redis_lines(about: &About) -> Vec<String> {
    let whose = if about.started { "started for this" } else { "running" };
    let version = about.version.as_deref().unwrap_or("of unknown version");
    let disk = match about.appends_to_disk {
        Some(true) => ", appends to a disk besides",
        Some(false) => ", nothing on a disk",
        None => "",
    };
    let mut lines = vec![format!("Redis {version}, {whose}; at {}{disk}", about.address)];
    if !about.tuning.is_empty() {
        lines.push(format!("Redis has {}", about.tuning.join(", ")));
    }
    lines
}

/// Where rows go.
pub(super) struct Output {
    json: bool,
    plot: Option<Plot>,
    table: Table,
    report: Report,
    /// Hidden while something is printed.
    progress: ProgressBar,
}

impl Output {
    /// Begins with what is measured.
    pub(super) fn begin(
        table: Table,
        output: &JsonFlag,
        plot: &PlotFlag,
        report: Report,
    ) -> Result<Self, Failure> {
        let plot = plot.plot.as_deref().map(Plot::begin).transpose().map_err(no_plot)?;
        let progress = ProgressBar::hidden();
        let output = Self { json: output.json, plot, table, report, progress };
        let lines = output.report.lines().into_iter();
        let mut text: String = lines.map(|line| line + "\n").collect();
        text += &output.table.head();
        output.say(&text)?;
        Ok(output)
    }

    /// The same, with a bar that steps aside for what is printed.
    pub(super) fn beside(mut self, progress: ProgressBar) -> Self {
        self.progress = progress;
        self
    }

    /// As [`Output::say`].
    pub(super) fn row(&mut self, row: Row) -> Result<bool, Failure> {
        let text = self.table.line(&row);
        self.report.rows.push(row);
        self.say(&text)
    }

    /// All of these, as far as anybody reads them. False when nobody does.
    pub(super) fn rows(&mut self, rows: impl IntoIterator<Item = Row>) -> Result<bool, Failure> {
        for row in rows {
            if !self.row(row)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says that this size is left out, and why. As [`Output::say`].
    pub(super) fn skip(&mut self, skipped: Skipped) -> Result<bool, Failure> {
        let Skipped { bytes, needs_bytes, free_bytes } = skipped;
        let (needs, free) = (Size(needs_bytes), Size(free_bytes));
        let text =
            format!("{bytes:>10} left out: takes about {needs} of memory, {free} are free\n");
        self.report.skipped.push(skipped);
        self.say(&text)
    }

    /// False when nobody reads on: there is nothing to measure for.
    fn say(&self, text: &str) -> Result<bool, Failure> {
        Ok(self.json || self.progress.suspend(|| exit::print_on(text))?)
    }

    /// The whole report, once all rows are there.
    pub(super) fn end(self) -> Outcome {
        self.progress.finish_and_clear();
        if let Some(plot) = self.plot {
            let about = self.report.lines();
            plot.finish(self.table.title, &about, &self.report.rows).map_err(no_plot)?;
        }
        match self.json {
            true => print_json(&self.report),
            false => Ok(Exit::Done),
        }
    }
}

fn no_plot(error: PlotError) -> Failure {
    Failure::new(Exit::Failed, error).hint("name a file in a directory that you may write")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::turns::Times;

    #[test]
    fn numbers_stand_below_their_heads_whatever_their_size() {
        let names = ["copy, round trip of TCP"];
        let mut table = Table::new("t", names);
        table.besides.push(Besides::Bare);
        let head = table.head();
        assert!(head.trim_end().chars().count() < 125, "{head}");
        for (bytes, micros) in [(1, 1), (1 << 30, 9_000_000)] {
            let times = Times::of([Duration::from_micros(micros), Duration::from_micros(1)]);
            let row = Row::new(names[0], bytes, bytes, &times);
            let line = table.line(&row.clone().beside(&row).beside_bare(&row));
            assert_eq!(line.chars().count(), head.chars().count(), "{head}{line}");
        }
    }

    #[test]
    fn a_time_has_as_many_digits_as_there_is_room_for() {
        let told = [0.0, 24.0, 999_000.0, 12_345_600.0, 98_765_432_100.0].map(usec);
        assert_eq!(told, ["0.00", "0.02", "999.00", "12345.6", "98765432"]);
    }

    #[test]
    fn a_column_says_nothing_of_what_it_does_not_know() {
        let times = Times::of([Duration::from_micros(1)]);
        let row = Row::new("one", 8, 8, &times);
        let all = [Besides::Bare, Besides::Whole, Besides::Ringkeep];
        assert!(all.iter().all(|besides| besides.of(&row).is_empty()));
        let told = |row: Row| all.map(|besides| besides.of(&row));
        assert_eq!(told(row.clone().beside_bare(&row)), ["1.00x", "", ""]);
        assert_eq!(told(row.clone().beside_whole(&row)), ["", "100.00%", ""]);
        assert_eq!(told(row.clone().compared_with(&row)), ["", "", "1.00x"]);
    }
}
