//! The ring as a picture: one box a node in ring order, arrows to the successor, and in each box
//! which copies lie there.
//!
//! ```text
//!    ╭─────────────╮   ╭─────────────╮   ╭─────────────╮
//! ╭─▶│ a           │──▶│ b           │──▶│ c           │──╮
//! │  │ alive       │   │ alive       │   │ dead        │  │
//! │  │ index mirror│   │ index owner │   │             │  │
//! │  ╰─────────────╯   ╰─────────────╯   ╰─────────────╯  │
//! ╰───────────────────────────────────────────────────────╯
//! ```

use std::fmt;

use crate::protocol::{Role, Status};

/// Wider pictures are drawn downwards.
const WIDTH_MAX: usize = 100;
/// More copies than this on a node are counted, not named.
const COPIES_NAMED_MAX: usize = 4;

/// What a node is to the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// A member of the view.
    Alive,
    /// Gone.
    Dead,
    /// A member since the last picture.
    New,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::New => "new",
        })
    }
}

/// One node of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it is to the ring.
    pub state: NodeState,
    /// Copies that lie on it, as in `index v12 owner`.
    pub copies: Vec<String>,
}

/// With which characters to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// `+-|>` only.
    Ascii,
    /// Box drawing characters.
    Unicode,
}

impl Charset {
    /// What this process's terminal shows.
    pub fn of_environment() -> Self {
        let values = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| std::env::var(name).ok());
        Self::of_locale([values[0].as_deref(), values[1].as_deref(), values[2].as_deref()])
    }

    /// What a terminal with this locale shows. Each is a variable's value: `LC_ALL`, `LC_CTYPE`,
    /// `LANG`; the first that is set and not empty decides.
    pub fn of_locale(values: [Option<&str>; 3]) -> Self {
        let deciding = values.into_iter().flatten().find(|value| !value.is_empty());
        let deciding = deciding.unwrap_or_default().to_ascii_uppercase();
        match deciding.contains("UTF-8") || deciding.contains("UTF8") {
            true => Self::Unicode,
            false => Self::Ascii,
        }
    }
}

/// The ring as one of its servers sees it: of the others it knows only what it shares with them.
pub fn ring_of(status: &Status) -> Vec<Node> {
    let members = status.view.iter().flat_map(|view| &view.members);
    members
        .map(|member| {
            let state = match status.suspects.contains(member) {
                true => NodeState::Dead,
                false => NodeState::Alive,
            };
            Node { name: member.to_string(), state, copies: few(copies_on(status, member)) }
        })
        .collect()
}

fn copies_on(status: &Status, member: &crate::name::Name) -> Vec<String> {
    let here = *member == status.node;
    let owned = status.checkpoints.iter().filter(|_| here).map(|c| match c.role {
        Role::Orphan => format!("{} v{} orphan", c.name, c.version),
        Role::Owner | Role::Mirror => format!("{} v{} owner", c.name, c.version),
    });
    let away = status.checkpoints.iter().filter_map(|c| {
        let mirror = c.mirror.as_ref().filter(|mirror| mirror.node == *member)?;
        Some(format!("{} v{} mirror", c.name, mirror.version))
    });
    let held = status.mirrors.iter().filter(|_| here);
    let held = held.map(|mirror| format!("{} v{} mirror", mirror.name, mirror.version));
    let shared = status.mirrors.iter().filter(|mirror| mirror.owner == *member);
    let shared = shared.map(|mirror| format!("{} v{} owner", mirror.name, mirror.version));
    owned.chain(away).chain(held).chain(shared).collect()
}

/// A box that fits a screen.
fn few(mut copies: Vec<String>) -> Vec<String> {
    if copies.len() > COPIES_NAMED_MAX {
        let more = copies.split_off(COPIES_NAMED_MAX - 1).len();
        copies.push(format!("and {more} more"));
    }
    copies
}

/// Draws `nodes`, which stand in ring order: each one's successor is the next.
pub fn draw(nodes: &[Node], charset: Charset) -> String {
    let boxes: Vec<Vec<String>> = nodes.iter().map(lines).collect();
    let height = boxes.iter().map(Vec::len).max().unwrap_or(0);
    let inner = boxes.iter().flatten().map(|line| columns(line)).max().unwrap_or(0) + 1;
    let picture = match nodes.len() * (inner + 6) {
        0 => String::new(),
        width if width <= WIDTH_MAX => across(&boxes, inner, height),
        _ => down(&boxes),
    };
    match charset {
        Charset::Unicode => picture,
        Charset::Ascii => picture.chars().map(ascii).collect(),
    }
}

