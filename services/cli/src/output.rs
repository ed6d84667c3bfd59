//! What is printed: tables or JSON on standard output, errors on standard error.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use contract::{ApiError, error::ErrorBody};
use serde::Serialize;
use time::OffsetDateTime;

use crate::failure::Failure;

/// How results and errors are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Format {
    /// The format asked for by arguments that could not be parsed.
    pub fn guess(arguments: &[OsString]) -> Self {
        let texts: Vec<_> = arguments.iter().take_while(|a| *a != "--").map(|a| a.to_string_lossy()).collect();
        let pairs = texts.windows(2).any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json");
        let single = texts.iter().any(|text| text == "-ojson" || text == "-o=json" || text == "--output=json");
        if pairs || single { Self::Json } else { Self::Table }
    }
}

/// Writes bytes to standard output.
///
/// # Errors
/// It is closed or full.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::writing(&error))
}

/// Writes text to standard output.
///
/// # Errors
/// It is closed or full.
pub fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes a value as indented JSON.
///
/// # Errors
/// Standard output is closed or full.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text_of = serde_json::to_string_pretty(value);
    let text_of = text_of.map_err(|error| ApiError::internal(format!("the result is no JSON: {error}")))?;
    text(&format!("{text_of}\n"))
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// Standard output is closed or full.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value);
    let line = line.map_err(|error| ApiError::internal(format!("the result is no JSON: {error}")))?;
    text(&format!("{line}\n"))
}

/// Writes a table with a header; control characters in cells are made visible, because names and reasons may
/// come from a guest.
///
/// # Errors
/// Standard output is closed or full.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = plain();
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    text(&trimmed(&table))
}

/// The lines of such a table, each as long as it is, for whoever puts them on a screen.
pub fn table_lines(header: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let mut table = plain();
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    trimmed(&table).lines().map(str::to_owned).collect()
}

/// Writes names and values, one pair a line.
///
/// # Errors
/// Standard output is closed or full.
pub fn pairs(rows: Vec<(&str, String)>) -> Result<(), Failure> {
    let mut table = plain();
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name.to_owned(), clean(&value)]);
    }
    text(&trimmed(&table))
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Into a pipe a row is a line, however long.
    let arrangement =
        if io::stdout().is_terminal() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.set_content_arrangement(arrangement);
    table
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end())).collect()
}

/// The text with control characters escaped, newlines excepted.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// How much of a console's end is shown with an error; `details` holds more.
const CONSOLE_LINES: usize = 12;

/// Writes an error to standard error.
pub fn error(error: &ApiError, format: Format) {
    let mut out = io::stderr().lock();
    let text = match format {
        Format::Json => {
            let body = ErrorBody { error: error.clone() };
            serde_json::to_string_pretty(&body).unwrap_or_else(|_| "{}".to_owned()) + "\n"
        }
        Format::Table => {
            let mut text = format!("error: {}\n", clean(&error.message));
            if let Some(hint) = &error.hint {
                text.push_str(&format!("hint: {}\n", clean(hint)));
            }
            let console =
                error.details.as_ref().and_then(|details| details["console_tail"].as_str()).unwrap_or_default();
            let lines: Vec<_> = console.lines().collect();
            for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
                text.push_str(&format!("console: {}\n", clean(line)));
            }
            if let Some(id) = error.details.as_ref().and_then(|details| details["operation_id"].as_str()) {
                text.push_str(&format!("operation: {}\n", clean(id)));
            }
            if let Some(trace) = &error.trace_id {
                text.push_str(&format!("trace: {}\n", clean(trace)));
            }
            text
        }
    };
    // Without standard error there is nobody left to tell.
    if out.write_all(text.as_bytes()).is_err() {
        tracing::debug!("standard error is closed");
    }
}

/// A line for people on standard error.
pub fn note(text: &str) {
    let mut out = io::stderr().lock();
    if writeln!(out, "{text}").is_err() {
        tracing::debug!("standard error is closed");
    }
}

/// How long ago, in the largest fitting unit.
pub fn age(then: OffsetDateTime) -> String {
    let passed = OffsetDateTime::now_utc() - then;
    duration(Duration::try_from(passed).unwrap_or_default())
}

/// A duration in its two largest units.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_guessed_from_arguments_that_cannot_be_parsed() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(Format::guess(&words("warren vm create -o json")), Format::Json);
        assert_eq!(Format::guess(&words("warren --output=json vm")), Format::Json);
        assert_eq!(Format::guess(&words("warren exec web -- curl -o json")), Format::Table);
    }

    #[test]
    fn a_guest_cannot_write_escapes_to_the_terminal() {
        assert_eq!(clean("a\x1b[31m\nb"), "a\\u{1b}[31m\nb");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(Duration::from_secs(59)), "59s");
        assert_eq!(duration(Duration::from_secs(3700)), "1h1m");
    }
}
