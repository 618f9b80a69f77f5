//! Aligned columns without borders, as `kubectl get` and `crictl ps` print them.

use crate::failure::printable;

use super::style::{Style, Tone};

/// Space between columns.
const GAP: usize = 3;

/// One cell; its tone is not part of its width.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// Coloured text.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { tone: Some(tone), ..Self::from(text.into()) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        // A name with a line break or an escape must not break the table.
        Self { text: printable(&text).replace(['\n', '\t'], " "), tone: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Rows under a head.
#[derive(Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these column names.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has one cell for each column.
    pub fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.head.len());
        self.rows.push(row);
    }

    /// The head is printed even above nothing: it says that the answer is an empty list.
    pub fn render(&self, style: Style) -> String {
        let widths: Vec<usize> = self
            .head
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
                cells.chain([title.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let head: Vec<Cell> = self.head.iter().map(|title| Cell::from(*title)).collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            let mut pending = 0;
            for (cell, width) in row.iter().zip(&widths) {
                line.extend(std::iter::repeat_n(' ', pending));
                let painted = cell.tone.map_or_else(|| cell.text.clone(), |tone| style.paint(tone, &cell.text));
                line.push_str(&painted);
                pending = width - cell.text.chars().count() + GAP;
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::When;

    #[test]
    fn columns_align_whatever_their_colour() {
        let mut table = Table::new(&["NAME", "STATE", "AGE"]);
        table.push(vec!["web".into(), Cell::toned(Tone::Good, "Running"), "5m".into()]);
        table.push(vec!["a-longer-name".into(), Cell::toned(Tone::Bad, "Exited"), "".into()]);
        let plain = table.render(Style::of_stdout(When::Never));
        assert_eq!(plain, "NAME            STATE     AGE\nweb             Running   5m\na-longer-name   Exited\n");
        let coloured = table.render(Style::of_stdout(When::Always));
        assert!(coloured.contains("\u{1b}[32mRunning\u{1b}[0m   5m"), "{coloured}");
    }

    #[test]
    fn a_hostile_name_stays_in_its_cell() {
        let mut table = Table::new(&["NAME"]);
        table.push(vec!["a\nb\u{1b}[2J".into()]);
        assert_eq!(table.render(Style::of_stdout(When::Never)), "NAME\na b\u{fffd}[2J\n");
    }
}
