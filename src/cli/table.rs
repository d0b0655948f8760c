//! Columns for people.

/// How a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Lays `rows` out below `heads`, two spaces between columns.
pub(super) fn table<const N: usize>(
    heads: [(&str, Align); N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let head = heads.map(|(text, _)| text.to_owned());
    let rows: Vec<[String; N]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = (0..N)
            .map(|column| match heads[column].1 {
                Align::Left => format!("{:<width$}", row[column], width = widths[column]),
                Align::Right => format!("{:>width$}", row[column], width = widths[column]),
            })
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// What stands for nothing.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(
            [("NAME", Align::Left), ("V", Align::Right)],
            [row("a", "10"), row("longer", "2")],
        );
        assert_eq!(text, "NAME     V\na       10\nlonger   2\n");
    }
}
