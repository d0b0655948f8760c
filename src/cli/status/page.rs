//! What `status --watch` shows, as lines. Pure: what happened and the time are told.

use std::{collections::VecDeque, time::Duration};

use super::{
    beside_the_ring,
    changes::{self, end_of},
    checkpoint_rows, mirror_rows,
    progress::{Progress, Share},
    state,
};
use crate::{
    cli::{
        table::{Align, table},
        values::Size,
    },
    demo::drawing::{Charset, draw, ring_of},
    name::Name,
    protocol::{LinkState, RingState, Status},
};

/// How long a change is pointed at.
const NEW_FOR: Duration = Duration::from_secs(5);
/// Changes that are kept for being shown.
const CHANGES_MAX: usize = 6;
/// Columns of a bar.
const BAR_COLUMNS: u64 = 24;
/// A window of fewer rows shows the ring as a line.
const ROWS_FOR_PICTURE: usize = 40;

/// What a line is to a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Less than the rest.
    Quiet,
    /// The head of a table.
    Head,
    Good,
    Bad,
    /// It changed a moment ago.
    New,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// The window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) charset: Charset,
}

/// All that is known of the server. Times are those since the beginning.
#[derive(Debug)]
pub(super) struct Watch {
    latest: Status,
    heard: Duration,
    /// Why there was no newer answer.
    trouble: Option<String>,
    /// The newest first.
    changes: VecDeque<(Duration, String)>,
    joined: Vec<(Duration, Name)>,
    progress: Progress,
}

impl Watch {
    /// From the first answer.
    pub(super) fn new(first: Status) -> Self {
        let mut progress = Progress::default();
        progress.update(Duration::ZERO, &first);
        Self {
            latest: first,
            heard: Duration::ZERO,
            trouble: None,
            changes: VecDeque::new(),
            joined: Vec::new(),
            progress,
        }
    }

    /// The server answered, or why it did not.
    pub(super) fn heard(&mut self, now: Duration, answer: Result<Status, String>) {
        let status = match answer {
            Ok(status) => status,
            Err(why) => return self.trouble = Some(why),
        };
        if self.trouble.take().is_some() {
            self.changes.push_front((now, "the server answers again".to_owned()));
        }
        for change in changes::between(&self.latest, &status).into_iter().rev() {
            self.changes.push_front((now, change));
        }
        self.changes.truncate(CHANGES_MAX);
        self.joined.retain(|(since, _)| is_new(*since, now));
        let joined = changes::joined(&self.latest, &status);
        self.joined.extend(joined.into_iter().map(|name| (now, name)));
        self.progress.update(now, &status);
        (self.latest, self.heard) = (status, now);
    }

    /// What fits the window.
    pub(super) fn page(&self, now: Duration, window: Window) -> Vec<Line> {
        let mut page = self.head(now);
        page.extend(self.ring(now, window));
        page.extend(self.changes(now));
        page.extend(self.reprotection());
        page.extend(self.links());
        page.extend(self.checkpoints());
        page.extend(self.mirrors());
        if page.len() > window.rows {
            page.truncate(window.rows.saturating_sub(1));
            page.push(line(Tone::Quiet, "(more in a larger window)".to_owned()));
        }
        for line in &mut page {
            cut(&mut line.text, window.columns);
        }
        page
    }

    fn head(&self, now: Duration) -> Vec<Line> {
        let status = &self.latest;
        let mut head = match &self.trouble {
            Some(why) => {
                let age = seconds(now.saturating_sub(self.heard));
                let told =
                    format!("NO ANSWER from {}; asking again, as it was {age} s ago", status.node);
                vec![line(Tone::Bad, told), line(Tone::Bad, why.clone())]
            }
            None => {
                let good = status.state == RingState::Protected;
                let tone = if good { Tone::Good } else { Tone::Bad };
                vec![line(tone, format!("{} is {}", status.node, state(status)))]
            }
        };
        let memory = Share { sent: status.memory_bytes, of: status.memory_bytes_max };
        let text = format!(
            "q ends   memory {} {} of {}   transport {}   incarnation {}",
            bar(memory),
            Size(memory.sent),
            Size(memory.of),
            status.transport,
            status.incarnation
        );
        head.push(line(Tone::Quiet, text));
        head
    }