/// What stands in a node's box.
fn lines(node: &Node) -> Vec<String> {
    let head = [node.name.clone(), node.state.to_string()];
    head.into_iter().chain(node.copies.iter().cloned()).collect()
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

fn across(boxes: &[Vec<String>], inner: usize, height: usize) -> String {
    let edge = "─".repeat(inner + 1);
    let row = |first: &str, cells: &mut dyn Iterator<Item = String>, between: &str, last: &str| {
        let line = format!("{first}{}{last}", cells.collect::<Vec<_>>().join(between));
        line.trim_end().to_owned() + "\n"
    };
    let cell = |lines: &Vec<String>, index: usize| {
        let text = lines.get(index).map_or("", String::as_str);
        format!("│ {text}{}│", " ".repeat(inner - columns(text)))
    };
    let mut picture = row("   ", &mut boxes.iter().map(|_| format!("╭{edge}╮")), "   ", "");
    for index in 0..height {
        let mut cells = boxes.iter().map(|lines| cell(lines, index));
        picture += &match index {
            0 => row("╭─▶", &mut cells, "──▶", "──╮"),
            _ => row("│  ", &mut cells, "   ", "  │"),
        };
    }
    picture += &row("│  ", &mut boxes.iter().map(|_| format!("╰{edge}╯")), "   ", "  │");
    // The way back: as wide as a row between its first and its last character.
    let width = boxes.len() * (inner + 3) + (boxes.len() - 1) * 3 + 4;
    picture + "╰" + &"─".repeat(width) + "╯\n"
}

fn down(boxes: &[Vec<String>]) -> String {
    let mut picture = String::new();
    for (number, lines) in boxes.iter().enumerate() {
        if number > 0 {
            picture += "│  │\n│  ▼\n";
        }
        let head = if number == 0 { "╭─▶" } else { "│  " };
        picture += &format!("{head}{}\n", lines.join(", "));
    }
    picture + "│  │\n╰──╯\n"
}

fn ascii(c: char) -> char {
    match c {
        '╭' | '╮' | '╰' | '╯' => '+',
        '─' => '-',
        '│' => '|',
        '▶' => '>',
        '▼' => 'v',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: NodeState, copies: &[&str]) -> Node {
        let copies = copies.iter().map(|&copy| copy.to_owned()).collect();
        Node { name: name.to_owned(), state, copies }
    }

    #[test]
    fn a_ring_of_three() {
        let nodes = [
            node("a", NodeState::Alive, &["index mirror"]),
            node("b", NodeState::New, &["index owner"]),
            node("c", NodeState::Dead, &[]),
        ];
        let expected = "
   ╭──────────────╮   ╭──────────────╮   ╭──────────────╮
╭─▶│ a            │──▶│ b            │──▶│ c            │──╮
│  │ alive        │   │ new          │   │ dead         │  │
│  │ index mirror │   │ index owner  │   │              │  │
│  ╰──────────────╯   ╰──────────────╯   ╰──────────────╯  │
╰──────────────────────────────────────────────────────────╯
";
        assert_eq!(draw(&nodes, Charset::Unicode), expected[1..]);
        let plain = draw(&nodes, Charset::Ascii);
        assert!(plain.is_ascii());
        assert_eq!(
            plain.lines().nth(1),
            Some("+->| a            |-->| b            |-->| c            |--+")
        );
    }

    #[test]
    fn a_ring_of_one_leads_to_itself() {
        let expected = "
   ╭───────╮
╭─▶│ a     │──╮
│  │ alive │  │
│  ╰───────╯  │
╰─────────────╯
";
        assert_eq!(draw(&[node("a", NodeState::Alive, &[])], Charset::Unicode), expected[1..]);
        assert_eq!(draw(&[], Charset::Unicode), "");
    }

    #[test]
    fn a_ring_too_wide_is_drawn_downwards() {
        let nodes: Vec<Node> = (0..9)
            .map(|n| node(&format!("node-{n}"), NodeState::Alive, &["index owner"]))
            .collect();
        let picture = draw(&nodes, Charset::Unicode);
        assert!(picture.starts_with("╭─▶node-0, alive, index owner\n│  │\n│  ▼\n│  node-1"));
        assert!(picture.ends_with("│  node-8, alive, index owner\n│  │\n╰──╯\n"));
        assert!(picture.lines().all(|line| columns(line) <= WIDTH_MAX));
    }

    #[test]
    fn the_locale_chooses_the_characters() {
        assert_eq!(Charset::of_locale([None, None, Some("de_DE.UTF-8")]), Charset::Unicode);
        assert_eq!(Charset::of_locale([Some("C.utf8"), None, None]), Charset::Unicode);
        assert_eq!(Charset::of_locale([Some("C"), None, Some("en_US.UTF-8")]), Charset::Ascii);
        assert_eq!(Charset::of_locale([Some(""), None, None]), Charset::Ascii);
    }
}
