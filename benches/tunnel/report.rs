//! What is printed: tables as each part ends, for people as Markdown and for programs as JSON; and the arithmetic of
//! samples.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::options::Options;
use crate::{Outcome, machine};

/// One cell of a table.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A number and the digits shown behind its point.
    Number(f64, usize),
    /// A share of one, shown in percent.
    Share(f64),
    /// Not measured.
    None,
}

impl Cell {
    /// Milliseconds with two digits behind the point.
    pub(crate) fn ms(time: Duration) -> Self {
        Self::Number(time.as_secs_f64() * 1e3, 2)
    }

    fn show(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, digits) => format!("{value:.digits$}"),
            Self::Share(share) => format!("{:.0} %", share * 100.0),
            Self::None => "–".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(value, _) | Self::Share(value) => json!(value),
            Self::None => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A part of the output.
#[derive(Debug)]
pub(crate) struct Table {
    title: &'static str,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new<'a>(title: &'static str, columns: impl IntoIterator<Item = &'a str>) -> Self {
        let columns = columns.into_iter().map(str::to_owned).collect();
        Self { title, columns, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn cells(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// A sentence below the table.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn markdown(&self) -> String {
        let shown: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::show).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().filter_map(|row| row.get(column));
            cells.chain(self.columns.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let mut line = String::from("|");
            for (index, width) in widths.iter().enumerate() {
                let cell = cells.get(index).map_or("", |cell| cell);
                // Writing to a String cannot fail.
                let _ = if index == 0 { write!(line, " {cell:<width$} |") } else { write!(line, " {cell:>width$} |") };
            }
            line + "\n"
        };
        let mut text = format!("## {}\n\n{}", self.title, line(&self.columns));
        text.push('|');
        for (index, width) in widths.iter().enumerate() {
            let dashes = "-".repeat(width - usize::from(index > 0));
            let _ = write!(text, " {dashes}{} |", if index > 0 { ":" } else { "" });
        }
        text.push('\n');
        shown.iter().for_each(|row| text.push_str(&line(row)));
        self.notes.iter().for_each(|note| text.push_str(&format!("\n{note}\n")));
        text
    }

    fn json(&self) -> Value {
        let row = |row: &Vec<Cell>| -> Value {
            self.columns.iter().zip(row).map(|(name, cell)| (name.clone(), cell.json())).collect()
        };
        json!({ "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "notes": self.notes })
    }
}

/// All that was measured.
pub(crate) struct Report {
    head: String,
    tables: Vec<Table>,
}

impl Report {
    /// Begins with what was run on.
    pub(crate) fn new(options: &Options) -> Self {
        let head = head(options);
        println!("{head}");
        Self { head, tables: Vec::new() }
    }

    /// Prints a table and keeps it.
    pub(crate) fn add(&mut self, table: Table) {
        println!("{}", table.markdown());
        self.tables.push(table);
    }

    /// Writes the files that were asked for.
    pub(crate) fn write(&self, options: &Options) -> Outcome<()> {
        if let Some(path) = &options.markdown {
            let tables: Vec<String> = self.tables.iter().map(Table::markdown).collect();
            fs::write(path, format!("{}\n{}", self.head, tables.join("\n")))?;
        }
        if let Some(path) = &options.json {
            let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
            fs::write(path, serde_json::to_vec_pretty(&json!({ "run": self.head, "tables": tables }))?)?;
        }
        Ok(())
    }
}

fn head(options: &Options) -> String {
    let mut head = format!("# nws {}, relay: {}", env!("CARGO_PKG_VERSION"), options.relay);
    if options.relays > 1 {
        head += &format!(" ({} of them)", options.relays);
    }
    if options.delay > 0.0 {
        head += &format!(", {} ms away", options.delay);
    }
    if let Some(rate) = options.rate {
        head += &format!(", {:.3} MB/s each way", rate.as_u64() as f64 / 1e6);
    }
    if let Some(events) = options.events_per_second {
        head += &format!(", {events} messages a second");
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).map(|text| text.trim_matches([' ', ':', '\t']));
    // Half of the work is SHA-256, and twice as fast or faster where the processor knows it.
    let sha = if cpu.contains(" sha_ni") || cpu.contains(" sha2") { "with" } else { "without" };
    let processors = machine::processors();
    format!("{head}\n\n{processors} processors, {}, {sha} SHA-256 instructions\n", model.unwrap_or("of unknown model"))
}

/// The middle of the samples; zero of none.
pub(crate) fn median(samples: &mut [Duration]) -> Duration {
    percentile(samples, 50)
}

/// So many percent of the samples are not above it.
pub(crate) fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
    samples.get(index).copied().unwrap_or_default()
}
