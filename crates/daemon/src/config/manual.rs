//! Prints the configuration's manual in its two forms, from the doc comments and the defaults:
//! the commented file of `knarr config default`, and docs/config.md.

use std::fmt::Write;

use super::Config;
use super::load::SYSTEM_FILE;
use super::section::{Entry, Section};

const FILE_HEAD: &str =
    "# Every key of knarr's configuration with its default. Only what differs needs to be written down.\n";

impl Config {
    /// A complete file: every key, its manual as a comment, its default as the value.
    pub fn default_toml() -> String {
        Self::default().to_toml()
    }

    /// This configuration as a complete and commented file.
    pub fn to_toml(&self) -> String {
        let values = self.values();
        let mut text = String::from(FILE_HEAD);
        write_section(&mut text, "", Self::DOC, Self::ENTRIES, &values);
        text
    }

    /// The manual page docs/config.md.
    pub fn manual() -> String {
        let values = Self::default().values();
        let mut text = format!(
            "# Configuration\n\n\
             <!-- Written by a test of knarr-daemon from the doc comments in crates/daemon/src/config; do not edit. -->\n\n\
             `knarr serve` reads {SYSTEM_FILE}, or `config.toml` below the directory given with `--root`, or the file given \
             with `--config`. Files in `config.d/` beside it (`*.toml`, in lexical order) are merged over it key by key; a \
             list is replaced as a whole. No file is needed: every key has a default.\n\n\
             An unknown key is an error that names file, line and the key that was probably meant. \
             `knarr config check` tries a configuration, `knarr config show` prints what counts, `knarr config default` \
             prints a commented file with all defaults.\n\n\
             Spans of time are written `\"250ms\"`, `\"30s\"`, `\"5m\"` or `\"1m30s\"`; amounts of bytes `65536`, `\"16MiB\"` or \
             `\"10GB\"`; paths are absolute.\n"
        );
        write_chapter(&mut text, "", Self::DOC, Self::ENTRIES, &values);
        text
    }

    fn values(&self) -> toml::Table {
        // Serialising plain structs of numbers, texts, lists and tables cannot fail; an empty table would only
        // leave values out of a printout.
        toml::Table::try_from(self).unwrap_or_default()
    }
}

fn write_section(text: &mut String, path: &str, doc: &[&str], entries: &'static [Entry], values: &toml::Table) {
    text.push('\n');
    write_comment(text, doc);
    if !path.is_empty() {
        let _ = writeln!(text, "[{path}]");
    }
    for entry in entries.iter().filter(|entry| entry.section.is_none()) {
        if let Some(value) = values.get(entry.name) {
            text.push('\n');
            write_comment(text, entry.doc);
            let _ = writeln!(text, "{} = {value}", entry.name);
        }
    }
    for (entry, below, inner) in sections(entries, values) {
        write_section(text, &joined(path, entry.name), entry.doc, below, inner);
    }
}

fn write_comment(text: &mut String, doc: &[&str]) {
    for line in doc {
        let _ = writeln!(text, "# {}", line.trim());
    }
}

fn write_chapter(text: &mut String, path: &str, doc: &[&str], entries: &'static [Entry], values: &toml::Table) {
    let title = if path.is_empty() { "The top of the file".to_owned() } else { format!("`[{path}]`") };
    let _ = write!(text, "\n## {title}\n\n{}\n", paragraph(doc));
    if entries.iter().any(|entry| entry.section.is_none()) {
        text.push_str("\n| key | default | meaning |\n|---|---|---|\n");
    }
    for entry in entries.iter().filter(|entry| entry.section.is_none()) {
        if let Some(value) = values.get(entry.name) {
            let _ = writeln!(text, "| `{}` | `{value}` | {} |", entry.name, paragraph(entry.doc).replace('|', "\\|"));
        }
    }
    for (entry, below, inner) in sections(entries, values) {
        write_chapter(text, &joined(path, entry.name), entry.doc, below, inner);
    }
}

fn sections<'a>(
    entries: &'static [Entry],
    values: &'a toml::Table,
) -> impl Iterator<Item = (&'static Entry, &'static [Entry], &'a toml::Table)> {
    entries.iter().filter_map(|entry| Some((entry, entry.section?, values.get(entry.name)?.as_table()?)))
}

fn paragraph(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_printed_default_is_read_back_as_the_default() {
        let text = Config::default_toml();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }

    #[test]
    fn the_printed_default_has_every_key_in_its_section() {
        fn leaves(path: &str, entries: &[Entry], found: &mut Vec<String>) {
            for entry in entries {
                match entry.section {
                    Some(below) => leaves(&joined(path, entry.name), below, found),
                    None => found.push(joined(path, entry.name)),
                }
            }
        }
        let mut keys = Vec::new();
        leaves("", Config::ENTRIES, &mut keys);
        let document: toml::Table = Config::default_toml().parse().unwrap();
        for key in &keys {
            let mut value = Some(&toml::Value::Table(document.clone())).cloned();
            for part in key.split('.') {
                value = value.and_then(|value| value.get(part).cloned());
            }
            assert!(value.is_some(), "{key} is missing");
        }
        assert!(keys.len() > 30, "{keys:?}");
    }

    #[test]
    fn a_changed_configuration_is_printed_and_read_back() {
        let mut config = Config { root: "/srv/one".into(), ..Config::default() };
        config.network.cni.bin_dirs.clear();
        config.image.pinned = vec!["registry.k8s.io/*".to_owned(), "with \"quotes\"".to_owned()];
        assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn the_manual_page_is_up_to_date() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
        let manual = Config::manual();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &manual).unwrap();
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(written == manual, "docs/config.md is out of date: run the tests once with UPDATE_DOCS=1");
    }
}