    fn ring(&self, now: Duration, window: Window) -> Vec<Line> {
        let status = &self.latest;
        let mut lines = vec![line(Tone::Plain, String::new())];
        let Some(view) = &status.view else {
            lines.push(line(Tone::Bad, "joining: in no view yet".to_owned()));
            return lines;
        };
        let role = |name: &Name| -> String {
            let roles = [
                (*name == status.node, "this node"),
                (status.predecessor.as_ref() == Some(name), "predecessor"),
                (status.successor.as_ref() == Some(name), "successor"),
                (status.suspects.contains(name), "DOES NOT ANSWER"),
                (self.joined.iter().any(|(_, joined)| joined == name), "new"),
            ];
            let told: Vec<&str> = roles.iter().filter(|(is, _)| *is).map(|(_, r)| *r).collect();
            if told.is_empty() { name.to_string() } else { format!("{name} ({})", told.join(", ")) }
        };
        let arrow = match window.charset {
            Charset::Unicode => " ─▶ ",
            Charset::Ascii => " -> ",
        };
        let mut names: Vec<String> = view.members.iter().map(role).collect();
        names.extend(view.members.first().map(Name::to_string));
        let fresh =
            self.changes.iter().any(|(at, text)| is_new(*at, now) && text.starts_with("view "));
        let tone = match (status.suspects.is_empty(), fresh) {
            (_, true) => Tone::New,
            (false, false) => Tone::Bad,
            (true, false) => Tone::Plain,
        };
        lines.push(line(tone, format!("view {}: {}", view.number, names.join(arrow))));
        let picture = draw(&ring_of(status), window.charset);
        let fits = picture.lines().all(|row| row.chars().count() <= window.columns);
        if fits && window.rows >= ROWS_FOR_PICTURE {
            lines.extend(picture.lines().map(|row| line(tone, row.to_owned())));
        }
        for (label, names) in beside_the_ring(status) {
            let bad = label == "Not answering";
            let tone = if bad { Tone::Bad } else { Tone::Plain };
            lines.push(line(tone, format!("{label}: {names}")));
        }
        lines
    }

    fn changes(&self, now: Duration) -> Vec<Line> {
        let told = |(at, text): &(Duration, String)| {
            let tone = if is_new(*at, now) { Tone::New } else { Tone::Quiet };
            line(tone, format!("{:>4} s ago  {text}", seconds(now.saturating_sub(*at))))
        };
        headed("CHANGES", self.changes.iter().map(told).collect())
    }

    fn reprotection(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self
            .progress
            .copies()
            .map(|(name, node, share)| {
                line(Tone::Plain, progress(share) + &format!("  {name} to {node}"))
            })
            .collect();
        if !lines.is_empty() {
            let mut all = progress(self.progress.total()) + "  all";
            if let Some(rate) = self.progress.bytes_per_second() {
                all += &format!(", {}/s", Size(rate));
            }
            if let Some(left) = self.progress.left() {
                all += &format!(", {} s left", seconds(left));
            }
            lines.insert(0, line(Tone::New, all));
        }
        headed("COPYING", lines)
    }

    fn links(&self) -> Vec<Line> {
        let links = &self.latest.links;
        let heads = [("LINK", Align::Left), ("OVER", Align::Left), ("STATE", Align::Left)];
        let rows = links.iter().map(|link| {
            let over = link.transport.map_or_else(|| "-".to_owned(), |kind| kind.to_string());
            [end_of(link), over, link.state.to_string()]
        });
        toned(table(heads, rows), links.iter().map(|link| link.state == LinkState::Up))
    }

    fn checkpoints(&self) -> Vec<Line> {
        let checkpoints = &self.latest.checkpoints;
        let fine = |c: &crate::protocol::OwnedStatus| {
            c.mirror.as_ref().is_some_and(|m| m.transport.is_some()) && c.syncing.is_empty()
        };
        toned(checkpoint_rows(&self.latest), checkpoints.iter().map(fine))
    }

    fn mirrors(&self) -> Vec<Line> {
        let fine =
            |m: &crate::protocol::MirrorStatus| m.state == crate::protocol::CopyState::InSync;
        toned(mirror_rows(&self.latest), self.latest.mirrors.iter().map(fine))
    }
}

fn is_new(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) < NEW_FOR
}

fn seconds(time: Duration) -> u64 {
    time.as_secs()
}

fn line(tone: Tone, text: String) -> Line {
    Line { tone, text }
}

/// Lines below an empty one and a head, if there are any.
fn headed(head: &str, lines: Vec<Line>) -> Vec<Line> {
    if lines.is_empty() {
        return lines;
    }
    let above = [line(Tone::Plain, String::new()), line(Tone::Head, head.to_owned())];
    above.into_iter().chain(lines).collect()
}

/// A table whose rows are as they should be, or not.
fn toned(table: String, fine: impl Iterator<Item = bool>) -> Vec<Line> {
    let mut rows = table.lines().map(str::to_owned);
    let Some(head) = rows.next() else { return Vec::new() };
    let tone = |fine| if fine { Tone::Plain } else { Tone::Bad };
    let lines: Vec<Line> = rows.zip(fine).map(|(row, fine)| line(tone(fine), row)).collect();
    headed(&head, lines)
}

