//! How things are shown: tables, ages and sizes for people, JSON and YAML for programs.

pub mod human;
pub mod json;
pub mod progress;
pub mod style;
pub mod table;
pub mod time;

use std::io::Write;

use clap::ValueEnum;

use crate::failure::Failure;

/// The forms in which a list or a thing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// JSON, as crictl prints it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The forms in which one thing is printed whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DocumentFormat {
    /// JSON, as crictl prints it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Writes text to standard output.
///
/// # Errors
/// [`Failure::output`], which is silent where the reader has gone.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// Writes a line to standard error. A terminal that has gone leaves nobody to tell.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints a value as a JSON or YAML document.
pub fn print_document(value: &serde_json::Value, format: DocumentFormat) -> Result<(), Failure> {
    let text = match format {
        DocumentFormat::Json => serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| e.to_string()),
        DocumentFormat::Yaml => yaml_serde::to_string(value).map_err(|error| error.to_string()),
    };
    print(&text.map_err(|error| Failure::new(format!("cannot print the answer: {error}")))?)
}

impl Format {
    /// The document form behind it, if it is none for people.
    pub fn document(self) -> Option<DocumentFormat> {
        match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(DocumentFormat::Json),
            Self::Yaml => Some(DocumentFormat::Yaml),
        }
    }
}
