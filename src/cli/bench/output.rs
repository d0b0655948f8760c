//! Rows as they come, for people; all at once as JSON; and as a picture.

use std::fmt::Write as _;

use indicatif::ProgressBar;
use serde::Serialize;

use super::super::{
    args::{JsonFlag, PlotFlag},
    exit::{self, Exit, Failure, Outcome},
    print_json,
};
use crate::bench::{
    files::Place,
    plot::{Plot, PlotError},
    redis::About,
    report::Row,
};

/// The limit of whatever is mirrored.
pub(super) const ROUND_TRIP: &str = "copy, round trip of TCP";

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) ring: Option<Where>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<Beside>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<FailureOf>,
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
            files.chain(beside.redis.iter().map(redis_line))
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
        ring.into_iter().chain(beside).chain(failure).collect()
    }
}

fn redis_line(about: &About) -> String {
    let whose = if about.started { "started for this" } else { "running" };
    let version = about.version.as_deref().unwrap_or("of unknown version");
    let disk = match about.appends_to_disk {
        Some(true) => ", appends to a disk besides",
        Some(false) => ", nothing on a disk",
        None => "",
    };
    format!("Redis {version}, {whose}; at {}{disk}", about.address)
}

/// Where rows go.
pub(super) struct Output {
    json: bool,
    plot: Option<Plot>,
    title: &'static str,
    /// The last column.
    compared: bool,
    report: Report,
    /// Hidden while something is printed.
    progress: ProgressBar,
}

impl Output {
    /// Begins with what is measured.
    pub(super) fn begin(
        title: &'static str,
        output: &JsonFlag,
        plot: &PlotFlag,
        report: Report,
    ) -> Result<Self, Failure> {
        let plot = plot.plot.as_deref().map(Plot::begin).transpose().map_err(no_plot)?;
        let compared = report.beside.is_some();
        let progress = ProgressBar::hidden();
        let output = Self { json: output.json, plot, title, compared, report, progress };
        let mut text = String::new();
        for line in output.report.lines() {
            let _ = writeln!(text, "{line}");
        }
        let _ = write!(
            text,
            "{:>11} {:<30} {:>11} {:>12} {:>15} {:>12} {:>14} {:>10} {:>9}",
            "#bytes",
            "",
            "#iterations",
            "t_min[usec]",
            "t_median[usec]",
            "t_p99[usec]",
            "t_p99.9[usec]",
            "BW[MB/s]",
            "of limit"
        );
        text += if compared { "  of ringkeep\n" } else { "\n" };
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
        let usec = |ns: u64| ns as f64 / 1e3;
        let ratio = |of: Option<f64>| of.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        // Where nothing is moved there is no rate.
        let rate = match row.changed_bytes {
            0 => String::new(),
            _ => format!("{:.1}", row.bytes_per_second / 1e6),
        };
        let mut text = format!(
            "{:>11} {:<30} {:>11} {:>12.2} {:>15.2} {:>12.2} {:>14.2} {rate:>10} {:>9}",
            row.bytes,
            row.what,
            row.iterations,
            usec(row.min_ns),
            usec(row.median_ns),
            usec(row.p99_ns),
            usec(row.p999_ns),
            ratio(row.of_limit),
        );
        if self.compared {
            let _ = write!(text, " {:>12}", ratio(row.of_ringkeep));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        self.report.rows.push(row);
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
            plot.finish(self.title, &about, &self.report.rows).map_err(no_plot)?;
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