fn progress(share: Share) -> String {
    let percent = (u128::from(share.sent) * 100).checked_div(u128::from(share.of)).unwrap_or(0);
    format!("{} {percent:>3} %  {} of {}", bar(share), Size(share.sent), Size(share.of))
}

/// As in `[######------]`.
fn bar(share: Share) -> String {
    let full = u128::from(share.sent) * u128::from(BAR_COLUMNS);
    let full = full.checked_div(u128::from(share.of)).unwrap_or(0).min(u128::from(BAR_COLUMNS));
    let full = full as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR_COLUMNS as usize - full))
}

/// What is too long for the window ends in a mark.
fn cut(text: &mut String, columns: usize) {
    if text.chars().count() > columns {
        *text = text.chars().take(columns.saturating_sub(1)).chain(['>']).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::status::tests::example, protocol::SyncStatus};

    const WINDOW: Window = Window { columns: 100, rows: 30, charset: Charset::Ascii };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[track_caller]
    fn find(page: &[Line], part: &str) -> Tone {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = page.iter().find(|line| words(&line.text).contains(part));
        found.unwrap_or_else(|| panic!("{part}: {page:#?}")).tone
    }

    #[test]
    fn a_page_has_the_ring_links_copies_and_memory() {
        let page = Watch::new(example()).page(at(1), WINDOW);
        assert_eq!(find(&page, "a is protected"), Tone::Good);
        find(&page, "[############------------] 4.00 MiB of 8.00 MiB");
        let ring =
            "view 3: a (this node) -> b (successor, DOES NOT ANSWER) -> c (predecessor) -> a";
        assert_eq!(find(&page, ring), Tone::Bad);
        assert_eq!(find(&page, "to c tcp up"), Tone::Plain);
        assert_eq!(find(&page, "sched owner 42 1.00 MiB attached c 42 0 in-sync tcp"), Tone::Plain);
        assert_eq!(find(&page, "queue b 9 in-sync"), Tone::Plain);
        assert!(!page.iter().any(|line| line.text.starts_with("COPYING")));
    }

    #[test]
    fn a_change_is_pointed_at_for_a_while() {
        let mut watch = Watch::new(example());
        let mut next = example();
        next.suspects.clear();
        let view = next.view.as_mut().unwrap();
        (view.number, view.members[1]) = (4, Name::new("d").unwrap());
        watch.heard(at(10), Ok(next));
        let page = watch.page(at(12), WINDOW);
        assert_eq!(find(&page, "2 s ago view 4: b is gone, d joined"), Tone::New);
        assert_eq!(find(&page, "d (new)"), Tone::New);
        let page = watch.page(at(60), WINDOW);
        assert_eq!(find(&page, "50 s ago view 4"), Tone::Quiet);
        assert_eq!(find(&page, "view 4: a"), Tone::Plain);
    }

    #[test]
    fn a_server_that_is_gone_is_told_with_what_was_last_known() {
        let mut watch = Watch::new(example());
        watch.heard(at(3), Err("no server answers".to_owned()));
        let page = watch.page(at(5), WINDOW);
        assert_eq!(find(&page, "no server answers"), Tone::Bad);
        assert_eq!(find(&page, "NO ANSWER from a; asking again, as it was 5 s ago"), Tone::Bad);
        find(&page, "view 3");
        watch.heard(at(6), Ok(example()));
        let page = watch.page(at(6), WINDOW);
        assert_eq!(find(&page, "a is protected"), Tone::Good);
        assert_eq!(find(&page, "the server answers again"), Tone::New);
    }

    #[test]
    fn copies_under_way_have_bars_and_a_rate() {
        let copying = |sent_bytes| {
            let mut status = example();
            let node = Name::new("c").unwrap();
            status.checkpoints[0].syncing = vec![SyncStatus { node, sent_bytes, bytes: 4 << 20 }];
            status
        };
        let mut watch = Watch::new(copying(1 << 20));
        watch.heard(at(1), Ok(copying(2 << 20)));
        let page = watch.page(at(1), WINDOW);
        find(&page, "[############------------] 50 % 2.00 MiB of 4.00 MiB sched to c");
        find(&page, "2.00 MiB of 4.00 MiB all, 1.00 MiB/s, 2 s left");
    }

    #[test]
    fn nothing_is_wider_or_longer_than_the_window() {
        for (columns, rows) in [(20, 5), (1, 1), (80, 24), (200, 60)] {
            let page = Watch::new(example()).page(at(0), Window { columns, rows, ..WINDOW });
            assert!(page.len() <= rows.max(1), "{columns}x{rows}: {page:#?}");
            assert!(page.iter().all(|line| line.text.chars().count() <= columns));
        }
        let large = Watch::new(example()).page(at(0), Window { columns: 200, rows: 60, ..WINDOW });
        assert!(large.iter().any(|line| line.text.contains("+->| a")), "a picture: {large:#?}");
    }
}
